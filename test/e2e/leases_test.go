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

	"vault-plugin-secrets-dingtalk/test/harness"
)

const day = 24 * time.Hour

// leaseSlack is how much shorter a lease may be than the token's TTL, as both sides round down to
// whole seconds.
const leaseSlack = 2 * time.Second

// leaseTTL returns the TTL of a response's lease.
func leaseTTL(secret *api.Secret) time.Duration {
	return time.Duration(secret.LeaseDuration) * time.Second
}

// renewLease renews a lease as `vault lease renew` does, and returns Vault's response.
func renewLease(t *testing.T, a *harness.App, lease string, increment time.Duration) *api.Secret {
	t.Helper()
	secret, _ := timedRenew(t, a, lease, increment)
	return secret
}

// timedRenew is renew, and says how long that took.
func timedRenew(
	t *testing.T, a *harness.App, lease string, increment time.Duration,
) (secret *api.Secret, took time.Duration) {
	t.Helper()
	began := time.Now()
	secret, err := a.Mount.Vault.Root.Sys().Renew(lease, int(increment/time.Second))
	took = time.Since(began)
	require.NoError(t, err, "renew the lease")
	require.NotNil(t, secret)
	require.Equal(t, lease, secret.LeaseID)
	require.Empty(t, harness.TokenIn(secret), "a renewal repeats no token")
	return secret, took
}

// leaseEnd is when Vault will end a lease.
func leaseEnd(t *testing.T, a *harness.App, lease string) time.Time {
	t.Helper()
	secret, err := a.Mount.Vault.Root.Sys().Lookup(lease)
	require.NoError(t, err, "look the lease up")
	end, err := time.Parse(time.RFC3339Nano, secret.Data["expire_time"].(string))
	require.NoError(t, err)
	return end
}

// requireWithinTokenLife checks that a lease ends no later than its token does. Vault counts the
// TTL from when it gets the plugin's response, which is later than the plugin does by a part of
// what the renewal took.
func requireWithinTokenLife(t *testing.T, a *harness.App, lease, token string, took time.Duration) {
	t.Helper()
	end := leaseEnd(t, a, lease)
	left := a.DingTalk.Remaining(token)
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

// requireLeaseEnds checks that a renewed lease is on its way out: a TTL of a second, a warning, and
// soon no lease.
func requireLeaseEnds(t *testing.T, a *harness.App, renewal *api.Secret) {
	t.Helper()
	require.Equal(t, time.Second, leaseTTL(renewal), "TTL of a lease whose token is no more")
	require.NotEmpty(t, renewal.Warnings, "the holder is told to read again")
	harness.WaitFor(t, 10*time.Second, "the lease is gone", func() bool {
		_, err := a.Mount.Vault.Root.Sys().Lookup(renewal.LeaseID)
		return err != nil
	})
}

// requireTTL checks that a lease's TTL is the token's remaining TTL, of which some passed while
// the response was on its way.
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

// requireNoWarning checks that a plain renewal warned of nothing. Vault reckons in whole seconds:
// if one ended between the plugin's response and Vault's sum, on a machine that is busy, it says
// that it cut the TTL by one, which nobody can prevent.
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
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)

	leases := make([]string, holders)
	for i := range leases {
		leases[i] = a.Read(t).LeaseID
	}
	token := dt.LastToken(a.Key)
	require.Equal(t, 1, a.Calls())

	// The first half of the token's life: renewals at any moment cost nothing and have nothing to warn
	// of.
	for i := range 20 {
		time.Sleep(time.Duration(i*67%250) * time.Millisecond) // moments within a second are what this is about
		lease := leases[i%holders]
		increment := []time.Duration{0, day}[i%2]
		renewal, took := timedRenew(t, a, lease, increment)
		left := dt.Remaining(token)
		if increment == 0 {
			requireNoWarning(t, renewal, time.Now(), took)
		}
		requireTTL(t, renewal, left, took)
		requireWithinTokenLife(t, a, lease, token, took)
	}
	require.Equal(t, 1, a.Calls(), "early renewals cost no upstream call")

	dt.WaitForAge(t, token, lifetime/2-time.Second)
	type renewed struct {
		*api.Secret
		ended      time.Time
		took, left time.Duration // of the renewal, and of the token when it arrived
	}
	renewals := make([]renewed, holders)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i, lease := range leases {
		client := a.Mount.Vault.Client(t)
		all.Go(func() {
			<-start
			began := time.Now()
			renewal, err := client.Sys().Renew(lease, 0)
			if assert.NoError(t, err) {
				renewals[i] = renewed{renewal, time.Now(), time.Since(began), dt.Remaining(token)}
			}
		})
	}
	close(start)
	all.Wait()

	require.False(t, t.Failed())
	require.Equal(t, 2, a.Calls(), "all holders together cost one more call")
	harness.RequireSameToken(t, dt.LastToken(a.Key), token) // the token is the same
	for i, renewal := range renewals {
		require.Greater(t, renewal.left+renewal.took, lifetime-3*time.Second, "DingTalk gave it a full life")
		requireNoWarning(t, renewal.Secret, renewal.ended, renewal.took)
		requireTTL(t, renewal.Secret, renewal.left, renewal.took)
		requireWithinTokenLife(t, a, leases[i], token, renewal.took)
	}

	for _, increment := range []time.Duration{time.Second, day} {
		renewal, took := timedRenew(t, a, leases[0], increment)
		require.LessOrEqual(t, leaseTTL(renewal), increment)
		requireWithinTokenLife(t, a, leases[0], token, took)
	}
	harness.RequireSameToken(t, a.Token(t), token)
	require.Equal(t, 2, a.Calls())
}

