// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file lets storage fail at each single call of each operation in turn, with and without the call's effect, and
// lets the request end there. Whatever the operation answers, nothing wrong may be served then, after storage
// recovers, or after a restart.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

const (
	rotatedSecret = "rotated-secret-of-the-app"
	otherApp      = "other"
	otherKey      = "dingotherkey"
	otherSecret   = "other-secret-0123456789"
	orphan        = "orphan"
)

// faultRun is an engine whose storage fails during one operation.
type faultRun struct {
	*mount
	upstream *modelDingTalk
}

// newFaultRun prepares an app with a token next to another one, both readable with either secret: what is in
// question is which one the engine uses.
func newFaultRun(t *testing.T) *faultRun {
	t.Helper()
	f := &faultRun{upstream: newModelDingTalk()}
	f.upstream.accepted = map[string][]string{theKey: {theSecret, rotatedSecret}, otherKey: {otherSecret}}
	f.mount = mountOver(t, &logical.InmemStorage{}, f.upstream)
	f.configure(theApp, nil)
	f.configure(otherApp, map[string]any{"app_key": otherKey, "app_secret": otherSecret})
	f.token(theApp)
	f.token(otherApp)
	return f
}

// operation is what runs with storage failing.
type operation func(ctx context.Context) answer

func (f *faultRun) request(op logical.Operation, path string, data map[string]any) operation {
	return func(ctx context.Context) answer {
		return f.send(ctx, &logical.Request{Operation: op, Path: path, Data: data})
	}
}

// drop removes keys as another node would.
func (f *faultRun) drop(keys ...string) {
	f.t.Helper()
	for _, key := range keys {
		require.NoError(f.t, f.storage.Storage.Delete(f.t.Context(), key))
		f.engine.InvalidateKey(f.t.Context(), key)
	}
}

func (f *faultRun) renewal() operation {
	f.t.Helper()
	got := f.read(theApp)
	require.NoError(f.t, got.err)
	secret := *got.Secret
	secret.IssueTime = time.Now()
	return func(ctx context.Context) answer {
		again := secret
		return f.send(ctx, &logical.Request{Operation: logical.RenewOperation, Path: "creds/myapp", Secret: &again})
	}
}

