// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests what memory and storage make of each other: what is loaded and what is stored,
// and what other nodes change.
//
// It also makes storage fail at each single call of each operation in turn, with and without the
// call's effect, and makes the request end there. Whatever the operation responds, nothing wrong
// may be served then, after storage recovers, or after a restart.

import (
	"context"
	"fmt"
	"maps"
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

// ofGeneration gives an entry another generation, of one digit.
func ofGeneration(digit string) func(map[string]any) {
	return func(entry map[string]any) { entry["generation"] = strings.Repeat(digit, 32) }
}

func TestRegistry_an_unknown_app_takes_no_memory(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		for _, name := range []string{"unknown", "other"} {
			m.read(name).gets(t, http.StatusBadRequest, `"`+name+`" is not configured: write its app_key and app_secret to config/`+name)
		}
		m.engine.apps.apps.Range(func(any, any) bool { t.Error("an unknown app is in memory"); return false })
	})
}

func TestStored_token_is_served_without_a_call_when_memory_is_lost(t *testing.T) {
	invalidate := func(key string) func(m *mount) {
		return func(m *mount) { m.engine.InvalidateKey(m.t.Context(), key) }
	}
	forEach(t, map[string]func(m *mount){
		"restart":                    (*mount).start,
		"invalidation of the config": invalidate("config/myapp"),
		"invalidation of the token":  invalidate("token/myapp"),
	}, func(t *testing.T, m *mount, lose func(m *mount)) {
		m.configure(theApp, nil)
		tok := m.token(theApp)
		time.Sleep(time.Hour)
		lose(m)
		require.Nil(t, m.engine.apps.inMemory(theApp))
		got := m.read(theApp).works(t)
		require.Equal(t, tok, got.Data["access_token"])
		require.InDelta(t, 3600, got.Secret.TTL.Seconds(), 1)
		require.Equal(t, 1, m.calls())
	})
}

func TestStored_token_that_is_not_the_apps_or_none_at_all_is_not_served(t *testing.T) {
	forEach(t, map[string]func(entry map[string]any){
		"of another generation, as a crash between two writes leaves it": ofGeneration("d"),
		"with a line break, as an earlier release would have stored it": func(entry map[string]any) {
			entry["access_token"] = "fw8ef8we\nPATH=/tmp"
		},
	}, func(t *testing.T, m *mount, change func(entry map[string]any)) {
		m.configure(theApp, nil)
		m.token(theApp)
		m.upstream.RotateTokens(theKey, true)
		m.rewrite("token/myapp", change)
		m.start()
		require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
		require.Equal(t, 2, m.calls())
	})
}

func TestStored_token_from_a_clock_ahead_is_due_and_its_remaining_TTL_is_capped(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, tok string) {
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
	type test struct {
		put    func() storageFault
		takes  time.Duration
		stored bool
	}
	deaf := func() storageFault { time.Sleep(time.Minute); return storageFault{} }
	forEach(t, map[string]test{
		"storage is slow":          {func() storageFault { return storageFault{late: time.Second} }, time.Second, true},
		"storage fails":            {func() storageFault { return storageFault{err: errStorage} }, 0, false},
		"storage hangs":            {func() storageFault { return storageFault{hang: true} }, 5 * time.Second, false},
		"storage is very slow":     {func() storageFault { return storageFault{late: time.Minute} }, 5 * time.Second, false},
		"storage heeds no context": {deaf, 10*time.Second + 500*time.Millisecond, false},
	}, func(t *testing.T, m *mount, c test) {
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
}

func TestInvalidate_during_a_load_does_not_bring_the_old_state_back(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, old string) {
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
	withToken(t, func(t *testing.T, m *mount, _ string) {
		// A write that was said to have failed takes effect.
		m.rewrite("config/myapp", func(entry map[string]any) { entry["leased"] = false })
		require.NotNil(t, m.read(theApp).Secret)
		m.patch(theApp, map[string]any{"leased": false}).works(t)
		require.Nil(t, m.read(theApp).Secret)
	})
}

func TestFlight_that_meets_another_nodes_config_starts_over_with_it(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		m.state(theApp) // in memory
		m.rewrite("config/myapp", ofGeneration("e"))
		require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
		require.Equal(t, strings.Repeat("e", 32), m.stored("token/myapp")["generation"])
		require.Equal(t, 1, m.calls())
	})
}

