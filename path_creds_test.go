// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests the lease of a token as the engine makes it. What Vault makes of it is tested against a real one, but
// the sum that decides a lease's end, framework.CalculateTTL, is Vault's own and used here.

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
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
	got := m.read(theApp)
	require.NoError(m.t, got.err)
	l := &lease{m: m, token: got.Data["access_token"].(string), secret: *got.Secret}
	l.secret.IssueTime = time.Now()
	ttl, warnings, err := framework.CalculateTTL(m.system, 0, got.Secret.TTL, 0, got.Secret.MaxTTL, 0, time.Time{})
	require.NoError(m.t, err)
	require.Empty(m.t, warnings)
	l.expires = time.Now().Add(ttl)
	return l
}

// renew does what Vault's expiration manager does, and returns the warnings a client gets.
func (l *lease) renew(increment time.Duration) (warnings []string, got answer) {
	l.m.t.Helper()
	secret := l.secret
	secret.Increment = increment
	got = l.m.send(l.m.t.Context(), &logical.Request{Operation: logical.RenewOperation, Path: "creds/myapp", Secret: &secret})
	if got.err != nil {
		return nil, got
	}
	require.Same(l.m.t, &secret, got.Secret)
	require.Empty(l.m.t, got.Data, "no token in the answer")
	ttl, capped, err := framework.CalculateTTL(l.m.system, increment, got.Secret.TTL, 0, got.Secret.MaxTTL, 0, l.secret.IssueTime)
	require.NoError(l.m.t, err)
	l.expires = time.Now().Add(ttl)
	return append(got.Warnings, capped...), got
}

func TestLease_lives_as_long_as_the_token_and_names_no_secret(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
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
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		leases := make([]*lease, 30)
		for i := range leases {
			leases[i] = m.issue()
		}
		time.Sleep(3600 * time.Second)
		for _, l := range leases {
			warnings, got := l.renew(0)
			require.NoError(t, got.err)
			require.Empty(t, warnings)
			require.Equal(t, 3600*time.Second, got.Secret.TTL)
		}
		require.Equal(t, 1, m.calls())

		time.Sleep(time.Second)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})
		var wg sync.WaitGroup
		for _, l := range leases {
			wg.Go(func() {
				warnings, got := l.renew(0)
				require.NoError(t, got.err)
				require.Empty(t, warnings)
				require.Equal(t, 7199*time.Second, got.Secret.TTL)
			})
		}
		wg.Wait()
		require.Equal(t, 2, m.calls())
		left, _ := m.upstream.LifeLeft(leases[0].token)
		require.Equal(t, 7199*time.Second, left)
	})
}

func TestRenew_never_outlives_the_token_whatever_increment_is_asked_for(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		time.Sleep(300 * time.Millisecond)
		l := m.issue()
		for i := range 500 {
			time.Sleep(time.Duration(i) * 437 * time.Millisecond)
			_, got := l.renew(24 * time.Hour)
			require.NoError(t, got.err)
			left, known := m.upstream.LifeLeft(l.token)
			require.True(t, known)
			require.LessOrEqual(t, time.Until(l.expires), left)
			require.GreaterOrEqual(t, time.Until(l.expires), left-time.Second)
		}
	})
}

func TestRenew_plainly_never_warns(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		time.Sleep(700 * time.Millisecond)
		l := m.issue()
		for i := range 2000 {
			time.Sleep(time.Duration(i%13)*time.Second + time.Duration(i)*7*time.Millisecond)
			began := time.Now()
			warnings, got := l.renew(0)
			require.NoError(t, got.err)
			require.Empty(t, warnings)
			require.LessOrEqual(t, time.Since(began), 20*time.Millisecond)
		}
	})
}

func TestRenew_answers_with_the_life_left_when_DingTalk_is_down(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		l := m.issue()
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy})
		time.Sleep(7000 * time.Second)
		warnings, got := l.renew(0)
		require.NoError(t, got.err)
		require.Equal(t, 200*time.Second, got.Secret.TTL)
		require.Len(t, warnings, 1)
		require.Contains(t, warnings[0], "system.busy")

		time.Sleep(199 * time.Second)
		_, got = l.renew(0)
		require.Equal(t, http.StatusBadGateway, got.status, "there is no token and none can be had")
	})
}

