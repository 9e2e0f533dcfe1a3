// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file holds what the tests of this package share: a mount of the engine over storage in memory, with the project's
// simulator as DingTalk behind a pipe, so that a test can run in virtual time. It also tests the wiring in backend.go.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	theApp    = "myapp"
	theKey    = "dingtestkey"
	theSecret = "test-secret-GT-lsu-taDAxxxsTsxxxx"
	theURL    = "http://127.0.0.1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// pipes is a listener whose connections are pipes, which testing/synctest can wait for.
type pipes struct {
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func newPipes() *pipes {
	return &pipes{incoming: make(chan net.Conn), closed: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.incoming:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.incoming <- far:
		return near, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// safeBuffer is a log that several goroutines write.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// mount is an engine as Vault mounts it, with all it talks to.
type mount struct {
	t        *testing.T
	engine   *backend
	storage  logical.Storage
	system   *logical.StaticSystemView
	upstream *simulator.Server
	network  *pipes
	log      *safeBuffer
}

func newMount(t *testing.T) *mount {
	t.Helper()
	m := &mount{
		t:        t,
		storage:  &logical.InmemStorage{},
		system:   &logical.StaticSystemView{DefaultLeaseTTLVal: 24 * time.Hour, MaxLeaseTTLVal: 768 * time.Hour},
		upstream: simulator.New(simulator.Options{Apps: map[string]string{theKey: theSecret}}),
		network:  newPipes(),
		log:      &safeBuffer{},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = m.upstream.Serve(m.network)
	}()
	t.Cleanup(func() {
		_ = m.upstream.Close()
		<-served
	})
	m.start()
	return m
}

// start mounts an engine over the storage, as Vault does after a restart or on a new leader, in place of the one before.
func (m *mount) start() {
	m.t.Helper()
	if m.engine != nil {
		m.engine.Cleanup(context.Background())
	}
	transport := newTransport()
	transport.Proxy = nil
	transport.DialContext = m.network.dial
	engine, err := newBackend(m.t.Context(), &logical.BackendConfig{
		Logger:      hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: m.log}),
		System:      m.system,
		StorageView: m.storage,
	}, transport)
	require.NoError(m.t, err)
	m.engine = engine
	m.t.Cleanup(func() { engine.Cleanup(context.Background()) })
}

// inVirtualTime runs a test with a mount in a bubble of testing/synctest.
func inVirtualTime(t *testing.T, test func(t *testing.T, m *mount)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newMount(t)) })
}

// answer is what a client of Vault's gets.
type answer struct {
	*logical.Response
	status int // HTTP
	err    error
}

func (a answer) String() string { return fmt.Sprintf("%d %v %+v", a.status, a.err, a.Response) }

// do sends a request the way Vault does: a write is preceded by the existence check, and the answer's status is what
// Vault makes of it.
func (m *mount) do(op logical.Operation, path string, data map[string]any) answer {
	return m.send(m.t.Context(), &logical.Request{Operation: op, Path: path, Data: data})
}

func (m *mount) send(ctx context.Context, req *logical.Request) (got answer) {
	engine := m.engine // the request may outlast it
	defer func() { assertDescribed(m.t, engine, req, got) }()
	req.Storage = m.storage
	if req.Operation == logical.CreateOperation || req.Operation == logical.UpdateOperation {
		found, exists, err := engine.HandleExistenceCheck(ctx, req)
		var user errutil.UserError
		switch {
		case errors.As(err, &user):
			return answer{status: http.StatusBadRequest, err: err}
		case err != nil && !errors.Is(err, logical.ErrUnsupportedPath):
			return answer{status: http.StatusInternalServerError, err: err}
		case found && !exists:
			req.Operation = logical.CreateOperation
		default:
			req.Operation = logical.UpdateOperation
		}
	}
	resp, err := engine.HandleRequest(ctx, req)
	status, rerr := logical.RespondErrorCommon(req, resp, err)
	if err != nil {
		logical.AdjustErrorStatusCode(&status, err)
	}
	switch {
	case status != 0:
	case resp == nil:
		status = http.StatusNoContent
	default:
		status = http.StatusOK
	}
	if rerr == nil {
		rerr = err
	}
	return answer{Response: resp, status: status, err: rerr}
}

