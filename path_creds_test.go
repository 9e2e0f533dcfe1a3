// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests the lease of a token as the engine makes it. What Vault makes of it is tested
// against a real one, but the sum that decides a lease's end, framework.CalculateTTL, is Vault's
// own and used here.

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/wrapping"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// lease is a lease as Vault keeps it.
type lease struct {
	m       *mount
	token   string
	secret  logical.Secret
	expires time.Time
}

// issue reads the app's token with a lease.
func (m *mount) issue() *lease {
	m.t.Helper()
	got := m.read(theApp).works(m.t)
	l := &lease{m: m, token: got.Data["access_token"].(string), secret: *got.Secret}
	l.secret.IssueTime = time.Now()
	ttl, warnings := l.sum(got, 0)
	require.Empty(m.t, warnings)
	l.expires = time.Now().Add(ttl)
	return l
}

// renew does what Vault's expiration manager does; the warnings are those that a client gets.
func (l *lease) renew(increment time.Duration) response {
	l.m.t.Helper()
	secret := l.secret
	secret.Increment = increment
	got := l.m.send(l.m.t.Context(), &logical.Request{
		Operation: logical.RenewOperation, Path: "creds/myapp", MountPoint: "team/dingtalk/", Secret: &secret,
	})
	if got.err != nil {
		return got
	}
	require.Same(l.m.t, &secret, got.Secret)
	require.Empty(l.m.t, got.Data, "no token in the response")
	ttl, warnings := l.sum(got, increment)
	l.expires = time.Now().Add(ttl)
	got.Warnings = append(got.Warnings, warnings...)
	return got
}

// sum is the TTL that Vault reckons from a response, with its warnings.
func (l *lease) sum(got response, increment time.Duration) (ttl time.Duration, warnings []string) {
	l.m.t.Helper()
	ttl, warnings, err := framework.CalculateTTL(
		l.m.system, increment, got.Secret.TTL, 0, got.Secret.MaxTTL, 0, l.secret.IssueTime)
	require.NoError(l.m.t, err)
	return ttl, warnings
}

// renewed renews without a warning, and wants this TTL.
func (l *lease) renewed(ttl time.Duration) {
	l.m.t.Helper()
	got := l.renew(0).works(l.m.t)
	require.Empty(l.m.t, got.Warnings)
	require.Equal(l.m.t, ttl, got.Secret.TTL)
}

func TestLease_lives_as_long_as_the_token_and_names_no_secret(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		time.Sleep(1000*time.Second + 500*time.Millisecond)
		got := m.read(theApp)
		require.Equal(t, map[string]any{"access_token": m.upstream.LastToken(theKey)}, got.Data)
		require.Equal(t, 6199*time.Second, got.Secret.TTL)
		require.Equal(t, got.Secret.TTL, got.Secret.MaxTTL)
		require.True(t, got.Secret.Renewable)
		require.Equal(t, map[string]any{
			"secret_type":  "access_token",
			"app":          theApp,
			"token_digest": digestOf(newSensitive(m.upstream.LastToken(theKey))),
		}, got.Secret.InternalData)
	})
}

func TestRenew_in_the_first_half_costs_no_call_and_in_the_second_extends_the_token_for_all(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		leases := make([]*lease, 30)
		for i := range leases {
			leases[i] = m.issue()
		}
		m.start() // the leases outlive a restart, and that reads come without one from now on
		m.changed(unleased)
		require.Nil(t, m.read(theApp).Secret)
		time.Sleep(3600 * time.Second)
		for _, l := range leases {
			l.renewed(3600 * time.Second)
		}
		require.Equal(t, 1, m.calls())

		time.Sleep(time.Second)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})
		var wg sync.WaitGroup
		for _, l := range leases {
			wg.Go(func() { l.renewed(7199 * time.Second) })
		}
		wg.Wait()
		require.Equal(t, 2, m.calls())
		left, _ := m.upstream.LifeLeft(leases[0].token)
		require.Equal(t, 7199*time.Second, left)
	})
}

