// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests what memory and storage make of each other: what is loaded and what is stored,
// and what other nodes change. What happens when storage fails is in registry_faults_test.go.

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// rewrite changes an entry in storage as another node does, without an invalidation.
func (m *mount) rewrite(key string, change func(entry map[string]any)) {
	m.t.Helper()
	entry := storedIn(m.t, m.storage.Storage, key)
	change(entry)
	value, err := json.Marshal(entry)
	require.NoError(m.t, err)
	require.NoError(m.t, m.storage.Storage.Put(m.t.Context(), &logical.StorageEntry{Key: key, Value: value}))
}

// ofGeneration gives an entry another generation, of one digit.
func ofGeneration(digit string) func(map[string]any) {
	return func(entry map[string]any) { entry["generation"] = strings.Repeat(digit, 32) }
}

func TestRegistry_an_unknown_app_takes_no_memory(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		for _, name := range []string{"unknown", "other"} {
			got := m.read(name)
			require.Equal(t, http.StatusBadRequest, got.status)
			require.ErrorContains(t, got.err, `"`+name+`" is not configured: write its app_key and app_secret to config/`+name)
		}
		m.engine.apps.apps.Range(func(any, any) bool { t.Error("an unknown app is in memory"); return false })
	})
}

func TestStored_token_is_served_without_a_call_when_memory_is_lost(t *testing.T) {
	for how, lose := range map[string]func(m *mount){
		"restart":                    func(m *mount) { m.start() },
		"invalidation of the config": func(m *mount) { m.engine.InvalidateKey(m.t.Context(), "config/myapp") },
		"invalidation of the token":  func(m *mount) { m.engine.InvalidateKey(m.t.Context(), "token/myapp") },
	} {
		t.Run(how, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				tok := m.token(theApp)
				time.Sleep(time.Hour)
				lose(m)
				require.Nil(t, m.engine.apps.inMemory(theApp))
				got := m.read(theApp)
				require.NoError(t, got.err)
				require.Equal(t, tok, got.Data["access_token"])
				require.InDelta(t, 3600, got.Secret.TTL.Seconds(), 1)
				require.Equal(t, 1, m.calls())
			})
		})
	}
}

func TestStored_token_that_is_not_the_apps_or_none_at_all_is_not_served(t *testing.T) {
	for name, change := range map[string]func(entry map[string]any){
		"of another generation, as a crash between two writes leaves it": ofGeneration("d"),
		"with a line break, as an earlier release would have stored it": func(entry map[string]any) {
			entry["access_token"] = "fw8ef8we\nPATH=/tmp"
		},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.token(theApp)
				m.upstream.RotateTokens(theKey, true)
				m.rewrite("token/myapp", change)
				m.start()
				require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
				require.Equal(t, 2, m.calls())
			})
		})
	}
}

func TestStored_token_from_a_clock_ahead_is_due_and_its_remaining_TTL_is_capped(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		tok := m.token(theApp)
		m.rewrite("token/myapp", func(entry map[string]any) {
			for _, field := range []string{"fetched_at", "expires_at"} {
				at, err := time.Parse(time.RFC3339Nano, entry[field].(string))
				require.NoError(t, err)
				entry[field] = at.Add(3 * time.Hour)
			}
		})
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

func TestStored_token_is_there_before_it_is_served_and_one_that_cannot_be_is_served_all_the_same(t *testing.T) {
	deaf := func() storageFault { time.Sleep(time.Minute); return storageFault{} }
	for name, c := range map[string]struct {
		put    func() storageFault
		takes  time.Duration
		stored bool
	}{
		"storage is slow":          {func() storageFault { return storageFault{late: time.Second} }, time.Second, true},
		"storage fails":            {func() storageFault { return storageFault{err: errStorage} }, 0, false},
		"storage hangs":            {func() storageFault { return storageFault{hang: true} }, 5 * time.Second, false},
		"storage is very slow":     {func() storageFault { return storageFault{late: time.Minute} }, 5 * time.Second, false},
		"storage heeds no context": {deaf, 10*time.Second + 500*time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.storage.fail(func(_ int, op, _ string) storageFault {
					if op == "put" {
						return c.put()
					}
					return storageFault{}
				})
				began := time.Now()
				require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
				require.Equal(t, c.takes, time.Since(began))
				require.Equal(t, 1, m.calls())
				require.Equal(t, c.stored, m.stored("token/myapp") != nil)
				time.Sleep(2 * time.Minute)
				require.Equal(t, !c.stored, strings.Contains(m.log.String(), "could not be stored"))
			})
		})
	}
}

func TestInvalidate_during_a_load_does_not_bring_the_old_state_back(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		old := m.token(theApp)
		m.start()

		var once sync.Once
		m.storage.on(func(op, key string) error {
			if op == "get" && key == "token/myapp" {
				once.Do(func() { // the config was read: now another node changes it
					m.rewrite("config/myapp", ofGeneration("f"))
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

func TestWrite_of_what_storage_holds_already_makes_memory_agree(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp) // then a write that was said to have failed takes effect
		m.rewrite("config/myapp", func(entry map[string]any) { entry["leased"] = false })
		require.NotNil(t, m.read(theApp).Secret)
		require.NoError(t, m.do(logical.PatchOperation, "config/myapp", map[string]any{"leased": false}).err)
		require.Nil(t, m.read(theApp).Secret)
	})
}

func TestFlight_that_meets_another_nodes_config_starts_over_with_it(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.state(theApp) // in memory
		m.rewrite("config/myapp", ofGeneration("e"))
		require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
		require.Equal(t, strings.Repeat("e", 32), m.stored("token/myapp")["generation"])
		require.Equal(t, 1, m.calls())
	})
}

func TestFlight_of_an_app_that_is_invalidated_before_its_token_is_stored_stores_nothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.state(theApp)
		m.upstream.RotateTokens(theKey, true)
		unlock, _ := m.engine.apps.lock(t.Context(), theApp)
		m.storage.fail(nil)
		served := make(chan string, 1)
		go func() { served <- m.token(theApp) }()
		synctest.Wait() // the token is fetched
		m.rewrite("config/myapp", ofGeneration("c"))
		m.engine.InvalidateKey(t.Context(), "config/myapp")
		unlock()
		require.Equal(t, <-served, m.upstream.LastToken(theKey))
		require.Equal(t, 2, m.calls())
		require.Equal(t, []string{
			"get config/myapp", "get config/myapp", "get token/myapp", "get config/myapp", "put token/myapp",
		}, m.storage.calls(), "those of the first fetch, a load and the second fetch")
		require.Equal(t, strings.Repeat("c", 32), m.stored("token/myapp")["generation"])
	})
}
