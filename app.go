// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is one app in memory. Its token is in one of four states (tokenState). app.decide is
// the one place that decides what a caller gets in each, app.fetchAndStore the one that fetches and
// stores, app.finishFetch the one that publishes. The set of apps is in registry.go.

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// tokenState is what may be done with a token.
type tokenState string

const (
	stateAbsent  tokenState = "absent"  // there is none; a reader waits for one
	stateFresh   tokenState = "fresh"   // it is served at once
	stateDue     tokenState = "due"     // it is valid, but a reader makes the engine refresh it
	stateExpired tokenState = "expired" // it is never served; a reader waits for a new one
)

const (
	tokenPrefix = "token/"

	minServed     = 2 * time.Second        // the least remaining TTL that is served: to Vault, 0 means 32 days
	forceInterval = 10 * time.Second       // between two refreshes of a token that is not due
	storeBudget   = 5 * time.Second        // the longest wait for storage to confirm a write
	waitGrace     = 500 * time.Millisecond // beyond request_timeout, so that the fetch reports its own failure
	usualLifetime = 2 * time.Hour          // of a token, as DingTalk's documentation says

	// rejectedBackOff is the wait after a rejection by DingTalk, which only a person can fix.
	rejectedBackOff = time.Minute

	// readerPatience is how long a reader with a usable token waits for a refresh.
	readerPatience = 2 * time.Second

	// warnInterval is the longest time between two warnings while fetches keep failing.
	warnInterval = time.Hour

	// minIdle is the shortest time that an unused app stays in memory. It keeps the limits on calls
	// to DingTalk in force after a short-lived token has expired.
	minIdle = time.Minute
)

// backOff is the wait after the first, second, … failed fetch in a row, before the jitter; the last
// one repeats. Vault's client retries a 502 twice, the second time up to 4.5 s after the first
// response: both retries must get the remembered error.
var backOff = []time.Duration{
	5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 60 * time.Second,
}

// token is an access token and its lifetime. It is immutable.
type token struct {
	Value  sensitive
	digest string // stands for the token in a lease

	fetchedAt time.Time     // when the request for it was sent
	expiresAt time.Time     // fetchedAt + expireIn, with a reading of this process's monotonic clock
	lifetime  time.Duration // whole seconds

	// fromTheFuture is set if fetchedAt was later than the clock when the token was read from
	// storage. One of the clocks is wrong then, so expiresAt is unreliable.
	fromTheFuture bool
}

// newToken returns a token that this process fetched.
func newToken(value sensitive, sent time.Time, expireIn time.Duration) *token {
	return &token{
		Value: value, digest: digestOf(value),
		fetchedAt: sent, expiresAt: sent.Add(expireIn), lifetime: expireIn,
	}
}

// digestOf returns what stands for a token where the token itself must not appear.
func digestOf(value sensitive) string {
	sum := sha256.Sum256([]byte(value.reveal()))
	return hex.EncodeToString(sum[:])
}

// remaining returns the remaining TTL in whole seconds, by the wall clock or the monotonic clock,
// whichever is less: the monotonic clock stops while a machine sleeps, the wall clock can be set
// back.
func (t *token) remaining(now time.Time) time.Duration {
	if t == nil {
		return 0
	}
	remaining := min(t.expiresAt.Sub(now), t.expiresAt.Round(0).Sub(now.Round(0)), t.lifetime)
	return max(0, remaining.Truncate(time.Second))
}

// window returns the remaining TTL at which the token becomes due: refreshBefore, but at most a
// quarter of its lifetime.
func (t *token) window(refreshBefore time.Duration) time.Duration {
	return min(refreshBefore, t.lifetime/4)
}

func (t *token) state(now time.Time, refreshBefore time.Duration) tokenState {
	switch remaining := t.remaining(now); {
	case t == nil:
		return stateAbsent
	case remaining < minServed:
		return stateExpired
	case remaining <= t.window(refreshBefore), t.fromTheFuture:
		return stateDue
	default:
		return stateFresh
	}
}

