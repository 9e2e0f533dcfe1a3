// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests the life of a token: its states, who waits for what, back-off, the background, persistence and what other
// nodes change. All of it runs in virtual time.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

func TestToken_state_follows_the_life_left(t *testing.T) {
	sent := time.Now()
	for _, c := range []struct {
		lifetime, refreshBefore, age time.Duration
		want                         tokenState
	}{
		{7200 * time.Second, 200 * time.Second, 0, stateFresh},
		{7200 * time.Second, 200 * time.Second, 6999 * time.Second, stateFresh},
		{7200 * time.Second, 200 * time.Second, 7000 * time.Second, stateDue},
		{7200 * time.Second, 200 * time.Second, 7198 * time.Second, stateDue},
		{7200 * time.Second, 200 * time.Second, 7198*time.Second + 1, stateExpired},
		{7200 * time.Second, 200 * time.Second, 9000 * time.Second, stateExpired},
		{7200 * time.Second, 0, 7198 * time.Second, stateFresh},
		{7200 * time.Second, 0, 7199 * time.Second, stateExpired},
		{20 * time.Second, time.Hour, 14 * time.Second, stateFresh}, // the window is a quarter: 5 s
		{20 * time.Second, time.Hour, 15 * time.Second, stateDue},
		{2 * time.Second, time.Hour, 0, stateFresh},
	} {
		t.Run(fmt.Sprintf("%s of %s, refreshed before %s", c.age, c.lifetime, c.refreshBefore), func(t *testing.T) {
			tok := newToken(newSensitive("t"), sent, c.lifetime)
			require.Equal(t, c.want, tok.state(sent.Add(c.age), c.refreshBefore))
			require.Equal(t, c.want != stateExpired, tok.servable(sent.Add(c.age)))
		})
	}
	var none *token
	require.Equal(t, stateAbsent, none.state(sent, 0))
	require.False(t, none.servable(sent))
}

func TestToken_life_left_is_what_the_stricter_clock_says(t *testing.T) {
	now := time.Now()
	tok := newToken(newSensitive("t"), now, 100*time.Second)

	sleptAnHour := now.Round(0).Add(time.Hour) // by the wall clock alone: the monotonic one stood still
	require.Zero(t, tok.remaining(sleptAnHour))

	setBack := *tok
	setBack.fetchedAt, setBack.expiresAt = now.Add(time.Hour), now.Add(time.Hour+100*time.Second)
	require.Equal(t, 100*time.Second, setBack.remaining(now), "never more than the lifetime")

	require.Equal(t, 99*time.Second, tok.remaining(now.Add(time.Millisecond)), "rounded down")
}

func TestCreds_a_cold_herd_makes_one_call_and_gets_one_token(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})
		var wg sync.WaitGroup
		tokens := make([]string, 1000)
		for i := range tokens {
			wg.Go(func() { tokens[i] = m.token(theApp) })
		}
		wg.Wait()
		for _, tok := range tokens {
			require.Equal(t, m.upstream.LastToken(theKey), tok)
		}
		require.Equal(t, 1, m.calls())
	})
}

func TestCreds_a_fresh_read_asks_neither_storage_nor_upstream(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		first := m.token(theApp)
		m.storage.fail(nil)
		for range 50 {
			require.Equal(t, first, m.token(theApp))
		}
		require.Empty(t, m.storage.calls())
		require.Equal(t, 1, m.calls())
	})
}

func TestCreds_the_first_reader_of_a_due_token_waits_and_the_others_do_not(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		old := m.token(theApp)
		time.Sleep(7001 * time.Second)
		m.upstream.RotateTokens(theKey, true)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 3 * time.Second})

		began := time.Now()
		first := make(chan string)
		go func() { first <- m.token(theApp) }()
		synctest.Wait()
		for range 10 {
			require.Equal(t, old, m.token(theApp))
		}
		require.Zero(t, time.Since(began), "the others do not wait")
		require.NotEqual(t, old, <-first)
		require.Equal(t, 3*time.Second, time.Since(began))
		require.Equal(t, 2, m.calls())
	})
}

func TestCreds_a_due_token_is_served_with_a_warning_when_DingTalk_is_down_and_never_once_expired(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		tok := m.token(theApp)
		expires := time.Now().Add(2 * time.Hour)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultUnavailableEmpty})
		time.Sleep(7000 * time.Second)
		for time.Until(expires) >= 3*time.Second { // an attempt takes up to a second
			got := m.read(theApp)
			left := time.Until(expires)
			require.NoError(t, got.err, left)
			require.Equal(t, tok, got.Data["access_token"])
			require.Len(t, got.Warnings, 1, left)
			require.Contains(t, got.Warnings[0], "503")
			require.LessOrEqual(t, got.Secret.TTL, left)
			require.GreaterOrEqual(t, got.Secret.TTL, 2*time.Second)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Until(expires) - minServed + time.Nanosecond)
		for range 200 {
			got := m.read(theApp)
			require.Equal(t, http.StatusBadGateway, got.status)
			time.Sleep(time.Second)
		}
		require.Equal(t, "expired", m.state(theApp)["state"])
	})
}

func TestCreds_a_reader_never_waits_longer_than_request_timeout(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"request_timeout": "3s"})
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultHang})
		began := time.Now()
		got := m.read(theApp)
		require.Equal(t, http.StatusBadGateway, got.status)
		require.Contains(t, got.err.Error(), "no whole response within 3s")
		require.InDelta(t, 3, time.Since(began).Seconds(), 0.5)
	})
}

func TestCreds_a_caller_that_gives_up_fails_nobody_else(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 5 * time.Second})
		ctx, giveUp := context.WithCancel(t.Context())
		gone := make(chan answer)
		go func() {
			gone <- m.send(ctx, &logical.Request{Operation: logical.ReadOperation, Path: "creds/myapp"})
		}()
		synctest.Wait()
		second := make(chan string)
		go func() { second <- m.token(theApp) }()
		synctest.Wait()

		giveUp()
		synctest.Wait()
		require.Error(t, (<-gone).err)
		require.Equal(t, m.upstream.LastToken(theKey), <-second)
		require.Equal(t, 1, m.calls())
	})
}

