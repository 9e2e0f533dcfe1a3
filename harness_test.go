// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is what the tests of this package share: a mount of the engine over storage that fails
// on demand, with the project's simulator as DingTalk behind pipes, so that a test can run in
// virtual time.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
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

// network is DingTalk's hosts, behind pipes, which testing/synctest can wait for.
type network struct {
	mu    sync.Mutex
	hosts map[string]*host // by address

	conns, open, read atomic.Int64 // connections, those that are not closed, and bytes that came over all
}

// countedConn is the engine's end of a connection.
type countedConn struct {
	net.Conn

	n    *network
	once sync.Once
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.read.Add(int64(n))
	return n, err
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.n.open.Add(-1) })
	return c.Conn.Close()
}

// host is a listener whose connections are pipes.
type host struct {
	server   server
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

// server is a simulator or an http.Server.
type server interface {
	Serve(l net.Listener) error
	Close() error
}

// host returns the simulator at an address, such as 127.0.0.2:80, which is there from then on.
func (n *network) host(t *testing.T, address string) *simulator.Server {
	t.Helper()
	n.mu.Lock()
	h := n.hosts[address]
	n.mu.Unlock()
	if h != nil {
		return h.server.(*simulator.Server)
	}
	s := simulator.New(simulator.Options{})
	n.serve(t, address, s)
	return s
}

// serve has a server listen at an address until the test ends.
func (n *network) serve(t *testing.T, address string, s server) {
	t.Helper()
	h, served := &host{server: s, incoming: make(chan net.Conn), closed: make(chan struct{})}, make(chan struct{})
	n.mu.Lock()
	n.hosts[address] = h
	n.mu.Unlock()
	go func() {
		defer close(served)
		_ = s.Serve(h)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-served
	})
}

// Accept implements net.Listener.
func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.incoming:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *host) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *host) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// dial is how the engine's transport reaches a host.
func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	h := n.hosts[address]
	n.mu.Unlock()
	if h == nil {
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	near, far := net.Pipe()
	select {
	case h.incoming <- far:
		n.conns.Add(1)
		n.open.Add(1)
		return &countedConn{Conn: near, n: n}, nil
	case <-h.closed:
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var errStorage = errors.New("storage lost its quorum")

// storageFault is how a call to storage goes wrong; the zero value is that it does not.
type storageFault struct {
	late  time.Duration // how long the call takes; if its context ends meanwhile it returns, and takes effect all the same
	hang  bool          // the call waits for the end of its context
	err   error         // what the call returns instead of its effect
	after bool          // or beside its effect
	last  func()        // runs after the effect
}

// faultyStorage is a storage whose calls go wrong on demand.
type faultyStorage struct {
	logical.Storage

	mu     sync.Mutex
	plan   func(n int, op, key string) storageFault // n counts from 0
	made   []string
	sealed map[string]bool // the keys that were put last with the wish for a seal wrap
}

// fail plans how the calls from now on go wrong, and counts them anew; nil is that none does.
func (s *faultyStorage) fail(plan func(n int, op, key string) storageFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan, s.made = plan, nil
}

// on plans what is done before each call, which fails with the error.
func (s *faultyStorage) on(call func(op, key string) error) {
	s.fail(func(_ int, op, key string) storageFault { return storageFault{err: call(op, key)} })
}

// calls are those made since the last plan, such as "put token/myapp".
func (s *faultyStorage) calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.made)
}

func (s *faultyStorage) call(ctx context.Context, op, key string, effect func(ctx context.Context) error) error {
	s.mu.Lock()
	plan, n := s.plan, len(s.made)
	s.made = append(s.made, op+" "+key)
	s.mu.Unlock()
	var f storageFault
	if plan != nil {
		f = plan(n, op, key) // which may also wait, end the request or panic
	}
	switch {
	case f.hang:
		<-ctx.Done()
		return ctx.Err()
	case ctx.Err() != nil:
		return ctx.Err()
	case f.err != nil && !f.after:
		return f.err
	}
	err := s.effect(ctx, f.late, effect)
	if f.last != nil {
		f.last()
	}
	return errors.Join(f.err, err)
}