// servable reports whether the token may be handed out.
func (t *token) servable(now time.Time) bool { return t.remaining(now) >= minServed }

// tokenRecord is token/<app> in storage.
type tokenRecord struct {
	Version     int       `json:"version"`
	Generation  string    `json:"generation"`
	AccessToken string    `json:"access_token"`
	ExpiresAt   time.Time `json:"expires_at"`
	FetchedAt   time.Time `json:"fetched_at"`
}

// readToken returns the app's stored token, or nil if there is none that can be used.
func (a *app) readToken(ctx context.Context, s logical.Storage) (*token, error) {
	stored, err := s.Get(ctx, tokenPrefix+a.name)
	if err != nil {
		return nil, fmt.Errorf("app %q: reading its token from storage: %w", a.name, err)
	}
	if stored == nil {
		return nil, nil //nolint:nilnil // documented above
	}
	var rec tokenRecord
	if err := decodeRecord(stored, &rec, &rec.Version); err != nil {
		a.registry.log.Warn("the stored token is not used: another will be fetched", "app", a.name, "error", err)
		return nil, nil //nolint:nilnil // documented above
	}
	if rec.Generation != a.config.Load().Generation || !isToken(rec.AccessToken) {
		return nil, nil //nolint:nilnil // documented above
	}
	now := time.Now()
	lifetime := min(rec.ExpiresAt.Sub(rec.FetchedAt), maxExpireIn).Truncate(time.Second)
	t := newToken(newSensitive(rec.AccessToken), rec.FetchedAt, lifetime)
	// Computed from now, expiresAt gets a reading of this process's monotonic clock.
	t.expiresAt = now.Add(t.expiresAt.Sub(now.Round(0)))
	t.fromTheFuture = rec.FetchedAt.After(now)
	return t, nil
}

func (a *app) writeToken(ctx context.Context, s logical.Storage, t *token) error {
	return putRecord(ctx, s, tokenPrefix+a.name, tokenRecord{
		Version:     entryVersion,
		Generation:  a.config.Load().Generation,
		AccessToken: t.Value.reveal(),
		ExpiresAt:   t.expiresAt.UTC(),
		FetchedAt:   t.fetchedAt.UTC(),
	})
}

// app is one generation of a configured app in memory: its configuration, its token, its flight,
// its back-off.
type app struct {
	// The fields that reads and the background use come first, so that they share a cache line.

	config atomic.Pointer[appConfig] // without the secret
	token  atomic.Pointer[token]

	// usedAt is when the app was last asked for, in Unix seconds.
	usedAt           atomic.Int64
	servedSinceFetch atomic.Bool

	name     string
	registry *registry

	mu          sync.Mutex // over what follows; never held over storage, a call upstream or the log
	gone        bool       // dropped from memory: no flight may start, and no result is published
	flight      *flight    // nil while none is under way
	lastFailure *failedFetch
	warned      warning   // the zero value: none, or fetches have recovered since
	forcedAt    time.Time // when a token that was not due was last refreshed
	calls       uint64    // calls upstream, retries included, and how many of them failed
	failures    uint64
	fetches     map[string]uint64 // by result
}

// flight is one fetch, independent of the callers that wait for it.
type flight struct {
	timeout time.Duration
	cancel  context.CancelFunc
	done    chan struct{}

	// fetched is the token. It is set before the token is stored.
	fetched atomic.Pointer[token]

	// err is why there is no token. It may be read once done is closed. It is errGone if the app
	// left memory meanwhile.
	err error
}

// failedFetch describes the last fetch while fetches fail.
type failedFetch struct {
	err         *fetchError
	at          time.Time
	inARow      int
	since       time.Time // when the first of them failed
	nextAttempt time.Time
}

// warning is the last warning in the log about failing fetches.
type warning struct {
	class errorClass
	at    time.Time
}