func TestCreds_a_slow_app_delays_no_other(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetApp("slowkey", "slowsecret")
		m.configure(theApp, nil)
		m.configure("slow", map[string]any{"app_key": "slowkey", "app_secret": "slowsecret"})
		m.upstream.SetFault("slowkey", simulator.Fault{Kind: simulator.FaultHang})
		done := make(chan answer)
		go func() { done <- m.read("slow") }()
		synctest.Wait()
		began := time.Now()
		m.token(theApp)
		m.configure("other", nil)
		m.token("other")
		require.Zero(t, time.Since(began))
		require.Equal(t, http.StatusBadGateway, (<-done).status)
	})
}

func TestCreds_of_an_unknown_app_take_no_memory(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		for i := range 100 {
			got := m.read(fmt.Sprintf("unknown%d", i))
			require.Equal(t, http.StatusBadRequest, got.status)
			require.Contains(t, got.err.Error(), fmt.Sprintf(`"unknown%d"`, i))
			require.Contains(t, got.err.Error(), fmt.Sprintf("config/unknown%d", i))
		}
		m.engine.apps.apps.Range(func(any, any) bool { t.Error("an unknown app is in memory"); return false })
	})
}

func TestCreds_min_ttl_refreshes_a_token_with_less_and_makes_the_reader_wait(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		time.Sleep(time.Hour + time.Second)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})

		want := map[string]any{"min_ttl": "1h"}
		got := m.do(logical.ReadOperation, "creds/myapp", want)
		require.NoError(t, got.err)
		require.Empty(t, got.Warnings)
		require.Equal(t, 2, m.calls())
		require.GreaterOrEqual(t, got.Secret.TTL, 7199*time.Second)

		got = m.do(logical.ReadOperation, "creds/myapp", want)
		require.NoError(t, got.err)
		require.Equal(t, 2, m.calls(), "now more is left")
	})
}

func TestCreds_min_ttl_counts_as_three_quarters_at_most_and_forces_once_in_ten_seconds(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetTokenLifetime(40 * time.Second)
		want := map[string]any{"min_ttl": "2h"}
		got := m.do(logical.ReadOperation, "creds/myapp", want)
		require.NoError(t, got.err)
		require.Len(t, got.Warnings, 1)
		require.Contains(t, got.Warnings[0], "three quarters")
		require.Equal(t, 1, m.calls())

		m.do(logical.ReadOperation, "creds/myapp", want)
		require.Equal(t, 1, m.calls(), "40 s are more than 30")
		time.Sleep(11 * time.Second)
		m.do(logical.ReadOperation, "creds/myapp", want)
		require.Equal(t, 2, m.calls(), "29 s are less than 30")

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: "4"})
		time.Sleep(11 * time.Second)
		m.do(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": "30s"})
		require.Equal(t, 3, m.calls())
		time.Sleep(1500 * time.Millisecond)
		got = m.do(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": "3s"})
		require.NoError(t, got.err)
		require.Equal(t, 3, m.calls(), "no second time within 10 s")
		require.Len(t, got.Warnings, 1)
		require.Contains(t, got.Warnings[0], "less than 10s ago")
	})
}

func TestCreds_min_ttl_has_no_upper_limit(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		for _, long := range []any{"25h", "2562047h", 9_223_372_036} {
			got := m.do(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": long})
			require.NoError(t, got.err)
			require.Len(t, got.Warnings, 1)
			require.Contains(t, got.Warnings[0], "counts as 1h30m")
		}
		require.Equal(t, 1, m.calls())
	})
}

func TestCreds_min_ttl_must_be_a_sensible_duration(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		for _, bad := range []any{"", "-1s", "500ms", "soon", "3000000h", "36028797018963968", 1e30, true, nil, []any{"1s", "2s"}} {
			got := m.do(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": bad})
			require.Equal(t, http.StatusBadRequest, got.status, "%v", bad)
			require.Contains(t, got.err.Error(), "min_ttl")
			require.Contains(t, got.err.Error(), "allowed")
		}
		require.Zero(t, m.calls())
	})
}

func TestBackOff_grows_and_ends_with_success(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultTruncated})
		for i, wait := range []int{5, 10, 20, 40, 60, 60, 60} {
			got := m.read(theApp)
			require.Equal(t, http.StatusBadGateway, got.status)
			require.Equal(t, i+1, m.calls())
			failed := time.Now()

			next := m.engine.apps.inMemory(theApp).lastFailure.nextAttempt
			require.GreaterOrEqual(t, next.Sub(failed).Seconds(), float64(wait), "never less, so that the retries of Vault's client come before")
			require.Less(t, next.Sub(failed).Seconds(), 1.2*float64(wait))
			require.Contains(t, got.err.Error(), timestamp(next))

			time.Sleep(time.Until(next) - time.Millisecond)
			again := m.read(theApp)
			require.Equal(t, got.err, again.err, "the remembered error, at once")
			require.Equal(t, i+1, m.calls())
			time.Sleep(time.Millisecond)
		}
		m.upstream.ClearFaults()
		m.token(theApp)
		require.NotContains(t, m.state(theApp), "next_attempt_at")
		require.NotContains(t, m.state(theApp), "last_error")

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultTruncated})
		m.upstream.ExpireTokens(theKey)
		time.Sleep(2 * time.Hour)
		m.read(theApp)
		require.InDelta(t, 5, time.Until(m.engine.apps.inMemory(theApp).lastFailure.nextAttempt).Seconds(), 1, "it starts over")
	})
}

func TestBackOff_waits_a_minute_after_a_refusal(t *testing.T) {
	for _, kind := range []string{simulator.FaultRejectedCredentials, simulator.FaultMissingBody, simulator.FaultPermissionDenied, simulator.FaultIPNotAllowed} {
		t.Run(kind, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.upstream.SetFault(theKey, simulator.Fault{Kind: kind})
				require.Equal(t, http.StatusBadRequest, m.read(theApp).status)
				time.Sleep(time.Minute - time.Millisecond)
				require.Equal(t, http.StatusBadRequest, m.read(theApp).status)
				require.Equal(t, 1, m.calls())
				m.upstream.ClearFaults()
				time.Sleep(time.Millisecond)
				m.token(theApp)
			})
		})
	}
}