func TestLease_is_no_longer_than_the_mounts_default_lease_TTL(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		m.system.DefaultLeaseTTLVal = 10 * time.Minute
		time.Sleep(time.Second)
		l := m.issue()
		require.Equal(t, 10*time.Minute, l.secret.TTL)
		require.Equal(t, 7199*time.Second, l.secret.MaxTTL)
		time.Sleep(400 * time.Second)
		l.renewed(10 * time.Minute)
		l.renew(24 * time.Hour).works(t)
		require.WithinDuration(t, time.Now().Add(6799*time.Second), l.expires, 0, "an increment counts for more")
		require.Equal(t, 1, m.calls())

		m.system.DefaultLeaseTTLVal = 24 * time.Hour
		time.Sleep(time.Second)
		l.renewed(6798 * time.Second)
	})
}

func TestRenew_with_the_leases_own_length_as_increment_keeps_it_as_long_as_the_token_lives(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		time.Sleep(7000 * time.Second)
		l := m.issue()
		for range 20 {
			length := time.Until(l.expires)
			require.GreaterOrEqual(t, length, time.Hour)
			time.Sleep(length * 2 / 3)
			l.renew(length).works(t)
		}
	})
}

func TestRenew_never_outlives_the_token_and_without_an_increment_never_warns(t *testing.T) {
	for increment, times := range map[time.Duration]int{0: 2000, 24 * time.Hour: 500} {
		withApp(t, func(t *testing.T, m *mount) {
			time.Sleep(300 * time.Millisecond)
			l := m.issue()
			for i := range times {
				time.Sleep(time.Duration(i%500) * 437 * time.Millisecond)
				began := time.Now()
				got := l.renew(increment).works(t)
				require.LessOrEqual(t, time.Since(began), 20*time.Millisecond)
				left, known := m.upstream.LifeLeft(l.token)
				require.True(t, known)
				require.LessOrEqual(t, time.Until(l.expires), left)
				require.GreaterOrEqual(t, time.Until(l.expires), left-time.Second)
				if increment == 0 {
					require.Empty(t, got.Warnings)
				}
			}
		})
	}
}

func TestRenew_keeps_the_remaining_TTL_when_DingTalk_is_down(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		l := m.issue()
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy})
		time.Sleep(7000 * time.Second)
		require.Equal(t, 200*time.Second, l.renew(0).warns(t, "system.busy").Secret.TTL)
		time.Sleep(199 * time.Second)
		l.renew(0).gets(t, http.StatusBadGateway) // there is no token, and none can be fetched
	})
}

func TestRenew_of_a_lease_whose_token_is_no_longer_the_apps_ends_it_within_a_second(t *testing.T) {
	type test struct {
		change func(m *mount)
		why    string
		calls  int // of the renewal
	}
	expire := func(m *mount) { m.upstream.ExpireTokens(theKey) }
	forEach(t, map[string]test{
		"replaced":                     {after(expire, refresh), "another token", 0},
		"replaced by the very renewal": {func(m *mount) { m.upstream.RotateTokens(theKey, true) }, "another token", 1},
		"the app is gone":              {(*mount).delete, "no longer configured", 0},
	}, func(t *testing.T, m *mount, c test) {
		m.configure(theApp, nil)
		l := m.issue()
		c.change(m)
		calls := m.calls()
		time.Sleep(5000 * time.Second)
		got := l.renew(0).warns(t, c.why, "Read team/dingtalk/creds/myapp again")
		require.Equal(t, time.Second, got.Secret.TTL)
		require.Equal(t, c.calls, m.calls()-calls)

		l.renew(24 * time.Hour).works(t)
		require.LessOrEqual(t, time.Until(l.expires), time.Second)
		ended := l.renew(0)
		time.Sleep(5 * time.Second) // a machine that stands still before Vault does its sum
		ttl, _ := l.sum(ended, 0)
		require.Equal(t, time.Second, ttl)
	})
}

