// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The mount's default_lease_ttl is how soon holders of a lease come back, and so learn that DingTalk
// has replaced their token. And the programs that hold one: which of them has a live token at all
// times, and how long they go on with one that was replaced.

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"
)

func TestDefaultLeaseTTL_bounds_leases_at_issue_and_at_renewal(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newApp(t, dt, nil)
	before := a.read(t)
	token := tokenIn(before)
	require.Greater(t, leaseTTL(before), time.Hour, "Vault's own default is longer than a token lives")

	m.v.mustCLI(t, "secrets", "tune", "-default-lease-ttl=10m", m.path+"/")
	var secret *api.Secret
	waitFor(t, 5*time.Second, "leases follow the mount's new default", func() bool {
		secret = a.read(t)
		return leaseTTL(secret) == 10*time.Minute
	})
	require.True(t, secret.Renewable)
	requireSameToken(t, tokenIn(secret), token)

	for _, lease := range []string{secret.LeaseID, before.LeaseID} {
		renewal, took := a.timedRenew(t, lease, 0)
		require.Equal(t, 10*time.Minute, leaseTTL(renewal))
		requireNoWarning(t, renewal, time.Now(), took)
		renewal, took = a.timedRenew(t, lease, day)
		requireTTL(t, renewal, dt.left(token), took) // an increment reaches as far as the token
		a.requireWithinTokenLife(t, lease, token, took)
	}
	require.Equal(t, 1, a.calls())

	m.v.mustCLI(t, "secrets", "tune", "-default-lease-ttl=24h", m.path+"/")
	waitFor(t, 5*time.Second, "leases end with the token again", func() bool {
		return leaseTTL(a.read(t)) > fullLifetime-time.Minute
	})
}

const (
	// replacedLifetime is a token's in the tests of what is replaced, and tunedTo the mount's
	// default_lease_ttl: a twelfth.
	replacedLifetime = time.Minute
	tunedTo          = replacedLifetime / 12
)

// newTunedMount is a mount whose default_lease_ttl is tuned, with an app of which DingTalk replaces
// the token at each fetch.
func newTunedMount(t *testing.T) *app {
	t.Helper()
	m := newMount(t)
	m.v.mustCLI(t, "secrets", "tune", "-default-lease-ttl="+tunedTo.String(), m.path+"/")
	dt := startDingTalk(t, replacedLifetime)
	a := m.newApp(t, dt, nil)
	dt.RotateTokens(a.key, true)
	return a
}

// requireHolderFollows replaces the app's token again and again. Within twice the mount's
// default_lease_ttl the holder has the new one.
func (a *app) requireHolderFollows(t *testing.T, holds func() bool) {
	t.Helper()
	waitFor(t, 30*time.Second, "the holder has a token", holds)
	for range 3 {
		calls := a.calls()
		waitFor(t, 15*time.Second, "the token is replaced", func() bool { // at most once in ten seconds
			a.refreshNow(t)
			return a.calls() > calls
		})
		noteSecret(a.dt.LastToken(a.key), "an access token")
		replaced := time.Now()
		waitFor(t, 2*tunedTo, "the holder has the new token", holds)
		t.Logf("the new token after %s", time.Since(replaced).Round(time.Millisecond))
	}
}

func TestDefaultLeaseTTL_LifetimeWatcher_holds_a_replaced_token_for_twice_as_long_at_most(t *testing.T) {
	t.Parallel()
	a := newTunedMount(t)
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var held string
	var holder sync.WaitGroup
	client := a.m.v.client(t)
	holder.Go(func() {
		for ctx.Err() == nil {
			secret, err := a.tryRead()
			if err != nil {
				t.Errorf("read again: %v", err)
				return
			}
			mu.Lock()
			held = tokenIn(secret)
			mu.Unlock()
			watcher, err := client.NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: secret})
			if err != nil {
				t.Errorf("watch the lease: %v", err)
				return
			}
			go watcher.Start()
			for done := false; !done; {
				select {
				case <-watcher.RenewCh():
				case err := <-watcher.DoneCh():
					if err != nil {
						t.Errorf("renew the lease: %v", err)
					}
					done = true
				case <-ctx.Done():
					done = true
				}
			}
			watcher.Stop()
		}
	})
	defer holder.Wait()
	defer stop()
	a.requireHolderFollows(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return held != "" && held == a.dt.LastToken(a.key)
	})
}

func TestDefaultLeaseTTL_Agent_without_a_cache_holds_a_replaced_token_for_twice_as_long_at_most(t *testing.T) {
	t.Parallel()
	a := newTunedMount(t)
	g := startAgent(t, prepareAgent(t, a.m.v, []string{a.credsPath()}, ""), "one-app.hcl", a)
	a.requireHolderFollows(t, func() bool {
		g.look(t)
		return g.holds(a)
	})
}

func TestDefaultLeaseTTL_consul_template_holds_a_replaced_token_for_twice_as_long_at_most(t *testing.T) {
	t.Parallel()
	a := newTunedMount(t)
	r := startConsulTemplate(t, a)
	a.requireHolderFollows(t, func() bool {
		r.look(t)
		return r.holds(a)
	})
}

// An Agent's cache answers the renewals of the Agent's own templates, so that these do not learn of a
// replaced token. Without leases there is nothing to renew.
func TestAgent_with_a_cache_block_and_without_leases_never_holds_a_dead_token(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := startDingTalk(t, lifetime)
	a := newMount(t).newApp(t, dt, fields{"leased": false})
	dt.RotateTokens(a.key, true)
	dir := prepareAgent(t, a.m.v, []string{a.credsPath()}, "")
	here := agentPlaceholders(a.m.v, dir)
	here[exampleCreds] = a.credsPath()
	startVaultClient(t, "agent", dir, runnableExample(t, "agent/one-app.hcl", here)+"\ncache {}\n")

	file := newRendered(filepath.Join(dir, "dingtalk.env"), dt, 1)
	watchFiles(t, 4*lifetime, "the file has held four tokens", []*rendered{file},
		func() bool { return len(file.contents) == 4 })
	require.NotContains(t, strings.Join(file.contents[1:], ""), file.contents[0], "each is another one")
	t.Logf("dead for %s at most", file.longest)
}