func TestBackOff_honours_Retry_After_up_to_ten_minutes_also_for_refresh(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "90000"})
		began := time.Now()
		got := m.read(theApp)
		require.Equal(t, http.StatusBadGateway, got.status)
		require.Contains(t, got.err.Error(), timestamp(began.Add(10*time.Minute)))
		m.upstream.ClearFaults()

		time.Sleep(10*time.Minute - time.Second)
		require.Equal(t, http.StatusBadGateway, m.read(theApp).status)
		refreshed := m.do(logical.UpdateOperation, "refresh/myapp", nil)
		require.NoError(t, refreshed.err)
		require.Len(t, refreshed.Warnings, 1)
		require.Equal(t, "absent", refreshed.Data["state"])

		write := m.do(logical.UpdateOperation, "config/myapp", map[string]any{"app_secret": "another", "base_url": theURL})
		require.Equal(t, http.StatusBadGateway, write.status, "nor does a verification go past it")
		require.Equal(t, 1, m.calls())

		time.Sleep(time.Second)
		m.token(theApp)
	})
}

func TestBan_pauses_every_app_of_the_host_for_five_minutes(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetApp("otherkey", "othersecret")
		m.network.host(t, "localhost:80").SetApp("otherkey", "othersecret")
		other := map[string]any{"app_key": "otherkey", "app_secret": "othersecret"}
		m.configure(theApp, nil)
		m.configure("other", other)
		m.configure("elsewhere", map[string]any{"app_key": "otherkey", "app_secret": "othersecret", "base_url": "http://localhost"})
		m.configure("spelt", map[string]any{
			"app_key": "otherkey", "app_secret": "othersecret", "base_url": "HTTP://127.0.0.1:080/",
		})
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultBanned, Status: http.StatusServiceUnavailable})
		end := time.Now().Add(5 * time.Minute)

		got := m.read(theApp)
		require.Equal(t, http.StatusBadGateway, got.status)
		require.Contains(t, got.err.Error(), "banned")
		require.Contains(t, got.err.Error(), timestamp(end))
		require.Equal(t, 1, m.calls(), "a ban is not tried again")
		m.upstream.ClearFaults()

		for _, app := range []string{theApp, "other", "spelt"} {
			got = m.read(app)
			require.Equal(t, http.StatusBadGateway, got.status)
			require.Contains(t, got.err.Error(), "banned")
			require.Len(t, m.do(logical.UpdateOperation, "refresh/"+app, nil).Warnings, 1)
			require.Equal(t, timestamp(end), m.state(app)["next_attempt_at"])
		}
		other["base_url"] = theURL
		require.Equal(t, http.StatusBadGateway, m.do(logical.UpdateOperation, "config/new", other).status)
		require.Zero(t, m.upstream.Requests("otherkey"))
		m.token("elsewhere")

		time.Sleep(5 * time.Minute)
		m.token("other")
		m.token(theApp)
	})
}

func TestRefresh_fetches_now_and_answers_like_status(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		time.Sleep(time.Hour)
		got := m.do(logical.UpdateOperation, "refresh/myapp", nil)
		require.NoError(t, got.err)
		require.Empty(t, got.Warnings)
		require.Equal(t, 2, m.calls())
		require.Equal(t, m.state(theApp), got.Data)
		require.EqualValues(t, 7200, got.Data["ttl"])

		got = m.do(logical.UpdateOperation, "refresh/myapp", nil)
		require.NoError(t, got.err)
		require.Len(t, got.Warnings, 1, "too soon")
		require.Equal(t, 2, m.calls())
		time.Sleep(10 * time.Second)
		require.Empty(t, m.do(logical.UpdateOperation, "refresh/myapp", nil).Warnings)
		require.Equal(t, 3, m.calls())
	})
}

func TestRefresh_that_fails_is_an_error_though_a_token_is_in_hand(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
		require.Equal(t, http.StatusBadRequest, m.do(logical.UpdateOperation, "refresh/myapp", nil).status)
		m.token(theApp)
	})
}

func TestRefresh_goes_past_the_back_off(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultIPNotAllowed})
		require.Equal(t, http.StatusBadRequest, m.read(theApp).status)
		m.upstream.ClearFaults()
		require.Equal(t, "fresh", m.do(logical.UpdateOperation, "refresh/myapp", nil).Data["state"])
		m.token(theApp)
	})
}

func TestStatus_tells_what_applies_and_holds_no_secret(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		require.Equal(t, map[string]any{"state": "absent", "upstream_calls": uint64(0), "upstream_failures": uint64(0)}, m.state(theApp))

		fetched := time.Now()
		tok := m.token(theApp)
		expires := fetched.Add(2 * time.Hour)
		require.Equal(t, map[string]any{
			"state": "fresh", "fetched_at": timestamp(fetched), "expires_at": timestamp(expires), "ttl": int64(7200),
			"upstream_calls": uint64(1), "upstream_failures": uint64(0),
		}, m.state(theApp))

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultUnavailableUnknown})
		time.Sleep(7001 * time.Second)
		m.read(theApp)
		got := m.state(theApp)
		require.Equal(t, "due", got["state"])
		require.Equal(t, uint64(4), got["upstream_calls"], "three attempts")
		require.Equal(t, uint64(3), got["upstream_failures"])
		require.Contains(t, got["last_error"], "unknownError")
		require.Contains(t, got, "last_error_at")
		require.Contains(t, got, "next_attempt_at")
		require.NotContains(t, fmt.Sprint(got), theSecret)
		require.NotContains(t, fmt.Sprint(got), tok)
	})
}

func TestUnleased_answers_say_when_to_read_again(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"leased": false})
		fetched := time.Now()
		got := m.read(theApp)
		require.NoError(t, got.err)
		require.Nil(t, got.Secret)
		require.Equal(t, map[string]any{
			"access_token":        m.upstream.LastToken(theKey),
			"expires_at":          timestamp(fetched.Add(2 * time.Hour)),
			"ttl":                 int64(7000),
			"rotation_period":     int64(7000),
			"last_vault_rotation": timestamp(fetched),
		}, got.Data)

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

