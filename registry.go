// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file holds the apps together: the map of those in memory, the lock over each one's storage and what is done under it,
// the pauses that apps share, and what runs in the background. A token's own life is in tokens.go.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	tokenPrefix = "token/"

	// bannedFor is how long DingTalk bans an egress IP.
	bannedFor = 5 * time.Minute

	// aheadWithin is how long before a token becomes due the background refreshes it: two passes of the periodic function,
	// which Vault calls once a minute.
	aheadWithin = 2 * time.Minute

	// aheadAtOnce is how many tokens the background refreshes at a time.
	aheadAtOnce = 8

	// sweepEvery is how often stored tokens that no config owns are removed.
	sweepEvery = time.Hour

	// sweepWithin bounds that, since the next pass waits for it.
	sweepWithin = time.Minute

	// endWithin bounds the wait for goroutines at the end: Vault calls the clean-up under its locks.
	endWithin = 50 * time.Millisecond
)

// registry is all apps of one mount.
type registry struct {
	client *client
	log    hclog.Logger
	life   *lifecycle
	pauses pauses

	// apps holds an *app by name: the one place that says which generation of an app is served. A read takes no lock.
	apps sync.Map

	mu    sync.Mutex // over slots, over all and over every change to apps; never held over storage or a call upstream
	slots map[string]*slot
	all   []*app // those in apps, in any order: the background goes through them faster than through the map

	pass      sync.Mutex // held while a background pass runs
	lastSweep time.Time  // of the pass alone
}

func newRegistry(c *client, log hclog.Logger) *registry {
	return &registry{client: c, log: log, life: newLifecycle(), slots: map[string]*slot{}, lastSweep: time.Now()}
}

// unknownAppError is a request for an app that nobody has configured.
type unknownAppError struct{ app string }

func (e *unknownAppError) Error() string {
	return fmt.Sprintf("app %q is not configured: write its app_key and app_secret to config/%s first", e.app, e.app)
}

func isUnknownApp(err error) bool {
	var unknown *unknownAppError
	return errors.As(err, &unknown)
}

// slot is the lock over one app's storage, there only while somebody holds it or waits for it, so that an unknown name takes
// no memory.
type slot struct {
	free  chan struct{} // holds one value while the lock is free
	users int

	// stale says that storage changed under the holder, by another node's doing.
	stale bool
}

// guard is a held lock over one app's storage.
type guard struct {
	r    *registry
	name string
	slot *slot
}

// lock waits for the lock over an app's storage as long as the context allows.
func (r *registry) lock(ctx context.Context, name string) (*guard, error) {
	r.mu.Lock()
	sl := r.slots[name]
	if sl == nil {
		sl = &slot{free: make(chan struct{}, 1)}
		sl.free <- struct{}{}
		r.slots[name] = sl
	}
	sl.users++
	r.mu.Unlock()

	g := &guard{r: r, name: name, slot: sl}
	select {
	case <-sl.free:
		g.begin()
		return g, nil
	case <-ctx.Done():
		g.leave()
		return nil, fmt.Errorf("app %q: waiting for its storage: %w", name, ctx.Err())
	}
}

// begin is called before storage is read: what changes from now on makes the holder's knowledge stale.
func (g *guard) begin() {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	g.slot.stale = false
}

func (g *guard) unlock() {
	g.slot.free <- struct{}{}
	g.leave()
}

func (g *guard) leave() {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	if g.slot.users--; g.slot.users == 0 {
		delete(g.r.slots, g.name)
	}
}

// install makes a the app in memory, in place of any other, unless storage changed meanwhile.
func (g *guard) install(a *app) bool {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	if g.slot.stale {
		return false
	}
	if old, ok := g.r.apps.Swap(g.name, a); ok {
		g.r.delist(old.(*app))
		old.(*app).retire()
	}
	a.place = len(g.r.all)
	g.r.all = append(g.r.all, a)
	return true
}