// want is what a caller wants of an app's token. The zero value is a plain read.
type want struct {
	// remaining is the least remaining TTL: a token with less is refreshed first. It is capped at
	// the given number of quarters of the token's lifetime.
	remaining time.Duration
	quarters  int64

	// ahead asks for a refresh ahead of the readers, so that none has to wait.
	ahead bool

	// force asks for a fetch now, whatever the cache says: an operator may have fixed something.
	// With rejected, the digest of a token that DingTalk refused, it does so only if that is the
	// current token.
	force    bool
	rejected string

	// timeout is the least budget of that fetch; otherwise it is the app's request_timeout.
	timeout time.Duration
}

const forever = time.Duration(math.MaxInt64)

// atLeast returns the least remaining TTL that the caller wants of this token.
func (w want) atLeast(t *token) time.Duration {
	return min(w.remaining, t.lifetime*time.Duration(w.quarters)/4)
}

// tokenError tells a caller why no token was fetched. It adds the app's name and the time of the
// next attempt.
type tokenError struct {
	*fetchError
	app         string
	config      *appConfig
	nextAttempt time.Time
}

func (e *tokenError) Error() string {
	text := e.describe(e.app, e.config)
	switch {
	case e.nextAttempt.IsZero():
		return text
	case e.class == classBanned:
		return text + "; the ban is expected to end, and the next attempt to be made, at " + timestamp(e.nextAttempt)
	default:
		return text + "; the next attempt is due at " + timestamp(e.nextAttempt)
	}
}

// tooSoonError reports that the token was refreshed too recently to be refreshed again.
type tooSoonError struct{ until time.Time }

func (e *tooSoonError) Error() string {
	return fmt.Sprintf("the last refresh was less than %s ago; try again at %s",
		short(forceInterval), timestamp(e.until))
}

var (
	errGone         = errors.New("the app's configuration changed") // its caller starts over with what is there now
	errNoResponse   = errors.New("no response in time")             // request_timeout is over
	errStillWaiting = errors.New("the fetch is still under way")    // readerPatience is over
	errShuttingDown = errors.New("the secrets engine is being unloaded: try again")

	// errExpired: the token expired between the decision and its use, perhaps on a machine that
	// slept.
	errExpired = errors.New("the token expired while it was being handed out: try again")
)

// timestamp prints a time the way every response and error does.
func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// meets reports whether the token is what the caller wants. It takes no lock.
func (a *app) meets(t *token, now time.Time, w want) bool {
	switch {
	case w.force:
		return w.rejected != "" && (t == nil || t.digest != w.rejected)
	case w.ahead:
		return !a.wantsRefreshAhead(now)
	default:
		c, remaining := a.config.Load(), t.remaining(now)
		return t.state(now, c.RefreshBefore) == stateFresh && remaining >= w.atLeast(t) &&
			(!c.Leased || remaining >= t.lifetime/2) // a lease that begins short can stay short for good
	}
}

// accepts reports whether the caller can use the token as it is while a fetch is under way.
func (w want) accepts(t *token, now time.Time) bool {
	return !w.force && !w.ahead && t.servable(now) && t.remaining(now) >= w.atLeast(t)
}

// get returns the app's token, and refreshes it first if it is not what the caller wants. It waits
// no longer than the context allows. The warning says why a returned token is not as wanted: a
// *tokenError or a *tooSoonError. The error is errGone if the caller has to start over with what is
// in memory now.
func (a *app) get(ctx context.Context, s logical.Storage, w want) (t *token, warning, err error) {
	for {
		f, warning, err := a.decide(ctx, s, w)
		switch {
		case err != nil:
			return nil, nil, err
		case f == nil:
			return w.result(a.token.Load(), warning)
		}
		err = a.await(ctx, f, w)
		var failure *tokenError
		failed, stillWaiting := errors.As(err, &failure), errors.Is(err, errStillWaiting)
		switch fetched := f.fetched.Load(); {
		case f.timeout < w.timeout && ctx.Err() == nil:
			continue // that fetch had less time than this caller wants for it, and is over now
		case err == nil:
			return w.result(a.token.Load(), nil)
		case fetched != nil && a.registry.holds(a) && (failed || stillWaiting):
			return fetched, nil, nil // storage has not taken it yet
		case stillWaiting:
			continue
		case !w.force && (failed || errors.Is(err, errShuttingDown)):
			return w.result(a.token.Load(), err)
		default:
			return nil, nil, err
		}
	}
}

