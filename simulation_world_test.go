// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is the world of the simulation and of FuzzOperations: apps, the instances of the engine
// over one storage, DingTalk behind them, and the ledger of what DingTalk gave to which instance
// for which credentials. The ledger is filled where requests and storage pass by, and knows nothing
// of what the engine thinks; so it can tell what the engine ought to have known.

import (
	"bytes"
	"cmp"
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
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	// What a raft storage takes, so that flights, writes and crashes can meet in between.
	storageGet = time.Millisecond
	storagePut = 5 * time.Millisecond

	// settled is how long it takes at most until what DingTalk sent is stored and served.
	settled = 50 * time.Millisecond

	// What the contract says, which the engine must not be asked.
	leastLife         = 2 * time.Second  // of a token that is served
	endedTTL          = time.Second      // the TTL of a lease whose token is no longer the app's
	leastApart        = 10 * time.Second // two fetches that somebody forced
	longestPatience   = 2 * time.Second  // of who could be served what there is
	warnedAgain       = time.Hour        // between two warnings of the same kind of failure
	longestBan        = 5 * time.Minute
	longestRetryAfter = 10 * time.Minute

	// longestBackOff is the last step of the back-off with its jitter, and a little.
	longestBackOff = 73 * time.Second
)

// world is all there is. No lock is held while time passes, since time in a bubble stands still
// while somebody waits for a lock.
type world struct {
	t       *testing.T
	seed    uint64
	begins  time.Time
	ends    time.Time
	hosts   map[string]*simulator.Server // by base URL
	system  *tunedSystem
	storage logical.InmemStorage
	crowds  []*crowd
	apps    []*simulatedApp
	byName  map[string]*simulatedApp
	actors  sync.WaitGroup
	stopped atomic.Bool // since too many promises are broken to go on
	small   bool        // the background never waits for its turn

	// active is the instance that Vault's clients reach; nil while Vault is down.
	active atomic.Pointer[instance]

	// mu is over the ledger: what follows, the crowds' tallies, and what of apps and instances says
	// so.
	mu          sync.Mutex
	fails       func(n int, op, key string) storageFault // how storage's calls go wrong; nil is that none does
	history     []string                                 // what a small world did, log lines included
	generations map[login]*generation
	granted     map[string]granted
	tuned       [2]time.Duration // the mount's default_lease_ttl before the last change, and now
	tunedAt     time.Time

	reasons, events, unknowable map[string]int
	broken                      int // promises
}

// tunedSystem is what the engine may ask of Vault, with a default_lease_ttl that changes.
type tunedSystem struct {
	logical.StaticSystemView
	defaultTTL atomic.Int64
}

// DefaultLeaseTTL implements logical.SystemView.
func (s *tunedSystem) DefaultLeaseTTL() time.Duration { return time.Duration(s.defaultTTL.Load()) }

// tuneLeases tunes the mount's default_lease_ttl.
func (w *world) tuneLeases(ttl time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tuned, w.tunedAt = [...]time.Duration{w.tuned[1], ttl}, time.Now()
	w.system.defaultTTL.Store(int64(ttl))
}

// granted is a token that DingTalk gave out: to which app key, and until when at the longest, since
// a repeat extends it.
type granted struct {
	key   string
	ends  time.Time
	ended bool // by DingTalk, before its time
}

// generation is one set of credentials of an app. Apps that share a key each have a secret of their
// own here, which tells whose a call is; DingTalk knows one for the key.
type generation struct {
	app *simulatedApp
	login
	number   int  // of the secret
	accepted bool // by DingTalk
}

// login is what a call names: corp is the organization, "" for none.
type login struct{ host, key, corp, secret string }

// organizations are where every app may run.
var organizations = []string{"", simulator.DefaultCorpID, "dingcorpofanothercustomer"}

// tuning is what an app's configuration says and its credentials do not.
type tuning struct {
	leased                 bool
	refreshBefore, timeout time.Duration
}