func TestFlight_of_an_app_that_is_invalidated_before_its_token_is_stored_stores_nothing(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
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

const (
	newKey   = "dingnewkey"
	otherApp = "other"
	otherKey = "dingotherkey"
	orphan   = "orphan"

	longestFirstBackOff = 6 * time.Second // for a failure of storage's as for any other
)

// secretOf are the secrets of the app keys that DingTalk knows. Writes change the key of the app
// with its secret, so that a token tells which of the two the engine used.
var secretOf = map[string]string{
	theKey: theSecret, newKey: "new-secret-of-the-app", otherKey: "other-secret-0123456789",
}

// faultRun is an engine whose storage fails during one operation.
type faultRun struct {
	*mount
	lease logical.Secret
}

// newFaultRun prepares an app with a token and a lease, next to another app.
func newFaultRun(t *testing.T) *faultRun {
	t.Helper()
	f := &faultRun{mount: newMount(t)}
	for key, secret := range secretOf {
		f.upstream.SetApp(key, secret)
	}
	f.configure(theApp, nil)
	f.configure(otherApp, map[string]any{"app_key": otherKey, "app_secret": secretOf[otherKey]})
	f.token(otherApp)
	got := f.read(theApp).works(t)
	f.lease = *got.Secret
	f.lease.IssueTime = time.Now()
	return f
}

// faultScenario is an operation with the state that it meets.
type faultScenario struct {
	name    string
	calls   int // to storage, at the least: none means none at all
	prepare func(m *mount)
	request string // operation and path; rollback is when Vault calls the periodic function
	data    map[string]any

	// key is the app key in storage once it has worked: "-" for no app, "" for the one from before.
	key string
}

func (s *faultScenario) run(ctx context.Context, f *faultRun) response {
	op, path, _ := strings.Cut(s.request, " ")
	req := &logical.Request{Operation: logical.Operation(op), Path: path, Data: maps.Clone(s.data)}
	switch req.Operation {
	case logical.RollbackOperation:
		err := f.engine.periodic(ctx, &logical.Request{Storage: f.storage})
		synctest.Wait()
		return response{status: http.StatusOK, err: err}
	case logical.RenewOperation, logical.RevokeOperation:
		lease := f.lease
		req.Secret = &lease
	default:
	}
	return f.send(ctx, req)
}

func faultScenarios() []faultScenario {
	restart, load := (*mount).start, func(m *mount) {
		_, err := m.engine.apps.app(m.t.Context(), m.storage, theApp)
		require.NoError(m.t, err)
	}
	drop := func(keys ...string) func(m *mount) { // as another node does
		return func(m *mount) {
			for _, key := range keys {
				require.NoError(m.t, m.storage.Storage.Delete(m.t.Context(), key))
				m.engine.InvalidateKey(m.t.Context(), key)
			}
		}
	}
	orphaned := func(m *mount) { m.putRaw("token/"+orphan, `{"version":1}`) }
	const update = "update config/myapp"
	generation := map[string]any{"app_key": newKey, "app_secret": secretOf[newKey], "base_url": theURL}
	unverified := maps.Clone(generation)
	unverified["verify_connection"] = false
	due, expired, half := wait(7050*time.Second), wait(7200*time.Second), wait(time.Hour+time.Minute)

	return []faultScenario{
		{"create", 4, drop("config/myapp", "token/myapp"), update, generation, newKey},
		{"create unverified", 4, drop("config/myapp", "token/myapp"), update, unverified, newKey},
		{"create over a token that a delete left over", 4, drop("config/myapp"), update, unverified, newKey},
		{"update to a new generation", 4, nothing, update, generation, newKey},
		{"update to a new generation unverified", 4, nothing, update, unverified, newKey},
		{"update of an app that is not in memory", 4, restart, update, generation, newKey},
		{"tune", 3, nothing, update, map[string]any{"leased": false, "refresh_before": 100}, ""},
		{"patch", 3, nothing, "patch config/myapp", unleased, ""},
		{"patch to a new generation", 4, nothing, "patch config/myapp", generation, newKey},
		{"verify without a change", 4, nothing, update, verified, ""},
		{"delete", 2, nothing, "delete config/myapp", nil, "-"},
		{"read the config", 1, nothing, "read config/myapp", nil, ""},
		{"list", 1, nothing, "list config/", nil, ""},
		{"creds of a fresh token", 0, nothing, "read creds/myapp", nil, ""},
		{"creds without a token", 2, after(drop("token/myapp"), load), "read creds/myapp", nil, ""},
		{"creds without a token, not in memory", 4, drop("token/myapp"), "read creds/myapp", nil, ""},
		{"creds of a due token", 2, due, "read creds/myapp", nil, ""},
		{"creds of an expired token", 2, expired, "read creds/myapp", nil, ""},
		{"creds with min_ttl", 2, half, "read creds/myapp", map[string]any{"min_ttl": "90m"}, ""},
		{"creds after a restart", 2, restart, "read creds/myapp", nil, ""},
		{"creds of a due token after a restart", 4, after(due, restart), "read creds/myapp", nil, ""},
		{"refresh", 2, nothing, "update refresh/myapp", nil, ""},
		{"status", 0, nothing, "read status/myapp", nil, ""},
		{"status after a restart", 2, restart, "read status/myapp", nil, ""},
		{"renew in the first half", 0, nothing, "renew creds/myapp", nil, ""},
		{"renew in the second half", 2, half, "renew creds/myapp", nil, ""},
		{"renew after a restart", 4, after(half, restart), "renew creds/myapp", nil, ""},
		{"revoke", 0, nothing, "revoke creds/myapp", nil, ""},
		{"periodic with a sweep", 8, after(orphaned, read, wait(6950*time.Second)), "rollback", nil, ""},
	}
}

func TestStorage_that_fails_or_is_slow_at_any_call_leaves_nothing_that_serves_wrongly(t *testing.T) {
	for _, s := range faultScenarios() {
		t.Run(s.name, func(t *testing.T) {
			var calls []string
			synctest.Test(t, func(t *testing.T) {
				f := newFaultRun(t)
				s.prepare(f.mount)
				f.storage.fail(nil)
				require.NoError(t, s.run(t.Context(), f).err)
				calls = f.storage.calls()
				f.sound(s.key, true)
			})
			require.GreaterOrEqual(t, len(calls), s.calls)
			require.Equal(t, s.calls == 0, len(calls) == 0)
			for n, call := range calls {
				for how, effect := range storageFaults {
					t.Run(fmt.Sprintf("call %d, %s, %s", n+1, call, how), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							f := newFaultRun(t)
							s.prepare(f.mount)
							f.failAt(n, call, effect, &s)
						})
					})
				}
			}
		})
	}
}