// faultScenarios are the operations that touch storage, each with the state that it meets. calls is how many calls to storage it
// makes at the least: none means none at all.
var faultScenarios = []struct {
	name    string
	calls   int
	prepare func(f *faultRun) operation

	// secret is what storage holds once the operation has worked: "-" for no app, "" for the secret from before.
	secret string
}{
	{name: "create", calls: 4, secret: rotatedSecret, prepare: func(f *faultRun) operation {
		f.drop("config/myapp", "token/myapp")
		return f.request(logical.UpdateOperation, "config/myapp", map[string]any{"app_key": theKey, "app_secret": rotatedSecret, "base_url": theURL})
	}},
	{name: "create unverified", calls: 4, secret: rotatedSecret, prepare: func(f *faultRun) operation {
		f.drop("config/myapp", "token/myapp")
		return f.request(logical.UpdateOperation, "config/myapp", map[string]any{"app_key": theKey, "app_secret": rotatedSecret, "base_url": theURL, "verify_connection": false})
	}},
	{name: "create over a token that a delete left over", calls: 4, secret: rotatedSecret, prepare: func(f *faultRun) operation {
		f.drop("config/myapp")
		return f.request(logical.UpdateOperation, "config/myapp", map[string]any{"app_key": theKey, "app_secret": rotatedSecret, "base_url": theURL, "verify_connection": false})
	}},
	{name: "update to a new generation", calls: 4, secret: rotatedSecret, prepare: func(f *faultRun) operation {
		return f.request(logical.UpdateOperation, "config/myapp", map[string]any{"app_secret": rotatedSecret, "base_url": theURL})
	}},
	{name: "update to a new generation unverified", calls: 4, secret: rotatedSecret, prepare: func(f *faultRun) operation {
		return f.request(logical.UpdateOperation, "config/myapp", map[string]any{"app_secret": rotatedSecret, "base_url": theURL, "verify_connection": false})
	}},
	{name: "update of an app that is not in memory", calls: 4, secret: rotatedSecret, prepare: func(f *faultRun) operation {
		f.start()
		return f.request(logical.UpdateOperation, "config/myapp", map[string]any{"app_secret": rotatedSecret, "base_url": theURL})
	}},
	{name: "tune", calls: 3, prepare: func(f *faultRun) operation {
		return f.request(logical.UpdateOperation, "config/myapp", map[string]any{"leased": false, "refresh_before": 100})
	}},
	{name: "patch", calls: 3, prepare: func(f *faultRun) operation {
		return f.request(logical.PatchOperation, "config/myapp", map[string]any{"leased": false})
	}},
	{name: "patch to a new generation", calls: 4, secret: rotatedSecret, prepare: func(f *faultRun) operation {
		return f.request(logical.PatchOperation, "config/myapp", map[string]any{"app_secret": rotatedSecret, "base_url": theURL})
	}},
	{name: "verify without a change", calls: 4, prepare: func(f *faultRun) operation {
		return f.request(logical.UpdateOperation, "config/myapp", map[string]any{"verify_connection": true})
	}},
	{name: "delete", calls: 2, secret: "-", prepare: func(f *faultRun) operation {
		return f.request(logical.DeleteOperation, "config/myapp", nil)
	}},
	{name: "read the config", calls: 1, prepare: func(f *faultRun) operation {
		return f.request(logical.ReadOperation, "config/myapp", nil)
	}},
	{name: "list", calls: 1, prepare: func(f *faultRun) operation {
		return f.request(logical.ListOperation, "config/", nil)
	}},
	{name: "creds of a fresh token", calls: 0, prepare: func(f *faultRun) operation {
		return f.request(logical.ReadOperation, "creds/myapp", nil)
	}},
	{name: "creds without a token", calls: 2, prepare: func(f *faultRun) operation {
		f.drop("token/myapp")
		require.Equal(f.t, "absent", f.state(theApp)["state"])
		return f.request(logical.ReadOperation, "creds/myapp", nil)
	}},
	{name: "creds without a token, not in memory", calls: 4, prepare: func(f *faultRun) operation {
		f.drop("token/myapp")
		return f.request(logical.ReadOperation, "creds/myapp", nil)
	}},
	{name: "creds of a due token", calls: 2, prepare: func(f *faultRun) operation {
		time.Sleep(7050 * time.Second)
		return f.request(logical.ReadOperation, "creds/myapp", nil)
	}},
	{name: "creds of an expired token", calls: 2, prepare: func(f *faultRun) operation {
		time.Sleep(7200 * time.Second)
		return f.request(logical.ReadOperation, "creds/myapp", nil)
	}},
	{name: "creds with min_ttl", calls: 2, prepare: func(f *faultRun) operation {
		time.Sleep(time.Hour)
		return f.request(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": "90m"})
	}},
	{name: "creds after a restart", calls: 2, prepare: func(f *faultRun) operation {
		f.start()
		return f.request(logical.ReadOperation, "creds/myapp", nil)
	}},
	{name: "creds of a due token after a restart", calls: 4, prepare: func(f *faultRun) operation {
		time.Sleep(7050 * time.Second)
		f.start()
		return f.request(logical.ReadOperation, "creds/myapp", nil)
	}},
	{name: "refresh", calls: 2, prepare: func(f *faultRun) operation {
		return f.request(logical.UpdateOperation, "refresh/myapp", nil)
	}},
	{name: "status", calls: 0, prepare: func(f *faultRun) operation {
		return f.request(logical.ReadOperation, "status/myapp", nil)
	}},
	{name: "status after a restart", calls: 2, prepare: func(f *faultRun) operation {
		f.start()
		return f.request(logical.ReadOperation, "status/myapp", nil)
	}},
	{name: "renew in the first half", calls: 0, prepare: func(f *faultRun) operation {
		return f.renewal()
	}},
	{name: "renew in the second half", calls: 2, prepare: func(f *faultRun) operation {
		renew := f.renewal()
		time.Sleep(time.Hour + time.Minute)
		return renew
	}},
	{name: "renew after a restart", calls: 4, prepare: func(f *faultRun) operation {
		renew := f.renewal()
		time.Sleep(time.Hour + time.Minute)
		f.start()
		return renew
	}},
	{name: "revoke", calls: 0, prepare: func(f *faultRun) operation {
		got := f.read(theApp)
		require.NoError(f.t, got.err)
		return func(ctx context.Context) answer {
			secret := *got.Secret
			return f.send(ctx, &logical.Request{Operation: logical.RevokeOperation, Path: "creds/myapp", Secret: &secret})
		}
	}},
	{name: "periodic with a sweep", calls: 8, prepare: func(f *faultRun) operation {
		require.NoError(f.t, f.storage.Storage.Put(f.t.Context(), &logical.StorageEntry{Key: "token/orphan", Value: []byte(`{"version":1}`)}))
		time.Sleep(6950 * time.Second)
		f.token(theApp)
		return func(ctx context.Context) answer {
			err := f.engine.periodic(ctx, &logical.Request{Storage: f.storage})
			synctest.Wait()
			return answer{status: http.StatusOK, err: err}
		}
	}},
}

func TestStorage_that_fails_at_any_call_leaves_nothing_that_serves_wrongly(t *testing.T) {
	for _, s := range faultScenarios {
		t.Run(s.name, func(t *testing.T) {
			var calls []string
			synctest.Test(t, func(t *testing.T) {
				f := newFaultRun(t)
				op := s.prepare(f)
				f.storage.fail(nil)
				got := op(t.Context())
				require.NoError(t, got.err)
				calls = f.storage.calls()
				f.sound(s.secret, true)
			})
			require.GreaterOrEqual(t, len(calls), s.calls)
			if s.calls == 0 {
				require.Empty(t, calls)
			}
			for n, call := range calls {
				reads := strings.HasPrefix(call, "get") || strings.HasPrefix(call, "list")
				for how, fault := range map[string]func(end func()) storageFault{
					"fails":                   func(func()) storageFault { return storageFault{err: errStorage} },
					"takes effect, but fails": func(func()) storageFault { return storageFault{err: errStorage, after: true} },
					"fails, as all after it":  nil,
					"meets the end of the request": func(end func()) storageFault {
						end()
						return storageFault{}
					},
					"is the last before the end of it": func(end func()) storageFault { return storageFault{last: end} },
				} {
					if reads && how == "takes effect, but fails" {
						continue // a read that fails has no effect
					}
					t.Run(fmt.Sprintf("call %d, %s, %s", n+1, call, how), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							f := newFaultRun(t)
							op := s.prepare(f)
							f.failAt(n, call, fault, s.secret, op)
						})
					})
				}
			}
		})
	}
}