// effect makes the call slow, as over gRPC.
func (s *faultyStorage) effect(ctx context.Context, late time.Duration, effect func(ctx context.Context) error) error {
	if late == 0 {
		return effect(ctx)
	}
	ended := make(chan error, 1)
	go func() {
		time.Sleep(late)
		ended <- effect(context.WithoutCancel(ctx))
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Get implements logical.Storage.
func (s *faultyStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	return storageRead(ctx, s, "get", key, s.Storage.Get)
}

// List implements logical.Storage.
func (s *faultyStorage) List(ctx context.Context, prefix string) ([]string, error) {
	return storageRead(ctx, s, "list", prefix, s.Storage.List)
}

// storageRead is a call that reads; one that fails reads nothing, though it may still go on.
func storageRead[T any](
	ctx context.Context, s *faultyStorage, op, key string, read func(context.Context, string) (T, error),
) (T, error) {
	var got, none T
	err := s.call(ctx, op, key, func(ctx context.Context) (err error) {
		got, err = read(ctx, key)
		return err
	})
	if err != nil {
		return none, err
	}
	return got, nil
}

// Put implements logical.Storage.
func (s *faultyStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	return s.call(ctx, "put", e.Key, func(ctx context.Context) error {
		s.mu.Lock()
		if s.sealed == nil {
			s.sealed = map[string]bool{}
		}
		s.sealed[e.Key] = e.SealWrap
		s.mu.Unlock()
		return s.Storage.Put(ctx, e)
	})
}

// Delete implements logical.Storage.
func (s *faultyStorage) Delete(ctx context.Context, key string) error {
	return s.call(ctx, "delete", key, func(ctx context.Context) error { return s.Storage.Delete(ctx, key) })
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
	storage  *faultyStorage
	system   *logical.StaticSystemView
	network  *network
	upstream *simulator.Server // at theURL
	log      *safeBuffer

	transport http.RoundTripper
}

// newMount mounts an engine over an empty storage, with the simulator as its upstream.
func newMount(t *testing.T) *mount {
	t.Helper()
	return mountOver(t, &logical.InmemStorage{}, nil)
}

// mountOver mounts an engine over a storage, with any upstream; nil is the simulator.
func mountOver(t *testing.T, storage logical.Storage, upstream http.RoundTripper) *mount {
	t.Helper()
	m := &mount{
		t:         t,
		storage:   &faultyStorage{Storage: storage},
		system:    &logical.StaticSystemView{DefaultLeaseTTLVal: 24 * time.Hour, MaxLeaseTTLVal: 768 * time.Hour},
		network:   &network{hosts: map[string]*host{}},
		log:       &safeBuffer{},
		transport: upstream,
	}
	if upstream == nil {
		m.upstream = m.network.host(t, "127.0.0.1:80")
		m.upstream.SetApp(theKey, theSecret)
		transport := newTransport()
		transport.Proxy, transport.DialContext = nil, m.network.dial
		m.transport = transport
	}
	m.start()
	return m
}

// start mounts an engine over the storage, as Vault does after a restart or on a new leader, in
// place of the one before.
func (m *mount) start() {
	m.t.Helper()
	if m.engine != nil {
		m.engine.Cleanup(context.Background())
	}
	engine, err := newBackend(m.t.Context(), &logical.BackendConfig{
		Logger:      hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: m.log}),
		System:      m.system,
		StorageView: m.storage,
	}, m.transport)
	require.NoError(m.t, err)
	m.engine = engine
	m.t.Cleanup(func() { engine.Cleanup(context.Background()) })
}

// inVirtualTime runs a test with a mount in a bubble of testing/synctest.
func inVirtualTime(t *testing.T, test func(t *testing.T, m *mount)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newMount(t)) })
}

// withApp is inVirtualTime where theApp is configured.
func withApp(t *testing.T, test func(t *testing.T, m *mount)) {
	t.Helper()
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		test(t, m)
	})
}

// withToken is withApp where a token was fetched.
func withToken(t *testing.T, test func(t *testing.T, m *mount, tok string)) {
	t.Helper()
	withApp(t, func(t *testing.T, m *mount) { test(t, m, m.token(theApp)) })
}

// forEach runs a test inVirtualTime for each case of a table.
func forEach[K comparable, C any](t *testing.T, cases map[K]C, test func(t *testing.T, m *mount, c C)) {
	t.Helper()
	for name, c := range cases {
		t.Run(fmt.Sprint(name), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) { test(t, m, c) })
		})
	}
}

// begin sends a request, and returns when it waits for something.
func begin(request func() response) <-chan response {
	got := make(chan response, 1)
	go func() { got <- request() }()
	synctest.Wait()
	return got
}

// response is what a client of Vault's gets.
type response struct {
	*logical.Response
	status int // HTTP
	err    error
}

func (a response) String() string { return fmt.Sprintf("%d %v %+v", a.status, a.err, a.Response) }

// works wants no error, and returns the response.
func (a response) works(t *testing.T) response {
	t.Helper()
	require.NoError(t, a.err)
	return a
}

// warns wants no error and one warning, which says all this.
func (a response) warns(t *testing.T, says ...string) response {
	t.Helper()
	require.NoError(t, a.err)
	require.NotNil(t, a.Response)
	require.Len(t, a.Warnings, 1)
	for _, part := range says {
		require.Contains(t, a.Warnings[0], part)
	}
	return a
}

// gets wants this status, and an error that says all this.
func (a response) gets(t *testing.T, status int, says ...string) {
	t.Helper()
	require.Equal(t, status, a.status, a)
	for _, part := range says {
		require.ErrorContains(t, a.err, part)
	}
}

// do sends a request the way Vault does: a write is preceded by the existence check, and the
// response's status is what Vault makes of it.
func (m *mount) do(op logical.Operation, path string, data map[string]any) response {
	return m.send(m.t.Context(), &logical.Request{Operation: op, Path: path, Data: data})
}