// result returns what a caller gets that does not wait for a fetch, or no longer: the current
// token, with a warning if it could not be refreshed, or that as the error if there is no usable
// token. A caller that forces a fetch always gets it as a warning.
func (w want) result(current *token, warned error) (t *token, warning, err error) {
	if current.servable(time.Now()) || w.force {
		return current, warned, nil
	}
	return nil, nil, cmp.Or(warned, errExpired)
}

// decide decides what a caller gets in each state of the token, and starts a flight if it needs
// one.
func (a *app) decide(ctx context.Context, s logical.Storage, w want) (f *flight, warning, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, t := time.Now(), a.token.Load()
	state := t.state(now, a.config.Load().RefreshBefore)
	forced := w.force || state == stateFresh && !w.ahead
	switch {
	case ctx.Err() != nil:
		return nil, nil, a.over(ctx)
	case a.gone:
		return nil, nil, errGone
	case a.meets(t, now, w):
		return nil, nil, nil
	case a.flight != nil && w.accepts(t, now):
		return nil, nil, nil
	case a.flight != nil:
		return a.flight, nil, nil
	}
	if warning := a.heldBack(now, w, forced); warning != nil {
		return nil, warning, nil
	}
	if forced {
		a.forcedAt = now
	}
	return a.startFetch(s, max(w.timeout, a.config.Load().RequestTimeout)), nil, nil
}

// heldBack returns why no fetch may be made now, or nil if one may. It is called with a.mu held.
func (a *app) heldBack(now time.Time, w want, forced bool) error {
	last := a.lastFailure
	cooldown := a.cooldown(now)
	switch again := a.forcedAt.Add(forceInterval); {
	case cooldown != nil && w.force:
		return a.tokenError(cooldown, cooldown.cooldown)
	case cooldown != nil:
		return a.tokenError(cooldown, a.nextAttempt(now))
	case last != nil && last.nextAttempt.After(now) && !w.force:
		return a.tokenError(last.err, last.nextAttempt)
	case !forced || !again.After(now):
		return nil
	case last != nil:
		return a.tokenError(last.err, again)
	default:
		return &tooSoonError{until: again}
	}
}

// cooldown returns the ban or Retry-After that forbids calls for this app now, or nil.
func (a *app) cooldown(now time.Time) *fetchError {
	return a.registry.client.cooldowns.inForce(a.config.Load().credentials(), now)
}

// nextAttempt returns when the next fetch may be made, or the zero time if one may be made now. It
// is called with a.mu held.
func (a *app) nextAttempt(now time.Time) time.Time {
	var next time.Time
	if cooldown := a.cooldown(now); cooldown != nil {
		next = cooldown.cooldown
	}
	if last := a.lastFailure; last != nil && last.nextAttempt.After(now) {
		next = latestOf(next, last.nextAttempt)
	}
	return next
}

func (a *app) tokenError(f *fetchError, next time.Time) *tokenError {
	return &tokenError{fetchError: f, app: a.name, config: a.config.Load(), nextAttempt: next}
}

// await waits for the end of a flight, and returns its error. A caller that accepts the current
// token waits for readerPatience at most.
func (a *app) await(ctx context.Context, f *flight, w want) error {
	var moment <-chan time.Time
	if now := time.Now(); w.accepts(a.token.Load(), now) {
		timer := time.NewTimer(readerPatience)
		defer timer.Stop()
		moment = timer.C
	}
	select {
	case <-moment:
		return errStillWaiting
	case <-f.done:
		if f.err == nil && !a.registry.holds(a) {
			return errGone
		}
		return f.err
	case <-ctx.Done():
		return a.over(ctx)
	}
}