// invalidate drops an app from memory because its storage changed by another node's doing. It blocks on nothing, and a load
// that is under way does not bring the old state back.
func (r *registry) invalidate(name string) {
	r.mu.Lock()
	if sl := r.slots[name]; sl != nil {
		sl.stale = true
	}
	r.mu.Unlock()
	r.forget(name)
}

// forget drops whatever is in memory for the name.
func (r *registry) forget(name string) {
	if a := r.inMemory(name); a != nil {
		r.drop(a)
	}
}

// drop drops this very app from memory.
func (r *registry) drop(a *app) {
	r.mu.Lock()
	if r.apps.CompareAndDelete(a.name, a) {
		r.delist(a)
	}
	r.mu.Unlock()
	a.retire()
}

// delist takes an app that has left apps out of all. It is called with r.mu held.
func (r *registry) delist(a *app) {
	last := len(r.all) - 1
	r.all[a.place] = r.all[last]
	r.all[a.place].place = a.place
	r.all[last] = nil
	r.all = r.all[:last]
}

// holds tells whether a is what is in memory for its name.
func (r *registry) holds(a *app) bool { return r.inMemory(a.name) == a }

// inMemory returns the app if it is in memory, else nil.
func (r *registry) inMemory(name string) *app {
	if v, ok := r.apps.Load(name); ok {
		return v.(*app)
	}
	return nil
}

// app returns the app, loading it from storage if it is not in memory. The error is an *unknownAppError or storage's.
func (r *registry) app(ctx context.Context, s logical.Storage, name string) (*app, error) {
	if a := r.inMemory(name); a != nil {
		return a, nil
	}
	g, err := r.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer g.unlock()
	for ctx.Err() == nil {
		if a := r.inMemory(name); a != nil {
			return a, nil
		}
		g.begin()
		entry, err := readConfig(ctx, s, name)
		if err != nil {
			return nil, err
		}
		if entry == nil {
			return nil, &unknownAppError{app: name}
		}
		t, err := r.readToken(ctx, s, name, entry.Generation)
		if err != nil {
			return nil, err
		}
		a := r.newApp(name, entry)
		a.token.Store(t)
		if g.install(a) {
			return a, nil
		}
	}
	return nil, fmt.Errorf("app %q: loading it from storage: %w", name, ctx.Err())
}

// newApp makes the object of an entry, which nobody else knows yet.
func (r *registry) newApp(name string, e *appEntry) *app {
	a := &app{name: name, generation: e.Generation, registry: r}
	a.settings.Store(e.settings())
	a.usedAt.Store(time.Now().Unix())
	return a
}

// readEntry reads an app's entry under its lock; nil without an error is an app that does not exist.
func (r *registry) readEntry(ctx context.Context, s logical.Storage, name string) (*appEntry, error) {
	g, err := r.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer g.unlock()
	return readConfig(ctx, s, name)
}

// acquire brings an app's token to what the caller needs, as far as that may be done now. It waits for the app's
// request_timeout at most. The error is an *unknownAppError or storage's; what upstream does is in the outcome.
func (r *registry) acquire(ctx context.Context, s logical.Storage, name string, n need) (*app, outcome, error) {
	a, err := r.app(ctx, s, name)
	if err != nil {
		return nil, outcome{}, err
	}
	now := time.Now()
	if t, good := a.serves(now, n); good {
		return a, outcome{token: t}, nil
	}
	a.touch(now, false) // also where there is no token to be had: what the app failed with is to outlive the wait
	ctx, cancel := context.WithTimeout(ctx, a.settings.Load().requestTimeout+waitGrace)
	defer cancel()
	for {
		out := a.obtain(ctx, s, n)
		if !errors.Is(out.err, errGone) {
			return a, out, nil
		}
		r.drop(a) // so that the next round cannot meet it again
		if a, err = r.app(ctx, s, name); err != nil {
			return nil, outcome{}, err
		}
	}
}

