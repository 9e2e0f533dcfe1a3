// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file measures what the engine itself costs in process, without Vault and gRPC around it. What a read costs in a
// real Vault is measured in bench/.

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

// instantUpstream answers every request for a token at once.
type instantUpstream struct{ calls atomic.Int64 }

func (u *instantUpstream) RoundTrip(req *http.Request) (*http.Response, error) {
	u.calls.Add(1)
	body := `{"accessToken":"0123456789abcdef0123456789abcdef","expireIn":7200}`
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: req, Body: io.NopCloser(strings.NewReader(body))}, nil
}

// benchMount is an engine with so many apps, all in memory with a fresh token.
func benchMount(tb testing.TB, apps int, leased bool) (*backend, logical.Storage) {
	tb.Helper()
	storage := &logical.InmemStorage{}
	b, err := newBackend(context.Background(), &logical.BackendConfig{
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour},
	}, &instantUpstream{})
	require.NoError(tb, err)
	tb.Cleanup(func() { b.Cleanup(context.Background()) })
	for i := range apps {
		_, err := b.HandleRequest(context.Background(), &logical.Request{
			Operation: logical.CreateOperation, Path: fmt.Sprintf("config/app%d", i), Storage: storage,
			Data: map[string]any{"app_key": "dingkey", "app_secret": "secret", "leased": leased},
		})
		require.NoError(tb, err)
	}
	return b, storage
}

func appPaths(n int) []string {
	paths := make([]string, n)
	for i := range paths {
		paths[i] = fmt.Sprintf("creds/app%d", i)
	}
	return paths
}

// noopBackend is what the framework costs by itself: five paths as the engine has, and a handler that answers with a constant.
func noopBackend(tb testing.TB, leased bool) *framework.Backend {
	tb.Helper()
	b := &framework.Backend{}
	secret := &framework.Secret{Type: secretAccessTokenType, Renew: b.AuthRenew}
	handler := func(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
		data := map[string]any{"access_token": "0123456789abcdef0123456789abcdef"}
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
			Fields:  map[string]*framework.FieldSchema{"app": appField(), fieldMinTTL: {Type: framework.TypeDurationSecond}},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: &framework.PathOperation{Callback: handler, ForwardPerformanceStandby: true},
			},
		})
	}
	require.NoError(tb, b.Setup(context.Background(), &logical.BackendConfig{System: &systemView{SystemView: &logical.StaticSystemView{}}}))
	return b
}

