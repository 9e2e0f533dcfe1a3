// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests what DingTalk asks for when it refuses a call: a ban's five minutes for every app
// of the host, and a Retry-After for every app with that key.

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

func TestBan_pauses_every_app_of_the_host_for_five_minutes(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetApp("otherkey", "othersecret")
		m.network.host(t, "localhost:80").SetApp("otherkey", "othersecret")
		other := func(baseURL string) map[string]any {
			return map[string]any{"app_key": "otherkey", "app_secret": "othersecret", "base_url": baseURL}
		}
		m.configure(theApp, nil)
		m.configure("other", other(theURL))
		m.configure("elsewhere", other("http://localhost"))
		m.configure("spelt", other("HTTP://127.0.0.1:080/"))
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultBanned, Status: http.StatusServiceUnavailable})
		end := time.Now().Add(5 * time.Minute)

		for _, app := range []string{theApp, "other", "spelt"} {
			got := m.read(app)
			require.Equal(t, http.StatusBadGateway, got.status)
			require.Contains(t, got.err.Error(), "banned")
			require.Contains(t, got.err.Error(), timestamp(end))
			require.Equal(t, 1, m.upstream.Requests(simulator.AnyApp), "a ban is not tried again")
			require.Len(t, m.do(logical.UpdateOperation, "refresh/"+app, nil).Warnings, 1)
			require.Equal(t, timestamp(end), m.state(app)["next_attempt_at"])
			m.upstream.ClearFaults()
		}
		require.Equal(t, http.StatusBadGateway, m.do(logical.UpdateOperation, "config/new", other(theURL)).status)
		require.Zero(t, m.upstream.Requests("otherkey"))
		m.token("elsewhere")

		time.Sleep(5 * time.Minute)
		m.token("other")
		m.token(theApp)
	})
}

func TestRetry_After_of_up_to_ten_minutes_stops_every_call_with_its_key_whatever_app_or_generation(t *testing.T) {
	refresh := func(name string) func(m *mount) answer {
		return func(m *mount) answer { return m.do(logical.UpdateOperation, "refresh/"+name, nil) }
	}
	write := func(name string) func(m *mount) answer { // with a verification
		return func(m *mount) answer {
			return m.do(logical.UpdateOperation, "config/"+name, map[string]any{
				"app_key": theKey, "app_secret": "another", "base_url": theURL,
			})
		}
	}
	for name, again := range map[string]func(m *mount) answer{
		"a read":                func(m *mount) answer { return m.read(theApp) },
		"a refresh":             refresh(theApp),
		"a write":               write(theApp),
		"another app's read":    func(m *mount) answer { return m.read("twin") },
		"another app's refresh": refresh("twin"),
		"another app's write":   write("twin"),
		"a new app":             write("third"),
		"the app's next generation": func(m *mount) answer {
			m.configure(theApp, map[string]any{"app_secret": "another"})
			return m.read(theApp)
		},
		"the app, after an invalidation": func(m *mount) answer {
			m.engine.InvalidateKey(m.t.Context(), "config/myapp")
			return m.read(theApp)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.configure("twin", map[string]any{"leased": false})
				m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "90000"})
				got := m.read(theApp)
				require.Equal(t, http.StatusBadGateway, got.status)
				require.Contains(t, got.err.Error(), "2000-01-01T00:10:00Z")
				m.upstream.ClearFault(theKey)

				time.Sleep(599 * time.Second)
				got = again(m)
				if got.err == nil {
					require.Contains(t, fmt.Sprint(got.Warnings), "2000-01-01T00:10:00Z")
					require.Equal(t, "absent", got.Data["state"])
				} else {
					require.Equal(t, http.StatusBadGateway, got.status)
					require.Contains(t, got.err.Error(), "2000-01-01T00:10:00Z")
				}
				require.Equal(t, 1, m.calls())
				time.Sleep(time.Second)
				again(m)
				require.Greater(t, m.calls(), 1)
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
	for i := range 3 * maxCooldowns {
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
