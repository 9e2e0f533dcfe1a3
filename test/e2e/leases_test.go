// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A lease stands for one token: renewing it extends the token for all holders, it never outlives
// the token, and revoking it always works.

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const day = 24 * time.Hour

// renew renews a lease as `vault lease renew` does, and answers what Vault answered.
func (a *app) renew(t *testing.T, lease string, increment time.Duration) *api.Secret {
	t.Helper()
	secret, _ := a.timedRenew(t, lease, increment)
	return secret
}

// timedRenew is renew, and says how long that took.
func (a *app) timedRenew(t *testing.T, lease string, increment time.Duration) (secret *api.Secret, took time.Duration) {
	t.Helper()
	began := time.Now()
	secret, err := a.m.v.root.Sys().Renew(lease, int(increment/time.Second))
	took = time.Since(began)
	require.NoError(t, err, "renew the lease")
	require.NotNil(t, secret)
	require.Equal(t, lease, secret.LeaseID)
	require.Empty(t, tokenIn(secret), "a renewal repeats no token")
	return secret, took
}

// leaseEnd is when Vault will end a lease.
func (a *app) leaseEnd(t *testing.T, lease string) time.Time {
	t.Helper()
	secret, err := a.m.v.root.Sys().Lookup(lease)
	require.NoError(t, err, "look the lease up")
	end, err := time.Parse(time.RFC3339Nano, secret.Data["expire_time"].(string))
	require.NoError(t, err)
	return end
}

// requireWithinTokenLife checks that a lease ends no later than its token does. Vault counts the
// TTL from when it gets the plugin's answer, which is later than the plugin does by a part of what
// the renewal took.
func (a *app) requireWithinTokenLife(t *testing.T, lease, token string, took time.Duration) {
	t.Helper()
	end := a.leaseEnd(t, lease)
	left := a.dt.left(token)
	tokenEnd := time.Now().Add(left)
	require.Positive(t, left, "the token lives")
	require.False(
		t,
		end.After(tokenEnd.Add(took)),
		"the lease ends at %s, the token at %s; the renewal took %s",
		end,
		tokenEnd,
		took,
	)
}

// requireEnds checks that a renewed lease is on its way out: a TTL of a second, a warning, and soon
// no lease.
func (a *app) requireEnds(t *testing.T, renewal *api.Secret) {
	t.Helper()
	require.Equal(t, time.Second, leaseTTL(renewal), "TTL of a lease whose token is no more")
	require.NotEmpty(t, renewal.Warnings, "the holder is told to read again")
	waitFor(t, 10*time.Second, "the lease is gone", func() bool {
		_, err := a.m.v.root.Sys().Lookup(renewal.LeaseID)
		return err != nil
	})
}

// requireTTL checks that a lease's TTL is what is left of the token's life, of which some passed
// while the answer was on its way.
func requireTTL(t *testing.T, lease *api.Secret, left, took time.Duration) {
	t.Helper()
	require.InDelta(
		t,
		left.Seconds(),
		leaseTTL(lease).Seconds(),
		(leaseSlack + took).Seconds(),
		"the lease lives as long as the token",
	)
}

// requireNoWarning checks that a plain renewal warned of nothing. Vault reckons in whole seconds: if
// one ended between the plugin's response and Vault's sum, on a machine that is busy, it says that it
// cut the TTL by one, which nobody can prevent.
func requireNoWarning(t *testing.T, renewal *api.Secret, ended time.Time, took time.Duration) {
	t.Helper()
	if ended.Unix() == ended.Add(-took).Unix() {
		require.Empty(t, renewal.Warnings, "a plain renewal never warns")
	}
}

func TestRenew_extends_the_token_once_for_all_its_holders(t *testing.T) {
	t.Parallel()
	const lifetime = 24 * time.Second
	const holders = 30
	dt := startDingTalk(t, lifetime)
	a := newMount(t).newApp(t, dt, nil)

	leases := make([]string, holders)
	for i := range leases {
		leases[i] = a.read(t).LeaseID
	}
	token := dt.LastToken(a.key)
	require.Equal(t, 1, a.calls())

	// The first half of the token's life: renewals at any moment cost nothing and have nothing to warn
	// of.
	for i := range 20 {
		time.Sleep(time.Duration(i*67%250) * time.Millisecond) // moments within a second are what this is about
		lease := leases[i%holders]
		increment := []time.Duration{0, day}[i%2]
		renewal, took := a.timedRenew(t, lease, increment)
		left := dt.left(token)
		if increment == 0 {
			requireNoWarning(t, renewal, time.Now(), took)
		}
		requireTTL(t, renewal, left, took)
		a.requireWithinTokenLife(t, lease, token, took)
	}
	require.Equal(t, 1, a.calls(), "early renewals cost no upstream call")

	dt.waitForAge(t, token, lifetime/2-time.Second)
	type renewed struct {
		*api.Secret
		ended      time.Time
		took, left time.Duration // of the renewal, and of the token when it came
	}
	renewals := make([]renewed, holders)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i, lease := range leases {
		client := a.m.v.client(t)
		all.Go(func() {
			<-start
			began := time.Now()
			renewal, err := client.Sys().Renew(lease, 0)
			if assert.NoError(t, err) {
				renewals[i] = renewed{renewal, time.Now(), time.Since(began), dt.left(token)}
			}
		})
	}
	close(start)
	all.Wait()

	require.False(t, t.Failed())
	require.Equal(t, 2, a.calls(), "all holders together cost one more call")
	requireSameToken(t, dt.LastToken(a.key), token) // the token is the same
	for i, renewal := range renewals {
		require.Greater(t, renewal.left+renewal.took, lifetime-3*time.Second, "DingTalk gave it a full life")
		requireNoWarning(t, renewal.Secret, renewal.ended, renewal.took)
		requireTTL(t, renewal.Secret, renewal.left, renewal.took)
		a.requireWithinTokenLife(t, leases[i], token, renewal.took)
	}

	for _, increment := range []time.Duration{time.Second, day} {
		renewal, took := a.timedRenew(t, leases[0], increment)
		require.LessOrEqual(t, leaseTTL(renewal), increment)
		a.requireWithinTokenLife(t, leases[0], token, took)
	}
	requireSameToken(t, a.token(t), token)
	require.Equal(t, 2, a.calls())
}