func (m *mount) send(ctx context.Context, req *logical.Request) (got response) {
	engine := m.engine // the request may outlast it
	defer func() { assertDescribed(m.t, engine, req, got) }()
	req.Storage = m.storage
	if req.Operation == logical.CreateOperation || req.Operation == logical.UpdateOperation {
		found, exists, err := engine.HandleExistenceCheck(ctx, req)
		var user errutil.UserError
		switch {
		case errors.As(err, &user):
			return response{status: http.StatusBadRequest, err: err}
		case err != nil && !errors.Is(err, logical.ErrUnsupportedPath):
			return response{status: http.StatusInternalServerError, err: err}
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
	if status == 0 && resp == nil {
		status = http.StatusNoContent
	}
	return response{Response: resp, status: cmp.Or(status, http.StatusOK), err: cmp.Or(rerr, err)}
}

// configure writes an app, by default one with the simulator's credentials that is not verified.
func (m *mount) configure(name string, changes map[string]any) {
	m.t.Helper()
	data := map[string]any{"app_key": theKey, "app_secret": theSecret, "base_url": theURL, "verify_connection": false}
	maps.Copy(data, changes)
	m.write(name, data).works(m.t)
}

// write sends an update, which Vault makes a create where the app does not exist.
func (m *mount) write(name string, data map[string]any) response {
	return m.do(logical.UpdateOperation, "config/"+name, data)
}

// changed is a write to theApp that must work without a warning.
func (m *mount) changed(data map[string]any) {
	m.t.Helper()
	m.write(theApp, data).gets(m.t, http.StatusNoContent)
}

func (m *mount) patch(name string, data map[string]any) response {
	return m.do(logical.PatchOperation, "config/"+name, data)
}

func (m *mount) config(name string) response { return m.do(logical.ReadOperation, "config/"+name, nil) }

// delete deletes theApp.
func (m *mount) delete() {
	m.t.Helper()
	m.do(logical.DeleteOperation, "config/myapp", nil).gets(m.t, http.StatusNoContent)
}

func (m *mount) refresh(name string) response {
	return m.do(logical.UpdateOperation, "refresh/"+name, nil)
}

// theFields are what creates an app that works, with changes; a nil change leaves the field out.
func theFields(changes map[string]any) map[string]any {
	fields := map[string]any{"app_key": theKey, "app_secret": theSecret, "base_url": theURL}
	for k, v := range changes {
		if fields[k] = v; v == nil {
			delete(fields, k)
		}
	}
	return fields
}

func (m *mount) read(name string) response {
	return m.do(logical.ReadOperation, "creds/"+name, nil)
}

// token reads an app's token, which must work without a warning.
func (m *mount) token(name string) string {
	m.t.Helper()
	got := m.read(name).works(m.t)
	require.Empty(m.t, got.Warnings)
	return got.Data["access_token"].(string)
}

// state reads an app's status.
func (m *mount) state(name string) map[string]any {
	m.t.Helper()
	return m.do(logical.ReadOperation, "status/"+name, nil).works(m.t).Data
}

// calls is how many calls the simulator got for the app.
func (m *mount) calls() int { return m.upstream.Requests(theKey) }

// tick calls the periodic function, and waits for what it started.
func (m *mount) tick() {
	m.t.Helper()
	require.NoError(m.t, m.engine.periodic(m.t.Context(), &logical.Request{Storage: m.storage}))
	synctest.Wait()
}

// stored reads a storage entry past the faults; nil where there is none.
func (m *mount) stored(key string) (entry map[string]any) {
	m.t.Helper()
	m.record(key, &entry)
	return entry
}

// record reads a storage entry past the faults, and reports whether there is one.
func (m *mount) record(key string, into any) bool {
	m.t.Helper()
	e, err := m.storage.Storage.Get(m.t.Context(), key)
	require.NoError(m.t, err)
	if e != nil {
		require.NoError(m.t, json.Unmarshal(e.Value, into))
	}
	return e != nil
}

// putRaw puts bytes into storage, past the faults.
func (m *mount) putRaw(key, value string) {
	m.t.Helper()
	entry := &logical.StorageEntry{Key: key, Value: []byte(value)}
	require.NoError(m.t, m.storage.Storage.Put(m.t.Context(), entry))
}

// rewrite changes an entry in storage as another node does, without an invalidation.
func (m *mount) rewrite(key string, change func(entry map[string]any)) {
	m.t.Helper()
	entry := m.stored(key)
	change(entry)
	value, err := json.Marshal(entry)
	require.NoError(m.t, err)
	m.putRaw(key, string(value))
}

// snapshot is every byte in storage.
func (m *mount) snapshot() map[string]string {
	m.t.Helper()
	all := map[string]string{}
	keys, err := logical.CollectKeys(m.t.Context(), m.storage)
	require.NoError(m.t, err)
	for _, k := range keys {
		e, err := m.storage.Get(m.t.Context(), k)
		require.NoError(m.t, err)
		all[k] = string(e.Value)
	}
	return all
}

// requireNoLock wants every lock over storage to have been given back.
func (m *mount) requireNoLock() {
	m.t.Helper()
	for i := range m.engine.apps.stripes {
		require.Empty(m.t, m.engine.apps.stripes[i].held, "a lock is held")
	}
}
