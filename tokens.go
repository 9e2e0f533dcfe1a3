// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is the token cache's heart. A token is in one of four states (tokenState); app.decide is the one place that says
// what a reader gets in each; app.fetchAndStore is the one that fetches and has the token stored; app.settle is the one that
// publishes. What holds the apps together, the map and the locks over storage, is in registry.go.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// tokenState says what may be done with the token in hand.
type tokenState string

const (
	// stateAbsent: there is none; a reader waits for one.
	stateAbsent tokenState = "absent"
	// stateFresh: it is served at once.
	stateFresh tokenState = "fresh"
	// stateDue: it is good, but a reader has it refreshed.
	stateDue tokenState = "due"
	// stateExpired: it is never served; a reader waits for another.
	stateExpired tokenState = "expired"
)

const (
	// leastServed is the least life left of a token that is served, since a TTL of 0 means 32 days to Vault.
	leastServed = 2 * time.Second

	// forceInterval is how often at most a token that is not due is refreshed all the same.
	forceInterval = 10 * time.Second

	// storeBudget bounds storing a fetched token.
	storeBudget = 5 * time.Second

	// waitGrace is what a reader waits longer than request_timeout, so that the fetch can say itself why it failed.
	waitGrace = 500 * time.Millisecond

	// leastIdle is how long an app stays in memory unused at the least, so that the limits on how often DingTalk is called
	// outlive a short-lived token.
	leastIdle = time.Minute

	// usualLifetime is what DingTalk's tokens live, as its documentation says.
	usualLifetime = 2 * time.Hour

	// refusedBackOff is the wait after DingTalk refused credentials, request or IP: only a person can mend that.
	refusedBackOff = time.Minute
)

// backOff is the wait after the first, second, … failed fetch in a row, before the jitter; the last one repeats. Vault's client
// repeats a 502 twice, the second time up to 4.5 s after the first answer: that must meet the remembered error.
var backOff = []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 60 * time.Second}

// token is an access token and its life. It never changes.
type token struct {
	Value  sensitive
	digest string // stands for the token in a lease

	fetchedAt time.Time     // when the request for it was sent
	expiresAt time.Time     // fetchedAt + expireIn, with a reading of this process's monotonic clock
	lifetime  time.Duration // whole seconds

	// fromTheFuture says that it was stored with a later fetchedAt than the clock showed on reading it: one of the clocks is
	// wrong, so its expiresAt is not to be relied on for long.
	fromTheFuture bool
}

// newToken is a token that was fetched by this process.
func newToken(value sensitive, sent time.Time, expireIn time.Duration) *token {
	return &token{Value: value, digest: digestOf(value), fetchedAt: sent, expiresAt: sent.Add(expireIn), lifetime: expireIn}
}

// left is the life left in whole seconds, by the wall clock or the monotonic one, whichever says less: the monotonic clock stops
// while a machine sleeps, the wall clock can be set back.
func (t *token) left(now time.Time) time.Duration {
	if t == nil {
		return 0
	}
	left := min(t.expiresAt.Sub(now), t.expiresAt.Round(0).Sub(now.Round(0)), t.lifetime)
	return max(0, left.Truncate(time.Second))
}

// window is the life left at which the token becomes due: refreshBefore, but at most a quarter of its lifetime.
func (t *token) window(refreshBefore time.Duration) time.Duration {
	return min(refreshBefore, t.lifetime/4)
}

func (t *token) state(now time.Time, refreshBefore time.Duration) tokenState {
	switch {
	case t == nil:
		return stateAbsent
	case t.left(now) < leastServed:
		return stateExpired
	case t.left(now) <= t.window(refreshBefore), t.fromTheFuture:
		return stateDue
	default:
		return stateFresh
	}
}

// servable tells whether the token may be handed out.
func (t *token) servable(now time.Time) bool { return t.left(now) >= leastServed }

// settings are what an app's readers need of its entry: everything but the secret.
type settings struct {
	baseURL        string
	appKey         string
	refreshBefore  time.Duration
	requestTimeout time.Duration
	leased         bool
}

func (e *appEntry) settings() *settings {
	return &settings{baseURL: e.BaseURL, appKey: e.AppKey, refreshBefore: e.RefreshBefore, requestTimeout: e.RequestTimeout, leased: e.Leased}
}

