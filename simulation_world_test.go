// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is the simulation's world: apps, the instances of the engine over one storage, DingTalk
// behind them, and the ledger of what DingTalk gave to which instance for which credentials. The
// ledger is filled where requests and storage pass by, and knows nothing of what the engine thinks;
// so it can tell what the engine ought to have known.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	// What a raft storage takes, so that flights, writes and crashes can meet in between.
	storageGet = time.Millisecond
	storagePut = 5 * time.Millisecond
)

// world is all there is. No lock is held while time passes, since time in a bubble stands still
// while somebody waits for a lock.
type world struct {
	t       *testing.T
	seed    uint64
	ends    time.Time
	hosts   map[string]*simulator.Server // by base URL
	system  *logical.StaticSystemView
	storage logical.InmemStorage
	crowds  []*crowd
	apps    []*simulatedApp
	byName  map[string]*simulatedApp
	actors  sync.WaitGroup
	stopped atomic.Bool // since too many promises are broken to go on

	// active is the instance that Vault's clients reach; nil while Vault is down.
	active atomic.Pointer[instance]

	mu          sync.Mutex // over the ledger: what follows, the crowds' tallies, and what of apps and instances says so
	generations map[string]*generation
	owners      map[string]string // the app key that a token was given to
	ended       map[string]bool   // tokens that DingTalk ended before their time

	reasons, events, unknowable, broken map[string]int
}

// generation is one set of credentials of an app.
type generation struct {
	app         *simulatedApp
	key, secret string
}

// simulatedApp is an app in Vault's configuration.
type simulatedApp struct {
	name, host  string
	crowd       *crowd
	leased      bool
	rotating    bool          // DingTalk gives it a new token at every call
	asksForMore bool          // its readers use min_ttl
	twin        *simulatedApp // has the same app key; nil for none

	// Under world.mu. inForce is what storage holds; before is what it held until a write that has not
	// returned yet.
	inForce, before *generation
	timeout         time.Duration // the longer one while a write changes it
	claimed         bool          // by somebody who writes its configuration
	newest          *generation   // whose secret DingTalk accepts
	served          time.Time     // when a token was first handed out
	stored          *delivery
	covered         time.Time // until when the fewest calls possible give it a token
}

// delivery is a token that reached an instance, with the life that it was told.
type delivery struct {
	of       *generation
	token    string
	sent     time.Time // when the request was, as far as the instance can know
	lifetime time.Duration
	skew     time.Duration // how much later than in truth
}

func (d *delivery) ends() time.Time { return d.sent.Add(d.lifetime) }

// left is the life left as the contract defines it.
func (d *delivery) remaining(now time.Time) time.Duration {
	return max(0, min(d.ends().Sub(now), d.lifetime)).Truncate(time.Second)
}

// refusal is a call that brought no token, and what the contract makes of it.
type refusal struct {
	reason string
	status int      // of the answer to a reader
	holds  []string // parts of its error

	ended  time.Time
	before *refusal // of the attempt before in the same fetch, whose cause is the one to name
}

// instance is the engine in one life of a Vault server. It is the engine's storage and its way to
// DingTalk, too.
type instance struct {
	*mount
	w *world

	// Under world.mu.
	deposed   bool // storage takes nothing from it any more, as raft's takes nothing from a leader of yesterday
	killed    bool // nothing goes in or out
	cleaned   bool
	killAfter *generation // putting this in force is the last thing it does
	known     map[*generation][]*delivery
	refused   map[*generation]*refusal // by the last call; nil if it worked
	calling   map[*generation]int
	cooldowns map[cooldownKey]cooldown // until when DingTalk asked it not to call, by host or host and key
}

type cooldown struct {
	since, until time.Time
	why          *refusal
}

func newWorld(t *testing.T, crowds []*crowd) *world {
	t.Helper()
	w := &world{
		t:      t,
		seed:   *seedFlag,
		ends:   time.Now().Add(time.Duration(*daysFlag) * 24 * time.Hour),
		system: &logical.StaticSystemView{DefaultLeaseTTLVal: 24 * time.Hour, MaxLeaseTTLVal: 768 * time.Hour},
		hosts: map[string]*simulator.Server{
			mainHost:  simulator.New(simulator.Options{TokenLifetime: mainLifetime}),
			otherHost: simulator.New(simulator.Options{TokenLifetime: otherLifetime}),
		},
		crowds:      crowds,
		byName:      map[string]*simulatedApp{},
		generations: map[string]*generation{},
		owners:      map[string]string{},
		ended:       map[string]bool{},
		reasons:     map[string]int{}, events: map[string]int{}, unknowable: map[string]int{}, broken: map[string]int{},
	}
	for w.seed == 0 {
		w.seed = rand.Uint64() >> 32
	}
	t.Logf("replay with -simulation.seed=%d", w.seed)
	for _, c := range crowds {
		for range c.apps {
			a := &simulatedApp{
				name: fmt.Sprintf("app%03d", len(w.apps)), host: mainHost, crowd: c,
				timeout: defaultRequestTimeout,
			}
			w.apps = append(w.apps, a)
			w.byName[a.name] = a
		}
	}
	w.active.Store(w.newInstance(0))
	return w
}