func TestUnleased_ttl_ends_before_the_token_does_where_nothing_is_refreshed_ahead(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"leased": false, "refresh_before": 0})
		require.EqualValues(t, 7198, m.read(theApp).Data["ttl"])
		require.NoError(t, m.do(logical.PatchOperation, "config/myapp", map[string]any{"refresh_before": 1}).err)
		require.EqualValues(t, 7198, m.read(theApp).Data["ttl"])
		require.NoError(t, m.do(logical.PatchOperation, "config/myapp", map[string]any{"refresh_before": 3}).err)
		require.EqualValues(t, 7197, m.read(theApp).Data["ttl"])
	})
}

func TestUnleased_ttl_ends_with_the_back_off_where_storage_does_not_give_the_secret(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"leased": false})
		m.token(theApp)
		time.Sleep(7001 * time.Second)
		m.storage.on(func(string, string) error { return errStorage })
		got := m.read(theApp)
		require.Len(t, got.Warnings, 1)
		require.InDelta(t, 5, got.Data["ttl"], 1)
		require.Equal(t, 1, m.calls())
	})
}

func TestUnleased_reader_during_a_refresh_is_told_to_come_back_at_once(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"leased": false})
		m.token(theApp)
		time.Sleep(7001 * time.Second)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 5 * time.Second})
		first := make(chan string)
		go func() { first <- m.token(theApp) }()
		synctest.Wait()
		require.EqualValues(t, 1, m.read(theApp).Data["ttl"])
		<-first
	})
}

func TestBackground_refreshes_a_busy_token_before_it_is_due_and_lets_an_idle_one_be(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetApp("idlekey", "idlesecret")
		m.configure(theApp, nil)
		m.configure("idle", map[string]any{"app_key": "idlekey", "app_secret": "idlesecret", "verify_connection": true})
		for range 24 * 60 {
			got := m.read(theApp)
			require.NoError(t, got.err)
			require.Greater(t, got.Secret.TTL, 200*time.Second, "no reader meets a due token")
			time.Sleep(time.Minute)
			m.tick()
		}
		require.LessOrEqual(t, m.calls(), 24*3600/(7200-200-180)+2)
		require.Equal(t, 1, m.upstream.Requests("idlekey"), "the verification's")
	})
}

func TestBackground_does_not_refresh_in_the_first_half_of_a_short_life(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetTokenLifetime(100 * time.Second)
		m.configure(theApp, nil)
		m.token(theApp)
		time.Sleep(49 * time.Second)
		m.tick()
		require.Equal(t, 1, m.calls())
		time.Sleep(2 * time.Second)
		m.tick()
		require.Equal(t, 2, m.calls())
	})
}

func TestBackground_returns_at_once_and_refreshes_eight_at_a_time(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		const apps = 20
		for i := range apps {
			key := fmt.Sprintf("key%d", i)
			m.upstream.SetApp(key, "secret")
			m.configure(fmt.Sprintf("app%d", i), map[string]any{"app_key": key, "app_secret": "secret"})
			m.token(fmt.Sprintf("app%d", i))
		}
		time.Sleep(6990 * time.Second)
		m.upstream.SetFault("*", simulator.Fault{Delay: time.Second})
		began := time.Now()
		before := m.upstream.Requests("*")
		for range 3 { // more passes do not add to it
			m.tick()
			require.Equal(t, 8, m.upstream.Requests("*")-before)
		}
		require.Zero(t, time.Since(began))
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, 16, m.upstream.Requests("*")-before)
		time.Sleep(3 * time.Second)
		require.Equal(t, apps, m.upstream.Requests("*")-before)
	})
}

func TestBackground_leaves_a_token_alone_that_a_reader_had_refreshed_meanwhile(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		const apps = 2 * aheadAtOnce
		for i := range apps {
			key := fmt.Sprintf("key%d", i)
			m.upstream.SetApp(key, "secret")
			m.configure(fmt.Sprintf("app%d", i), map[string]any{"app_key": key, "app_secret": "secret"})
			m.token(fmt.Sprintf("app%d", i))
		}
		time.Sleep(6990 * time.Second)
		m.upstream.SetFault("*", simulator.Fault{Delay: 5 * time.Second})
		m.tick() // half of the apps take all places, the other half wait for theirs
		require.Equal(t, apps+aheadAtOnce, m.upstream.Requests("*"))
		for i := range apps {
			go m.do(logical.UpdateOperation, fmt.Sprintf("refresh/app%d", i), nil)
		}
		time.Sleep(30 * time.Second)
		require.Equal(t, 2*apps, m.upstream.Requests("*"), "one more for each, whoever asked")
	})
}

func TestBackground_does_nothing_on_a_standby_or_a_tainted_mount(t *testing.T) {
	for name, change := range map[string]func(*logical.StaticSystemView){
		"performance standby": func(s *logical.StaticSystemView) { s.ReplicationStateVal = consts.ReplicationPerformanceStandby },
		"tainted":             func(s *logical.StaticSystemView) { s.TaintedVal = true },
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.token(theApp)
				time.Sleep(6990 * time.Second)
				change(m.system)
				m.tick()
				require.Equal(t, 1, m.calls())
			})
		})
	}
}

func TestBackground_drops_idle_apps_from_memory_and_their_token_is_not_lost(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetTokenLifetime(24 * time.Hour)
		m.configure(theApp, nil)
		tok := m.token(theApp)
		time.Sleep(23 * time.Hour)
		m.tick()
		require.NotNil(t, m.engine.apps.inMemory(theApp))

		m.upstream.SetTokenLifetime(2 * time.Hour)
		m.do(logical.UpdateOperation, "refresh/myapp", nil)
		time.Sleep(2*time.Hour - 3*time.Second)
		require.NotNil(t, m.engine.apps.inMemory(theApp))
		time.Sleep(5 * time.Second)
		m.tick()
		require.Nil(t, m.engine.apps.inMemory(theApp))
		require.Equal(t, tok, m.stored("token/myapp")["access_token"])
	})
}