func TestRenew_answers_with_the_life_left_when_DingTalk_is_down(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := startDingTalk(t, lifetime)
	a := newMount(t).newApp(t, dt, fields{"request_timeout": "2s"})
	secret := a.read(t)
	token := tokenIn(secret)

	dt.waitForAge(t, token, lifetime/2-time.Second)
	dt.Close()
	renewal, took := a.timedRenew(t, secret.LeaseID, 0)
	requireTTL(t, renewal, dt.left(token), took)
	a.requireWithinTokenLife(t, secret.LeaseID, token, took)

	renewal, took = a.timedRenew(t, secret.LeaseID, day)
	require.LessOrEqual(t, leaseTTL(renewal), dt.left(token)+took+time.Second)
	a.requireWithinTokenLife(t, secret.LeaseID, token, took)
	requireSameToken(t, a.token(t), token) // the current token still serves
}

func TestRenew_of_a_token_that_DingTalk_replaced_ends_the_lease(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	dt := startDingTalk(t, lifetime)
	a := newMount(t).newApp(t, dt, nil)
	secret := a.read(t)
	old := tokenIn(secret)

	dt.RotateTokens(a.key, true)
	dt.waitForAge(t, old, lifetime/2-time.Second)
	a.requireEnds(t, a.renew(t, secret.LeaseID, 0))
	require.Equal(t, 2, a.calls())

	token := a.token(t)
	requireOtherToken(t, token, old) // a read gets the new token
	requireSameToken(t, token, dt.LastToken(a.key))
	require.Equal(t, 2, a.calls(), "the renewal fetched it already")
}

func TestRenew_after_new_credentials_ends_the_lease(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	secret := a.read(t)
	old := tokenIn(secret)

	dt.ExpireTokens(a.key)
	fresh := newSecret()
	dt.SetApp(a.key, fresh)
	a.update(t, a.rotation(fresh))
	require.Equal(t, 2, a.calls(), "the new secret was verified")

	a.requireEnds(t, a.renew(t, secret.LeaseID, day))
	token := a.token(t)
	requireOtherToken(t, token, old) // a read gets the new token
	requireSameToken(t, token, dt.LastToken(a.key))
	require.Equal(t, 2, a.calls())
}

func TestRenew_of_a_deleted_app_ends_the_lease(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	secret := a.read(t)
	a.delete(t)

	a.requireEnds(t, a.renew(t, secret.LeaseID, day))
	_, err := a.tryRead()
	assert.Contains(t, refused(t, err, 400), "config/"+a.name)
	require.Equal(t, 1, a.calls())
}

func TestLifetimeWatcher_keeps_one_token_alive_until_it_is_replaced(t *testing.T) {
	t.Parallel()
	// The watcher renews after two thirds of a lease, and a token is extended at most once in 10 s.
	const lifetime = 16 * time.Second
	dt := startDingTalk(t, lifetime)
	a := newMount(t).newApp(t, dt, nil)
	secret := a.read(t)
	token := tokenIn(secret)

	watcher, err := a.m.v.client(t).NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: secret})
	require.NoError(t, err)
	go watcher.Start()
	defer watcher.Stop()

	renewals := 0
	for lived := time.After(lifetime * 3 / 2); lived != nil; {
		select {
		case renewal := <-watcher.RenewCh():
			renewals++
			require.Empty(t, renewal.Secret.Warnings)
			require.Positive(t, dt.left(token))
		case err := <-watcher.DoneCh():
			require.FailNow(t, "the watcher gave the lease up", "%v", err)
		case <-lived:
			lived = nil
		}
	}
	require.Positive(t, renewals)
	require.Positive(t, dt.left(token), "the token has outlived its first lifetime")
	require.LessOrEqual(t, a.calls(), 4, "two calls in a lifetime are enough")

	dt.ExpireTokens(a.key)
	for ended := time.After(lifetime); ; {
		select {
		case <-watcher.RenewCh():
			continue
		case err := <-watcher.DoneCh():
			require.NoError(t, err)
		case <-ended:
			require.FailNow(t, "the watcher holds on to a token that was replaced")
		}
		break
	}
	require.True(t, dt.LastToken(a.key) != token && a.token(t) == dt.LastToken(a.key), "a read gets the new token")
}