// tokenRecord is token/<app> in storage.
type tokenRecord struct {
	Version     int       `json:"version"`
	Generation  string    `json:"generation"`
	AccessToken string    `json:"access_token"`
	ExpiresAt   time.Time `json:"expires_at"`
	FetchedAt   time.Time `json:"fetched_at"`
}

// readToken reads the stored token of a generation; nil without an error is that there is none, or none that can be used.
func (r *registry) readToken(ctx context.Context, s logical.Storage, name, generation string) (*token, error) {
	stored, err := s.Get(ctx, tokenPrefix+name)
	if err != nil {
		return nil, fmt.Errorf("reading token/%s from storage: %w", name, err)
	}
	if stored == nil {
		return nil, nil //nolint:nilnil // documented above
	}
	var rec tokenRecord
	if err := decodeRecord(stored, &rec, &rec.Version); err != nil {
		r.log.Warn("the stored token is not used: another will be fetched", "app", name, "error", err)
		return nil, nil //nolint:nilnil // documented above
	}
	if rec.Generation != generation || rec.AccessToken == "" {
		return nil, nil //nolint:nilnil // documented above
	}
	now := time.Now()
	t := newToken(newSensitive(rec.AccessToken), rec.FetchedAt, min(rec.ExpiresAt.Sub(rec.FetchedAt), maxExpireIn).Truncate(time.Second))
	// Expressed as now plus the rest by the wall clock, the end gets a reading of this process's monotonic clock.
	t.expiresAt = now.Add(t.expiresAt.Sub(now.Round(0)))
	t.fromTheFuture = rec.FetchedAt.After(now)
	return t, nil
}

func writeToken(ctx context.Context, s logical.Storage, a *app, t *token) error {
	return putRecord(ctx, s, tokenPrefix+a.name, tokenRecord{
		Version:     entryVersion,
		Generation:  a.generation,
		AccessToken: t.Value.reveal(),
		ExpiresAt:   t.expiresAt.UTC(),
		FetchedAt:   t.fetchedAt.UTC(),
	})
}

// storeToken stores a fetched token, unless the app has left memory, which is errGone. A storage that fails or is slow is
// logged and no error, since the token is good all the same.
func (r *registry) storeToken(a *app, s logical.Storage, t *token) error {
	ctx, cancel := context.WithTimeout(r.life.ctx, storeBudget)
	defer cancel()
	g, err := r.lock(ctx, a.name)
	if err == nil {
		defer g.unlock()
		if !r.holds(a) {
			return errGone
		}
		err = writeToken(ctx, s, a, t)
	}
	if err != nil && r.life.ctx.Err() == nil {
		r.log.Warn("a fetched token could not be stored: it is served from memory, and after a restart another is fetched", "app", a.name, "error", err)
	}
	return nil
}

// verify fetches the first token of a new generation, before anything of it is stored. Back-off does not stand against it,
// since the operator may have mended something; a ban and DingTalk's own Retry-After do.
func (r *registry) verify(ctx context.Context, name string, next *appEntry) (t *token, calls int, err error) {
	host := hostOf(next.BaseURL)
	for _, key := range []pauseKey{{host: host}, {host, next.AppKey}} {
		if p, on := r.pauses.get(key, time.Now()); on {
			return nil, 0, &fetchError{app: name, baseURL: next.BaseURL, cause: p.err, nextAttempt: p.until}
		}
	}
	var known []sensitive
	if a := r.inMemory(name); a != nil {
		known = a.known()
	}
	ctx, cancel := context.WithTimeout(ctx, next.RequestTimeout)
	defer cancel()
	detach := context.AfterFunc(r.life.ctx, cancel)
	defer detach()
	t, calls, uerr := r.client.fetch(ctx, next.credentials(), known...)
	if uerr != nil && r.life.ctx.Err() != nil {
		return nil, calls, errShuttingDown
	}
	if uerr != nil {
		r.log.Debug("verifying credentials failed", "app", name, "class", string(uerr.class), "code", uerr.code, "request_id", uerr.requestID, "cause", uerr.cause)
		until := r.pause(host, next.AppKey, uerr, time.Now())
		return nil, calls, &fetchError{app: name, baseURL: next.BaseURL, cause: uerr, nextAttempt: until}
	}
	return t, calls, nil
}