func TestBackground_keeps_an_app_that_is_read_in_vain(t *testing.T) {
	for every, attempts := range map[time.Duration]int{20 * time.Second: 40, 5 * time.Minute: 12} {
		t.Run(every.String(), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultTruncated})
				for begin := time.Now(); time.Since(begin) < time.Hour; time.Sleep(every) {
					m.tick()
					m.read(theApp)
				}
				m.tick()
				require.Equal(t, 1, strings.Count(m.log.String(), "[WARN]"), "fetches have failed all the time")
				state := m.state(theApp)
				require.NotEmpty(t, state["last_error"])
				require.EqualValues(t, m.calls(), state["upstream_calls"])
				require.GreaterOrEqual(t, m.calls(), attempts)
				require.LessOrEqual(t, m.calls(), 62, "at most one in a minute, after the first")

				m.upstream.ClearFaults()
				time.Sleep(time.Until(m.engine.apps.inMemory(theApp).lastFailure.nextAttempt))
				m.token(theApp)
				require.Equal(t, 1, strings.Count(m.log.String(), "[INFO]"), "and work again")
			})
		})
	}
}

func TestBackground_keeps_an_idle_app_whose_back_off_is_not_over(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetTokenLifetime(30 * time.Second)
		m.configure(theApp, nil)
		m.token(theApp)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "300"})
		time.Sleep(29 * time.Second)
		m.read(theApp)
		time.Sleep(4 * time.Minute)
		m.tick()
		require.NotNil(t, m.engine.apps.inMemory(theApp))
		time.Sleep(2 * time.Minute)
		m.tick()
		require.Nil(t, m.engine.apps.inMemory(theApp))
	})
}

func TestBackground_goes_on_when_storage_hangs(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		m.storage.fail(func(_ int, op, _ string) storageFault { return storageFault{hang: op == "list"} })
		time.Sleep(time.Hour)
		m.tick()
		require.Contains(t, m.storage.calls(), "list token/")
		for range 55 {
			time.Sleep(time.Minute)
			m.token(theApp)
			m.tick()
		}
		require.Equal(t, 2, m.calls(), "refreshed ahead")
		require.Contains(t, m.log.String(), "looking for tokens without a config failed")
	})
}

func TestBackground_removes_tokens_without_a_config_once_an_hour(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		require.NoError(t, m.storage.Put(t.Context(), &logical.StorageEntry{Key: "token/orphan", Value: []byte("{}")}))
		m.tick()
		require.NotNil(t, m.stored("token/orphan"), "not at start-up")
		time.Sleep(time.Hour)
		m.tick()
		require.Nil(t, m.stored("token/orphan"))
		require.NotNil(t, m.stored("token/myapp"))
	})
}

func TestStored_token_is_served_after_a_restart_without_a_call(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		tok := m.token(theApp)
		time.Sleep(time.Hour)
		m.start()
		got := m.read(theApp)
		require.NoError(t, got.err)
		require.Equal(t, tok, got.Data["access_token"])
		require.InDelta(t, 3600, got.Secret.TTL.Seconds(), 1)
		require.Equal(t, 1, m.calls())
	})
}

func TestStored_token_is_there_before_it_is_served(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.storage.on(func(op, key string) error {
			if op == "put" && key == "token/myapp" {
				time.Sleep(time.Second)
			}
			return nil
		})
		began := time.Now()
		m.token(theApp)
		require.Equal(t, time.Second, time.Since(began))
	})
}

func TestStored_token_that_cannot_be_written_is_served_all_the_same(t *testing.T) {
	for name, fault := range map[string]func() error{
		"storage fails": func() error { return errors.New("disk full") },
		"storage hangs": func() error { time.Sleep(time.Minute); return errors.New("too late") },
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.storage.on(func(op, key string) error {
					if op == "put" {
						return fault()
					}
					return nil
				})
				began := time.Now()
				m.token(theApp)
				require.Less(t, time.Since(began), 11*time.Second)
				require.Equal(t, 1, m.calls())
				time.Sleep(2 * time.Minute)
				require.Contains(t, m.log.String(), "could not be stored")
			})
		})
	}
}

func TestStored_token_of_another_generation_is_ignored(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		before, err := m.storage.Get(t.Context(), "token/myapp")
		require.NoError(t, err)
		m.upstream.RotateTokens(theKey, true)
		m.upstream.SetApp(theKey, "newsecret")
		m.configure(theApp, map[string]any{"app_secret": "newsecret"})
		require.NoError(t, m.storage.Put(t.Context(), before)) // as a crash between two writes leaves it
		m.start()
		require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
		require.Equal(t, 2, m.calls())
	})
}

func TestStored_token_from_a_clock_ahead_is_due_and_its_life_is_capped(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		tok := m.token(theApp)
		entry := m.stored("token/myapp")
		for _, field := range []string{"fetched_at", "expires_at"} {
			at, err := time.Parse(time.RFC3339Nano, entry[field].(string))
			require.NoError(t, err)
			entry[field] = at.Add(3 * time.Hour)
		}
		put, err := logical.StorageEntryJSON("token/myapp", entry)
		require.NoError(t, err)
		require.NoError(t, m.storage.Put(t.Context(), put))
		m.start()

		got := m.state(theApp)
		require.Equal(t, "due", got["state"])
		require.EqualValues(t, 7200, got["ttl"])
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultReset})
		down := m.read(theApp)
		require.NoError(t, down.err)
		require.Equal(t, tok, down.Data["access_token"])
		require.LessOrEqual(t, down.Secret.TTL, 2*time.Hour)
		m.upstream.ClearFaults()
		time.Sleep(10 * time.Second)
		m.token(theApp)
		require.Equal(t, "fresh", m.state(theApp)["state"])
	})
}

func TestInvalidate_of_either_key_drops_the_app_from_memory(t *testing.T) {
	for _, key := range []string{"config/myapp", "token/myapp"} {
		t.Run(key, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				tok := m.token(theApp)
				m.engine.InvalidateKey(t.Context(), key)
				require.Nil(t, m.engine.apps.inMemory(theApp))
				require.Equal(t, tok, m.token(theApp))
				require.Equal(t, 1, m.calls(), "the stored token is there")
			})
		})
	}
}