// storageEffect is what a call to storage does, which may end the request.
type storageEffect func(end func()) storageFault

var storageFaults = map[string]storageEffect{
	"fails":                         func(func()) storageFault { return storageFault{err: errStorage} },
	"takes effect, but fails":       func(func()) storageFault { return storageFault{err: errStorage, after: true} },
	"fails, as all after it":        nil,
	"meets the end of the request":  func(end func()) storageFault { end(); return storageFault{} },
	"is the last before the end":    func(end func()) storageFault { return storageFault{last: end} },
	"takes 2 s, and the caller one": takes(2 * time.Second),
	"takes 8 s, and the caller one": takes(8 * time.Second),
	"takes 40 s, the caller one":    takes(40 * time.Second),
}

func takes(d time.Duration) storageEffect {
	return func(end func()) storageFault {
		time.AfterFunc(time.Second, end)
		return storageFault{late: d}
	}
}

// failAt runs the scenario with the nth call to storage going wrong, and checks all that must hold
// whatever the response is.
func (f *faultRun) failAt(n int, at string, effect storageEffect, s *faultScenario) {
	f.t.Helper()
	ctx, end := context.WithCancel(f.t.Context())
	defer end()
	before, upstreamCalls := f.keyStored(), f.upstream.Requests(simulator.AnyApp)
	f.storage.fail(func(call int, _, _ string) storageFault {
		switch {
		case effect == nil && call >= n:
			return storageFault{err: errStorage}
		case effect != nil && call == n:
			return effect(end)
		default:
			return storageFault{}
		}
	})
	began := time.Now()
	got := s.run(ctx, f)
	require.Less(f.t, time.Since(began), time.Minute)
	require.LessOrEqual(f.t, f.upstream.Requests(simulator.AnyApp)-upstreamCalls, 2,
		"a failing storage is no reason to ask DingTalk again")

	now, wanted := f.keyStored(), strings.TrimPrefix(s.key, "-")
	if got.err == nil {
		if s.key != "" {
			require.Equal(f.t, wanted, now, "it said that it worked")
		}
		if s.key == "-" {
			require.Nil(f.t, f.stored("token/myapp"), "it said that nothing is left")
		}
		if value := tokenIn(got); value != "" {
			f.requireRight(theApp, value)
		}
	} else {
		if effect != nil && ctx.Err() == nil {
			require.NotEqual(f.t, "put token/"+theApp, at, "a token that cannot be stored is served all the same")
		}
		require.Regexp(f.t, `myapp|listing the apps in storage|context canceled`, got.err.Error(), "it names the app")
		require.GreaterOrEqual(f.t, got.status, http.StatusBadRequest)
		if s.key != "" {
			require.Contains(f.t, []string{before, wanted}, now)
		}
	}
	if ctx.Err() != nil { // a reader in between must not bring the old state back for good
		reading, stop := context.WithTimeout(f.t.Context(), time.Second)
		f.send(reading, &logical.Request{Operation: logical.ReadOperation, Path: "creds/myapp"})
		stop()
		time.Sleep(time.Minute)
	}
	// Then storage is well again: at once, all is right or says what it lacks.
	f.storage.fail(nil)
	synctest.Wait()
	time.Sleep(30 * time.Second) // a fetch that is still under way, its back-off, and the 10 s rule
	f.sound(s.key, false)

	require.NoError(f.t, s.run(f.t.Context(), f).err, "the same again works")
	f.sound(s.key, true)
	time.Sleep(2 * time.Hour)
	f.tick()
	require.Nil(f.t, f.stored("token/"+orphan), "what was left over is removed")
	f.sound(s.key, true)
}

