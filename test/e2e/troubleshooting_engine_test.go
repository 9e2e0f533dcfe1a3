// SPDX-License-Identifier: MPL-2.0

//go:build e2e

//nolint:thelper // a provocation is the test, no helper of it
package e2e

// Errors that the engine returns only where its storage fails or is slow, after an hour, or where
// something in it is broken, and its responses to requests that Vault ends first. The engine runs
// without a Vault, over a storage that the test controls.

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	engine "vault-plugin-secrets-dingtalk"
	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// hookedStorage calls a function before each of its calls, and does what was asked even if nobody
// waits for it any more.
type hookedStorage struct {
	logical.InmemStorage
	before func(call string) error
}

func (s *hookedStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	if err := s.before("get " + key); err != nil {
		return nil, err
	}
	return s.InmemStorage.Get(context.WithoutCancel(ctx), key)
}

func (s *hookedStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if err := s.before("put " + entry.Key); err != nil {
		return err
	}
	return s.InmemStorage.Put(context.WithoutCancel(ctx), entry)
}

func (s *hookedStorage) Delete(ctx context.Context, key string) error {
	if err := s.before("delete " + key); err != nil {
		return err
	}
	return s.InmemStorage.Delete(context.WithoutCancel(ctx), key)
}

func (s *hookedStorage) List(ctx context.Context, prefix string) ([]string, error) {
	if err := s.before("list " + prefix); err != nil {
		return nil, err
	}
	return s.InmemStorage.List(context.WithoutCancel(ctx), prefix)
}

// bareEngine is the engine without a Vault, and what it logs.
type bareEngine struct {
	logical.Backend
	storage *hookedStorage

	mu  sync.Mutex
	log bytes.Buffer
}

// Write implements io.Writer for the log.
func (e *bareEngine) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.log.Write(p)
}

func (e *bareEngine) logged() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.log.String()
}

// newBareEngine makes an engine with an app, which is in storage alone.
func newBareEngine(t *testing.T, baseURL string) *bareEngine {
	t.Helper()
	e := &bareEngine{storage: &hookedStorage{before: func(string) error { return nil }}}
	var err error
	e.Backend, err = engine.Factory(t.Context(), &logical.BackendConfig{
		StorageView: e.storage,
		System:      &logical.StaticSystemView{PluginEnvironment: &logical.PluginEnvironment{}},
		Logger:      hclog.New(&hclog.LoggerOptions{Output: e, Level: hclog.Debug}),
	})
	require.NoError(t, err)
	require.NoError(
		t,
		e.storage.InmemStorage.Put(
			t.Context(),
			&logical.StorageEntry{Key: "config/myapp", Value: []byte(storedConfig(baseURL))},
		),
	)
	t.Cleanup(func() { e.Cleanup(context.Background()) })
	return e
}

// does makes the engine do something with the app, and returns all that it says: in the error, in
// warnings and in its log.
func (e *bareEngine) does(ctx context.Context, operation logical.Operation, path string, data map[string]any) string {
	response, err := e.HandleRequest(
		ctx,
		&logical.Request{Operation: operation, Path: path, Data: data, Storage: e.storage},
	)
	var said []string
	if err != nil {
		said = append(said, err.Error())
	}
	if response != nil {
		said = append(said, response.Warnings...)
	}
	return strings.Join(append(said, e.logged()), "\n")
}

// read reads the app's credentials.
func (e *bareEngine) read(ctx context.Context) string {
	return e.does(ctx, logical.ReadOperation, "creds/myapp", nil)
}

// anHourLater lets the engine tidy up, with a token in storage that no app owns.
func anHourLater(before func(call string) error) provocation {
	return func(t *testing.T) string {
		var said string
		synctest.Test(t, func(t *testing.T) {
			e := newBareEngine(t, "https://api.dingtalk.io")
			require.NoError(
				t,
				e.storage.InmemStorage.Put(
					t.Context(),
					&logical.StorageEntry{Key: "token/orphan", Value: []byte("{}")},
				),
			)
			e.storage.before = before
			time.Sleep(time.Hour + time.Minute)
			_, err := e.HandleRequest(
				t.Context(),
				&logical.Request{Operation: logical.RollbackOperation, Storage: e.storage},
			)
			require.NoError(t, err)
			synctest.Wait()
			said = e.logged()
		})
		return said
	}
}