// moment is what is in force for an app at a moment: inForce is what storage holds, nil for nothing;
// before is what it held until a write that has not returned yet.
type moment struct {
	inForce, before *generation
	tuning
	limit time.Duration // request_timeout; the longer one while a write changes it
}

// config is what config/ has to respond; nil where the app is not configured.
func (m moment) config() map[string]any {
	if m.inForce == nil {
		return nil
	}
	return map[string]any{
		fieldAppKey: m.inForce.key, fieldCorpID: m.inForce.corp, fieldBaseURL: m.inForce.host, fieldLeased: m.leased,
		fieldRefreshBefore: int64(m.refreshBefore / time.Second), fieldRequestTimeout: int64(m.timeout / time.Second),
	}
}

// simulatedApp is an app in Vault's configuration.
type simulatedApp struct {
	name, host  string
	corp        string // of the next credentials
	crowd       *crowd
	leasedFirst bool          // from the beginning
	rotating    bool          // DingTalk gives it a new token at every call
	asksForMore bool          // its readers use min_ttl
	twin        *simulatedApp // whose app key it has; nil for none

	writing sync.Mutex // is of who writes its configuration

	// Under world.mu.
	moment
	id       string      // of the generation, as stored
	secretAt string      // when the secret got its value, as stored
	began    time.Time   // when the last write did
	newest   *generation // whose secret DingTalk accepts
	served   time.Time   // when a token was first handed out
	stored   *delivery   // which storage holds and an instance may use
	unstored bool        // storage did not take the last token
	faulted  time.Time   // when a call to its storage last went wrong
	covered  time.Time   // until when the fewest calls possible give it a token
}

// delivery is a token that reached an instance, with the life that it was told.
type delivery struct {
	of       *generation
	token    string
	sent     time.Time // when the request was, as far as the instance can know
	arrived  time.Time
	lifetime time.Duration
	skew     time.Duration // how much later than in truth
}

func (d *delivery) ends() time.Time { return d.sent.Add(d.lifetime) }

// remaining is the remaining TTL as the contract defines it.
func (d *delivery) remaining(now time.Time) time.Duration {
	return max(0, min(d.ends().Sub(now), d.lifetime)).Truncate(time.Second)
}

// window is the remaining TTL at which the token becomes due.
func (d *delivery) window(c tuning) time.Duration { return min(c.refreshBefore, d.lifetime/4) }

// ahead is the remaining TTL at which the background refreshes a token in use.
func (d *delivery) ahead(c tuning) time.Duration {
	if c.leased {
		return d.lifetime / 2
	}
	return d.lifetime / 4
}

// refusal is a call that brought no token, and what the contract makes of it.
type refusal struct {
	reason string
	class  string   // in status/ and the log
	code   string   // DingTalk's
	id     string   // of the request, likewise
	status int      // of the response to a reader
	holds  []string // parts of its error
	again  bool     // another attempt in the same fetch may help

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
	ticked    time.Time
	apps      map[*simulatedApp]*upkeep
	known     map[*generation][]*delivery
	refused   map[*generation]*refusal // by the last call; nil if it worked
	calling   map[*generation]int
	cooldowns map[cooldownKey]cooldown // until when DingTalk asked it not to call, by host or host and key
}

// upkeep is what an instance does for an app, and what it must have in memory.
type upkeep struct {
	// Requests in the air: longer are reads with min_ttl, beside are rejections of a token that is not the
	// current one.
	reads, longer, renewals, forcing, beside, writes, others int

	used    time.Time
	evicted bool      // from memory, since it was not used for so long
	looked  time.Time // when the configuration was last read, which is how a fetch begins
	warned  struct {  // what the log said
		class string
		at    time.Time
	}
	memory
}