func TestRenew_returns_the_remaining_TTL_when_DingTalk_is_down(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"request_timeout": "2s"})
	secret := a.Read(t)
	token := harness.TokenIn(secret)

	dt.WaitForAge(t, token, lifetime/2-time.Second)
	dt.Close()
	renewal, took := timedRenew(t, a, secret.LeaseID, 0)
	requireTTL(t, renewal, dt.Remaining(token), took)
	requireWithinTokenLife(t, a, secret.LeaseID, token, took)

	renewal, took = timedRenew(t, a, secret.LeaseID, day)
	require.LessOrEqual(t, leaseTTL(renewal), dt.Remaining(token)+took+time.Second)
	requireWithinTokenLife(t, a, secret.LeaseID, token, took)
	harness.RequireSameToken(t, a.Token(t), token) // the current token still serves
}

func TestRenew_of_a_token_that_DingTalk_replaced_ends_the_lease(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	secret := a.Read(t)
	old := harness.TokenIn(secret)

	dt.RotateTokens(a.Key, true)
	dt.WaitForAge(t, old, lifetime/2-time.Second)
	requireLeaseEnds(t, a, renewLease(t, a, secret.LeaseID, 0))
	require.Equal(t, 2, a.Calls())

	token := a.Token(t)
	harness.RequireOtherToken(t, token, old) // a read gets the new token
	harness.RequireSameToken(t, token, dt.LastToken(a.Key))
	require.Equal(t, 2, a.Calls(), "the renewal fetched it already")
}

func TestRenew_after_new_credentials_ends_the_lease(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	secret := a.Read(t)
	old := harness.TokenIn(secret)

	dt.ExpireTokens(a.Key)
	fresh := harness.NewSecret()
	dt.SetApp(a.Key, fresh)
	a.Update(t, a.Rotation(fresh))
	require.Equal(t, 2, a.Calls(), "the new secret was verified")

	requireLeaseEnds(t, a, renewLease(t, a, secret.LeaseID, day))
	token := a.Token(t)
	harness.RequireOtherToken(t, token, old) // a read gets the new token
	harness.RequireSameToken(t, token, dt.LastToken(a.Key))
	require.Equal(t, 2, a.Calls())
}

func TestRenew_of_a_deleted_app_ends_the_lease(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	secret := a.Read(t)
	a.Delete(t)

	requireLeaseEnds(t, a, renewLease(t, a, secret.LeaseID, day))
	_, err := a.TryRead()
	assert.Contains(t, harness.Refused(t, err, 400), "config/"+a.Name)
	require.Equal(t, 1, a.Calls())
}

func TestLifetimeWatcher_keeps_one_token_alive_until_it_is_replaced(t *testing.T) {
	t.Parallel()
	// The watcher renews after two thirds of a lease, and a token is extended at most once in 10 s.
	const lifetime = 16 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	secret := a.Read(t)
	token := harness.TokenIn(secret)

	watcher, err := a.Mount.Vault.Client(t).NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: secret})
	require.NoError(t, err)
	go watcher.Start()
	defer watcher.Stop()

	renewals := 0
	for lived := time.After(lifetime * 3 / 2); lived != nil; {
		select {
		case renewal := <-watcher.RenewCh():
			renewals++
			require.Empty(t, renewal.Secret.Warnings)
			require.Positive(t, dt.Remaining(token))
		case err := <-watcher.DoneCh():
			require.FailNow(t, "the watcher gave the lease up", "%v", err)
		case <-lived:
			lived = nil
		}
	}
	require.Positive(t, renewals)
	require.Positive(t, dt.Remaining(token), "the token has outlived its first lifetime")
	require.LessOrEqual(t, a.Calls(), 4, "two calls in a lifetime are enough")

	dt.ExpireTokens(a.Key)
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
	require.True(t, dt.LastToken(a.Key) != token && a.Token(t) == dt.LastToken(a.Key), "a read gets the new token")
}

