// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file measures what the engine itself costs in process, without Vault and gRPC around it.
// What a read costs in a real Vault is measured in bench/.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

const benchToken = "0123456789abcdef0123456789abcdef"

// benchUpstream responds to every call with a token.
var benchUpstream = responder(func(*http.Request) (int, string) {
	return http.StatusOK, `{"accessToken":"` + benchToken + `","expireIn":7200}`
})

// benched is what is measured: an engine, or what stands in its place.
type benched struct {
	logical.Backend
	apps    *registry // the engine's
	storage logical.Storage
	paths   []string // of each app's token
}

// benchEngine is an engine with so many apps, all in memory; with verify, each has a fresh token.
func benchEngine(tb testing.TB, upstream http.RoundTripper, apps int, leased, verify bool) *benched {
	tb.Helper()
	b, err := newBackend(context.Background(), &logical.BackendConfig{
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour},
	}, upstream)
	require.NoError(tb, err)
	tb.Cleanup(func() { b.Cleanup(context.Background()) })
	engine := &benched{Backend: b, apps: b.apps, storage: &logical.InmemStorage{}}
	for i := range apps {
		_, err := b.HandleRequest(context.Background(), &logical.Request{
			Operation: logical.CreateOperation, Path: fmt.Sprintf("config/app%d", i), Storage: engine.storage,
			Data: map[string]any{
				"app_key": "dingkey", "app_secret": "secret", "leased": leased, "verify_connection": verify,
			},
		})
		require.NoError(tb, err)
		engine.paths = append(engine.paths, fmt.Sprintf("creds/app%d", i))
	}
	return engine
}

// read reads the token of some app.
func (m *benched) read() error {
	resp, err := m.HandleRequest(context.Background(), &logical.Request{
		Operation: logical.ReadOperation, Path: m.paths[rand.IntN(len(m.paths))], Storage: m.storage,
	})
	if err == nil && resp.Data["access_token"] != benchToken {
		err = errors.New("no token")
	}
	return err
}

// noopBackend is what the framework costs by itself: paths as the engine has, and a handler that
// responds with a constant.
func noopBackend(tb testing.TB, leased bool) *benched {
	tb.Helper()
	b := &framework.Backend{}
	secret := &framework.Secret{Type: secretAccessTokenType, Renew: b.AuthRenew}
	handler := func(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
		data := map[string]any{"access_token": benchToken}
		if !leased {
			data["expires_at"], data["last_vault_rotation"] = "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"
			data["ttl"], data["rotation_period"] = int64(7000), int64(7000)
			return &logical.Response{Data: data}, nil
		}
		return secret.Response(data, map[string]any{internalApp: "app0", internalDigest: "0"}), nil
	}
	for _, prefix := range []string{"a/", "b/", credsPrefix} {
		b.Paths = append(b.Paths, &framework.Path{
			Pattern: prefix + framework.GenericNameRegex("app"),
			Fields: map[string]*framework.FieldSchema{
				"app": appField(), fieldMinTTL: {Type: framework.TypeDurationSecond},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: &framework.PathOperation{Callback: handler, ForwardPerformanceStandby: true},
			},
		})
	}
	system := &systemView{SystemView: &logical.StaticSystemView{}}
	require.NoError(tb, b.Setup(context.Background(), &logical.BackendConfig{System: system}))
	return &benched{Backend: b, paths: []string{"creds/app0"}}
}

func BenchmarkRead(b *testing.B) {
	read := func(b *testing.B, m *benched) {
		b.Helper()
		b.ReportAllocs()
		for b.Loop() {
			if err := m.read(); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, mode := range []string{"leased", "unleased"} {
		leased := mode == "leased"
		b.Run("handler=noop/"+mode, func(b *testing.B) { read(b, noopBackend(b, leased)) })
		for _, apps := range []int{1, 10_000} {
			b.Run(fmt.Sprintf("handler=engine/%s/apps=%d", mode, apps), func(b *testing.B) {
				read(b, benchEngine(b, benchUpstream, apps, leased, true))
			})
		}
	}
}

func BenchmarkReadParallel(b *testing.B) {
	for _, apps := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("apps=%d", apps), func(b *testing.B) {
			engine := benchEngine(b, benchUpstream, apps, true, true)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := engine.read(); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkCache measures the cache alone, below the framework.
func BenchmarkCache(b *testing.B) {
	engine := benchEngine(b, benchUpstream, 1, true, true)
	b.ReportAllocs()
	for b.Loop() {
		if _, t, _, err := engine.apps.get(context.Background(), engine.storage, "app0", want{}); err != nil || t == nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBackgroundPass(b *testing.B) {
	for _, apps := range []int{10_000, 100_000} {
		for _, inUse := range []bool{false, true} {
			b.Run(fmt.Sprintf("apps=%d/in_use=%t", apps, inUse), func(b *testing.B) {
				engine := benchEngine(b, benchUpstream, apps, true, true)
				if inUse { // a token that nobody has read since it was fetched is passed over sooner
					engine.apps.apps.Range(func(_, a any) bool { a.(*app).touch(time.Now(), true); return true })
				}
				for b.Loop() {
					engine.apps.pass(engine.storage)
				}
			})
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	engine := benchEngine(b, benchUpstream, 1, true, true)
	b.ReportAllocs()
	for b.Loop() {
		engine.apps.forget("app0")
		if _, err := engine.apps.app(context.Background(), engine.storage, "app0"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestMemory_of_an_app_is_at_most_2_KiB(t *testing.T) {
	const apps = 10_000
	engine := benchEngine(t, benchUpstream, apps, true, true)
	inUse := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	with := inUse()
	for i := range apps {
		engine.apps.forget(fmt.Sprintf("app%d", i))
	}
	without := inUse()
	require.Greater(t, with, without)
	perApp := (with - without) / apps
	require.LessOrEqual(t, perApp, uint64(2048))
	runtime.KeepAlive(engine)
}

const herdUpstreamTakes = 500 * time.Millisecond // the one call of a herd of cold readers

// coldHerd makes 10,000 readers ask at once for an app without a token, and returns how long the
// slowest waited.
func coldHerd(tb testing.TB) (slowest time.Duration) {
	tb.Helper()
	var calls atomic.Int64
	engine := benchEngine(tb, responder(func(req *http.Request) (int, string) {
		calls.Add(1)
		time.Sleep(herdUpstreamTakes)
		return benchUpstream(req)
	}), 1, true, false)
	defer engine.Cleanup(context.Background())

	var readers errgroup.Group
	began := time.Now()
	for range 10_000 {
		readers.Go(engine.read)
	}
	require.NoError(tb, readers.Wait())
	slowest = time.Since(began)
	require.EqualValues(tb, 1, calls.Load())
	return slowest
}

// In virtual time what the machine takes for so many readers does not count, only what they wait
// for.
func TestCreds_a_herd_of_10000_cold_readers_waits_for_one_call_and_for_nothing_else(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, herdUpstreamTakes, coldHerd(t))
	})
}

// BenchmarkColdHerd has a bar, in real time: all have their token a second after the response.
func BenchmarkColdHerd(b *testing.B) {
	for b.Loop() {
		if took := coldHerd(b); took >= herdUpstreamTakes+time.Second {
			b.Fatalf("10,000 cold readers had a token after %s, the engine after %s", took, herdUpstreamTakes)
		}
	}
}