func benchmarkRead(b *testing.B, handler logical.Backend, storage logical.Storage, paths []string) {
	b.Helper()
	b.ReportAllocs()
	ctx := context.Background()
	for b.Loop() {
		resp, err := handler.HandleRequest(ctx, &logical.Request{Operation: logical.ReadOperation, Path: paths[rand.IntN(len(paths))], Storage: storage})
		if err != nil || resp.Data["access_token"] == nil {
			b.Fatal("no token", err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, mode := range []string{"leased", "unleased"} {
		leased := mode == "leased"
		b.Run("handler=noop/"+mode, func(b *testing.B) {
			benchmarkRead(b, noopBackend(b, leased), nil, appPaths(1))
		})
		for _, apps := range []int{1, 10_000} {
			b.Run(fmt.Sprintf("handler=engine/%s/apps=%d", mode, apps), func(b *testing.B) {
				engine, storage := benchMount(b, apps, leased)
				benchmarkRead(b, engine, storage, appPaths(apps))
			})
		}
	}
}

func BenchmarkReadParallel(b *testing.B) {
	for _, apps := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("apps=%d", apps), func(b *testing.B) {
			engine, storage := benchMount(b, apps, true)
			paths := appPaths(apps)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := engine.HandleRequest(context.Background(), &logical.Request{Operation: logical.ReadOperation, Path: paths[rand.IntN(apps)], Storage: storage}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkCache measures the cache alone, below the framework.
func BenchmarkCache(b *testing.B) {
	engine, storage := benchMount(b, 1, true)
	b.ReportAllocs()
	for b.Loop() {
		if _, t, _, err := engine.apps.get(context.Background(), storage, "app0", want{}); err != nil || t == nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBackgroundPass(b *testing.B) {
	for _, apps := range []int{10_000, 100_000} {
		for _, inUse := range []bool{false, true} {
			b.Run(fmt.Sprintf("apps=%d/in_use=%t", apps, inUse), func(b *testing.B) {
				engine, storage := benchMount(b, apps, true)
				if inUse { // a token that nobody has read since it was fetched is passed over sooner
					for _, path := range appPaths(apps) {
						_, err := engine.HandleRequest(b.Context(), &logical.Request{Operation: logical.ReadOperation, Path: path, Storage: storage})
						require.NoError(b, err)
					}
				}
				for b.Loop() {
					engine.apps.pass(storage)
				}
			})
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	engine, storage := benchMount(b, 1, true)
	b.ReportAllocs()
	for b.Loop() {
		engine.apps.forget("app0")
		if _, err := engine.apps.app(context.Background(), storage, "app0"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestMemory_of_an_app_is_at_most_2_KiB(t *testing.T) {
	const apps = 10_000
	engine, storage := benchMount(t, apps, true)
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
	t.Logf("%d bytes for each app in memory", perApp)
	require.LessOrEqual(t, perApp, uint64(2048))
	runtime.KeepAlive(storage)
}

// herdUpstreamTakes is how long the one call of a herd of cold readers takes.
const herdUpstreamTakes = 500 * time.Millisecond

// coldHerd has 10,000 readers ask at once for an app without a token, and returns how long the slowest waited.
func coldHerd(tb testing.TB) (slowest time.Duration) {
	tb.Helper()
	upstream := &instantUpstream{}
	storage := &logical.InmemStorage{}
	b, err := newBackend(tb.Context(), &logical.BackendConfig{System: &logical.StaticSystemView{}}, slowUpstream{upstream, herdUpstreamTakes})
	require.NoError(tb, err)
	defer b.Cleanup(context.Background())
	_, err = b.HandleRequest(tb.Context(), &logical.Request{
		Operation: logical.CreateOperation, Path: "config/app0", Storage: storage,
		Data: map[string]any{"app_key": "dingkey", "app_secret": "secret", "verify_connection": false},
	})
	require.NoError(tb, err)

	var wg sync.WaitGroup
	began := time.Now()
	failed := atomic.Int64{}
	for range 10_000 {
		wg.Go(func() {
			resp, err := b.HandleRequest(tb.Context(), &logical.Request{Operation: logical.ReadOperation, Path: "creds/app0", Storage: storage})
			if err != nil || resp.Data["access_token"] == nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	slowest = time.Since(began)
	require.Zero(tb, failed.Load())
	require.EqualValues(tb, 1, upstream.calls.Load())
	return slowest
}

// In virtual time what the machine takes for so many readers does not count, only what they wait for.
func TestCreds_a_herd_of_10000_cold_readers_waits_for_one_call_and_for_nothing_else(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		require.Equal(t, herdUpstreamTakes, coldHerd(t))
	})
}

// BenchmarkColdHerd is the same in real time, which has a bar: the slowest reader is answered within a second of upstream's answer.
func BenchmarkColdHerd(b *testing.B) {
	for b.Loop() {
		if took := coldHerd(b); took >= herdUpstreamTakes+time.Second {
			b.Fatalf("10,000 cold readers were answered after %s, upstream after %s", took, herdUpstreamTakes)
		}
	}
}

type slowUpstream struct {
	http.RoundTripper
	takes time.Duration
}

func (u slowUpstream) RoundTrip(req *http.Request) (*http.Response, error) {
	time.Sleep(u.takes)
	return u.RoundTripper.RoundTrip(req)
}