// patience bounds a caller's wait for a fetch. before is how long it may have to wait for an
// earlier fetch to end.
func (a *app) patience(ctx context.Context, before time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, before+a.config.Load().RequestTimeout+waitGrace, errNoResponse)
}

// over returns the error of a caller whose context has ended: that there was no response in time
// or, if the caller has gone away, the context's own error.
func (a *app) over(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errNoResponse) {
		return a.tokenError(&fetchError{class: classUnreachable, cause: errNoResponse.Error()}, time.Time{})
	}
	return ctx.Err()
}

// startFetch starts a flight. It is called with a.mu held and no flight under way.
func (a *app) startFetch(s logical.Storage, timeout time.Duration) *flight {
	ctx, cancel := context.WithTimeout(a.registry.life.ctx, timeout)
	f := &flight{timeout: timeout, cancel: cancel, done: make(chan struct{})}
	a.flight = f
	if !a.registry.life.run(func() {
		defer close(f.done)
		defer cancel()
		a.finishFetch(f, a.fetchAndStore(ctx, f, s))
	}) {
		cancel()
		a.flight, f.err = nil, errShuttingDown
		close(f.done)
	}
	return f
}

// fetchAndStore fetches a token, leaves it in the flight and stores it. A panic fails this flight
// alone.
func (a *app) fetchAndStore(ctx context.Context, f *flight, s logical.Storage) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.registry.log.Error("panic while fetching a token: please report this",
				"app", a.name, "stack", string(debug.Stack()))
			err = &fetchError{class: classInternal}
		}
	}()

	stored, err := readConfig(ctx, s, a.name)
	switch {
	case a.registry.life.ctx.Err() != nil:
		return errShuttingDown
	case err != nil:
		cause := strings.TrimPrefix(err.Error(), fmt.Sprintf("app %q: ", a.name)) // tokenError names it
		return &fetchError{class: classStorage, cause: cut(visible(cause), maxShownText)}
	case stored == nil || stored.Generation != a.config.Load().Generation:
		a.registry.drop(a) // another node changed the configuration
		return errGone
	}
	t, calls, failure := a.registry.client.fetch(ctx, stored.credentials(), a.token.Load())
	a.count(calls, failure)
	switch {
	case failure == nil:
		f.fetched.Store(t)
		return a.registry.storeToken(a, s, t)
	case a.registry.life.ctx.Err() != nil:
		return errShuttingDown
	default:
		return failure
	}
}

// count counts the calls of one fetch.
func (a *app) count(calls int, failure *fetchError) {
	failures := calls
	if failure == nil {
		failures--
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls += uint64(calls)       //nolint:gosec // never negative
	a.failures += uint64(failures) //nolint:gosec // a fetch that works has made a call
}

// snapshot is an app's state at one time, for status and metrics.
type snapshot struct {
	config          *appConfig
	token           *token
	calls, failures uint64
	fetches         map[string]uint64
	last            *failedFetch
	nextAttempt     time.Time // zero if a fetch may be made now
}

func (a *app) snapshot(now time.Time) snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	return snapshot{
		config: a.config.Load(), token: a.token.Load(), calls: a.calls, failures: a.failures,
		fetches: maps.Clone(a.fetches), last: a.lastFailure, nextAttempt: a.nextAttempt(now),
	}
}

// finishFetch ends a flight: it publishes the token, or records the failure.
func (a *app) finishFetch(f *flight, err error) {
	a.mu.Lock()
	a.flight = nil
	log := func() {}
	var failure *fetchError
	switch {
	case a.gone:
		f.err = errGone
	case err == nil:
		log = a.publish(f.fetched.Load())
	case errors.As(err, &failure):
		log, f.err = a.fail(failure)
	default:
		f.err = err
	}
	a.mu.Unlock()
	log()
}