// configure writes an app, by default one with the simulator's credentials that is not verified.
func (m *mount) configure(name string, changes map[string]any) {
	m.t.Helper()
	data := map[string]any{"app_key": theKey, "app_secret": theSecret, "base_url": theURL, "verify_connection": false}
	maps.Copy(data, changes)
	got := m.do(logical.UpdateOperation, "config/"+name, data)
	require.NoError(m.t, got.err)
}

func (m *mount) read(name string) answer {
	return m.do(logical.ReadOperation, "creds/"+name, nil)
}

// token reads an app's token, which must work without a warning.
func (m *mount) token(name string) string {
	m.t.Helper()
	got := m.read(name)
	require.NoError(m.t, got.err)
	require.Empty(m.t, got.Warnings)
	return got.Data["access_token"].(string)
}

// state reads an app's status.
func (m *mount) state(name string) map[string]any {
	m.t.Helper()
	got := m.do(logical.ReadOperation, "status/"+name, nil)
	require.NoError(m.t, got.err)
	return got.Data
}

// calls is how many calls the simulator got for the app.
func (m *mount) calls() int { return m.upstream.Requests(theKey) }

// tick calls the periodic function, and waits for what it started.
func (m *mount) tick() {
	m.t.Helper()
	require.NoError(m.t, m.engine.periodic(m.t.Context(), &logical.Request{Storage: m.storage}))
	synctest.Wait()
}

// stored reads a storage entry into a map; nil where there is none.
func (m *mount) stored(key string) map[string]any {
	m.t.Helper()
	return storedIn(m.t, m.storage, key)
}

func storedIn(t *testing.T, storage logical.Storage, key string) map[string]any {
	t.Helper()
	e, err := storage.Get(t.Context(), key)
	require.NoError(t, err)
	if e == nil {
		return nil
	}
	var v map[string]any
	require.NoError(t, json.Unmarshal(e.Value, &v))
	return v
}

func TestFactory_gives_a_secrets_engine_with_its_version(t *testing.T) {
	b, err := Factory(t.Context(), &logical.BackendConfig{System: &logical.StaticSystemView{}})
	require.NoError(t, err)
	defer b.Cleanup(t.Context())
	require.Equal(t, logical.TypeLogical, b.Type())
	require.Equal(t, Version, b.(logical.PluginVersioner).PluginVersion().Version)
}

func TestFactory_takes_nothing_from_its_context(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMount(t)
		ctx, cancel := context.WithCancel(t.Context())
		transport := newTransport()
		transport.DialContext, transport.Proxy = m.network.dial, nil
		b, err := newBackend(ctx, &logical.BackendConfig{System: m.system}, transport)
		require.NoError(t, err)
		cancel()
		m.engine.Cleanup(t.Context())
		m.engine = b
		defer b.Cleanup(t.Context())
		m.configure(theApp, nil)
		require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
	})
}

func TestBackend_keeps_config_and_token_sealed_and_the_token_local(t *testing.T) {
	m := newMount(t)
	special := m.engine.SpecialPaths()
	require.ElementsMatch(t, []string{"config/", "token/"}, special.SealWrapStorage)
	require.Equal(t, []string{"token/"}, special.LocalStorage)
	require.Empty(t, special.Unauthenticated)
	require.Empty(t, special.Root)
}

func TestBackend_every_operation_is_described(t *testing.T) {
	m := newMount(t)
	for _, path := range m.engine.Paths {
		require.NotEmpty(t, path.HelpSynopsis, path.Pattern)
		require.NotEmpty(t, path.HelpDescription, path.Pattern)
		require.Equal(t, "dingtalk", path.DisplayAttrs.OperationPrefix, path.Pattern)
		for field, schema := range path.Fields {
			require.NotEmpty(t, schema.Description, field)
		}
		for op, handler := range path.Operations {
			p := handler.Properties()
			require.NotEmpty(t, p.Summary, "%s %s", op, path.Pattern)
			require.NotEmpty(t, p.Responses, "%s %s", op, path.Pattern)
			require.True(t, p.DisplayAttrs != nil && p.DisplayAttrs.OperationVerb != "" || path.DisplayAttrs.OperationVerb != "", "%s %s", op, path.Pattern)
		}
	}
	config := m.engine.Route("config/myapp")
	require.True(t, config.Fields["app_secret"].DisplayAttrs.Sensitive)
}