func ofTheEngineAlone() map[string]provocation {
	known := func(t *testing.T) *harness.DingTalk {
		t.Helper()
		dt := harness.StartDingTalk(t, harness.FullLifetime)
		dt.SetApp("dingstored", "x") // as in storedConfig
		return dt
	}
	failsAt := func(call string) func(string) error {
		return func(made string) error {
			if made == call {
				return errors.New("no space left on device")
			}
			return nil
		}
	}
	// while makes the engine do something while a call to storage fails.
	while := func(call string, operation logical.Operation, path string, data map[string]any) provocation {
		return func(t *testing.T) string {
			e := newBareEngine(t, known(t).URL)
			e.storage.before = failsAt(call)
			return e.does(t.Context(), operation, path, data)
		}
	}
	whileVerified := func(t *testing.T) string {
		dt := known(t)
		dt.SetApp("dingstored", "another")
		e := newBareEngine(t, dt.URL)
		e.storage.before = failsAt("put token/myapp")
		return e.does(t.Context(), logical.UpdateOperation, "config/myapp", map[string]any{
			"app_secret": "another", "base_url": dt.URL,
		})
	}
	return map[string]provocation{
		`reading its configuration from storage`: while("get config/myapp", logical.ReadOperation, "creds/myapp", nil),
		`reading its token from storage`:         while("get token/myapp", logical.ReadOperation, "creds/myapp", nil),
		`writing its configuration to storage`: while(
			"put config/myapp",
			logical.UpdateOperation,
			"config/myapp",
			map[string]any{"leased": false},
		),
		`deleting its configuration from storage`: while(
			"delete config/myapp",
			logical.DeleteOperation,
			"config/myapp",
			nil,
		),
		`listing the apps in storage`: while("list config/", logical.ListOperation, "config/", nil),
		`could not get a token for app "…", since Vault's storage failed`: func(t *testing.T) string {
			e := newBareEngine(t, known(t).URL)
			e.storage.before = onceLoaded(func() error { return errors.New("no space left on device") })
			return e.read(t.Context())
		},
		`app "…": storage has not confirmed the change within …, and it may take effect later: read its configuration before you try again`: slowly,
		`app "…" is deleted, but its stored token is not`: while(
			"delete token/myapp",
			logical.DeleteOperation,
			"config/myapp",
			nil,
		),
		`a fetched token could not be stored: it is served from memory, and after a restart another is fetched`: while(
			"put token/myapp",
			logical.ReadOperation,
			"creds/myapp",
			nil,
		),
		`The configuration was stored, but its token was not`:                                                  whileVerified,
		`the app is configured, but its stored token could not be updated: after a restart another is fetched`: whileVerified,

		`looking for tokens without a config failed: the next try is in an hour`: anHourLater(failsAt("list token/")),
		`removing a token without a config failed: the next try is in an hour`: anHourLater(
			failsAt("delete token/orphan"),
		),
		`no response in time`: func(t *testing.T) string {
			e := newBareEngine(t, known(t).URL)
			e.storage.before = onceLoaded(func() error {
				time.Sleep(3 * time.Second) // request_timeout and more, heeding no context
				return nil
			})
			return e.read(t.Context())
		},
		`the secrets engine is being unloaded: try again`: func(t *testing.T) string {
			dt := known(t)
			dt.SetFault("dingstored", simulator.Fault{Kind: simulator.FaultHang})
			e := newBareEngine(t, dt.URL)
			var said string
			var reading sync.WaitGroup
			reading.Go(func() { said = e.read(t.Context()) })
			harness.WaitFor(t, 10*time.Second, "the call upstream hangs", func() bool { return dt.Requests("dingstored") > 0 })
			e.Cleanup(t.Context())
			reading.Wait()
			return said
		},
		`the token expired while it was being handed out: try again`: func(t *testing.T) string {
			dt := known(t)
			dt.SetTokenLifetime(5 * time.Second)
			e := newBareEngine(t, dt.URL)
			e.does(
				t.Context(),
				logical.UpdateOperation,
				"config/myapp",
				map[string]any{"request_timeout": "10s"},
			) // so that the reader waits
			e.storage.before = func(call string) error {
				if call == "put token/myapp" {
					time.Sleep(3500 * time.Millisecond) // then less than two seconds are left
				}
				return nil
			}
			return e.read(t.Context())
		},
		`app "…": waiting for its storage`: func(t *testing.T) string {
			e := newBareEngine(t, known(t).URL)
			reached, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			e.storage.before = func(string) error {
				once.Do(func() { close(reached) })
				<-release
				return nil
			}
			var first sync.WaitGroup
			first.Go(func() { e.read(t.Context()) })
			<-reached
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			said := e.read(ctx)
			close(release)
			first.Wait()
			return said
		},
		`app "…": loading it from storage`: func(t *testing.T) string {
			e := newBareEngine(t, known(t).URL)
			ctx, cancel := context.WithCancel(t.Context())
			e.storage.before = func(call string) error {
				if call == "get token/myapp" { // another node writes the app meanwhile, and the reader gives up
					e.InvalidateKey(t.Context(), "config/myapp")
					cancel()
				}
				return nil
			}
			return e.read(ctx)
		},
		`internal error while fetching a token for app "…"`: func(t *testing.T) string {
			e := newBareEngine(t, known(t).URL)
			e.panicInFlight()
			return e.read(t.Context())
		},
		`panic while fetching a token: please report this`: func(t *testing.T) string {
			e := newBareEngine(t, known(t).URL)
			e.panicInFlight()
			return e.read(t.Context())
		},
	}
}

// panicInFlight makes the storage panic when a flight reads the app's secret.
func (e *bareEngine) panicInFlight() {
	e.storage.before = onceLoaded(func() error { panic("a bug") })
}

// onceLoaded does something at every read of the app's configuration but the first, which loads the
// app: by the fetch that needs its secret.
func onceLoaded(do func() error) (before func(call string) error) {
	var reads atomic.Int32
	return func(call string) error {
		if call == "get config/myapp" && reads.Add(1) > 1 {
			return do()
		}
		return nil
	}
}

// slowly writes an app while storage is slower than the engine waits.
func slowly(t *testing.T) string {
	var said string
	synctest.Test(t, func(t *testing.T) {
		e := newBareEngine(t, "https://api.dingtalk.io")
		e.storage.before = func(call string) error {
			if call == "put config/myapp" {
				time.Sleep(time.Minute)
			}
			return nil
		}
		said = e.does(t.Context(), logical.UpdateOperation, "config/myapp", map[string]any{"leased": false})
		time.Sleep(time.Minute) // until the write has ended
	})
	return said
}