// act lets an actor act with dice of its own, so that what one does never depends on when another
// is scheduled.
func (w *world) act(name string, actor func(r *rand.Rand)) {
	id := fnv.New64a()
	_, _ = io.WriteString(id, name)
	r := rand.New(rand.NewPCG(w.seed, id.Sum64()))
	w.actors.Go(func() { actor(r) })
}

// sleep passes time. It returns false where the world ends before.
func (w *world) sleep(d time.Duration) bool {
	if w.stopped.Load() || time.Now().Add(d).After(w.ends) {
		return false
	}
	time.Sleep(d)
	return true
}

// end waits for the end of the world.
func (w *world) end() {
	w.actors.Wait()
	if i := w.active.Load(); i != nil {
		i.clean()
	}
}

// rotate makes credentials with a new secret, perhaps of a new app key, as is done in DingTalk's
// console: the old secret is refused from now on.
func (w *world) rotate(a *simulatedApp, newKey bool) *generation {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.generations)
	g := &generation{
		app: a, key: fmt.Sprintf("key-%d-of-%s", n, a.name),
		secret: fmt.Sprintf("secret-%d-of-%s", n, a.name),
	}
	switch {
	case a.twin != nil && a.twin.newest != nil:
		g.key = a.twin.newest.key
	case !newKey || a.twin != nil && a.newest != nil:
		g.key = a.newest.key
	}
	w.generations[g.key+" "+g.secret] = g
	a.newest = g
	w.hosts[a.host].SetApp(g.key, w.secretAt(g))
	w.hosts[a.host].RotateTokens(g.key, a.rotating)
	return g
}

// secretAt is the secret that DingTalk gets to see for a generation's. Apps that share a key each
// have a secret of their own here, which tells whose a call is; DingTalk knows one for the key.
func (w *world) secretAt(g *generation) string {
	if g != g.app.newest {
		return g.secret
	}
	return "the secret of " + g.key
}

// configure stores an app at the beginning, without a call.
func (w *world) configure(a *simulatedApp) {
	w.t.Helper()
	g := w.rotate(a, true)
	got := w.active.Load().do(logical.UpdateOperation, configPrefix+a.name, map[string]any{
		"app_key": g.key, "app_secret": g.secret, "base_url": a.host, "leased": a.leased, "verify_connection": false,
	})
	require.NoError(w.t, got.err)
	a.before = nil
}

// newInstance starts the engine over what is in storage, whose times it takes for as much later as
// its clock is behind the one before; that one's writes are refused from now on.
func (w *world) newInstance(skew time.Duration) *instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := &instance{
		w: w, known: map[*generation][]*delivery{}, refused: map[*generation]*refusal{}, calling: map[*generation]int{},
		cooldowns: map[cooldownKey]cooldown{},
	}
	if old := w.active.Load(); old != nil {
		old.deposed = true
	}
	for _, a := range w.apps {
		if a.stored == nil {
			continue
		}
		d := *a.stored
		d.sent, d.skew = d.sent.Add(skew), d.skew+skew
		a.stored = &d
		i.known[d.of] = []*delivery{&d}
		w.shiftStored(a, skew)
	}
	engine, err := newBackend(context.Background(), &logical.BackendConfig{System: w.system, StorageView: i}, i)
	require.NoError(w.t, err)
	i.mount = &mount{t: w.t, engine: engine, storage: &faultyStorage{Storage: i}, system: w.system}
	return i
}

func (w *world) shiftStored(a *simulatedApp, by time.Duration) {
	if by == 0 {
		return
	}
	var rec tokenRecord
	e, err := w.storage.Get(context.Background(), tokenPrefix+a.name)
	require.NoError(w.t, err)
	require.NoError(w.t, e.DecodeJSON(&rec))
	rec.FetchedAt, rec.ExpiresAt = rec.FetchedAt.Add(by), rec.ExpiresAt.Add(by)
	e, err = logical.StorageEntryJSON(tokenPrefix+a.name, rec)
	require.NoError(w.t, err)
	require.NoError(w.t, w.storage.Put(context.Background(), e))
}

