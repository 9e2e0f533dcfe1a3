// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file makes storage fail at each single call of each operation in turn, with and without the
// call's effect, and makes the request end there. Whatever the operation responds, nothing wrong
// may be served then, after storage recovers, or after a restart.

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

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
	got := f.read(theApp)
	require.NoError(t, got.err)
	f.lease = *got.Secret
	f.lease.IssueTime = time.Now()
	return f
}

// faultScenario is an operation with the state that it meets.
type faultScenario struct {
	name    string
	calls   int // to storage, at the least: none means none at all
	prepare func(f *faultRun)
	request string // operation and path; rollback is when Vault calls the periodic function
	data    map[string]any

	// key is the app key in storage once it has worked: "-" for no app, "" for the one from before.
	key string
}

func (s *faultScenario) run(ctx context.Context, f *faultRun) answer {
	op, path, _ := strings.Cut(s.request, " ")
	req := &logical.Request{Operation: logical.Operation(op), Path: path, Data: maps.Clone(s.data)}
	switch req.Operation {
	case logical.RollbackOperation:
		err := f.engine.periodic(ctx, &logical.Request{Storage: f.storage})
		synctest.Wait()
		return answer{status: http.StatusOK, err: err}
	case logical.RenewOperation, logical.RevokeOperation:
		lease := f.lease
		req.Secret = &lease
	default:
	}
	return f.send(ctx, req)
}

func faultScenarios() []faultScenario {
	nothing, restart := func(*faultRun) {}, func(f *faultRun) { f.start() }
	wait := func(d time.Duration) func(f *faultRun) { return func(*faultRun) { time.Sleep(d) } }
	drop := func(keys ...string) func(f *faultRun) { // as another node does
		return func(f *faultRun) {
			for _, key := range keys {
				require.NoError(f.t, f.storage.Storage.Delete(f.t.Context(), key))
				f.engine.InvalidateKey(f.t.Context(), key)
			}
		}
	}
	after := func(steps ...func(f *faultRun)) func(f *faultRun) {
		return func(f *faultRun) {
			for _, step := range steps {
				step(f)
			}
		}
	}
	load, read := func(f *faultRun) { f.state(theApp) }, func(f *faultRun) { f.token(theApp) }
	orphaned := func(f *faultRun) {
		entry := &logical.StorageEntry{Key: "token/" + orphan, Value: []byte(`{"version":1}`)}
		require.NoError(f.t, f.storage.Storage.Put(f.t.Context(), entry))
	}
	const update = "update config/myapp"
	generation := map[string]any{"app_key": newKey, "app_secret": secretOf[newKey], "base_url": theURL}
	unverified := maps.Clone(generation)
	unverified["verify_connection"] = false
	verify, unleased := map[string]any{"verify_connection": true}, map[string]any{"leased": false}
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
		{"verify without a change", 4, nothing, update, verify, ""},
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
		{"periodic with a sweep", 8, after(orphaned, wait(6950*time.Second), read), "rollback", nil, ""},
	}
}

func TestStorage_that_fails_at_any_call_leaves_nothing_that_serves_wrongly(t *testing.T) {
	for _, s := range faultScenarios() {
		t.Run(s.name, func(t *testing.T) {
			var calls []string
			synctest.Test(t, func(t *testing.T) {
				f := newFaultRun(t)
				s.prepare(f)
				f.storage.fail(nil)
				require.NoError(t, s.run(t.Context(), f).err)
				calls = f.storage.calls()
				f.sound(s.key, true)
			})
			require.GreaterOrEqual(t, len(calls), s.calls)
			require.Equal(t, s.calls == 0, len(calls) == 0)
			for n, call := range calls {
				for how, fault := range map[string]func(end func()) storageFault{
					"fails":                        func(func()) storageFault { return storageFault{err: errStorage} },
					"takes effect, but fails":      func(func()) storageFault { return storageFault{err: errStorage, after: true} },
					"fails, as all after it":       nil,
					"meets the end of the request": func(end func()) storageFault { end(); return storageFault{} },
					"is the last before the end":   func(end func()) storageFault { return storageFault{last: end} },
				} {
					t.Run(fmt.Sprintf("call %d, %s, %s", n+1, call, how), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							f := newFaultRun(t)
							s.prepare(f)
							f.failAt(n, call, fault, &s)
						})
					})
				}
			}
		})
	}
}