func TestBackend_a_standby_forwards_every_operation(t *testing.T) {
	m := newMount(t)
	m.system.ReplicationStateVal = consts.ReplicationPerformanceStandby
	for _, path := range []string{"config/", "config/myapp", "creds/myapp", "status/myapp", "refresh/myapp"} {
		for op := range m.engine.Route(path).Operations {
			_, err := m.engine.HandleRequest(t.Context(), &logical.Request{Operation: op, Path: path, Storage: m.storage})
			require.ErrorIs(t, err, logical.ErrReadOnly, "%s %s", op, path)
		}
	}
	require.Zero(t, m.upstream.Requests("*"))
}

func TestBackend_a_secondary_forwards_config_writes_and_nothing_else(t *testing.T) {
	m := newMount(t)
	m.system.ReplicationStateVal = consts.ReplicationPerformanceSecondary
	for _, path := range []string{"config/", "config/myapp", "creds/myapp", "status/myapp", "refresh/myapp"} {
		for op := range m.engine.Route(path).Operations {
			_, err := m.engine.HandleRequest(t.Context(), &logical.Request{Operation: op, Path: path, Storage: m.storage})
			if path == "config/myapp" && op != logical.ReadOperation {
				require.ErrorIs(t, err, logical.ErrReadOnly, "%s %s", op, path)
			} else {
				require.NotErrorIs(t, err, logical.ErrReadOnly, "%s %s", op, path)
			}
		}
	}
}

func TestBackend_a_secondary_fetches_and_stores_its_own_tokens(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.system.ReplicationStateVal = consts.ReplicationPerformanceSecondary
		m.start()
		tok := m.token(theApp)
		require.Equal(t, tok, m.stored("token/myapp")["access_token"])
	})
}

// countingSystem counts how often the replication state is asked for.
type countingSystem struct {
	*logical.StaticSystemView
	asked int
}

func (s *countingSystem) ReplicationState() consts.ReplicationState {
	s.asked++
	return s.StaticSystemView.ReplicationState()
}

func TestBackend_asks_for_the_replication_state_once_a_second(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		system := &countingSystem{StaticSystemView: m.system}
		b, err := newBackend(t.Context(), &logical.BackendConfig{System: system}, newTransport())
		require.NoError(t, err)
		defer b.Cleanup(t.Context())
		read := func() error {
			_, err := b.HandleRequest(t.Context(), &logical.Request{Operation: logical.ListOperation, Path: "config/", Storage: m.storage})
			return err
		}
		for range 100 {
			require.NoError(t, read())
		}
		require.Equal(t, 1, system.asked)

		time.Sleep(time.Second)
		m.system.ReplicationStateVal = consts.ReplicationPerformanceStandby
		require.ErrorIs(t, read(), logical.ErrReadOnly)
		require.Equal(t, 2, system.asked)
	})
}

func TestBackend_the_end_is_prompt_and_may_come_twice(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultHang})
		waiting := make(chan answer)
		go func() { waiting <- m.read(theApp) }()
		synctest.Wait()

		began := time.Now()
		m.engine.Cleanup(t.Context())
		m.engine.Cleanup(t.Context())
		require.Less(t, time.Since(began), 100*time.Millisecond)
		got := <-waiting
		require.Equal(t, http.StatusServiceUnavailable, got.status)
		require.Less(t, time.Since(began), 100*time.Millisecond)

		got = m.read(theApp)
		require.Equal(t, http.StatusServiceUnavailable, got.status, "nothing starts after the end")
	})
}

func TestBackend_repeats_nothing_of_a_query_that_it_does_not_take(t *testing.T) {
	m := newMount(t)
	m.configure(theApp, nil)
	for _, op := range []logical.Operation{logical.ReadOperation, logical.DeleteOperation} {
		got := m.do(op, "config/myapp", map[string]any{"app_key": []any{theSecret, "b"}, "leased": []any{theSecret}})
		require.NoError(t, got.err)
		require.NotContains(t, got.String(), theSecret)
	}
}

// requireNoLock wants every lock over storage to have been given back.
func (m *mount) requireNoLock() {
	m.t.Helper()
	for i := range m.engine.apps.stripes {
		require.Empty(m.t, m.engine.apps.stripes[i].held, "a lock is held")
	}
}