// configure puts an entry in force: in storage, then in memory. With a new generation, verified is its first token or nil. It
// is called with the app's lock held, present being what storage holds. The warning says what did not work without making
// the write a failure.
func (g *guard) configure(ctx context.Context, s logical.Storage, next *appEntry, newGeneration bool, verified *token, calls int) (warning string, err error) {
	r := g.r
	if err := writeConfig(ctx, s, g.name, next); err != nil {
		r.forget(g.name) // the write may have taken effect: storage has the word
		return "", err
	}
	old := r.inMemory(g.name)
	if !newGeneration {
		if old != nil {
			old.settings.Store(next.settings())
		}
		return "", nil
	}
	a := r.newApp(g.name, next)
	if old != nil {
		a.failing = old.retire()
	}
	if verified != nil {
		a.count(calls, nil)
		a.publish(verified)
		err = writeToken(ctx, s, a, verified)
	} else {
		err = s.Delete(ctx, tokenPrefix+g.name) // of the generation before: it would not be used, but need not be kept
	}
	if err != nil {
		r.log.Warn("the app is configured, but its stored token could not be brought up to date: after a restart another is fetched", "app", g.name, "error", err)
		warning = "The configuration is in force, but storage did not take the token with it: after a restart another will be fetched."
	}
	if !g.install(a) {
		r.forget(g.name)
	}
	return warning, nil
}

// remove deletes an app: its config first, so that a token without a config is all that can be left over, then its token. It
// is called with the app's lock held.
func (g *guard) remove(ctx context.Context, s logical.Storage) error {
	err := s.Delete(ctx, configPrefix+g.name)
	g.r.forget(g.name) // the delete may have taken effect even if it failed: storage has the word
	if err != nil {
		return fmt.Errorf("deleting config/%s from storage: %w", g.name, err)
	}
	if err := s.Delete(ctx, tokenPrefix+g.name); err != nil {
		return fmt.Errorf("app %q is deleted, but not its stored token, which nobody is given any more; delete again, or it is removed within an hour or two: %w", g.name, err)
	}
	return nil
}

// digestOf stands for a token where the token itself must not be.
func digestOf(value sensitive) string {
	sum := sha256.Sum256([]byte(value.reveal()))
	return hex.EncodeToString(sum[:])
}

// background starts one pass in the background and returns at once: Vault holds its state lock while it waits. A pass that
// is still running is not joined by another.
func (r *registry) background(s logical.Storage) {
	if !r.pass.TryLock() {
		return
	}
	started := r.life.run(func() {
		defer r.pass.Unlock()
		r.refreshAhead(s)
		if now := time.Now(); now.Sub(r.lastSweep) >= sweepEvery {
			r.lastSweep = now
			ctx, cancel := context.WithTimeout(r.life.ctx, sweepWithin)
			defer cancel()
			r.sweep(ctx, s)
		}
	})
	if !started {
		r.pass.Unlock()
	}
}

// refreshAhead refreshes the tokens in use that are due soon, and drops idle apps from memory.
func (r *registry) refreshAhead(s logical.Storage) {
	now := time.Now()
	r.mu.Lock()
	all := slices.Clone(r.all)
	r.mu.Unlock()
	var due []*app
	for _, a := range all {
		switch {
		case a.wantsAhead(now, aheadWithin):
			due = append(due, a)
		case a.evict(now):
			r.drop(a)
		}
	}
	places := make(chan struct{}, aheadAtOnce)
	for _, a := range due {
		select {
		case places <- struct{}{}:
		case <-r.life.ctx.Done():
			return
		}
		if !r.life.run(func() {
			defer func() { <-places }()
			a.obtain(r.life.ctx, s, needAhead)
		}) {
			return
		}
	}
	for range aheadAtOnce { // until the last has ended
		select {
		case places <- struct{}{}:
		case <-r.life.ctx.Done():
			return
		}
	}
}