// failAt runs the scenario with the nth call to storage going wrong, and checks all that must hold
// whatever the response is.
func (f *faultRun) failAt(n int, at string, fault func(end func()) storageFault, s *faultScenario) {
	f.t.Helper()
	ctx, end := context.WithCancel(f.t.Context())
	defer end()
	before, upstreamCalls := f.keyStored(), f.upstream.Requests(simulator.AnyApp)
	f.storage.fail(func(call int, _, _ string) storageFault {
		switch {
		case fault == nil && call >= n:
			return storageFault{err: errStorage}
		case fault != nil && call == n:
			return fault(end)
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
			require.Nil(f.t, f.storedBeneath("token/"+theApp, &tokenRecord{}), "it said that nothing is left")
		}
		if value := tokenIn(got); value != "" {
			f.requireRight(theApp, value)
		}
	} else {
		if fault != nil && ctx.Err() == nil {
			require.NotEqual(f.t, "put token/"+theApp, at, "a token that cannot be stored is served all the same")
		}
		require.Regexp(f.t, `myapp|listing the apps in storage|context canceled`, got.err.Error(), "it names the app")
		require.GreaterOrEqual(f.t, got.status, http.StatusBadRequest)
		if s.key != "" {
			require.Contains(f.t, []string{before, wanted}, now)
		}
	}
	// Then storage is well again: at once, all is right or says what it lacks.
	f.storage.fail(nil)
	synctest.Wait()
	time.Sleep(longestFirstBackOff)
	f.sound(s.key, false)

	require.NoError(f.t, s.run(f.t.Context(), f).err, "the same again works")
	f.sound(s.key, true)
	time.Sleep(2 * time.Hour)
	f.tick()
	require.Nil(f.t, f.stored("token/"+orphan), "what was left over is removed")
	f.sound(s.key, true)
}

func tokenIn(got answer) string {
	if got.Response == nil {
		return ""
	}
	value, _ := got.Data["access_token"].(string)
	return value
}

// storedBeneath reads a record past the faults; nil where there is none.
func (f *faultRun) storedBeneath(key string, into any) any {
	f.t.Helper()
	e, err := f.storage.Storage.Get(f.t.Context(), key)
	require.NoError(f.t, err)
	if e == nil {
		return nil
	}
	require.NoError(f.t, json.Unmarshal(e.Value, into))
	return into
}

// keyStored is the app key in storage, which is there with the secret of it or not at all.
func (f *faultRun) keyStored() string {
	f.t.Helper()
	var rec configRecord
	f.storedBeneath("config/"+theApp, &rec)
	require.Equal(f.t, secretOf[rec.AppKey], rec.AppSecret)
	return rec.AppKey
}

// requireRight wants a token to be one that DingTalk issued for what is stored as the app's
// credentials, and to live. It returns how long.
func (f *faultRun) requireRight(name, value string) (left time.Duration) {
	f.t.Helper()
	var rec configRecord
	require.NotNil(f.t, f.storedBeneath("config/"+name, &rec), "there is no app %s", name)
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
		exists := f.storedBeneath("config/"+name, &config) != nil
		if exists && f.storedBeneath("token/"+name, &tok) != nil &&
			tok.Generation == config.Generation && time.Until(tok.ExpiresAt) >= minServed {
			left := f.requireRight(name, tok.AccessToken)
			require.LessOrEqual(f.t, time.Until(tok.ExpiresAt), left)
		}
		got := f.read(name)
		if !exists {
			require.Equal(f.t, http.StatusBadRequest, got.status)
			require.Contains(f.t, got.err.Error(), "not configured")
			continue
		}
		require.NoError(f.t, got.err)
		require.Empty(f.t, got.Warnings)
		left := f.requireRight(name, tokenIn(got))
		require.Equal(f.t, config.Leased, got.Secret != nil)
		if got.Secret != nil {
			require.LessOrEqual(f.t, got.Secret.TTL, left)
		}
	}
	f.requireNoLock()
}

// A reader of the app in between must not bring the old state back for good, whatever the request
// whose caller left was, and repeating it must heal what may be wrong.
func TestStorage_that_takes_effect_after_the_caller_left_leaves_memory_right(t *testing.T) {
	for _, s := range faultScenarios() {
		if s.calls == 0 {
			continue
		}
		for _, late := range []time.Duration{2 * time.Second, 8 * time.Second, 40 * time.Second} {
			for _, slow := range []string{"put config/", "delete config/", "put token/", "delete token/"} {
				t.Run(fmt.Sprintf("%s, %s %s late", s.name, slow, late), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						f := newFaultRun(t)
						s.prepare(f)
						f.storage.fail(func(_ int, op, key string) storageFault {
							if strings.HasPrefix(op+" "+key, slow) {
								return storageFault{late: late}
							}
							return storageFault{}
						})
						ctx, leave := context.WithTimeout(t.Context(), time.Second)
						defer leave()
						s.run(ctx, f)
						reading, stop := context.WithTimeout(t.Context(), time.Second)
						f.send(reading, &logical.Request{Operation: logical.ReadOperation, Path: "creds/myapp"}) // may load it
						stop()
						time.Sleep(2 * time.Minute)
						f.storage.fail(nil)
						f.servesRight()

						s.run(t.Context(), f)
						time.Sleep(longestFirstBackOff)
						f.sound(s.key, false)
					})
				})
			}
		}
	}
}
