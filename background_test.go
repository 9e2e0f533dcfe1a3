// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests what runs in the background: refreshing ahead, dropping idle apps, sweeping, and
// the end of a mount.

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

func TestBackground_refreshes_a_busy_token_before_it_is_due_and_lets_an_idle_one_be(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetApp("idlekey", "idlesecret")
		m.configure(theApp, nil)
		m.configure("idle", map[string]any{"app_key": "idlekey", "app_secret": "idlesecret", "verify_connection": true})
		for range 24 * 60 {
			got := m.read(theApp).works(t)
			require.GreaterOrEqual(t, got.Secret.TTL, time.Hour-time.Minute)
			time.Sleep(time.Minute)
			m.tick()
		}
		require.LessOrEqual(t, m.calls(), 24+1)
		require.Equal(t, 1, m.upstream.Requests("idlekey"), "the verification's")
	})
}

func TestBackground_refreshes_a_pass_before_half_of_the_life_is_over_or_three_quarters_without_leases(t *testing.T) {
	forEach(t, map[bool]time.Duration{true: 59 * time.Minute, false: 89 * time.Minute},
		func(t *testing.T, m *mount, age time.Duration) {
			m.configure(theApp, map[string]any{"leased": age < time.Hour})
			m.token(theApp)
			time.Sleep(age - time.Second)
			m.tick()
			require.Equal(t, 1, m.calls())
			time.Sleep(time.Second)
			m.tick()
			require.Equal(t, 2, m.calls())
		})
}

// fetchMany makes so many apps of key0, key1, …, fetched a second apart; their names sort
// otherwise.
func (m *mount) fetchMany(n int) {
	m.t.Helper()
	for i := range n {
		name, key := fmt.Sprintf("app%02d", i*7%n), fmt.Sprintf("key%d", i)
		m.upstream.SetApp(key, "secret")
		m.configure(name, map[string]any{"app_key": key, "app_secret": "secret", "request_timeout": 30})
		m.token(name)
		time.Sleep(time.Second)
	}
}

func TestBackground_refreshes_the_soonest_to_end_first_and_eight_at_a_time_for_each_host(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		const apps = 20
		m.fetchMany(apps)
		well := m.network.host(t, "127.0.0.2:80")
		well.SetApp(theKey, theSecret)
		m.configure("well", map[string]any{"base_url": "http://127.0.0.2"})
		m.token("well")
		m.upstream.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultHang})
		time.Sleep(3539 * time.Second) // a pass before half of the last one's life is over, not of the well one's

		began := time.Now()
		for range 3 { // more passes do not add to it
			m.tick()
			require.Equal(t, apps+8, m.upstream.Requests(simulator.AnyApp))
		}
		require.Zero(t, time.Since(began), "Vault holds a lock meanwhile")
		for i := range apps {
			require.Equal(t, i < 8, m.upstream.UnderWay(fmt.Sprintf("key%d", i)) == 1, "key%d", i)
		}
		require.Equal(t, 1, well.Requests(theKey))

		time.Sleep(time.Minute + time.Second)
		m.tick()
		require.Equal(t, apps+20, m.upstream.Requests(simulator.AnyApp), "the third eight, less four")
		require.Equal(t, 4, m.upstream.UnderWay(simulator.AnyApp))
		require.Equal(t, 2, well.Requests(theKey), "a host that hangs delays no other")
	})
}

func TestBackground_leaves_a_token_alone_that_a_reader_had_refreshed_meanwhile(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		const apps = 2 * 8
		m.fetchMany(apps)
		time.Sleep(6980 * time.Second)
		m.upstream.SetFault(simulator.AnyApp, simulator.Fault{Delay: 5 * time.Second})
		m.tick() // half of the apps take all places, the other half wait for theirs
		require.Equal(t, apps+8, m.upstream.Requests(simulator.AnyApp))
		for i := range apps {
			go m.do(logical.UpdateOperation, fmt.Sprintf("refresh/app%02d", i), nil)
		}
		time.Sleep(30 * time.Second)
		require.Equal(t, 2*apps, m.upstream.Requests(simulator.AnyApp), "one more for each, whoever asked")
	})
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
		m.refresh(theApp)
		time.Sleep(2*time.Hour - 3*time.Second)
		m.tick()
		require.NotNil(t, m.engine.apps.inMemory(theApp))
		time.Sleep(5 * time.Second)
		m.tick()
		require.Nil(t, m.engine.apps.inMemory(theApp))
		require.Equal(t, tok, m.stored("token/myapp")["access_token"])
	})
}

func TestBackground_keeps_an_app_that_is_read_in_vain(t *testing.T) {
	type test struct {
		every    time.Duration
		attempts int
	}
	forEach(t, map[string]test{"often": {20 * time.Second, 120}, "seldom": {5 * time.Minute, 36}},
		func(t *testing.T, m *mount, c test) {
			m.configure(theApp, nil)
			m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultTruncated})
			for begin := time.Now(); time.Since(begin) < 3*time.Hour; time.Sleep(c.every) {
				m.tick()
				m.read(theApp)
			}
			m.tick()
			require.Equal(t, 3, strings.Count(m.log.String(), "[WARN]"), "once an hour")
			state := m.state(theApp)
			require.NotEmpty(t, state["last_error"])
			require.EqualValues(t, m.calls(), state["upstream_calls"])
			require.GreaterOrEqual(t, m.calls(), c.attempts)
			require.LessOrEqual(t, m.calls(), 182, "at most one in a minute, after the first")

			m.upstream.ClearFaults()
			time.Sleep(time.Until(m.engine.apps.inMemory(theApp).lastFailure.nextAttempt))
			m.token(theApp)
			require.Equal(t, 1, strings.Count(m.log.String(), "[INFO]"), "and work again")
		})
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
	withToken(t, func(t *testing.T, m *mount, _ string) {
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
	withToken(t, func(t *testing.T, m *mount, tok string) {
		for _, key := range []string{"token/orphan", "token/created"} {
			m.putRaw(key, "{}")
		}
		m.tick()
		require.NotNil(t, m.stored("token/orphan"), "not at start-up")
		m.storage.fail(func(_ int, op, key string) storageFault {
			if op+" "+key != "list config/" {
				return storageFault{}
			}
			return storageFault{last: func() { m.configure("created", map[string]any{"verify_connection": true}) }}
		})
		time.Sleep(time.Hour)
		m.tick()
		require.Nil(t, m.stored("token/orphan"))
		require.Equal(t, tok, m.stored("token/myapp")["access_token"])
		require.Equal(t, tok, m.stored("token/created")["access_token"], "its app was created during the sweep")
	})
}

func TestUnloading_takes_a_moment_at_most_and_is_no_warning(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		m.storage.fail(func(_ int, op, _ string) storageFault {
			if op == "put" {
				time.Sleep(time.Minute) // it heeds no context
			}
			return storageFault{hang: op != "get"}
		})
		time.Sleep(6890 * time.Second)
		m.tick() // a sweep, and a refresh ahead that is to be stored
		deleted := begin(func() response { return m.do(logical.DeleteOperation, "config/myapp", nil) })
		require.Subset(t, m.storage.calls(), []string{"list token/", "put token/myapp"})
		began := time.Now()
		m.engine.Cleanup(t.Context())
		require.Equal(t, 50*time.Millisecond, time.Since(began))
		require.GreaterOrEqual(t, (<-deleted).status, http.StatusInternalServerError)
		time.Sleep(time.Hour)
		require.NotRegexp(t, `\[(WARN|ERROR)\]`, m.log.String())
	})
}