func TestRenew_of_a_lease_whose_token_was_replaced_ends_it_within_a_second(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		l := m.issue()
		m.upstream.ExpireTokens(theKey)
		m.do(logical.UpdateOperation, "refresh/myapp", nil)
		calls := m.calls()

		time.Sleep(5000 * time.Second)
		warnings, got := l.renew(0)
		require.NoError(t, got.err)
		require.Equal(t, time.Second, got.Secret.TTL)
		require.Len(t, warnings, 1)
		require.Contains(t, warnings[0], "creds/myapp")
		require.Equal(t, calls, m.calls(), "it sets nothing off")

		_, got = l.renew(24 * time.Hour)
		require.NoError(t, got.err)
		require.LessOrEqual(t, time.Until(l.expires), time.Second)
		require.NotEqual(t, l.token, m.token(theApp))

		_, got = l.renew(0)
		time.Sleep(5 * time.Second) // a machine that stands still before Vault does its sum
		ttl, _, err := framework.CalculateTTL(m.system, 0, got.Secret.TTL, 0, got.Secret.MaxTTL, 0, l.secret.IssueTime)
		require.NoError(t, err)
		require.Equal(t, time.Second, ttl)
	})
}

func TestRenew_of_a_lease_whose_token_is_replaced_by_the_very_refresh_ends_it(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		l := m.issue()
		m.upstream.RotateTokens(theKey, true)
		time.Sleep(4000 * time.Second)
		warnings, got := l.renew(0)
		require.NoError(t, got.err)
		require.Equal(t, time.Second, got.Secret.TTL)
		require.Len(t, warnings, 1)
	})
}

func TestRenew_of_a_lease_whose_app_is_gone_ends_it_within_a_second(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		l := m.issue()
		require.NoError(t, m.do(logical.DeleteOperation, "config/myapp", nil).err)
		warnings, got := l.renew(0)
		require.NoError(t, got.err)
		require.Equal(t, time.Second, got.Secret.TTL)
		require.Len(t, warnings, 1)
		require.Contains(t, warnings[0], "no longer configured")
	})
}

func TestRenew_is_served_from_storage_after_a_restart(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		l := m.issue()
		m.start()
		time.Sleep(time.Minute)
		warnings, got := l.renew(0)
		require.NoError(t, got.err)
		require.Empty(t, warnings)
		require.Equal(t, 7140*time.Second, got.Secret.TTL)
		require.Equal(t, 1, m.calls())
	})
}

func TestRenew_counts_as_a_read_for_the_background(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"refresh_before": "30m"})
		l := m.issue()
		time.Sleep(1700 * time.Second)
		m.do(logical.UpdateOperation, "refresh/myapp", nil)
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

func TestRevoke_always_succeeds_and_ends_no_token(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		l := m.issue()
		require.NoError(t, m.upstream.Close())
		require.NoError(t, m.do(logical.DeleteOperation, "config/myapp", nil).err)
		m.storage.fail(nil)
		got := m.send(t.Context(), &logical.Request{Operation: logical.RevokeOperation, Path: "creds/myapp", Secret: &l.secret})
		require.NoError(t, got.err)
		require.Empty(t, m.storage.calls())
	})
}

func TestCreds_wrapped_for_longer_than_the_token_lives_are_not(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		for name, leased := range map[string]bool{"leased": true, "unleased": false} {
			m.configure(name, map[string]any{"leased": leased})
			wrapped := func(ttl time.Duration) answer {
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

func TestCreds_leased_can_be_changed_without_a_new_token(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		l := m.issue()
		require.Equal(t, http.StatusNoContent, m.do(logical.PatchOperation, "config/myapp", map[string]any{"leased": false}).status)
		got := m.read(theApp)
		require.Nil(t, got.Secret)
		require.Equal(t, l.token, got.Data["access_token"])
		warnings, renewed := l.renew(0)
		require.NoError(t, renewed.err)
		require.Empty(t, warnings)
		require.Equal(t, 1, m.calls())
		synctest.Wait()
	})
}
