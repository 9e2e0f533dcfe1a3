// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The mount's default_lease_ttl sets how soon holders of a lease renew it, and so learn that
// DingTalk has replaced their token. The tests show which clients always have a live token, and how
// long the others keep one that was replaced.

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestDefaultLeaseTTL_bounds_leases_at_issue_and_at_renewal(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.NewApp(t, dt, nil)
	before := a.Read(t)
	token := harness.TokenIn(before)
	require.Greater(t, leaseTTL(before), time.Hour, "Vault's own default is longer than a token lives")

	m.Vault.MustCLI(t, "secrets", "tune", "-default-lease-ttl=10m", m.Path+"/")
	var secret *api.Secret
	harness.WaitFor(t, 5*time.Second, "leases follow the mount's new default", func() bool {
		secret = a.Read(t)
		return leaseTTL(secret) == 10*time.Minute
	})
	require.True(t, secret.Renewable)
	harness.RequireSameToken(t, harness.TokenIn(secret), token)

	for _, lease := range []string{secret.LeaseID, before.LeaseID} {
		renewal, took := timedRenew(t, a, lease, 0)
		require.Equal(t, 10*time.Minute, leaseTTL(renewal))
		requireNoWarning(t, renewal, time.Now(), took)
		renewal, took = timedRenew(t, a, lease, day)
		requireTTL(t, renewal, dt.Remaining(token), took) // an increment reaches as far as the token
		requireWithinTokenLife(t, a, lease, token, took)
	}
	require.Equal(t, 1, a.Calls())

	m.Vault.MustCLI(t, "secrets", "tune", "-default-lease-ttl=24h", m.Path+"/")
	harness.WaitFor(t, 5*time.Second, "leases end with the token again", func() bool {
		return leaseTTL(a.Read(t)) > harness.FullLifetime-time.Minute
	})
}

func TestDefaultLeaseTTL_LifetimeWatcher_holds_a_replaced_token_for_twice_as_long_at_most(t *testing.T) {
	t.Parallel()
	a := harness.NewTunedApp(t)
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var held string
	var holder sync.WaitGroup
	client := a.Mount.Vault.Client(t)
	holder.Go(func() {
		for ctx.Err() == nil {
			secret, err := a.TryRead()
			if err != nil {
				t.Errorf("read again: %v", err)
				return
			}
			mu.Lock()
			held = harness.TokenIn(secret)
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
	a.RequireHolderFollows(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return held != "" && held == a.DingTalk.LastToken(a.Key)
	})
}

func TestDefaultLeaseTTL_Agent_without_a_cache_holds_a_replaced_token_for_twice_as_long_at_most(t *testing.T) {
	t.Parallel()
	a := harness.NewTunedApp(t)
	g := startAgent(t, prepareAgent(t, a.Mount.Vault, []string{a.CredsPath()}, ""), "one-app.hcl", a)
	a.RequireHolderFollows(t, func() bool {
		g.Look(t)
		return g.Holds(a)
	})
}

// An Agent's cache serves the renewals of the Agent's own templates, so that these do not learn of
// a replaced token. Without leases there is nothing to renew.
func TestAgent_with_a_cache_block_and_without_leases_never_holds_a_dead_token(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"leased": false})
	dt.RotateTokens(a.Key, true)
	dir := prepareAgent(t, a.Mount.Vault, []string{a.CredsPath()}, "")
	here := agentPlaceholders(a.Mount.Vault, dir)
	here[harness.ExampleCreds] = a.CredsPath()
	startVaultClient(t, "agent", dir, harness.RunnableExample(t, "agent/one-app.hcl", here)+"\ncache {}\n")

	file := harness.NewRendered(filepath.Join(dir, "dingtalk.env"), dt, 1)
	harness.WatchFiles(t, 4*lifetime, "the file has held four tokens", []*harness.Rendered{file},
		func() bool { return len(file.Contents) == 4 })
	require.NotContains(t, strings.Join(file.Contents[1:], ""), file.Contents[0], "each is another one")
	t.Logf("dead for %s at most", file.Longest)
}