func TestWrap_lives_no_longer_than_the_token(t *testing.T) {
	t.Parallel()
	const lifetime = 60 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	m := harness.NewMount(t)
	for name, tune := range map[string]harness.Fields{"leased": nil, "unleased": {"leased": false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := m.NewApp(t, dt, tune)
			client := m.Vault.Client(t)

			for wrapFor, atMost := range map[string]time.Duration{"1h": lifetime, "10s": 10 * time.Second} {
				client.SetWrappingLookupFunc(func(string, string) string { return wrapFor })
				began := time.Now()
				wrapped, err := client.Logical().Read(a.CredsPath())
				took := time.Since(began)
				require.NoError(t, err)
				require.NotNil(t, wrapped.WrapInfo)
				require.Empty(t, wrapped.Data)
				token := dt.LastToken(a.Key)
				harness.NoteSecret(token, "an access token")
				ttl := time.Duration(wrapped.WrapInfo.TTL) * time.Second
				require.LessOrEqual(t, ttl, min(atMost, dt.Remaining(token)+took+time.Second))
				require.Greater(t, ttl, atMost-5*time.Second, "cut to the token's life, not shorter")

				client.SetWrappingLookupFunc(nil)
				secret, err := client.Logical().Unwrap(wrapped.WrapInfo.Token)
				require.NoError(t, err)
				harness.RequireSameToken(t, harness.TokenIn(secret), token) // the wrapped response holds the token
				require.Equal(t, name == "leased", secret.LeaseID != "")
			}
		})
	}
}

// outstanding makes apps with leases: one is as it was, one's DingTalk does not respond any more,
// one was deleted.
func outstanding(t *testing.T, m *harness.Mount) {
	t.Helper()
	dt, down := harness.StartDingTalk(t, harness.FullLifetime), harness.StartDingTalk(t, harness.FullLifetime)
	apps := []*harness.App{m.NewApp(t, dt, nil), m.NewApp(t, down, nil), m.NewApp(t, dt, nil)}
	for _, a := range apps {
		for range 10 {
			a.Read(t)
		}
		require.Len(t, a.Leases(t), 10)
	}
	down.Close()
	apps[2].Delete(t)
}

func TestLeases_are_revoked_by_prefix_at_once(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	outstanding(t, m)

	result := m.Vault.CLI(t, "lease", "revoke", "-sync", "-prefix", m.Path+"/")
	result.Succeeded(t)
	require.Less(t, result.Took, 6*time.Second)
	require.Empty(t, m.List(t, "sys/leases/lookup/"+m.Path+"/creds"))
}

func TestMount_with_leases_is_disabled_at_once(t *testing.T) {
	t.Parallel()
	v := harness.SharedVault(t)
	m := v.Enable(t)
	outstanding(t, m)

	result := v.CLI(t, "secrets", "disable", m.Path)
	result.Succeeded(t)
	require.Less(t, result.Took, 6*time.Second)
	mounts, err := v.Root.Sys().ListMounts()
	require.NoError(t, err)
	require.NotContains(t, mounts, m.Path+"/")
	require.Empty(t, m.List(t, "sys/leases/lookup/"+m.Path))
}

func TestMount_that_is_moved_keeps_its_apps_and_tokens(t *testing.T) {
	t.Parallel()
	v := harness.SharedVault(t)
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := v.Enable(t)
	a := m.NewApp(t, dt, nil)
	token := a.Token(t)

	m.Path += "-moved"
	v.MustCLI(t, "secrets", "move", strings.TrimSuffix(m.Path, "-moved"), m.Path)
	harness.RequireSameToken(t, a.Token(t), token)
	require.Equal(t, 1, a.Calls())
	v.MustCLI(t, "secrets", "disable", m.Path)
}

func TestLease_is_capped_by_the_mount(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	tenMinutes := "10m"
	require.NoError(t, m.Vault.Root.Sys().TuneMountAllowNil(m.Path, api.TuneMountConfigInput{MaxLeaseTTL: &tenMinutes}))
	a := m.NewApp(t, dt, nil)

	secret := a.Read(t)
	require.Equal(t, 10*time.Minute, leaseTTL(secret))
	require.True(t, secret.Renewable)
	require.LessOrEqual(t, leaseTTL(renewLease(t, a, secret.LeaseID, day)), 10*time.Minute)
}

func TestLease_of_one_app_ends_alone(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	first, second := a.Read(t), a.Read(t)
	require.NoError(t, a.Mount.Vault.Root.Sys().Revoke(first.LeaseID))
	require.Equal(t, []string{second.LeaseID[len(a.CredsPath())+1:]}, a.Leases(t))
	harness.RequireSameToken(t, a.Token(t), harness.TokenIn(first)) // the token is shared and stays
	require.Equal(t, 1, a.Calls())
}