func TestWrap_lives_no_longer_than_the_token(t *testing.T) {
	t.Parallel()
	const lifetime = 60 * time.Second
	dt := startDingTalk(t, lifetime)
	m := newMount(t)
	for name, tune := range map[string]fields{"leased": nil, "unleased": {"leased": false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := m.newApp(t, dt, tune)
			client := m.v.client(t)

			for wrapFor, atMost := range map[string]time.Duration{"1h": lifetime, "10s": 10 * time.Second} {
				client.SetWrappingLookupFunc(func(string, string) string { return wrapFor })
				began := time.Now()
				wrapped, err := client.Logical().Read(a.credsPath())
				took := time.Since(began)
				require.NoError(t, err)
				require.NotNil(t, wrapped.WrapInfo)
				require.Empty(t, wrapped.Data)
				token := dt.LastToken(a.key)
				noteSecret(token, "an access token")
				ttl := time.Duration(wrapped.WrapInfo.TTL) * time.Second
				require.LessOrEqual(t, ttl, min(atMost, dt.left(token)+took+time.Second))
				require.Greater(t, ttl, atMost-5*time.Second, "cut to the token's life, not shorter")

				client.SetWrappingLookupFunc(nil)
				secret, err := client.Logical().Unwrap(wrapped.WrapInfo.Token)
				require.NoError(t, err)
				requireSameToken(t, tokenIn(secret), token) // the wrapped answer holds the token
				require.Equal(t, name == "leased", secret.LeaseID != "")
			}
		})
	}
}

// outstanding makes apps with leases: one is as it was, one's DingTalk does not answer any more,
// one was deleted.
func outstanding(t *testing.T, m *mount) {
	t.Helper()
	dt, down := startDingTalk(t, fullLifetime), startDingTalk(t, fullLifetime)
	apps := []*app{m.newApp(t, dt, nil), m.newApp(t, down, nil), m.newApp(t, dt, nil)}
	for _, a := range apps {
		for range 10 {
			a.read(t)
		}
		require.Len(t, a.leases(t), 10)
	}
	down.Close()
	apps[2].delete(t)
}

func TestLeases_are_revoked_by_prefix_at_once(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	outstanding(t, m)

	result := m.v.cli(t, "lease", "revoke", "-sync", "-prefix", m.path+"/")
	result.succeeded(t)
	require.Less(t, result.took, 6*time.Second)
	require.Empty(t, m.list(t, "sys/leases/lookup/"+m.path+"/creds"))
}

func TestMount_with_leases_is_disabled_at_once(t *testing.T) {
	t.Parallel()
	v := sharedVault(t)
	m := v.enable(t)
	outstanding(t, m)

	result := v.cli(t, "secrets", "disable", m.path)
	result.succeeded(t)
	require.Less(t, result.took, 6*time.Second)
	mounts, err := v.root.Sys().ListMounts()
	require.NoError(t, err)
	require.NotContains(t, mounts, m.path+"/")
	require.Empty(t, m.list(t, "sys/leases/lookup/"+m.path))
}

func TestMount_that_is_moved_keeps_its_apps_and_tokens(t *testing.T) {
	t.Parallel()
	v := sharedVault(t)
	dt := startDingTalk(t, fullLifetime)
	m := v.enable(t)
	a := m.newApp(t, dt, nil)
	token := a.token(t)

	m.path += "-moved"
	v.mustCLI(t, "secrets", "move", strings.TrimSuffix(m.path, "-moved"), m.path)
	requireSameToken(t, a.token(t), token)
	require.Equal(t, 1, a.calls())
	v.mustCLI(t, "secrets", "disable", m.path)
}

func TestLease_is_capped_by_the_mount(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	tenMinutes := "10m"
	require.NoError(t, m.v.root.Sys().TuneMountAllowNil(m.path, api.TuneMountConfigInput{MaxLeaseTTL: &tenMinutes}))
	a := m.newApp(t, dt, nil)

	secret := a.read(t)
	require.Equal(t, 10*time.Minute, leaseTTL(secret))
	require.True(t, secret.Renewable)
	require.LessOrEqual(t, leaseTTL(a.renew(t, secret.LeaseID, day)), 10*time.Minute)
}

func TestLease_of_one_app_ends_alone(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	first, second := a.read(t), a.read(t)
	require.NoError(t, a.m.v.root.Sys().Revoke(first.LeaseID))
	require.Equal(t, []string{second.LeaseID[len(a.credsPath())+1:]}, a.leases(t))
	requireSameToken(t, a.token(t), tokenIn(first)) // the token is shared and stays
	require.Equal(t, 1, a.calls())
}