// app is one app's one generation in memory: its settings, its token, its flight, its back-off.
type app struct {
	// What a read and the background look at comes first, so that it lies in one line of the processor's cache.

	settings atomic.Pointer[settings]
	token    atomic.Pointer[token]

	// usedAt is when the app was last asked for, in Unix seconds; read says that its token was handed out since it was
	// fetched.
	usedAt atomic.Int64
	read   atomic.Bool

	name       string
	generation string
	registry   *registry
	place      int // in registry.all, and under its lock

	mu       sync.Mutex // over what follows; never held over storage or a call upstream
	gone     bool       // dropped from memory: no flight may start, what one brings is not published
	flight   *flight    // nil while none is under way
	trouble  *trouble   // what the last fetch failed with; nil if it worked
	failing  bool       // the log has said that fetches fail, and not yet that they work again
	forcedAt time.Time  // when a token that was not due was last refreshed all the same
	calls    uint64     // calls upstream, retries included, and how many of them failed
	failures uint64
}

// flight is one fetch, detached from those who wait for it.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{}

	// fetched is the token as soon as DingTalk gave it, before it is stored.
	fetched atomic.Pointer[token]

	// err is why there is no token; to be read once done is closed. It is errGone where the app left memory meanwhile.
	err error
}

// trouble is what the last fetch failed with, until one works.
type trouble struct {
	err         *upstreamError
	at          time.Time
	inARow      int
	nextAttempt time.Time

	// paused is until when DingTalk asked to be left alone, or banned Vault's IP; zero where it did neither.
	paused time.Time
}

// fetchError is a failed fetch as its waiters get it: with the app's name and the time of the next attempt.
type fetchError struct {
	app, baseURL string
	cause        *upstreamError
	nextAttempt  time.Time
}

func (e *fetchError) Error() string {
	text := e.cause.describe(e.app, e.baseURL)
	if e.nextAttempt.IsZero() {
		return text
	}
	if e.cause.class == classBanned {
		return text + "; the ban is expected to end, and the next attempt to be made, at " + timestamp(e.nextAttempt)
	}
	return text + "; the next attempt is due at " + timestamp(e.nextAttempt)
}

// status is the HTTP status that tells the client whose turn it is.
func (e *fetchError) status() int {
	if e.cause.rejected() {
		return http.StatusBadRequest
	}
	return http.StatusBadGateway
}

var (
	// errGone: the app left memory while its caller waited; the caller starts over with what is there now.
	errGone = errors.New("the app's configuration changed")

	errShuttingDown = errors.New("the secrets engine is being unloaded: try again")
)

// timestamp prints a time the way every answer and error does.
func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// purpose is why a caller wants a token. It decides what the caller may set off, and what stands against it.
type purpose int

const (
	// purposeRead wants a token that is good.
	purposeRead purpose = iota
	// purposeAhead wants it refreshed before it is due, so that no reader has to wait.
	purposeAhead
	// purposeMinTTL wants more life left than the token has.
	purposeMinTTL
	// purposeRenew wants the life of a lease extended, in the second half of the token's.
	purposeRenew
	// purposeRefresh wants it fetched now: an operator may have mended something.
	purposeRefresh
	// purposePeek wants to know which token is there, and nothing set off.
	purposePeek
)

// need says what a caller wants, given the token in hand, which may be nil.
type need func(t *token, now time.Time) purpose

func needRead(*token, time.Time) purpose    { return purposeRead }
func needAhead(*token, time.Time) purpose   { return purposeAhead }
func needRefresh(*token, time.Time) purpose { return purposeRefresh }

// forces tells whether the purpose has a token refreshed that need not be.
func (p purpose) forces(state tokenState) bool {
	switch p {
	case purposeRefresh:
		return true
	case purposeMinTTL, purposeRenew:
		return state == stateFresh
	case purposeRead, purposeAhead, purposePeek:
	}
	return false
}

// verdict is what a caller gets.
type verdict int

const (
	verdictServe verdict = iota // the token in hand
	verdictWait                 // what the flight under way brings
	verdictStart                // what a new flight brings
	verdictHold                 // no attempt may be made now: the token in hand, or why there is none
	verdictGone                 // nothing: the app left memory
)

// hold is why no attempt may be made now.
type hold struct {
	// err is what the last fetch failed with; nil where it worked, and is just too short a while ago.
	err   *fetchError
	until time.Time
}

// outcome is what a caller was left with.
type outcome struct {
	token *token // the one to serve, if it is good; may be nil or expired
	held  *hold  // why no attempt was made, where one was wanted
	err   error  // why the attempt failed; a *fetchError where it was upstream's fault
}

// serves tells whether the token in hand is what the caller wants. It takes no lock.
func (a *app) serves(now time.Time, n need) (*token, bool) {
	t := a.token.Load()
	switch n(t, now) {
	case purposePeek:
		return t, true
	case purposeAhead:
		return t, !a.wantsAhead(now, aheadWithin)
	case purposeRead:
		return t, t.state(now, a.settings.Load().refreshBefore) == stateFresh
	default:
		return t, false
	}
}

