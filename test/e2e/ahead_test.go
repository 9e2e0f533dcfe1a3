// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Refreshing ahead: a leased read in the second half of a token's life first extends the token. No
// reader that can be served waits long for that.

import (
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// waitForSecondHalf waits until more than half of the token's life is over, and returns the calls
// by then. The background may extend the token meanwhile; then it takes longer.
func waitForSecondHalf(t *testing.T, a *harness.App, token string, lifetime time.Duration) (calls int) {
	t.Helper()
	harness.WaitFor(t, 2*lifetime, "the token is in the second half of its life", func() bool {
		calls = a.Calls() // before the look at the token, which such a call would extend
		return a.DingTalk.Remaining(token) < lifetime/2
	})
	return calls
}

func TestAhead_leased_reads_in_the_second_half_extend_the_token_by_one_call(t *testing.T) {
	t.Parallel()
	const lifetime = 24 * time.Second
	const readers = 20
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	token := a.Token(t)

	calls := waitForSecondHalf(t, a, token, lifetime)
	start := make(chan struct{})
	var all sync.WaitGroup
	for range readers {
		client := a.Mount.Vault.Client(t)
		all.Go(func() {
			<-start
			secret, err := client.Logical().Read(a.CredsPath())
			if assert.NoError(t, err) {
				assert.Empty(t, secret.Warnings)
				if harness.TokenIn(secret) != token {
					t.Error("another token, where DingTalk extends the one there is")
				}
			}
		})
	}
	close(start)
	all.Wait()
	require.Equal(t, calls+1, a.Calls())
	require.Greater(t, leaseTTL(a.Read(t)), lifetime/2, "a lease never begins short")
	require.Equal(t, calls+1, a.Calls(), "a read in the first half costs no call")
}

func TestAhead_first_leased_read_in_the_second_half_gets_a_lease_of_a_full_life(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	token := a.Token(t)

	waitForSecondHalf(t, a, token, lifetime)
	began := time.Now()
	secret := a.Read(t)
	requireTTL(t, secret, lifetime, time.Since(began))
}

func TestAhead_unleased_read_in_the_second_half_costs_no_call_before_the_token_is_due(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"leased": false})
	token := a.Token(t)

	calls := waitForSecondHalf(t, a, token, lifetime)
	harness.RequireSameToken(t, a.Token(t), token)
	require.Equal(t, calls, a.Calls())
}

// Every reader of a token in its second half is served while DingTalk does not respond: the one who
// started the refresh after two seconds, the others at once.
func TestAhead_hanging_DingTalk_holds_a_reader_for_two_seconds_and_the_others_not_at_all(t *testing.T) {
	t.Parallel()
	const lifetime = 40 * time.Second
	const requestTimeout = 8 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"request_timeout": requestTimeout.String()})
	token := a.Token(t)

	calls := waitForSecondHalf(t, a, token, lifetime)
	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultHang})
	first := make(chan *api.Secret, 1)
	var took time.Duration
	go func() {
		defer close(first)
		began := time.Now()
		secret, err := a.TryRead()
		took = time.Since(began)
		if assert.NoError(t, err) {
			first <- secret
		}
	}()
	harness.WaitFor(t, 10*time.Second, "the refresh is under way", func() bool { return dt.UnderWay(a.Key) == 1 })

	// Five readers one after the other would wait for longer than the refresh takes, if each did.
	for range 5 {
		secret := a.Read(t)
		harness.RequireSameToken(t, harness.TokenIn(secret), token)
		require.Empty(t, secret.Warnings, "nothing has failed yet")
	}
	secret := <-first
	require.NotNil(t, secret)
	require.Equal(t, 1, dt.UnderWay(a.Key), "all of them were served while DingTalk did not respond")
	harness.RequireSameToken(t, harness.TokenIn(secret), token)
	require.Empty(t, secret.Warnings, "nothing has failed yet")
	require.Greater(t, took, 1900*time.Millisecond, "the first reader waits a moment for the refresh")

	harness.WaitFor(t, 2*requestTimeout, "the refresh has failed", func() bool { return a.Status(t)["last_error"] != nil })
	secret = a.Read(t)
	harness.RequireSameToken(t, harness.TokenIn(secret), token)
	require.Len(t, secret.Warnings, 1, "after a failed refresh there is a warning")
	require.Regexp(t, `^The token could not be refreshed and is good until .* no whole response within `, secret.Warnings[0])
	require.Equal(t, calls+1, a.Calls(), "one call for all of them")
}

// A reader that asks for a longer TTL than the token has waits until the refresh ends.
func TestAhead_those_who_ask_for_more_life_wait_for_a_slow_DingTalk(t *testing.T) {
	t.Parallel()
	const lifetime = 24 * time.Second
	const slow = 4 * time.Second // longer than a reader waits that can be served
	for what, get := range map[string]func(t *testing.T, a *harness.App, lease string) (ttl time.Duration){
		"min_ttl": func(t *testing.T, a *harness.App, _ string) time.Duration {
			t.Helper()
			secret, err := a.Mount.Vault.Root.Logical().ReadWithData(a.CredsPath(), url.Values{"min_ttl": {"16s"}})
			require.NoError(t, err)
			return leaseTTL(secret)
		},
		"a renewal": func(t *testing.T, a *harness.App, lease string) time.Duration {
			t.Helper()
			return leaseTTL(renewLease(t, a, lease, 0))
		},
		"refresh": func(t *testing.T, a *harness.App, _ string) time.Duration {
			t.Helper()
			return harness.Seconds(t, a.RefreshNow(t).Data["ttl"])
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, lifetime)
			a := harness.NewMount(t).NewApp(t, dt, nil)
			secret := a.Read(t)

			calls := waitForSecondHalf(t, a, harness.TokenIn(secret), lifetime)
			dt.SetFault(a.Key, simulator.Fault{Delay: slow, Times: 1})
			require.Greater(t, get(t, a, secret.LeaseID), lifetime/2, "the refreshed token's")
			require.Equal(t, calls+1, a.Calls())
		})
	}
}

// Vault Secrets Operator renews with the length of the last lease as the increment, after two
// thirds of it. So a lease that begins short would stay short.
func TestAhead_lease_renewed_with_its_own_length_is_as_long_as_the_token_lives(t *testing.T) {
	t.Parallel()
	const lifetime = 18 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	token := a.Token(t) // another reader's

	waitForSecondHalf(t, a, token, lifetime)
	secret := a.Read(t)
	lease, length := secret.LeaseID, leaseTTL(secret)
	require.Greater(t, length, lifetime/2)
	for range 3 {
		dueAt := time.Now().Add(length * 2 / 3)
		harness.WaitFor(t, length, "two thirds of the lease are over", func() bool { return time.Now().After(dueAt) })
		renewal, took := timedRenew(t, a, lease, length)
		left := dt.Remaining(token)
		// No longer than was asked for. That is less than the token lives only where the background had
		// extended it between two renewals.
		requireTTL(t, renewal, min(left, length), took)
		require.Greater(t, leaseTTL(renewal), lifetime/2)
		requireWithinTokenLife(t, a, lease, token, took)
		length = leaseTTL(renewal)
	}
}