// failAt runs the operation with the nth call to storage going wrong, and checks all that must hold whatever it answers.
func (f *faultRun) failAt(n int, at string, fault func(end func()) storageFault, secret string, op operation) {
	f.t.Helper()
	ctx, end := context.WithCancel(f.t.Context())
	defer end()
	before, upstreamCalls := f.secretStored(), len(f.upstream.callsOf(""))
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
	got := op(ctx)
	require.Less(f.t, time.Since(began), time.Minute)
	require.LessOrEqual(f.t, len(f.upstream.callsOf(""))-upstreamCalls, 2, "a failing storage is no reason to ask DingTalk again")

	now := f.secretStored()
	if got.err == nil {
		if secret != "" {
			require.Equal(f.t, strings.TrimPrefix(secret, "-"), now, "it said that it worked")
		}
		if secret == "-" {
			require.False(f.t, f.record("token/"+theApp, &tokenRecord{}), "it said that nothing is left")
		}
		if value, ok := f.tokenOf(got); ok {
			require.NoError(f.t, f.right(theApp, value), "it answered with a token")
		}
	} else {
		if fault != nil && ctx.Err() == nil {
			require.NotEqual(f.t, "put token/"+theApp, at, "a token that cannot be stored is served all the same")
		}
		require.Regexp(f.t, `myapp|listing the apps in storage|context canceled`, got.err.Error(), "the error names the app")
		require.GreaterOrEqual(f.t, got.status, http.StatusBadRequest)
		if secret != "" {
			require.Contains(f.t, []string{before, strings.TrimPrefix(secret, "-")}, now)
		}
	}
	// Then storage is well again: at once, all is right or says what it lacks.
	f.storage.fail(nil)
	synctest.Wait()
	time.Sleep(longestFirstBackOff)
	f.sound(secret, false)

	again := op(f.t.Context())
	require.NoError(f.t, again.err, "the same again works")
	f.sound(secret, true)
	time.Sleep(2 * time.Hour)
	require.NoError(f.t, f.engine.periodic(f.t.Context(), &logical.Request{Storage: f.storage}))
	synctest.Wait()
	require.Nil(f.t, f.stored("token/"+orphan), "what was left over is removed")
	f.sound(secret, true)
}

func (f *faultRun) tokenOf(got answer) (string, bool) {
	if got.Response == nil {
		return "", false
	}
	value, ok := got.Data["access_token"].(string)
	return value, ok
}