// decide says what a caller gets in each state of the token. It is called with a.mu held.
func (a *app) decide(now time.Time, n need) (verdict, *hold) {
	if a.gone {
		return verdictGone, nil
	}
	t, good := a.serves(now, n)
	if good {
		return verdictServe, nil
	}
	state, why := t.state(now, a.settings.Load().refreshBefore), n(t, now)
	if a.flight != nil {
		if state == stateDue && why == purposeRead {
			return verdictServe, nil
		}
		return verdictWait, nil
	}
	if h := a.held(now, why, state); h != nil {
		return verdictHold, h
	}
	if why.forces(state) {
		a.forcedAt = now
	}
	return verdictStart, nil
}

// held tells why no attempt may be made now; nil where one may. It is called with a.mu held.
func (a *app) held(now time.Time, why purpose, state tokenState) *hold {
	if ban, on := a.ban(now); on {
		return a.holdFor(ban.err, ban.until)
	}
	t := a.trouble
	if t != nil && t.paused.After(now) || t != nil && t.nextAttempt.After(now) && why != purposeRefresh {
		return a.holdFor(t.err, t.nextAttempt)
	}
	if again := a.forcedAt.Add(forceInterval); why.forces(state) && !a.forcedAt.IsZero() && again.After(now) {
		if t != nil {
			return a.holdFor(t.err, again)
		}
		return &hold{until: again}
	}
	return nil
}

// ban is the ban of Vault's egress IP by the app's host, if one is on.
func (a *app) ban(now time.Time) (pause, bool) {
	return a.registry.pauses.get(pauseKey{host: hostOf(a.settings.Load().baseURL)}, now)
}

func (a *app) holdFor(err *upstreamError, until time.Time) *hold {
	return &hold{err: a.fetchError(err, until), until: until}
}

func (a *app) fetchError(err *upstreamError, next time.Time) *fetchError {
	return &fetchError{app: a.name, baseURL: a.settings.Load().baseURL, cause: err, nextAttempt: next}
}

// obtain brings the app's token to what the caller needs, as far as that may be done now, waiting no longer than the context
// allows. The outcome's err is errGone where the caller has to start over with what is in memory now.
func (a *app) obtain(ctx context.Context, s logical.Storage, n need) outcome {
	a.mu.Lock()
	v, h := a.decide(time.Now(), n)
	f := a.flight
	if v == verdictStart {
		f = a.takeOff(s)
	}
	a.mu.Unlock()

	switch v {
	case verdictServe, verdictHold:
		return outcome{token: a.token.Load(), held: h}
	case verdictGone:
		return outcome{err: errGone}
	case verdictWait, verdictStart:
	}
	select {
	case <-f.done:
		if f.err == nil && !a.registry.holds(a) {
			return outcome{err: errGone}
		}
		return outcome{token: a.token.Load(), err: f.err}
	case <-ctx.Done():
		// A token that DingTalk gave but storage is slow to take is as good as any.
		if t := f.fetched.Load(); t != nil && a.registry.holds(a) {
			return outcome{token: t}
		}
		return outcome{token: a.token.Load(), err: a.fetchError(&upstreamError{class: classUnreachable, cause: "no answer in time"}, time.Time{})}
	}
}

// takeOff starts a flight. It is called with a.mu held and no flight under way.
func (a *app) takeOff(s logical.Storage) *flight {
	ctx, cancel := context.WithTimeout(a.registry.life.ctx, a.settings.Load().requestTimeout)
	f := &flight{cancel: cancel, done: make(chan struct{})}
	a.flight = f
	if !a.registry.life.run(func() { a.fly(ctx, f, s) }) {
		cancel()
		a.flight, f.err = nil, errShuttingDown
		close(f.done)
	}
	return f
}

// fly fetches a token, has it stored and settles the flight, whatever happens.
func (a *app) fly(ctx context.Context, f *flight, s logical.Storage) {
	defer f.cancel()
	a.settle(f, a.fetchAndStore(ctx, f, s))
}

// fetchAndStore leaves the token in the flight. A panic in it is an error of this flight alone.
func (a *app) fetchAndStore(ctx context.Context, f *flight, s logical.Storage) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.registry.log.Error("panic while fetching a token: please report this", "app", a.name, "stack", string(debug.Stack()))
			err = fmt.Errorf("app %q: internal error while fetching a token: the stack is in Vault's log", a.name)
		}
	}()

	entry, err := a.registry.readEntry(ctx, s, a.name)
	if err != nil {
		return err
	}
	if entry == nil || entry.Generation != a.generation {
		a.registry.drop(a) // another node changed the configuration
		return errGone
	}
	t, calls, uerr := a.registry.client.fetch(ctx, entry.credentials(), a.known()...)
	a.count(calls, uerr)
	switch {
	case uerr == nil:
		f.fetched.Store(t)
		return a.registry.storeToken(a, s, t)
	case a.registry.life.ctx.Err() != nil:
		return errShuttingDown
	default:
		return uerr
	}
}