// publish makes t the app's token. It is called with a.mu held, or before anybody else knows the
// app. It returns a function that writes the log, to be called without the lock.
func (a *app) publish(t *token) (log func()) {
	wasFailing := a.warned != warning{}
	a.fetches[resultGiven]++
	a.token.Store(t)
	a.servedSinceFetch.Store(false)
	a.lastFailure, a.warned = nil, warning{}
	return func() {
		if wasFailing {
			a.registry.log.Info("fetching tokens works again", "app", a.name)
		}
		a.registry.log.Debug("fetched a token", "app", a.name, "lifetime", t.lifetime.String())
	}
}

// fail records a failed fetch and sets the time of the next attempt. It is called with a.mu held.
// It returns a function that writes the log, to be called without the lock.
func (a *app) fail(f *fetchError) (log func(), err error) {
	a.fetches[string(f.class)]++
	now := time.Now()
	last := &failedFetch{err: f, at: now, inARow: 1, since: now}
	if a.lastFailure != nil {
		last.inARow += a.lastFailure.inARow
		last.since = a.lastFailure.since
	}
	wait := jitter(backOff[min(last.inARow, len(backOff))-1])
	if f.rejected() {
		wait = rejectedBackOff
	}
	last.nextAttempt = latestOf(now.Add(wait), f.cooldown)
	write := a.registry.log.Debug
	if a.warned.class != f.class || now.Sub(a.warned.at) >= warnInterval {
		write, a.warned = a.registry.log.Warn, warning{class: f.class, at: now}
	}
	a.lastFailure = last
	tokenUntil := "none"
	if t := a.token.Load(); t.servable(now) {
		tokenUntil = timestamp(t.expiresAt)
	}
	log = func() {
		write("fetching a token failed", "app", a.name, "class", string(f.class), "code", f.code, "message", f.message,
			"request_id", f.requestID, "cause", f.cause, "next_attempt", timestamp(last.nextAttempt),
			"token_expires_at", tokenUntil)
	}
	return log, a.tokenError(f, last.nextAttempt)
}

func latestOf(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// retire takes the app out of use: it cancels the flight, whose result is not published. It returns
// the last warning in the log.
func (a *app) retire() warning {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = true
	if a.flight != nil {
		a.flight.cancel()
	}
	return a.warned
}

// touch records that the app is in use and, with served, that its token was handed out. It writes
// only what changes, since all readers share the memory.
func (a *app) touch(now time.Time, served bool) {
	if t := now.Unix(); a.usedAt.Load() != t {
		a.usedAt.Store(t)
	}
	if served && !a.servedSinceFetch.Load() {
		a.servedSinceFetch.Store(true)
	}
}

// wantsRefreshAhead reports whether the background should refresh the token: it is in use and
// valid, and before the next pass half of its lifetime will be over, or three quarters without
// leases.
func (a *app) wantsRefreshAhead(now time.Time) bool {
	if !a.servedSinceFetch.Load() {
		return false
	}
	t := a.token.Load()
	threshold := t.lifetime / 4
	if a.config.Load().Leased {
		threshold = t.lifetime / 2
	}
	return t.servable(now) && t.remaining(now) <= threshold+min(passInterval, t.lifetime/120)
}

// evict retires the app if nobody has used it for a token's lifetime, and neither a fetch nor a
// wait is under way. It reports whether it did.
func (a *app) evict(now time.Time) bool {
	lifetime := usualLifetime
	if t := a.token.Load(); t != nil {
		lifetime = t.lifetime
	}
	if now.Sub(time.Unix(a.usedAt.Load(), 0)) < max(minIdle, lifetime) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.flight != nil || !a.nextAttempt(now).IsZero() {
		return false
	}
	a.gone = true
	return true
}