// memory is lost when the app leaves memory.
type memory struct {
	since    time.Time // when the app was, or may have been, dropped from memory last
	loaded   bool      // the app is in memory for certain
	vague    bool      // it may still be what it was before
	served   bool      // the token was handed out since it was fetched, or may have been
	attempts int       // calls of the last fetch
	began    time.Time // when the last call did
	ended    time.Time
	failed   int          // fetches in a row
	calls    int          // of theirs
	failing  [2]time.Time // when the first of them failed, not earlier and not later
	last     *refusal     // of the last call; nil if it worked
	quiet    time.Time    // until when back-off lets nobody but who forces a fetch call
	forced   time.Time    // when a fetch was last made that only force or min_ttl explains
}

// upkeepOf is called with world.mu held.
func (i *instance) upkeepOf(a *simulatedApp) *upkeep {
	if i.apps[a] == nil {
		i.apps[a] = &upkeep{used: time.Now()}
	}
	return i.apps[a]
}

// forget notes that the app is perhaps no longer in memory.
func (i *instance) forget(a *simulatedApp) {
	u := i.upkeepOf(a)
	u.memory = memory{since: time.Now(), vague: true, served: u.served}
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
		begins: time.Now(),
		ends:   time.Now().Add(time.Duration(*daysFlag) * 24 * time.Hour),
		system: &tunedSystem{StaticSystemView: logical.StaticSystemView{MaxLeaseTTLVal: 768 * time.Hour}},
		hosts: map[string]*simulator.Server{
			mainHost:  simulator.New(simulator.Options{TokenLifetime: lifetimeAt(mainHost)}),
			otherHost: simulator.New(simulator.Options{TokenLifetime: lifetimeAt(otherHost)}),
		},
		crowds:      crowds,
		byName:      map[string]*simulatedApp{},
		generations: map[login]*generation{},
		granted:     map[string]granted{},
		reasons:     map[string]int{}, events: map[string]int{}, unknowable: map[string]int{},
	}
	for w.seed == 0 {
		w.seed = rand.Uint64() >> 32
		t.Logf("replay with -simulation.seed=%d", w.seed)
	}
	for _, c := range crowds {
		for range c.apps {
			a := &simulatedApp{name: fmt.Sprintf("app%03d", len(w.apps)), host: mainHost, crowd: c}
			w.apps = append(w.apps, a)
			w.byName[a.name] = a
		}
	}
	w.tuneLeases(untuned)
	w.active.Store(w.newInstance(0))
	return w
}

// untuned is Vault's own default_lease_ttl.
const untuned = 768 * time.Hour

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

// credentials makes credentials of an app, which DingTalk knows under one secret for the key.
func (w *world) credentials(a *simulatedApp, host, key string, number int) *generation {
	g := &generation{app: a, login: login{host, key, a.corp, a.secret(number)}, number: number, accepted: true}
	if old := w.generations[g.login]; old != nil {
		return old
	}
	w.generations[g.login] = g
	w.hosts[host].SetApp(key, upstreamSecret(key), organizations[1:]...)
	w.hosts[host].RotateTokens(key, a.rotating)
	return g
}

func (a *simulatedApp) secret(number int) string {
	return fmt.Sprintf("secret-%d-of-%s", number, a.name)
}

func upstreamSecret(key string) string { return "upstream-secret-of-" + key }

// rotate makes credentials with a new secret, perhaps of a new app key, as is done in DingTalk's
// console: the old secret is refused from now on.
func (w *world) rotate(a *simulatedApp, newKey bool) *generation {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.generations)
	key := fmt.Sprintf("key-%d-of-%s", n, a.name)
	switch {
	case a.twin != nil && a.twin.newest != nil:
		key = a.twin.newest.key
	case !newKey || a.twin != nil && a.newest != nil:
		key = a.newest.key
	}
	for _, g := range w.generations {
		g.accepted = g.accepted && g.app != a
	}
	a.newest = w.credentials(a, a.host, key, n)
	return a.newest
}

// authorize makes credentials for another organization, with the same key and secret.
func (w *world) authorize(a *simulatedApp, r *rand.Rand) *generation {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := slices.Index(organizations, a.corp) + 1 + r.IntN(len(organizations)-1)
	a.corp = organizations[at%len(organizations)]
	a.newest = w.credentials(a, a.host, a.newest.key, a.newest.number)
	return a.newest
}