// clean ends the instance as Vault does, which must not have to wait.
func (i *instance) clean() {
	i.w.mu.Lock()
	i.cleaned, i.deposed = true, true
	i.w.mu.Unlock()
	began := time.Now()
	i.engine.Cleanup(context.Background())
	if took := time.Since(began); took > 100*time.Millisecond {
		i.w.violate(nil, "prompt end", "the clean-up took %s", took)
	}
}

// writes tells whether the instance may change storage.
func (i *instance) writes() error {
	switch {
	case i.killed:
		return errors.New("the process is dead")
	case i.deposed:
		return errors.New("the node is not the leader")
	default:
		return nil
	}
}

// Get implements logical.Storage. One that is no longer the leader still reads, for a while.
func (i *instance) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	time.Sleep(storageGet)
	return i.w.storage.Get(ctx, key)
}

// List implements logical.Storage.
func (i *instance) List(ctx context.Context, prefix string) ([]string, error) {
	time.Sleep(storageGet)
	return i.w.storage.List(ctx, prefix)
}

// Put implements logical.Storage, and notes what is in force and what is stored.
func (i *instance) Put(ctx context.Context, e *logical.StorageEntry) error {
	time.Sleep(storagePut)
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	if err := i.writes(); err != nil {
		return err
	}
	if err := i.w.storage.Put(ctx, e); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(e.Key, configPrefix); ok {
		i.notedConfig(i.w.byName[name], e)
		i.killed = i.killAfter != nil && i.w.byName[name].inForce == i.killAfter
		return nil
	}
	i.notedToken(i.w.byName[strings.TrimPrefix(e.Key, tokenPrefix)], e)
	return nil
}

// Delete implements logical.Storage.
func (i *instance) Delete(ctx context.Context, key string) error {
	time.Sleep(storagePut)
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	if err := i.writes(); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(key, tokenPrefix); ok {
		i.w.byName[name].stored = nil
	}
	return i.w.storage.Delete(ctx, key)
}

func (i *instance) notedConfig(a *simulatedApp, e *logical.StorageEntry) {
	var rec configRecord
	require.NoError(i.w.t, e.DecodeJSON(&rec))
	a.before, a.inForce = a.inForce, i.w.generations[rec.AppKey+" "+rec.AppSecret]
	if a.before != a.inForce {
		a.covered = time.Time{}
	}
}

func (i *instance) notedToken(a *simulatedApp, e *logical.StorageEntry) {
	var rec tokenRecord
	require.NoError(i.w.t, e.DecodeJSON(&rec))
	a.stored = nil
	for g, all := range i.known {
		for _, d := range all {
			if g.app == a && d.token == rec.AccessToken && d.sent.Equal(rec.FetchedAt) {
				a.stored = d
			}
		}
	}
	if a.stored == nil {
		i.w.violateLocked(a, "true storage", "a token was stored that this instance did not get at %s", rec.FetchedAt)
	}
}

// RoundTrip implements http.RoundTripper: the way to DingTalk, on which the ledger is kept.
func (i *instance) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := time.Now()
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	var creds struct{ AppKey, AppSecret string }
	if err := json.Unmarshal(body, &creds); err != nil {
		return nil, err
	}
	g := i.calls(creds.AppKey+" "+creds.AppSecret, req.URL.Scheme+"://"+req.URL.Host)
	i.w.mu.Lock()
	creds.AppSecret = i.w.secretAt(g)
	i.w.mu.Unlock()
	if body, err = json.Marshal(map[string]string{"appKey": creds.AppKey, "appSecret": creds.AppSecret}); err != nil {
		return nil, err
	}
	req.Body = io.NopCloser(strings.NewReader(string(body)))
	req.ContentLength = int64(len(body))
	rec := httptest.NewRecorder()
	err = exchange(i.w.hosts[g.app.host], rec, req)

	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	i.calling[g]--
	if i.killed {
		return nil, net.ErrClosed
	}
	before := i.refused[g]
	if i.refused[g] = i.delivered(g, sent, rec, err); i.refused[g] != nil {
		g.app.crowd.callsFailed++
		i.refused[g].ended = time.Now()
		if before != nil && sent.Sub(before.ended) < time.Second {
			i.refused[g].before = before
		}
	}
	if err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