func TestRenew_counts_as_a_read_for_the_background(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"refresh_before": "30m"})
		l := m.issue()
		time.Sleep(1700 * time.Second)
		refresh(m)
		require.Equal(t, 2, m.calls())
		time.Sleep(5300 * time.Second)
		m.tick()
		require.Equal(t, 2, m.calls(), "nobody has asked since the refresh")

		l.renew(0)
		require.Equal(t, 3, m.calls())
		l.renew(0)
		time.Sleep(5300 * time.Second)
		m.tick()
		require.Equal(t, 4, m.calls())
	})
}

func TestCreds_wrapped_for_longer_than_the_token_lives_are_not(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		for name, leased := range map[string]bool{"leased": true, "unleased": false} {
			m.configure(name, map[string]any{"leased": leased})
			wrapped := func(ttl time.Duration) response {
				return m.send(t.Context(), &logical.Request{
					Operation: logical.ReadOperation, Path: "creds/" + name,
					WrapInfo: &logical.RequestWrapInfo{TTL: ttl},
				})
			}
			require.Equal(t, &wrapping.ResponseWrapInfo{TTL: 7200 * time.Second}, wrapped(3*time.Hour).WrapInfo)
			require.Nil(t, wrapped(time.Hour).WrapInfo, "Vault takes the request's")
			require.Nil(t, m.read(name).WrapInfo)
			time.Sleep(11 * time.Second)
		}
	})
}

func TestCreds_min_ttl_must_be_a_sensible_duration(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		for _, bad := range []any{
			"", "-1s", "500ms", "soon", "3000000h", "36028797018963968", 1e30, true, nil, []any{"1s", "2s"},
		} {
			m.do(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": bad}).
				gets(t, http.StatusBadRequest, "min_ttl", "allowed")
		}
		require.Zero(t, m.calls())
	})
}

func TestUnleased_responses_say_when_to_read_again(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, unleased)
		fetched := time.Now()
		got := m.read(theApp).works(t)
		require.Nil(t, got.Secret)
		require.Equal(t, map[string]any{
			"access_token":        m.upstream.LastToken(theKey),
			"expires_at":          timestamp(fetched.Add(2 * time.Hour)),
			"ttl":                 int64(7000),
			"rotation_period":     int64(7000),
			"last_vault_rotation": timestamp(fetched),
		}, got.Data)

		for before, ttl := range map[int]int64{0: 7198, 1: 7198, 3: 7197} { // it ends before the token does
			m.patch(theApp, map[string]any{"refresh_before": before}).works(t)
			require.Equal(t, ttl, m.read(theApp).Data["ttl"])
		}
		m.patch(theApp, map[string]any{"refresh_before": 200}).works(t)

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultIPNotAllowed})
		time.Sleep(7100 * time.Second)
		require.EqualValues(t, 60, m.read(theApp).Data["ttl"], "until the next attempt")
		time.Sleep(55 * time.Second)
		require.EqualValues(t, 5, m.read(theApp).Data["ttl"])
		time.Sleep(20 * time.Second)
		require.EqualValues(t, 23, m.read(theApp).Data["ttl"], "25 s less 2, since the next attempt is later")
		time.Sleep(23 * time.Second)
		require.EqualValues(t, 1, m.read(theApp).Data["ttl"], "at least 1")
	})
}

func TestUnleased_ttl_of_a_due_token_ends_with_the_back_off_or_at_once_where_a_refresh_is_under_way(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, unleased)
		m.token(theApp)
		time.Sleep(7001 * time.Second)
		m.storage.on(func(string, string) error { return errStorage }) // which does not give the secret
		require.InDelta(t, 5, m.read(theApp).warns(t).Data["ttl"], 1)
		require.Equal(t, 1, m.calls())

		m.storage.fail(nil)
		time.Sleep(longestFirstBackOff)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})
		first := begin(func() response { return m.read(theApp) })
		require.EqualValues(t, 1, m.read(theApp).Data["ttl"])
		require.Empty(t, (<-first).works(t).Warnings)
	})
}