// configure stores an app at the beginning, without a call.
func (w *world) configure(a *simulatedApp) {
	w.t.Helper()
	got := w.write(a, logical.UpdateOperation, w.rotate(a, true), map[string]any{
		fieldLeased: a.leasedFirst, fieldVerifyConnection: false,
	})
	require.NoError(w.t, got.err)
}

// newInstance starts the engine over what is in storage, whose times it takes for as much later as
// its clock is behind the one before; that one's writes are refused from now on.
func (w *world) newInstance(skew time.Duration) *instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := &instance{
		w: w, apps: map[*simulatedApp]*upkeep{}, known: map[*generation][]*delivery{}, refused: map[*generation]*refusal{},
		calling: map[*generation]int{}, cooldowns: map[cooldownKey]cooldown{},
	}
	if old := w.active.Load(); old != nil {
		old.deposed = true
	}
	for _, a := range w.apps {
		if a.stored == nil {
			continue
		}
		if skew != 0 {
			d := *a.stored
			d.sent, d.skew = d.sent.Add(skew), d.skew+skew
			a.stored = &d
			w.shiftStored(a, skew)
		}
		i.known[a.stored.of] = []*delivery{a.stored}
	}
	i.mount = &mount{t: w.t, storage: &faultyStorage{Storage: i}, system: &w.system.StaticSystemView}
	i.storage.fail(w.storageFault)
	var err error
	i.engine, err = newBackend(context.Background(), &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: logOf{i}}),
		System: w.system, StorageView: i.storage,
	}, i)
	require.NoError(w.t, err)
	return i
}

// logOf is where an instance logs.
type logOf struct{ *instance }

// Write implements io.Writer.
func (l logOf) Write(line []byte) (int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.w.note("  log: %s", bytes.TrimSpace(line))
	l.w.checkShown(nil, string(line))
	l.checkLog(string(line))
	return len(line), nil
}