// sweep removes stored tokens that no config owns, such as a delete that was cut short leaves.
func (r *registry) sweep(ctx context.Context, s logical.Storage) {
	tokens, err := s.List(ctx, tokenPrefix)
	if err != nil {
		r.log.Warn("looking for tokens without a config failed: the next try is in an hour", "error", err)
		return
	}
	configs, err := s.List(ctx, configPrefix)
	if err != nil {
		r.log.Warn("looking for tokens without a config failed: the next try is in an hour", "error", err)
		return
	}
	slices.Sort(configs)
	for _, name := range tokens {
		if _, owned := slices.BinarySearch(configs, name); owned {
			continue
		}
		if err := r.removeOrphan(ctx, s, name); err != nil {
			r.log.Warn("removing a token without a config failed: the next try is in an hour", "app", name, "error", err)
		}
	}
}

func (r *registry) removeOrphan(ctx context.Context, s logical.Storage, name string) error {
	g, err := r.lock(ctx, name)
	if err != nil {
		return err
	}
	defer g.unlock()
	entry, err := s.Get(ctx, configPrefix+name)
	if err != nil || entry != nil {
		return err
	}
	return s.Delete(ctx, tokenPrefix+name)
}

// pauses are what DingTalk has asked for that outlasts one app's generation: by host a ban of Vault's egress IP, which
// concerns every app there, and by host and app key a Retry-After, which concerns whoever uses that key.
type pauses struct {
	mu  sync.Mutex
	end map[pauseKey]pause
}

// pauseKey has no appKey where it stands for all apps of the host.
type pauseKey struct{ host, appKey string }

// hostOf is what base URLs of the same host have in common: https://host and https://host:443 are one.
func hostOf(baseURL string) string {
	u, err := url.Parse(baseURL)
	if err != nil {
		return baseURL // which no stored one is
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

type pause struct {
	err   *upstreamError
	until time.Time
}

// add notes a pause. Those that are over are removed, so that they take no memory.
func (p *pauses) add(key pauseKey, now time.Time, added pause) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.end, func(_ pauseKey, old pause) bool { return !old.until.After(now) })
	if p.end == nil {
		p.end = map[pauseKey]pause{}
	}
	p.end[key] = added
}

// get returns the pause that is on; false where there is none.
func (p *pauses) get(key pauseKey, now time.Time) (pause, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.end[key]
	return got, got.until.After(now)
}

// pause notes what DingTalk asks for with an error, and returns when it ends; zero where it asks for nothing.
func (r *registry) pause(host, appKey string, uerr *upstreamError, now time.Time) (until time.Time) {
	switch {
	case uerr.class == classBanned:
		until = now.Add(bannedFor)
		r.pauses.add(pauseKey{host: host}, now, pause{err: uerr, until: until})
	case uerr.retryAfter > 0:
		until = now.Add(uerr.retryAfter)
		r.pauses.add(pauseKey{host, appKey}, now, pause{err: uerr, until: until})
	}
	return until
}

// lifecycle owns every goroutine of a mount.
type lifecycle struct {
	// ctx ends with the mount. It derives from nothing: the factory's context ends with the factory.
	ctx    context.Context //nolint:containedctx // it is the mount's life
	cancel context.CancelFunc

	mu     sync.Mutex
	ended  bool
	active sync.WaitGroup
}

func newLifecycle() *lifecycle {
	ctx, cancel := context.WithCancel(context.Background())
	return &lifecycle{ctx: ctx, cancel: cancel}
}

// run runs f in a goroutine, unless the life has ended.
func (l *lifecycle) run(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.active.Go(f)
	return true
}

// end ends the life and waits a little for its goroutines, which all heed ctx. It may be called again.
func (l *lifecycle) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.cancel()
	gone := make(chan struct{})
	go func() {
		l.active.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(endWithin):
	}
}