func TestInvalidate_during_a_load_does_not_bring_the_old_state_back(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		old := m.token(theApp)
		beneath := m.storage.Storage
		m.start()

		var once sync.Once
		m.storage.on(func(op, key string) error {
			if op == "get" && key == "token/myapp" {
				once.Do(func() { // the config was read: now another node changes it
					entry := storedIn(t, beneath, "config/myapp")
					entry["generation"] = strings.Repeat("f", 32)
					put, err := logical.StorageEntryJSON("config/myapp", entry)
					require.NoError(t, err)
					require.NoError(t, beneath.Put(t.Context(), put))
					m.upstream.ExpireTokens(theKey)
					m.engine.InvalidateKey(t.Context(), "config/myapp")
				})
			}
			return nil
		})
		require.NotEqual(t, old, m.token(theApp))
		require.Equal(t, strings.Repeat("f", 32), m.engine.apps.inMemory(theApp).config.Load().Generation)
	})
}

func TestFlight_that_meets_another_nodes_config_starts_over_with_it(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.state(theApp) // in memory
		entry := m.stored("config/myapp")
		entry["generation"] = strings.Repeat("e", 32)
		put, err := logical.StorageEntryJSON("config/myapp", entry)
		require.NoError(t, err)
		require.NoError(t, m.storage.Put(t.Context(), put))

		require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
		require.Equal(t, strings.Repeat("e", 32), m.stored("token/myapp")["generation"])
		require.Equal(t, 1, m.calls())
	})
}

func TestFlight_that_panics_fails_its_waiters_and_nobody_else(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.state(theApp)
		m.storage.on(func(op, key string) error { panic("storage went mad over " + theSecret) })
		got := m.read(theApp)
		require.Equal(t, http.StatusInternalServerError, got.status)
		require.Contains(t, got.err.Error(), "myapp")
		require.NotContains(t, m.log.String(), theSecret)
		m.storage.fail(nil)
		time.Sleep(6 * time.Second)
		m.token(theApp)
	})
}

func TestFlight_with_failing_storage_is_a_failure_like_any_other(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		m.tick()
		m.storage.on(func(op, key string) error { return errors.New("no quorum") })

		time.Sleep(6890 * time.Second) // the background's is the first that fails
		m.tick()
		synctest.Wait()
		require.Contains(t, m.state(theApp)["last_error"], "no quorum")
		require.NotEmpty(t, m.state(theApp)["next_attempt_at"])
		require.Equal(t, 1, strings.Count(m.log.String(), "[WARN]  fetching a token failed"))
		require.Contains(t, m.log.String(), "class=storage")

		time.Sleep(300 * time.Second)
		got := m.read(theApp)
		require.Len(t, got.Warnings, 1)
		require.Contains(t, got.Warnings[0], "no quorum")
		time.Sleep(100 * time.Second)
		got = m.read(theApp)
		require.Equal(t, http.StatusInternalServerError, got.status)
		require.Contains(t, got.err.Error(), "no quorum")
		require.Contains(t, got.err.Error(), "next attempt")
		require.Equal(t, got.err, m.read(theApp).err, "remembered")
		require.Equal(t, 1, m.calls())

		m.storage.fail(nil)
		time.Sleep(time.Minute)
		m.token(theApp)
		require.NotContains(t, m.state(theApp), "last_error")
		require.Equal(t, 1, strings.Count(m.log.String(), "[WARN]  fetching a token failed"))
		require.Equal(t, 1, strings.Count(m.log.String(), "[INFO]"))
	})
}

func TestLog_says_once_that_fetches_fail_and_once_that_they_work_again(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
		for range 5 {
			m.read(theApp)
			time.Sleep(time.Minute)
		}
		require.Equal(t, 1, strings.Count(m.log.String(), "[WARN]"))
		require.Contains(t, m.log.String(), "invalidClientIdOrSecret")
		m.upstream.ClearFaults()
		tok := m.token(theApp)
		for range 5 {
			m.token(theApp)
		}
		require.Equal(t, 1, strings.Count(m.log.String(), "[INFO]"))
		require.NotContains(t, m.log.String(), theSecret)
		require.NotContains(t, m.log.String(), tok)
	})
}

// deafTransport answers nothing, and heeds no context: what a transport can do at worst. It ends with
// the test.
type deafTransport struct {
	calls atomic.Int32
	end   chan struct{}
	body  bool // send a head at once, and nothing after it
}

func newDeafTransport(t *testing.T) *deafTransport {
	t.Helper()
	d := &deafTransport{end: make(chan struct{})}
	t.Cleanup(func() { close(d.end) })
	return d
}

func (d *deafTransport) RoundTrip(*http.Request) (*http.Response, error) {
	d.calls.Add(1)
	if d.body {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(d)}, nil
	}
	<-d.end
	return nil, net.ErrClosed
}

func (d *deafTransport) Read([]byte) (int, error) {
	<-d.end
	return 0, net.ErrClosed
}

func TestFlight_ends_with_request_timeout_whatever_the_transport_does(t *testing.T) {
	for _, body := range []bool{false, true} {
		t.Run(fmt.Sprintf("in the body %t", body), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				deaf := newDeafTransport(t)
				deaf.body = body
				m := mountOver(t, &logical.InmemStorage{}, deaf)
				m.configure(theApp, nil)
				for range 2 {
					began := time.Now()
					got := m.read(theApp)
					require.Equal(t, http.StatusBadGateway, got.status)
					require.Contains(t, got.err.Error(), "no whole response within 10s")
					require.Equal(t, 10*time.Second, time.Since(began))
					require.EqualValues(t, 1, m.state(theApp)["upstream_failures"])
					time.Sleep(time.Minute)
					m.engine.apps.forget(theApp)
				}
				require.EqualValues(t, 2, deaf.calls.Load(), "it fetches again")

				began := time.Now()
				got := m.write(theApp, theFields(map[string]any{"app_secret": "another", "request_timeout": 4}))
				require.Equal(t, http.StatusBadGateway, got.status, "a verification")
				require.Equal(t, 4*time.Second, time.Since(began))

				reading := make(chan answer, 1)
				go func() { reading <- m.read(theApp) }()
				synctest.Wait()
				began = time.Now()
				m.engine.Cleanup(t.Context())
				require.LessOrEqual(t, time.Since(began), closeTimeout)
				require.Equal(t, http.StatusServiceUnavailable, (<-reading).status)
			})
		})
	}
}