// exchange has the server answer; it knows no way but a panic to break a connection.
func exchange(server http.Handler, w http.ResponseWriter, req *http.Request) (err error) {
	defer func() {
		switch p := recover(); {
		case p != nil && p != http.ErrAbortHandler: //nolint:errorlint // a panic's value
			panic(p)
		case req.Context().Err() != nil:
			err = req.Context().Err()
		case p != nil:
			err = &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
		}
	}()
	server.ServeHTTP(w, req)
	return nil
}

// calls notes a call that begins, and checks that it may.
func (i *instance) calls(credentials, host string) *generation {
	w, now := i.w, time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.generations[credentials]
	a := g.app
	a.crowd.calls++
	if a.host != host {
		w.violateLocked(a, "own host", "its secret was sent to %s", host)
	}
	if i.calling[g]++; i.calling[g] > 1 {
		w.violateLocked(a, "one flight", "%d calls at once", i.calling[g])
	}
	for _, key := range [...]cooldownKey{{baseURL: host}, {host, g.key}} {
		if c := i.cooldowns[key]; c.until.After(now) && c.since.Before(now) { // not in the very moment
			w.violateLocked(a, "cooldowns", "a call %s before one ends: %s", c.until.Sub(now), c.why.reason)
		}
	}
	return g
}

// delivered notes what DingTalk answered, and says what the contract makes of it if it is no token.
func (i *instance) delivered(g *generation, sent time.Time, rec *httptest.ResponseRecorder, err error) *refusal {
	var got struct {
		AccessToken, Code, Punish string
		ExpireIn                  int64
	}
	_ = json.Unmarshal(rec.Body.Bytes(), &got) // what is no JSON has none of the fields
	if why := refusalOf(rec, got.AccessToken, got.Code, got.Punish, err); why != nil {
		i.coolDown(g, rec, why, err == nil && got.Punish == "deny")
		return why
	}
	i.w.owners[got.AccessToken] = g.key
	d := &delivery{of: g, token: got.AccessToken, sent: sent, lifetime: time.Duration(got.ExpireIn) * time.Second}
	i.known[g] = append(i.known[g], d)
	if n := len(i.known[g]); n > 3 { // the engine has the last one, or the one before while it stores the last
		i.known[g] = i.known[g][n-3:]
	}
	return nil
}

// refusalOf is what the contract makes of a response without a token; nil of one with a token.
func refusalOf(rec *httptest.ResponseRecorder, token, code, punish string, err error) *refusal {
	limited := strings.HasPrefix(code, "Forbidden.AccessDenied.Q") || code == "system.busy"
	switch {
	case err != nil:
		return &refusal{
			reason: "no answer", status: http.StatusBadGateway,
			holds: []string{"could not get a token for app", "attempt"},
		}
	case rec.Code >= http.StatusInternalServerError:
		return &refusal{
			reason: "a 5xx answer", status: http.StatusBadGateway,
			holds: []string{"could not serve", strconv.Itoa(rec.Code), "attempt"},
		}
	case punish == "deny":
		return &refusal{reason: "a ban", status: http.StatusBadGateway, holds: []string{"banned", "attempt"}}
	case limited:
		return &refusal{reason: "throttling", status: http.StatusBadGateway, holds: []string{code, "request id", "attempt"}}
	case code != "":
		return &refusal{reason: code, status: http.StatusBadRequest, holds: []string{code, "request id"}}
	case token == "":
		return &refusal{
			reason: "an answer without a token", status: http.StatusBadGateway,
			holds: []string{"something that is not a token", "attempt"},
		}
	default:
		return nil
	}
}

// coolDown notes until when DingTalk is to be left alone: by all for a ban, otherwise by whoever
// has the key. A shorter time never replaces a longer one.
func (i *instance) coolDown(g *generation, rec *httptest.ResponseRecorder, why *refusal, ban bool) {
	seconds, _ := strconv.Atoi(rec.Header().Get("Retry-After")) // 0 where there is none
	key, lasts := cooldownKey{g.app.host, g.key}, min(time.Duration(seconds)*time.Second, maxRetryAfter)
	if ban {
		key, lasts = cooldownKey{baseURL: g.app.host}, banDuration
	}
	now, old := time.Now(), i.cooldowns[key]
	if until := now.Add(lasts); lasts > 0 && until.After(old.until) {
		if !old.until.After(now) {
			old.since = now
		}
		i.cooldowns[key] = cooldown{since: old.since, until: until, why: why}
	}
}