func (f *faultRun) record(key string, into any) bool {
	f.t.Helper()
	e, err := f.storage.Storage.Get(f.t.Context(), key)
	require.NoError(f.t, err)
	if e == nil {
		return false
	}
	require.NoError(f.t, json.Unmarshal(e.Value, into))
	return true
}

func (f *faultRun) secretStored() string {
	f.t.Helper()
	var rec configRecord
	f.record("config/"+theApp, &rec)
	return rec.AppSecret
}

// longestFirstBackOff is how long a failure of storage's is remembered, like any other.
const longestFirstBackOff = 6 * time.Second

// right tells whether a token is one that DingTalk gave for what is stored as the app's credentials.
func (f *faultRun) right(name, value string) error {
	var rec configRecord
	t, issued := f.upstream.token(value)
	switch {
	case !f.record("config/"+name, &rec):
		return errors.New("there is no such app")
	case !issued:
		return errors.New("nobody issued it")
	case t.account != account{host: rec.BaseURL, key: rec.AppKey, secret: rec.AppSecret}:
		return errors.New("it is of other credentials")
	case time.Until(t.expires) < minServed:
		return errors.New("it has expired")
	}
	return nil
}

// sound checks that storage holds no wrong pair, and that what is served now and after a restart is what storage holds.
// With worked, the operation has done all it was to do.
func (f *faultRun) sound(secret string, worked bool) {
	f.t.Helper()
	if worked && secret != "" {
		require.Equal(f.t, strings.TrimPrefix(secret, "-"), f.secretStored())
		if secret == "-" {
			require.Nil(f.t, f.stored("token/myapp"), "nothing is left over")
		}
	}
	for _, restart := range []bool{false, true} {
		if restart {
			f.start()
		}
		f.servesRight()
		f.requireNoLock()
	}
	for _, text := range []string{theSecret, rotatedSecret, otherSecret, "token-"} {
		require.NotContains(f.t, f.log.String(), text)
	}
}

// servesRight checks that what memory serves is what storage holds.
func (f *faultRun) servesRight() {
	f.t.Helper()
	for _, name := range []string{theApp, otherApp, orphan} {
		var config configRecord
		var tok tokenRecord
		exists := f.record("config/"+name, &config)
		if exists && f.record("token/"+name, &tok) && tok.Generation == config.Generation && time.Until(tok.ExpiresAt) >= minServed {
			require.NoError(f.t, f.right(name, tok.AccessToken), "what is stored of %s", name)
			known, _ := f.upstream.token(tok.AccessToken)
			require.False(f.t, tok.ExpiresAt.After(known.expires))
		}
		got := f.read(name)
		if !exists {
			require.Equal(f.t, http.StatusBadRequest, got.status)
			require.Contains(f.t, got.err.Error(), "not configured")
			continue
		}
		require.NoError(f.t, got.err)
		require.Empty(f.t, got.Warnings)
		value, _ := f.tokenOf(got)
		require.NoError(f.t, f.right(name, value), "what is served of %s", name)
		require.Equal(f.t, config.Leased, got.Secret != nil)
		if got.Secret != nil {
			known, _ := f.upstream.token(value)
			require.LessOrEqual(f.t, got.Secret.TTL, time.Until(known.expires))
		}
	}
}

// A reader of the app in between must not bring the old state back for good, whatever the request
// whose caller left was, and repeating it must heal what may be wrong.
func TestStorage_that_takes_effect_after_the_caller_left_leaves_memory_right(t *testing.T) {
	for _, s := range faultScenarios {
		if s.calls == 0 {
			continue
		}
		for _, late := range []time.Duration{2 * time.Second, 8 * time.Second, 40 * time.Second} {
			for _, slow := range []string{"put config/", "delete config/", "put token/", "delete token/"} {
				t.Run(fmt.Sprintf("%s, %s %s late", s.name, slow, late), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						f := newFaultRun(t)
						op := s.prepare(f)
						f.storage.fail(func(_ int, op, key string) storageFault {
							if strings.HasPrefix(op+" "+key, slow) {
								return storageFault{late: late}
							}
							return storageFault{}
						})
						ctx, leave := context.WithTimeout(t.Context(), time.Second)
						defer leave()
						op(ctx)
						reading, stop := context.WithTimeout(t.Context(), time.Second)
						f.request(logical.ReadOperation, "creds/myapp", nil)(reading) // which may load the app
						stop()
						time.Sleep(2 * time.Minute)
						f.storage.fail(nil)
						f.servesRight()

						op(t.Context())
						time.Sleep(longestFirstBackOff)
						f.sound(s.secret, false)
					})
				})
			}
		}
	}
}