func TestCaller_that_goes_away_leaves_no_trace(t *testing.T) {
	for name, request := range map[string]logical.Request{
		"read":    {Operation: logical.ReadOperation, Path: "creds/myapp"},
		"refresh": {Operation: logical.UpdateOperation, Path: "refresh/myapp"},
		"write": {Operation: logical.UpdateOperation, Path: "config/myapp", Data: map[string]any{
			"app_secret": theSecret, "app_key": "another", "base_url": theURL,
		}},
		"verification": {Operation: logical.UpdateOperation, Path: "config/myapp", Data: map[string]any{
			"verify_connection": true,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.upstream.SetApp("another", theSecret)
				before := m.snapshot()
				m.upstream.SetFault(simulator.AnyApp, simulator.Fault{Delay: 3 * time.Second})
				ctx, hangUp := context.WithCancel(t.Context())
				time.AfterFunc(200*time.Millisecond, hangUp)
				began := time.Now()
				got := m.send(ctx, &request)
				require.ErrorIs(t, got.err, context.Canceled)
				require.Equal(t, 200*time.Millisecond, time.Since(began))

				time.Sleep(5 * time.Second) // the fetch itself goes on for others
				state := m.state(theApp)
				require.NotContains(t, state, "last_error")
				require.NotContains(t, state, "next_attempt_at")
				require.Zero(t, state["upstream_failures"])
				require.NotContains(t, m.log.String(), "failed")
				require.Equal(t, before["config/myapp"], m.snapshot()["config/myapp"])
				require.NotEmpty(t, m.token(theApp))
			})
		})
	}
}

func TestCooldown_stops_every_call_with_its_key_whatever_app_or_generation(t *testing.T) {
	twin := map[string]any{"leased": false}
	for name, again := range map[string]func(m *mount) answer{
		"another app's read":    func(m *mount) answer { return m.read("twin") },
		"another app's refresh": func(m *mount) answer { return m.do(logical.UpdateOperation, "refresh/twin", nil) },
		"another app's write": func(m *mount) answer {
			return m.write("twin", theFields(map[string]any{"app_secret": "another"}))
		},
		"the app's next generation": func(m *mount) answer {
			m.configure(theApp, map[string]any{"app_secret": "another"})
			return m.read(theApp)
		},
		"the app, after an invalidation": func(m *mount) answer {
			m.engine.InvalidateKey(m.t.Context(), "config/myapp")
			return m.read(theApp)
		},
		"a new app": func(m *mount) answer { return m.write("third", theFields(nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.configure("twin", twin)
				m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "600"})
				require.Equal(t, http.StatusBadGateway, m.read(theApp).status)
				calls := m.calls()
				m.upstream.ClearFault(theKey)

				time.Sleep(599 * time.Second)
				got := again(m)
				if got.err == nil {
					require.Contains(t, fmt.Sprint(got.Warnings), "2000-01-01T00:10:00Z")
				} else {
					require.Equal(t, http.StatusBadGateway, got.status)
					require.Contains(t, got.err.Error(), "2000-01-01T00:10:00Z")
				}
				require.Equal(t, calls, m.calls())
				time.Sleep(2 * time.Second)
				again(m)
				require.Greater(t, m.calls(), calls)
			})
		})
	}
}

func TestCooldown_that_is_shorter_does_not_replace_a_longer_one(t *testing.T) {
	var all cooldowns
	now := time.Now()
	start := func(class errorClass, retryAfter time.Duration) {
		all.start(theURL, theKey, &fetchError{class: class, retryAfter: retryAfter}, now)
	}
	until := func() time.Duration { return all.inForce(theURL, theKey, now).cooldown.Sub(now) }
	require.Nil(t, all.inForce(theURL, theKey, now))
	start(classThrottled, 600*time.Second)
	start(classThrottled, 5*time.Second)
	require.Equal(t, 600*time.Second, until())
	start(classBanned, 0)
	require.Equal(t, 600*time.Second, until(), "a ban of five minutes ends before")
	require.Equal(t, 300*time.Second, all.inForce(theURL, "another", now).cooldown.Sub(now))
	require.Nil(t, all.inForce("https://api.dingtalk.com", theKey, now))
}

func TestCooldowns_of_other_hosts_take_bounded_memory_and_none_of_DingTalks_place(t *testing.T) {
	var all cooldowns
	now := time.Now()
	busy := func() *fetchError { return &fetchError{class: classThrottled, retryAfter: time.Minute} }
	for i := range 20000 {
		all.start(fmt.Sprintf("https://host%d.example", i%7), fmt.Sprintf("key%d", i), busy(), now)
	}
	require.LessOrEqual(t, len(all.all), maxCooldowns)
	for _, host := range []string{defaultBaseURL, chinaBaseURL} {
		all.start(host, theKey, busy(), now)
		all.start(host, "", &fetchError{class: classBanned}, now)
		require.NotNil(t, all.inForce(host, theKey, now))
		require.NotNil(t, all.inForce(host, "another", now))
	}
	all.start("https://host.example", "key", busy(), now.Add(2*time.Minute))
	require.LessOrEqual(t, len(all.all), 3, "what is over is removed")
}

func TestRefresh_held_by_a_Retry_After_says_when_that_ends(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultReset})
		for range 5 {
			m.do(logical.UpdateOperation, "refresh/myapp", nil)
			time.Sleep(11 * time.Second)
		}
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "20"})
		m.do(logical.UpdateOperation, "refresh/myapp", nil)
		ends := timestamp(time.Now().Add(20 * time.Second))
		require.NotEqual(t, ends, m.state(theApp)["next_attempt_at"], "a reader waits for the back-off")
		time.Sleep(15 * time.Second)
		got := m.do(logical.UpdateOperation, "refresh/myapp", nil)
		require.NoError(t, got.err)
		require.Len(t, got.Warnings, 1)
		require.Contains(t, got.Warnings[0], ends)
	})
}

// slowLog is a log that somebody is slow to read.
type slowLog struct{ hclog.Logger }

func (l slowLog) Warn(string, ...any)  { time.Sleep(time.Minute) }
func (l slowLog) Debug(string, ...any) { time.Sleep(time.Minute) }

func TestLog_that_is_slow_holds_up_nobody_who_does_not_wait_for_the_fetch(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		m.engine.apps.log = slowLog{m.engine.apps.log}
		go m.do(logical.UpdateOperation, "refresh/myapp", nil)
		synctest.Wait()
		began := time.Now()
		m.state(theApp)
		m.token(theApp)
		require.Zero(t, time.Since(began))
		time.Sleep(time.Hour)
	})
}