// known are the tokens that a text of upstream's could repeat.
func (a *app) known() []sensitive {
	if t := a.token.Load(); t != nil {
		return []sensitive{t.Value}
	}
	return nil
}

func (a *app) count(calls int, uerr *upstreamError) {
	failures := calls
	if uerr == nil {
		failures--
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls += uint64(calls)       //nolint:gosec // never negative
	a.failures += uint64(failures) //nolint:gosec // a fetch that works has made a call
}

// settle ends a flight: it publishes the token, or remembers what went wrong, and wakes those who wait.
func (a *app) settle(f *flight, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer close(f.done)
	a.flight = nil
	var uerr *upstreamError
	switch {
	case a.gone:
		f.err = errGone
	case err == nil:
		a.publish(f.fetched.Load())
	case errors.As(err, &uerr):
		f.err = a.fail(uerr)
	default:
		f.err = err
	}
}

// publish makes the token the app's. It is called with a.mu held, or before anybody else knows the app.
func (a *app) publish(t *token) {
	a.token.Store(t)
	a.read.Store(false)
	a.trouble = nil
	if a.failing {
		a.failing = false
		a.registry.log.Info("fetching tokens works again", "app", a.name)
	}
	a.registry.log.Debug("fetched a token", "app", a.name, "lifetime", t.lifetime.String())
}

// fail remembers a failed fetch and says when the next is due. It is called with a.mu held.
func (a *app) fail(uerr *upstreamError) *fetchError {
	now := time.Now()
	t := &trouble{err: uerr, at: now, inARow: 1}
	if a.trouble != nil {
		t.inARow += a.trouble.inARow
	}
	wait := jitter(backOff[min(t.inARow, len(backOff))-1])
	if uerr.rejected() {
		wait = refusedBackOff
	}
	s := a.settings.Load()
	t.paused = a.registry.pause(hostOf(s.baseURL), s.appKey, uerr, now)
	t.nextAttempt = later(now.Add(wait), t.paused)
	a.trouble = t

	log := a.registry.log.Debug
	if !a.failing {
		a.failing = true
		log = a.registry.log.Warn
	}
	log("fetching a token failed", "app", a.name, "class", string(uerr.class), "code", uerr.code,
		"message", uerr.message, "request_id", uerr.requestID, "cause", uerr.cause, "next_attempt", timestamp(t.nextAttempt))
	return a.fetchError(uerr, t.nextAttempt)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// retire takes the app out of use: its flight is called off, and what that brings is not published. It tells whether the
// app's fetches were failing.
func (a *app) retire() (failing bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = true
	if a.flight != nil {
		a.flight.cancel()
	}
	return a.failing
}

// touch notes that the app is in use, and with handedOut that its token was served. It writes only where something changes,
// since all readers share the memory.
func (a *app) touch(now time.Time, handedOut bool) {
	if t := now.Unix(); a.usedAt.Load() != t {
		a.usedAt.Store(t)
	}
	if handedOut && !a.read.Load() {
		a.read.Store(true)
	}
}

// nextAttempt is when the next fetch may be made, while something stands against it; zero otherwise. It is called with a.mu
// held.
func (a *app) nextAttempt(now time.Time) time.Time {
	var next time.Time
	if ban, on := a.ban(now); on {
		next = ban.until
	}
	if a.trouble != nil && a.trouble.nextAttempt.After(now) {
		next = later(next, a.trouble.nextAttempt)
	}
	return next
}

// wantsAhead tells whether the background should refresh the token: it is in use, good, and due within the given time.
func (a *app) wantsAhead(now time.Time, within time.Duration) bool {
	if !a.read.Load() {
		return false
	}
	t := a.token.Load()
	left := t.left(now)
	return left >= leastServed && left < t.lifetime/2 && left-t.window(a.settings.Load().refreshBefore) <= within
}

// evict retires the app if nobody has used it for a full lifetime of its token and nothing is under way or being waited out.
func (a *app) evict(now time.Time) bool {
	idle := now.Sub(time.Unix(a.usedAt.Load(), 0))
	if idle < leastIdle {
		return false
	}
	lifetime := usualLifetime
	if t := a.token.Load(); t != nil {
		lifetime = t.lifetime
	}
	if idle < lifetime {
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
