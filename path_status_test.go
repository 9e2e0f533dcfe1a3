// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests status/<app> and refresh/<app>.

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

func TestStatus_says_what_applies_and_holds_no_secret(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		fetched, tok := time.Now(), m.token(theApp)
		require.Equal(t, map[string]any{
			"state": "fresh", "fetched_at": timestamp(fetched), "expires_at": timestamp(fetched.Add(2 * time.Hour)),
			"ttl": int64(7200), "upstream_calls": uint64(1), "upstream_failures": uint64(0),
		}, m.state(theApp))

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultUnavailableUnknown})
		time.Sleep(7001 * time.Second)
		m.read(theApp)
		since := time.Now()
		got := m.state(theApp)
		require.Equal(t, "due", got["state"])
		require.Equal(t, uint64(4), got["upstream_calls"], "three attempts")
		require.Equal(t, uint64(3), got["upstream_failures"])
		require.Contains(t, got["last_error"], "unknownError")
		require.Equal(t, timestamp(since), got["last_error_at"])
		require.NotContains(t, fmt.Sprint(got), theSecret)
		require.NotContains(t, fmt.Sprint(got), tok)

		time.Sleep(longestFirstBackOff)
		m.read(theApp)
		got = m.state(theApp)
		require.Equal(t, []any{"unavailable", "unknownError", int64(2), timestamp(since), timestamp(time.Now())}, []any{
			got["last_error_class"], got["last_error_code"], got["consecutive_failures"], got["failing_since"],
			got["last_error_at"],
		})
		require.Contains(t, got["last_error"], "request id "+got["last_error_request_id"].(string))

		m.upstream.ClearFaults()
		m.refresh(theApp).works(t)
		require.ElementsMatch(t, statusFields, slices.Collect(maps.Keys(m.state(theApp))), "nothing of it is left")
	})
}

func TestStatus_is_no_use_of_the_app(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		for range 3 * 60 {
			time.Sleep(time.Minute)
			require.NotEmpty(t, m.state(theApp))
			m.tick()
		}
		require.Nil(t, m.engine.apps.inMemory(theApp), "it is dropped as if nobody had asked")
		require.Equal(t, 2, m.calls(), "it was read once")
		require.Equal(t, "expired", m.state(theApp)["state"], "as storage has it")
		require.Nil(t, m.engine.apps.inMemory(theApp))
	})
}

func TestRefresh_of_a_rejected_token_fetches_only_if_it_is_the_current_one(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, dead string) {
		rejects := func(tok string) response {
			return m.do(logical.UpdateOperation, "refresh/myapp", map[string]any{"rejected_token": tok}).works(t)
		}
		m.upstream.ExpireTokens(theKey)
		time.Sleep(time.Minute)
		for range 50 {
			for _, tok := range []string{dead, dead + "\n", "never-seen"} {
				require.Empty(t, rejects(tok).Warnings)
			}
			require.NotEqual(t, dead, m.token(theApp))
			time.Sleep(time.Second)
		}
		require.Equal(t, 2, m.calls())

		rejects(m.token(theApp))
		require.Equal(t, 3, m.calls())
		rejects(m.token(theApp)).warns(t, "less than 10s ago")
		require.Equal(t, 3, m.calls())

		m.do(logical.DeleteOperation, "config/myapp", nil)
		m.configure(theApp, nil)
		require.Equal(t, "absent", rejects(dead).Data["state"], "no token is no reason for a fetch")
		for _, bad := range []any{"", "two words", strings.Repeat("x", 2049), 17, nil, []any{dead, dead}} {
			got := m.do(logical.UpdateOperation, "refresh/myapp", map[string]any{"rejected_token": bad})
			got.gets(t, http.StatusBadRequest, "rejected_token: ")
			require.NotRegexp(t, "words|xxx|"+dead, got.err.Error())
		}
		require.Equal(t, 3, m.calls())
	})
}

func TestRefresh_fetches_now_and_answers_like_status(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		time.Sleep(time.Hour)
		got := m.refresh(theApp).works(t)
		require.Empty(t, got.Warnings)
		require.Equal(t, 2, m.calls())
		require.Equal(t, m.state(theApp), got.Data)
		require.EqualValues(t, 7200, got.Data["ttl"])

		time.Sleep(10*time.Second - time.Millisecond)
		m.refresh(theApp).warns(t, "less than 10s ago")
		require.Equal(t, 2, m.calls())
		time.Sleep(time.Millisecond)
		require.Empty(t, m.refresh(theApp).Warnings)
		require.Equal(t, 3, m.calls())
	})
}

func TestRefresh_ignores_the_back_off_and_one_that_fails_is_an_error_though_there_is_a_token(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultIPNotAllowed})
		m.read(theApp).gets(t, http.StatusBadRequest)
		m.upstream.ClearFaults()
		require.Equal(t, "fresh", m.refresh(theApp).Data["state"])
		m.token(theApp)

		time.Sleep(10 * time.Second)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
		m.refresh(theApp).gets(t, http.StatusBadRequest)
		m.token(theApp)
	})
}

func TestRefresh_held_by_a_Retry_After_says_when_that_ends(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultReset})
		for range 5 {
			m.refresh(theApp)
			time.Sleep(11 * time.Second)
		}
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "20"})
		m.refresh(theApp)
		ends := timestamp(time.Now().Add(20 * time.Second))
		require.NotEqual(t, ends, m.state(theApp)["next_attempt_at"], "a reader waits for the back-off")
		time.Sleep(15 * time.Second)
		m.refresh(theApp).warns(t, ends)
	})
}