// note is called with w.mu held.
func (w *world) note(format string, args ...any) {
	if w.small {
		w.history = append(w.history, time.Now().Format("02 15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// storageFault decides how a call to storage goes wrong, and notes it if it does.
func (w *world) storageFault(n int, op, key string) (f storageFault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fails != nil {
		f = w.fails(n, op, key)
	}
	prefix, name, _ := strings.Cut(key, "/")
	if a := w.byName[name]; a != nil && f.err != nil {
		a.faulted = time.Now()
		a.unstored = a.unstored || op == "put" && prefix+"/" == tokenPrefix
	}
	return f
}

func (w *world) shiftStored(a *simulatedApp, by time.Duration) {
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
		i.w.mu.Lock()
		defer i.w.mu.Unlock()
		i.w.violate(nil, "prompt end", "the clean-up took %s", took)
	}
}

var errNotLeader = errors.New("the node is not the leader")

// Get implements logical.Storage. One that is no longer the leader still reads, for a while.
func (i *instance) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	i.w.mu.Lock()
	if name, ok := strings.CutPrefix(key, configPrefix); ok {
		i.upkeepOf(i.w.byName[name]).looked = time.Now()
	}
	i.w.mu.Unlock()
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
	active := i.w.active.Load() == i
	time.Sleep(storagePut)
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	if i.deposed || i.killed {
		return errNotLeader
	}
	if err := i.w.storage.Put(ctx, e); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(e.Key, configPrefix); ok {
		a := i.w.byName[name]
		var rec configRecord
		require.NoError(i.w.t, e.DecodeJSON(&rec))
		i.notedConfig(a, rec)
		i.killed = i.killAfter != nil && a.inForce == i.killAfter
		return nil
	}
	i.notedToken(i.w.byName[strings.TrimPrefix(e.Key, tokenPrefix)], e, active)
	return nil
}

// Delete implements logical.Storage.
func (i *instance) Delete(ctx context.Context, key string) error {
	time.Sleep(storagePut)
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	if i.deposed || i.killed {
		return errNotLeader
	}
	if name, ok := strings.CutPrefix(key, tokenPrefix); ok {
		i.w.byName[name].stored = nil
	} else if a := i.w.byName[strings.TrimPrefix(key, configPrefix)]; a.inForce != nil {
		i.notedConfig(a, configRecord{})
	}
	return i.w.storage.Delete(ctx, key)
}

// notedConfig notes a change of what is stored. With a new generation, what was stored or fetched
// before the write is of an earlier one.
func (i *instance) notedConfig(a *simulatedApp, rec configRecord) {
	old, id := a.inForce, a.id
	a.before, a.id = old, rec.Generation
	a.inForce = i.w.generations[login{rec.BaseURL, rec.AppKey, rec.CorpID, rec.AppSecret}]
	a.tuning = tuning{
		leased:        rec.Leased,
		refreshBefore: time.Duration(rec.RefreshBefore) * time.Second,
		timeout:       time.Duration(rec.RequestTimeout) * time.Second,
	}
	if old != nil && a.inForce != nil && (old == a.inForce) != (id == a.id) {
		i.w.violate(a, "generations", "new credentials: %t, a new generation: %t", old != a.inForce, id != a.id)
	}
	began, at := timestamp(a.began), rec.AppSecretSetAt
	wrong := at < began || at > timestamp(time.Now())
	if old != nil && a.inForce != nil && old.secret == a.inForce.secret {
		wrong = at != a.secretAt
	}
	if wrong && a.inForce != nil {
		i.w.violate(a, "app_secret_set_at", "it is %s, after %s, in a write since %s", at, a.secretAt, began)
	}
	a.secretAt = rec.AppSecretSetAt
	if id == a.id {
		return
	}
	a.stored, a.covered = nil, time.Time{}
	if g := a.inForce; g != nil {
		i.known[g] = slices.DeleteFunc(i.known[g], func(d *delivery) bool { return d.sent.Before(a.began) })
	}
	i.forget(a)
	u := i.upkeepOf(a)
	u.since, u.vague, u.served = a.began.Add(-1), false, false // what verified it is its first token
	u.used, u.evicted = time.Now(), false
}

func (i *instance) notedToken(a *simulatedApp, e *logical.StorageEntry, active bool) {
	var rec tokenRecord
	require.NoError(i.w.t, e.DecodeJSON(&rec))
	var of *delivery
	for g, all := range i.known {
		for _, d := range all {
			if g.app == a && d.token == rec.AccessToken && d.sent.Equal(rec.FetchedAt) {
				of = d
			}
		}
	}
	a.stored, a.unstored = nil, false
	switch {
	case rec.Generation != a.id && !active: // since another node changed the app
	case rec.Generation != a.id:
		i.w.violate(a, "true storage", "a token was stored that is not of the present generation")
	case of == nil || of.of != a.inForce:
		i.w.violate(a, "true storage", "a token was stored that this instance did not get at %s", rec.FetchedAt)
	default:
		a.stored = of
	}
}

// RoundTrip implements http.RoundTripper: the way to DingTalk, on which the ledger is kept.
func (i *instance) RoundTrip(req *http.Request) (*http.Response, error) {
	sent, keyField, secretField, fields := time.Now(), "client_id", "client_secret", map[string]string{}
	if err := json.NewDecoder(req.Body).Decode(&fields); err != nil {
		return nil, err
	}
	corp, unified := strings.CutSuffix(strings.TrimPrefix(req.URL.Path, "/v1.0/oauth2/"), "/token")
	if !unified {
		corp, keyField, secretField = "", "appKey", "appSecret"
	}
	given := fields[secretField]
	g, secret, since := i.calls(login{req.URL.Scheme + "://" + req.URL.Host, fields[keyField], corp, given})
	fields[secretField] = secret
	body, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	rec := httptest.NewRecorder()
	err = exchange(i.w.hosts[g.host], rec, req)
	if secret == given { // a wrong one, which DingTalk might repeat
		rec.Body = bytes.NewBuffer(bytes.ReplaceAll(rec.Body.Bytes(), []byte(`"message":"`), []byte(`"message":"`+secret)))
	}

	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	i.calling[g]--
	if i.killed {
		return nil, net.ErrClosed
	}
	before, why := i.refused[g], i.delivered(g, sent, rec, err)
	i.refused[g] = why
	i.w.note("  a call for %s with %s at %s%s: %+v", g.app.name, g.secret, g.host, req.URL.Path, why)
	if why != nil {
		g.app.crowd.callsFailed++
		why.ended = time.Now()
		if before != nil && sent.Sub(before.ended) < time.Second {
			why.before = before
		}
	}
	if m := &i.upkeepOf(g.app).memory; since.Equal(m.since) { // it is still the same memory
		m.noted(why)
	}
	if err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

// noted notes how a call of the app's own ended.
func (m *memory) noted(why *refusal) {
	m.ended, m.last = time.Now(), why
	if why == nil {
		m.failed, m.calls, m.quiet, m.served, m.vague = 0, 0, time.Time{}, false, false
		return
	}
	if m.calls++; m.attempts == 1 {
		m.failed++
	}
	if m.calls == 1 {
		m.failing[0] = why.ended
	}
	if m.failed == 1 {
		m.failing[1] = why.ended.Add(time.Second)
	}
	steps := []int{5, 10, 20, 40, 60}
	wait := time.Duration(steps[min(max(m.failed, 1), len(steps))-1]) * time.Second
	if why.status == http.StatusBadRequest {
		wait = time.Minute
	}
	m.quiet = why.ended.Add(wait)
}

// exchange lets the server respond; it knows no way but a panic to break a connection.
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

// calls notes a call that begins, and checks that it may. It returns whose it is, the secret that
// DingTalk gets to see, and which memory it is for: the app's, unless it verifies other
// credentials.
func (i *instance) calls(sent login) (g *generation, seen string, since time.Time) {
	w, now := i.w, time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if g = w.generations[sent]; g == nil {
		w.violate(nil, "own host", "somebody else's secret was sent: %v", sent)
		g = &generation{app: w.apps[0], login: sent}
	}
	a := g.app
	a.crowd.calls++
	if i.calling[g]++; i.calling[g] > 1 {
		w.violate(a, "one flight", "%d calls at once", i.calling[g])
	}
	for _, key := range g.cooldowns() {
		if c := i.cooldowns[key]; c.until.After(now) && c.since.Before(now) { // not in the very moment
			w.violate(a, "cooldowns", "a call %s before one ends: %s", c.until.Sub(now), c.why.reason)
		}
	}
	if seen = g.secret; g.accepted {
		seen = upstreamSecret(g.key)
	}
	if g != a.inForce || i.deposed {
		return g, seen, time.Time{}.Add(-1)
	}
	i.checkCall(a, now)
	return g, seen, i.upkeepOf(a).since
}

// cooldowns are those that the login has to wait for: a ban of the host, and a Retry-After for its
// key and organization.
func (l login) cooldowns() [2]cooldownKey {
	return [...]cooldownKey{{baseURL: l.host}, {baseURL: l.host, appKey: l.key, corpID: l.corp}}
}

// cools reports whether a cooldown for the generation lasts longer than to then.
func (i *instance) cools(g *generation, then time.Time) bool {
	keys := g.cooldowns()
	return i.cooldowns[keys[0]].until.After(then) || i.cooldowns[keys[1]].until.After(then)
}

// delivered notes how DingTalk responded, and says what the contract makes of it if it is no token.
func (i *instance) delivered(g *generation, sent time.Time, rec *httptest.ResponseRecorder, err error) *refusal {
	var got struct {
		AccessToken, Code, Punish, RequestID string
		ExpireIn                             int64
		UnifiedToken                         string `json:"access_token"`
		UnifiedLife                          int64  `json:"expires_in"`
	}
	_ = json.Unmarshal(rec.Body.Bytes(), &got) // what is no JSON has none of the fields
	token, expireIn := got.AccessToken, got.ExpireIn
	if g.corp != "" {
		token, expireIn = got.UnifiedToken, got.UnifiedLife
	}
	if why := refusalOf(rec, token, got.Code, got.Punish, err); why != nil {
		why.code, why.id = got.Code, got.RequestID
		i.coolDown(g, rec, why, err == nil && got.Punish == "deny")
		return why
	}
	now, lifetime := time.Now(), time.Duration(expireIn)*time.Second
	d := &delivery{of: g, token: token, sent: sent, arrived: now, lifetime: lifetime}
	if t := i.w.granted[d.token]; d.ends().After(t.ends) {
		i.w.granted[d.token] = granted{g.key, d.ends(), t.ended}
	}
	if d.remaining(now) < leastLife {
		return &refusal{
			reason: "a token that had expired", class: "malformed", status: http.StatusBadGateway,
			holds: []string{"expired", "attempt"},
		}
	}
	i.known[g] = append(i.known[g], d)
	// The engine has the last one, or the one before while it stores the last, or what is stored.
	if at := slices.IndexFunc(i.known[g], func(d *delivery) bool { return d != g.app.stored }); len(i.known[g]) > 4 {
		i.known[g] = slices.Delete(i.known[g], at, at+1)
	}
	return nil
}

// refusalOf is what the contract makes of a response without a token; nil of one with a token.
func refusalOf(rec *httptest.ResponseRecorder, token, code, punish string, err error) *refusal {
	limited := strings.HasPrefix(code, "Forbidden.AccessDenied.Q") || code == "system.busy"
	status := strconv.Itoa(rec.Code)
	refused := func(reason, class string, status int, holds ...string) *refusal {
		if status == http.StatusBadGateway {
			holds = append(holds, "attempt")
		}
		return &refusal{reason: reason, class: class, status: status, holds: holds}
	}
	rejected := map[string]string{
		"invalidClientIdOrSecret": "rejected_credentials", "invalid.client": "rejected_credentials",
		"Forbidden.AccessDenied.IpNotInWhiteList": "forbidden_ip",
	}
	var why *refusal
	switch {
	case err != nil:
		why = refused("no response", "unreachable", http.StatusBadGateway, "could not get a token for app")
	case rec.Code >= http.StatusInternalServerError:
		why = refused("a 5xx response", "unavailable", http.StatusBadGateway, "could not serve", status)
	case punish == "deny":
		return refused("a ban", "banned", http.StatusBadGateway, "banned")
	case limited:
		return refused("throttling", "throttled", http.StatusBadGateway, code, "request id")
	case code != "":
		class := cmp.Or(rejected[code], "rejected_request")
		return refused(code, class, http.StatusBadRequest, code, "request id")
	case token == "":
		return refused("a response without a token", "malformed", http.StatusBadGateway, "something that is not a token")
	default:
		return nil
	}
	why.again = rec.Header().Get("Retry-After") == ""
	return why
}

// coolDown notes until when DingTalk is to be left alone: by all for a ban, otherwise by whoever
// has the key in that organization. A shorter time never replaces a longer one.
func (i *instance) coolDown(g *generation, rec *httptest.ResponseRecorder, why *refusal, ban bool) {
	seconds, _ := strconv.Atoi(rec.Header().Get("Retry-After")) // 0 where there is none
	key, lasts := g.cooldowns()[1], min(time.Duration(seconds)*time.Second, longestRetryAfter)
	if ban {
		key, lasts = g.cooldowns()[0], longestBan
	}
	now, old := time.Now(), i.cooldowns[key]
	if until := now.Add(lasts); lasts > 0 && until.After(old.until) {
		if !old.until.After(now) {
			old.since = now
		}
		i.cooldowns[key] = cooldown{since: old.since, until: until, why: why}
	}
}