func tokenIn(got response) string {
	if got.Response == nil {
		return ""
	}
	value, _ := got.Data["access_token"].(string)
	return value
}

// keyStored is the app key in storage, which is there with the secret of it or not at all.
func (f *faultRun) keyStored() string {
	f.t.Helper()
	var rec configRecord
	f.record("config/myapp", &rec)
	require.Equal(f.t, secretOf[rec.AppKey], rec.AppSecret)
	return rec.AppKey
}

// requireRight wants a token to be one that DingTalk issued for what is stored as the app's
// credentials, and to live. It returns how long.
func (f *faultRun) requireRight(name, value string) (left time.Duration) {
	f.t.Helper()
	var rec configRecord
	require.True(f.t, f.record("config/"+name, &rec), "there is no app %s", name)
	owner, _ := f.upstream.Owner(value)
	require.Equal(f.t, rec.AppKey, owner, "the token of %s is of other credentials", name)
	left, _ = f.upstream.LifeLeft(value)
	require.GreaterOrEqual(f.t, left, minServed, "the token of %s has expired", name)
	return left
}

// sound checks that storage holds no wrong pair, and that what is served now and after a restart is
// what storage holds. With worked, the operation has done all it was to do.
func (f *faultRun) sound(key string, worked bool) {
	f.t.Helper()
	if worked && key != "" {
		require.Equal(f.t, strings.TrimPrefix(key, "-"), f.keyStored())
		if key == "-" {
			require.Nil(f.t, f.stored("token/myapp"), "nothing is left over")
		}
	}
	f.servesRight()
	f.start()
	f.servesRight()
	for key, secret := range secretOf {
		require.NotContains(f.t, f.log.String(), secret)
		if token := f.upstream.LastToken(key); token != "" {
			require.NotContains(f.t, f.log.String(), token)
		}
	}
}

// servesRight checks that what memory serves is what storage holds, and that no lock is held.
func (f *faultRun) servesRight() {
	f.t.Helper()
	for _, name := range []string{theApp, otherApp, orphan} {
		var config configRecord
		var tok tokenRecord
		exists := f.record("config/"+name, &config)
		if exists && f.record("token/"+name, &tok) &&
			tok.Generation == config.Generation && time.Until(tok.ExpiresAt) >= minServed {
			left := f.requireRight(name, tok.AccessToken)
			require.LessOrEqual(f.t, time.Until(tok.ExpiresAt), left)
		}
		got := f.read(name)
		if !exists {
			got.gets(f.t, http.StatusBadRequest, "not configured")
			continue
		}
		require.Empty(f.t, got.works(f.t).Warnings)
		left := f.requireRight(name, tokenIn(got))
		require.Equal(f.t, config.Leased, got.Secret != nil)
		if got.Secret != nil {
			require.LessOrEqual(f.t, got.Secret.TTL, left)
		}
	}
	f.requireNoLock()
}