func TestStored_token_that_is_none_is_not_served(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		rec := m.stored("token/myapp")
		rec["access_token"] = "fw8ef8we\nPATH=/tmp" // as an earlier release would have stored it
		record, err := json.Marshal(rec)
		require.NoError(t, err)
		putRaw(t, m.storage, "token/myapp", string(record))
		m.start()
		require.Equal(t, m.upstream.LastToken(theKey), m.token(theApp))
		require.Equal(t, 2, m.calls())
	})
}

// byHost is a DingTalk for each host.
type byHost map[string]*modelDingTalk

func (b byHost) RoundTrip(r *http.Request) (*http.Response, error) { return b[r.URL.Host].RoundTrip(r) }

func (d *modelDingTalk) underWay() int {
	n := 0
	for _, c := range d.callsOf("") {
		if c.ended.IsZero() {
			n++
		}
	}
	return n
}

func TestBackground_host_that_hangs_delays_no_other(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hanging, well := newModelDingTalk(), newModelDingTalk()
		m := mountOver(t, &logical.InmemStorage{}, byHost{"127.0.0.1": hanging, "127.0.0.2": well})
		for i := range 100 {
			name, key := fmt.Sprintf("app%d", i), fmt.Sprintf("key%d", i)
			hanging.accepted[key] = []string{"secret"}
			m.configure(name, map[string]any{"app_key": key, "app_secret": "secret", "request_timeout": 30})
			m.token(name)
		}
		time.Sleep(40 * time.Second)
		m.configure("healthy", map[string]any{"base_url": "http://127.0.0.2"})
		m.token("healthy")
		hanging.set(func() { hanging.mood = moodHang })
		time.Sleep(6850 * time.Second) // all but the healthy one are due soon
		m.tick()
		synctest.Wait()
		require.Equal(t, 8, hanging.underWay(), "at most 8 at a time for each host")
		require.Len(t, well.callsOf(""), 1)
		time.Sleep(time.Minute)
		m.tick()
		synctest.Wait()
		require.Len(t, well.callsOf(""), 2, "the next pass reaches it, though the other host still hangs")
		require.Equal(t, 8, hanging.underWay())
	})
}

func TestBackground_refreshes_the_soonest_to_end_first(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := newModelDingTalk()
		m := mountOver(t, &logical.InmemStorage{}, upstream)
		for i := range 20 {
			name, key := fmt.Sprintf("app%02d", i*7%20), fmt.Sprintf("key%02d", i)
			upstream.accepted[key] = []string{"secret"}
			m.configure(name, map[string]any{"app_key": key, "app_secret": "secret"})
			m.token(name)
			time.Sleep(time.Second)
		}
		upstream.set(func() { upstream.delay = time.Second })
		time.Sleep(6879 * time.Second)
		m.tick()
		synctest.Wait()
		var first []string
		for _, c := range upstream.callsOf("")[20:] {
			first = append(first, c.key)
		}
		slices.Sort(first)
		require.Equal(t, []string{"key00", "key01", "key02", "key03", "key04", "key05", "key06", "key07"}, first)
	})
}

func TestUnloading_is_no_warning(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		m.storage.fail(func(_ int, op, _ string) storageFault { return storageFault{hang: op != "get"} })
		time.Sleep(6890 * time.Second)
		m.tick() // a sweep, and a refresh ahead that is to be stored
		synctest.Wait()
		go m.do(logical.DeleteOperation, "config/myapp", nil)
		synctest.Wait()
		require.NotEmpty(t, m.storage.calls())
		m.engine.Cleanup(t.Context())
		synctest.Wait()
		require.NotContains(t, m.log.String(), "[WARN]")
		require.NotContains(t, m.log.String(), "[ERROR]")
	})
}

func TestBackend_every_callback_in_every_replication_state(t *testing.T) {
	for name, c := range map[string]struct {
		state    consts.ReplicationState
		calls    int  // upstream, of a renewal that extends
		readOnly bool // is a renewal's answer
		passes   bool // the background works
	}{
		"no replication":        {0, 1, false, true},
		"performance standby":   {consts.ReplicationPerformanceStandby, 0, true, false},
		"performance secondary": {consts.ReplicationPerformanceSecondary, 1, false, true},
		"standby of a secondary": {
			consts.ReplicationPerformanceStandby | consts.ReplicationPerformanceSecondary, 0, true, false,
		},
		"DR secondary": {consts.ReplicationDRSecondary, 1, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				l := m.issue()
				stored := m.snapshot()
				time.Sleep(6890 * time.Second)
				m.system.ReplicationStateVal = c.state
				time.Sleep(2 * time.Second) // the state is kept for one

				secret := l.secret
				calls := m.calls()
				_, err := m.engine.HandleRequest(t.Context(), &logical.Request{
					Operation: logical.RenewOperation, Path: "creds/myapp", Storage: m.storage, Secret: &secret,
				})
				if c.readOnly {
					require.Equal(t, logical.ErrReadOnly, err, "so that Vault forwards it: not wrapped, not coded")
				} else {
					require.NoError(t, err)
				}
				require.Equal(t, c.calls, m.calls()-calls)

				_, err = m.engine.HandleRequest(t.Context(), &logical.Request{
					Operation: logical.RevokeOperation, Path: "creds/myapp", Storage: m.storage, Secret: &secret,
				})
				require.NoError(t, err, "revoking always succeeds")
				_, exists, err := m.engine.HandleExistenceCheck(t.Context(), &logical.Request{
					Operation: logical.UpdateOperation, Path: "config/myapp", Storage: m.storage,
				})
				require.NoError(t, err)
				require.True(t, exists)

				calls = m.calls()
				time.Sleep(6890 * time.Second)
				m.tick()
				synctest.Wait()
				m.engine.InvalidateKey(t.Context(), "config/myapp")
				if !c.passes {
					require.Equal(t, calls, m.calls(), "the background")
				}
				if c.readOnly {
					require.Equal(t, stored, m.snapshot(), "a standby writes nothing")
				}
			})
		})
	}
}
