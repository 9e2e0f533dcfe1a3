// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is the model that the engine is held against: DingTalk as a RoundTripper that remembers
// every token it issued, and a plain map of apps with a clock that states in a few lines what the
// engine promises. FuzzOperations feeds it sequences of operations; the tests of failing storage
// and of the stored form use its DingTalk.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

// faultMode is how a call to storage goes wrong.
type faultMode int

const (
	faultNone faultMode = iota
	// faultBefore fails without an effect.
	faultBefore
	// faultAfter takes effect, then fails.
	faultAfter
	faultModes // those that last; what follows are a request's

	// faultEndsBefore ends the request's context, then does what storage does with such a context.
	faultEndsBefore
	// faultEndsAfter does what was asked, then ends the request's context.
	faultEndsAfter
)

// faultsOnly narrows a mode that lasts to some calls.
type faultsOnly int

const (
	onAll faultsOnly = iota
	onTokens
	onConfigs
	onWrites
	onEveryThird
	onlys
)

func (o faultsOnly) meets(op, key string, count int) bool {
	switch o {
	case onTokens:
		return strings.HasPrefix(key, tokenPrefix)
	case onConfigs:
		return strings.HasPrefix(key, configPrefix)
	case onWrites:
		return op == "put" || op == "delete"
	case onEveryThird:
		return count%3 == 2
	default:
		return true
	}
}

// modelStorage is a storage whose calls go wrong on demand.
type modelStorage struct {
	inner logical.Storage

	mu         sync.Mutex
	mode       faultMode
	only       faultsOnly
	everFaulty bool
	count      int

	// fault decides on each call instead of mode, where it is set; end ends the request.
	fault func(call int, op, key string) faultMode
	end   context.CancelFunc
	calls []string
}

func (s *modelStorage) setMode(mode faultMode, only faultsOnly) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode, s.only, s.count = mode, only, 0
	s.everFaulty = s.everFaulty || mode != faultNone
}

func (s *modelStorage) faulty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mode != faultNone
}

// readable tells whether reading goes well.
func (s *modelStorage) readable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mode == faultNone || s.only == onWrites
}

// plan starts over counting calls, and has fault decide on each.
func (s *modelStorage) plan(fault func(call int, op, key string) faultMode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.calls = fault, nil
}

func (s *modelStorage) call(ctx context.Context, op, key string, do func() error) error {
	s.mu.Lock()
	mode, n := s.mode, len(s.calls)
	if !s.only.meets(op, key, s.count) {
		mode = faultNone
	}
	s.count++
	s.calls = append(s.calls, op+" "+key)
	if s.fault != nil {
		mode = s.fault(n, op, key)
	}
	s.mu.Unlock()

	switch mode {
	case faultBefore:
		return errStorage
	case faultEndsBefore:
		s.end()
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := do()
	switch mode {
	case faultAfter:
		return errStorage
	case faultEndsAfter:
		s.end()
	default:
	}
	return err
}

// Get implements logical.Storage.
func (s *modelStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	var e *logical.StorageEntry
	err := s.call(ctx, "get", key, func() (err error) { e, err = s.inner.Get(ctx, key); return err })
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Put implements logical.Storage.
func (s *modelStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	return s.call(ctx, "put", e.Key, func() error { return s.inner.Put(ctx, e) })
}

// Delete implements logical.Storage.
func (s *modelStorage) Delete(ctx context.Context, key string) error {
	return s.call(ctx, "delete", key, func() error { return s.inner.Delete(ctx, key) })
}

// List implements logical.Storage.
func (s *modelStorage) List(ctx context.Context, prefix string) ([]string, error) {
	var keys []string
	err := s.call(ctx, "list", prefix, func() (err error) { keys, err = s.inner.List(ctx, prefix); return err })
	if err != nil {
		return nil, err
	}
	return keys, nil
}

// mood is what the model's DingTalk does with the calls that it gets.
type mood int

const (
	moodWell mood = iota
	moodUnavailable
	moodReset
	moodHang
	moodThrottling // with a Retry-After of two minutes
	moodBanning
	moodMalformed
	moods
)

const moodRetryAfter = 2 * time.Minute

// account is what DingTalk knows an app by: the host stands for the edition.
type account struct{ host, key, secret string }

// grantedToken is a token that the model's DingTalk issued.
type grantedToken struct {
	account
	expires  time.Time
	lifetime time.Duration
	lastCall int // the number of the call that gave or extended it last
}

// upstreamCall is one call that the model's DingTalk got.
type upstreamCall struct {
	account
	ctx     context.Context // tells of a call under way whether it was called off
	began   time.Time
	ended   time.Time // zero while under way
	granted string    // the token, if it gave one that had not expired on arrival
	till    time.Time // how long it said that it lives
	failed  mood      // why it gave none
	refused bool      // the credentials were wrong
}

// modelDingTalk is DingTalk's token operation without a network. A token names its account, so that
// a foreign one shows.
type modelDingTalk struct {
	mu       sync.Mutex
	accepted map[string][]string // the secrets that are good, by app key; several while one is rotated
	rotates  bool                // every call gives another token; else one within the validity repeats and extends it
	lifetime time.Duration
	mood     mood
	delay    time.Duration
	named    func() string // names the next token, where a test wants to

	calls  []*upstreamCall
	tokens map[string]*grantedToken
}

func newModelDingTalk() *modelDingTalk {
	return &modelDingTalk{
		accepted: map[string][]string{theKey: {theSecret}}, lifetime: 2 * time.Hour,
		tokens: map[string]*grantedToken{},
	}
}

// RoundTrip implements http.RoundTripper.
func (d *modelDingTalk) RoundTrip(r *http.Request) (*http.Response, error) {
	var body struct{ AppKey, AppSecret string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return nil, err
	}
	c := &upstreamCall{account: account{
		host: r.URL.Scheme + "://" + r.URL.Host, key: body.AppKey,
		secret: body.AppSecret,
	}, ctx: r.Context(), began: time.Now()}
	d.mu.Lock()
	d.calls = append(d.calls, c)
	number, does, delay := len(d.calls), d.mood, d.delay
	d.mu.Unlock()
	if does == moodHang {
		delay = 24 * time.Hour
	}
	if err := sleepWith(r.Context(), delay); err != nil {
		d.end(c, func() { c.failed = moodHang })
		return nil, err
	}

	answer := func(status int, text string) (*http.Response, error) {
		return &http.Response{
			StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(text)), Request: r,
		}, nil
	}
	var text string
	d.end(c, func() {
		if c.failed = does; does != moodWell {
			return
		}
		if c.refused = !slices.Contains(d.accepted[c.key], c.secret); !c.refused {
			text = d.grant(c, number)
			if time.Until(c.till) < minServed {
				c.granted = "" // what expired on its way is nobody's
			}
		}
	})
	switch {
	case text != "":
		return answer(http.StatusOK, text)
	case c.refused:
		return answer(http.StatusBadRequest, `{"requestid":"R-1","code":"invalidClientIdOrSecret","message":"no such app: `+c.secret+`"}`)
	}
	switch does {
	case moodReset:
		return nil, io.ErrUnexpectedEOF
	case moodThrottling:
		resp, err := answer(http.StatusTooManyRequests, `{"code":"system.busy","message":"busy"}`)
		resp.Header.Set("Retry-After", strconv.Itoa(int(moodRetryAfter.Seconds())))
		return resp, err
	case moodBanning:
		return answer(http.StatusForbidden, `{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"u"}`)
	case moodMalformed:
		return answer(http.StatusOK, `{"errcode":404,"errmsg":"not found"}`)
	default:
		return answer(http.StatusServiceUnavailable, "")
	}
}

func (d *modelDingTalk) end(c *upstreamCall, decide func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	decide()
	c.ended = time.Now()
}

// grant is called with d.mu held. A token's life counts from the call's arrival, which is when it
// was sent.
func (d *modelDingTalk) grant(c *upstreamCall, number int) (body string) {
	expires := c.began.Add(d.lifetime)
	c.till = expires
	for value, t := range d.tokens {
		if !d.rotates && t.account == c.account && t.expires.After(time.Now()) {
			c.granted = value
			if expires.After(t.expires) {
				t.expires = expires
			}
			t.lastCall, t.lifetime = number, d.lifetime
		}
	}
	if c.granted == "" {
		c.granted = fmt.Sprintf("token-%d-of-%s", number, c.key)
		if d.named != nil {
			c.granted = d.named()
		}
		d.tokens[c.granted] = &grantedToken{account: c.account, expires: expires, lifetime: d.lifetime, lastCall: number}
	}
	return fmt.Sprintf(`{"accessToken":%q,"expireIn":%d}`, c.granted, int64(d.lifetime/time.Second))
}

func sleepWith(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// callsOf is the calls of one app key, all of them for "".
func (d *modelDingTalk) callsOf(key string) []*upstreamCall {
	d.mu.Lock()
	defer d.mu.Unlock()
	var calls []*upstreamCall
	for _, c := range d.calls {
		if key == "" || c.key == key {
			asItIsNow := *c
			calls = append(calls, &asItIsNow)
		}
	}
	return calls
}

// token returns what is known of a token; false if the model never issued it.
func (d *modelDingTalk) token(value string) (grantedToken, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tokens[value]
	if t == nil {
		return grantedToken{}, false
	}
	return *t, true
}

func (d *modelDingTalk) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// modelApp is an app as the model knows it. A zero one does not exist.
type modelApp struct {
	generation string // as storage has it, only to be compared
	account
	refreshBefore, timeout time.Duration
	leased                 bool

	// since is the number of the last call before this generation: no token of that call or an earlier
	// one may be served.
	since int

	// What the engine has shown to have in memory. It is forgotten with the memory.
	inMemory   bool
	servedTill time.Time // the end of the token served last
	shownAt    int       // how many calls upstream had got when that was shown
	quietTill  time.Time // after a read whose fetch failed: no reader has another made before
	deafTill   time.Time // as long as DingTalk asked for quiet: nobody has
	forcedAt   time.Time // when refresh/ last made a call
	usedAt     time.Time

	readAt int // how many calls upstream had got when its token was last handed out
}

func (a *modelApp) exists() bool { return a.generation != "" }

// forget is what any loss of memory costs.
func (a *modelApp) forget() {
	a.inMemory, a.servedTill, a.quietTill, a.deafTill, a.forcedAt = false, time.Time{}, time.Time{}, time.Time{},
		time.Time{}
}

// pendingRead is a read that runs beside other operations.
type pendingRead struct {
	name  string
	began modelApp
	got   chan answer
}

// model drives an engine and holds each answer against what was promised:
//
//   - a token that is served was issued to the app's present credentials, since they are in force, and lives as long as said;
//   - a read works while a token that was served before lives, or a stored one that can be read;
//   - a read works if DingTalk does, and did for as long as the longest back-off;
//   - a fresh token costs no call; a failed fetch, a forced one, a ban and a Retry-After are followed by the quiet they ask for;
//   - never are two fetches for one account under way at a time;
//   - the background fetches nothing for an app that nobody has read since the last fetch;
//   - what a write answered is what storage holds, and an app survives a restart as it was;
//   - no answer but that of creds/ and no line of the log holds a secret or a token.
type model struct {
	t        *testing.T
	m        *mount
	upstream *modelDingTalk
	storage  *modelStorage
	apps     map[string]*modelApp
	leases   []*modelLease
	pending  []*pendingRead
	seen     int // calls whose rules were checked

	bannedTill map[string]time.Time // by host, as far as the engine's memory goes back
	bannedAt   map[string]time.Time
	history    []string
}

type modelLease struct {
	name, token string
	secret      logical.Secret
}

const (
	// longestBackOff is the last step and its jitter, and a little.
	longestBackOff = 73 * time.Second
	// shortestBackOff is the first step without any jitter.
	shortestBackOff = 5 * time.Second
)

func newModel(t *testing.T) *model {
	t.Helper()
	md := &model{
		t: t, upstream: newModelDingTalk(), storage: &modelStorage{inner: &logical.InmemStorage{}},
		apps: map[string]*modelApp{}, bannedTill: map[string]time.Time{}, bannedAt: map[string]time.Time{},
	}
	md.upstream.accepted = map[string][]string{}
	for _, name := range modelNames {
		md.apps[name] = &modelApp{}
		for _, key := range modelKeys(name) {
			md.upstream.accepted[key] = []string{modelSecret(key, 0)}
		}
	}
	md.m = mountOver(t, md.storage, md.upstream)
	return md
}

var (
	modelNames = []string{"a", "b-1", "C.c"}
	modelHosts = []string{"https://api.dingtalk.io", "http://127.0.0.1:9"}
)

// modelKeys are an app's own, so that a token that went astray shows.
func modelKeys(name string) []string { return []string{"key-0-" + name, "key-1-" + name} }

func modelSecret(key string, i int) string { return fmt.Sprintf("secret-%d-of-%s", i, key) }

func (md *model) fail(format string, args ...any) {
	md.t.Helper()
	md.t.Fatalf("%s\nafter:\n  %s\nlog:\n%s", fmt.Sprintf(format, args...), strings.Join(md.history, "\n  "), md.m.log)
}

func (md *model) note(format string, args ...any) {
	md.history = append(md.history, time.Now().Format("02 15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// do sends a request and checks what is promised of every answer.
func (md *model) do(req *logical.Request) answer {
	md.t.Helper()
	path, op := req.Path, req.Operation
	got := md.m.send(md.t.Context(), req)
	md.note("%s %s: %d %v", op, path, got.status, got.err)
	if got.Response != nil && len(got.Warnings) > 0 {
		md.note("  warnings: %q", got.Warnings)
	}
	shown := fmt.Sprint(got.err)
	if got.Response != nil {
		shown += fmt.Sprint(got.Warnings)
		if !strings.HasPrefix(path, credsPrefix) {
			shown += fmt.Sprint(got.Data)
		}
	}
	md.checkShown(shown)
	switch got.status {
	case http.StatusOK, http.StatusNoContent, http.StatusBadRequest, http.StatusNotFound, http.StatusBadGateway:
	default:
		if !md.storage.faulty() {
			md.fail("%s %s was answered with %d: %v", op, path, got.status, got.err)
		}
	}
	return got
}

// checkShown is the promise that no secret leaves.
func (md *model) checkShown(shown string) {
	md.t.Helper()
	for _, name := range modelNames {
		for _, key := range modelKeys(name) {
			for i := range 3 {
				if strings.Contains(shown, modelSecret(key, i)) {
					md.fail("a secret is shown: %s", shown)
				}
			}
		}
	}
	if strings.Contains(shown, "token-") {
		md.fail("a token is shown: %s", shown)
	}
}

// checkCalls holds the calls made since the last time against the promises on when there are none.
func (md *model) checkCalls() {
	md.t.Helper()
	calls := md.upstream.callsOf("")
	for i, c := range calls {
		if i >= md.seen {
			for _, other := range calls[:i] {
				if other.account == c.account && (other.ended.IsZero() && other.ctx.Err() == nil || other.ended.After(c.began)) {
					md.fail("call %d to %s began while another was under way", i+1, c.host)
				}
			}
			// A ban that another app's fetch meets does not cut short one that is under way.
			goesOn := i > 0 && slices.ContainsFunc(calls[:i], func(o *upstreamCall) bool {
				return o.account == c.account && c.began.Sub(o.ended) < time.Second
			})
			if c.began.After(md.bannedAt[c.host]) && c.began.Before(md.bannedTill[c.host]) && !goesOn {
				md.fail("call %d was made to %s, which has banned the IP until %s", i+1, c.host, md.bannedTill[c.host])
			}
		}
		if c.failed == moodBanning && c.ended.After(md.bannedAt[c.host]) && i >= md.seen {
			md.bannedAt[c.host], md.bannedTill[c.host] = c.ended, c.ended.Add(banDuration)
		}
	}
	for md.seen < len(calls) && !calls[md.seen].ended.IsZero() {
		md.seen++
	}
}

// upstreamIsWell tells whether DingTalk would grant the account a token and nothing remembered
// stands against asking.
func (md *model) upstreamIsWell(a *modelApp) bool {
	if md.upstream.mood != moodWell || md.upstream.delay*2 > a.timeout ||
		!slices.Contains(md.upstream.accepted[a.key], a.secret) ||
		md.upstream.lifetime < 10*time.Second || len(md.pending) > 0 {
		return false
	}
	now := time.Now()
	for _, c := range md.upstream.callsOf("") {
		wait := time.Duration(0)
		switch {
		case c.ended.IsZero():
			return false
		case c.failed == moodBanning && c.host == a.host:
			wait = banDuration
		case c.key != a.key:
		case c.failed == moodThrottling:
			wait = moodRetryAfter + longestBackOff
		case c.granted == "",
			c.ended.After(c.began) && c.ended.Sub(c.began)%time.Second == 0: // perhaps at the very end of request_timeout
			wait = longestBackOff
		}
		if now.Before(c.ended.Add(wait)) && wait > 0 {
			return false
		}
	}
	return true
}

// storedTill is the end of the stored token of the app's generation; zero where there is none.
func (md *model) storedTill(name string) time.Time {
	var rec tokenRecord
	if !md.raw(tokenPrefix+name, &rec) || rec.Generation != md.apps[name].generation {
		return time.Time{}
	}
	for _, c := range md.upstream.callsOf(md.apps[name].key) {
		if c.granted != "" && !c.began.Before(rec.FetchedAt) && c.till.Before(rec.ExpiresAt) {
			return time.Time{} // a later answer gave less, which is in memory only
		}
	}
	return rec.ExpiresAt
}

// raw reads what is really stored.
func (md *model) raw(key string, into any) bool {
	e, err := md.storage.inner.Get(context.Background(), key)
	require.NoError(md.t, err)
	if e == nil {
		return false
	}
	require.NoError(md.t, json.Unmarshal(e.Value, into))
	return true
}

// sync takes an app over from storage after a write that began when upstream had got so many calls.
func (md *model) sync(name string, before int, worked bool) {
	md.t.Helper()
	a := md.apps[name]
	var rec configRecord
	if !md.raw(configPrefix+name, &rec) {
		*a = modelApp{}
		return
	}
	if rec.Generation != a.generation {
		*a = modelApp{since: before, inMemory: worked, readAt: before}
		if !worked {
			a.since = len(md.upstream.callsOf("")) // what verifying brought was dropped
		}
	}
	if !worked {
		a.forget()
	}
	a.generation, a.account = rec.Generation, account{host: rec.BaseURL, key: rec.AppKey, secret: rec.AppSecret}
	a.refreshBefore, a.timeout, a.leased = time.Duration(rec.RefreshBefore)*time.Second,
		time.Duration(rec.RequestTimeout)*time.Second, rec.Leased
	a.usedAt = time.Now()
}

// write sends a write and holds what is stored after it against what was asked for.
func (md *model) write(name string, op logical.Operation, data map[string]any) {
	md.t.Helper()
	a := *md.apps[name]
	md.note("fields %v", slices.Sorted(maps.Keys(data)))
	before := len(md.upstream.callsOf(""))
	got := md.do(&logical.Request{Operation: op, Path: configPrefix + name, Data: data})
	worked := got.err == nil
	wasFaulty := md.storage.faulty()
	md.sync(name, before, worked || !wasFaulty)
	now := *md.apps[name]

	want := a
	if a.exists() || op != logical.PatchOperation {
		want.account = account{
			host: or(data, fieldBaseURL, or2(a.host, defaultBaseURL)), key: or(data, fieldAppKey, a.key),
			secret: or(data, fieldAppSecret, a.secret),
		}
		want.leased = or(data, fieldLeased, a.leased || !a.exists())
	}
	_, withSecret := data[fieldAppSecret]
	switch {
	case worked && a.exists() && !withSecret && (now.host != a.host || now.key != a.key):
		md.fail("%s moved without its secret", name)
	case !worked && !wasFaulty:
		if now.generation != a.generation || now.account != a.account || now.leased != a.leased {
			md.fail("a write to %s failed and changed it", name)
		}
	case !worked:
		if now.account != a.account && now.account != want.account {
			md.fail("a write to %s that failed left something that nobody wrote", name)
		}
	default:
		if now.account != want.account || now.leased != want.leased {
			md.fail("a write to %s worked, but storage does not hold it: %t %t", name, now.account == want.account,
				now.leased == want.leased)
		}
		if a.exists() && (now.generation == a.generation) != (now.account == a.account) {
			md.fail("a write to %s must start a new generation if and only if the credentials change", name)
		}
	}
	// A call may have extended or replaced the token in hand; verifying what stays as it is may also
	// have failed.
	md.apps[name].quietTill, md.apps[name].forcedAt = time.Time{}, time.Time{}
}

func or[T any](data map[string]any, field string, otherwise T) T {
	if v, ok := data[field].(T); ok {
		return v
	}
	return otherwise
}

func or2(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (md *model) delete(name string) {
	md.t.Helper()
	got := md.do(&logical.Request{Operation: logical.DeleteOperation, Path: configPrefix + name})
	var rec configRecord
	switch exists := md.raw(configPrefix+name, &rec); {
	case got.err == nil && (exists || md.raw(tokenPrefix+name, &tokenRecord{})):
		md.fail("%s was deleted and is still stored", name)
	case got.err != nil && !md.storage.faulty():
		md.fail("deleting %s failed: %v", name, got.err)
	case exists:
		md.apps[name].forget()
	default:
		*md.apps[name] = modelApp{}
	}
}

// expectation is what must be true of a read, worked out before it is made.
type expectation struct {
	at        time.Time
	app       modelApp
	calls     int
	alone     bool
	healthy   bool      // there is nothing wrong, and was nothing long enough
	goodTill  time.Time // until when it must work at the least
	noCall    bool
	noCallWhy string
}

func (md *model) expect(name string) expectation {
	a := *md.apps[name]
	now := time.Now()
	e := expectation{at: now, app: a, calls: len(md.upstream.callsOf(a.key)), alone: len(md.pending) == 0 &&
		!md.underWay()}
	reads := md.storage.readable()
	e.healthy = reads && a.exists() && md.upstreamIsWell(&a)
	if reads {
		e.goodTill = md.storedTill(name)
	}
	if a.inMemory && a.servedTill.After(e.goodTill) {
		e.goodTill = a.servedTill
	}
	for i, c := range md.upstream.callsOf("") {
		if i >= a.shownAt && c.account == a.account && c.granted != "" && c.till.Before(e.goodTill) {
			e.goodTill = c.till // a later answer counts, even if it gave less
		}
	}
	switch {
	case !e.alone:
	case a.inMemory && now.Before(a.deafTill):
		e.noCall, e.noCallWhy = true, "DingTalk asked for quiet"
	case a.inMemory && now.Before(a.quietTill):
		e.noCall, e.noCallWhy = true, "the back-off is not over"
	case !e.goodTill.IsZero() && e.goodTill.Sub(now) > min(a.refreshBefore, maxExpireIn/4)+time.Second:
		e.noCall, e.noCallWhy = true, "the token is fresh"
	}
	return e
}

// underWay tells whether a call upstream is.
func (md *model) underWay() bool {
	return slices.ContainsFunc(md.upstream.callsOf(""), func(c *upstreamCall) bool { return c.ended.IsZero() })
}

// checkRead holds the answer of a read or a renewal against the expectation, and remembers what it
// shows.
func (md *model) checkRead(name string, e expectation, got answer, minTTL bool) {
	md.t.Helper()
	a, now := md.apps[name], time.Now()
	calls := md.upstream.callsOf(e.app.key)[e.calls:]
	if !e.app.exists() {
		if got.err == nil || got.status != http.StatusBadRequest && md.storage.readable() {
			md.fail("%s does not exist, and reading it was answered with %d", name, got.status)
		}
		return
	}
	fresh := e.noCallWhy == "the token is fresh"
	if e.alone && (len(calls) > maxAttempts || len(calls) > 0 && e.noCall && !(minTTL && fresh)) {
		md.fail("reading %s made %d calls: %s; the token in hand ends at %s", name, len(calls), e.noCallWhy, e.goodTill)
	}
	if got.err != nil {
		if e.healthy {
			md.fail("reading %s failed though all is well: %v", name, got.err)
		}
		if e.goodTill.Sub(now) >= minServed {
			md.fail("reading %s failed though it has a token until %s: %v", name, e.goodTill, got.err)
		}
	}
	if got.status != http.StatusInternalServerError {
		a.inMemory, a.usedAt = true, now
	}
	if last := len(calls) - 1; e.alone && last >= 0 && a.inMemory {
		switch c := calls[last]; {
		case c.granted != "" || c.ended.IsZero():
			a.quietTill, a.deafTill = time.Time{}, time.Time{}
		case c.failed == moodThrottling:
			a.deafTill = c.ended.Add(moodRetryAfter)
		case c.refused:
			a.quietTill = c.ended.Add(rejectedBackOff)
		case !c.ended.IsZero():
			a.quietTill = c.ended.Add(shortestBackOff)
		}
	}
}

// checkToken is the promise on a token that is handed out.
func (md *model) checkToken(name string, a modelApp, value string, ttl time.Duration) {
	md.t.Helper()
	t, issued := md.upstream.token(value)
	left := time.Until(t.expires)
	switch {
	case !issued:
		md.fail("%s was served a token that nobody issued", name)
	case t.account != a.account:
		md.fail("%s was served a token of other credentials: key %s at %s", name, t.key, t.host)
	case t.lastCall <= a.since:
		md.fail("%s was served a token of an earlier generation: of call %d, its own begin after %d", name, t.lastCall,
			a.since)
	case left < minServed:
		md.fail("%s was served a token with %s left", name, left)
	case ttl > left || ttl < 1:
		md.fail("%s was served a token with %s left, said to be %s", name, left, ttl)
	}
}

func (md *model) served(name string, a modelApp, got answer) (value string) {
	md.t.Helper()
	value, _ = got.Data["access_token"].(string)
	var till time.Time
	var ttl time.Duration
	if got.Secret != nil {
		ttl = got.Secret.TTL
		till = time.Now().Add(ttl)
	} else {
		var err error
		till, err = time.Parse(time.RFC3339, got.Data["expires_at"].(string))
		require.NoError(md.t, err)
		ttl = secondsIn(got, "ttl")
	}
	md.checkToken(name, a, value, ttl)
	if (got.Secret != nil) != a.leased {
		md.fail("%s: leased is %t, the answer's lease %v", name, a.leased, got.Secret)
	}
	calls := len(md.upstream.callsOf(""))
	md.apps[name].servedTill, md.apps[name].shownAt, md.apps[name].readAt = till, calls, calls
	return value
}

func secondsIn(got answer, field string) time.Duration {
	n, _ := got.Data[field].(int64)
	return time.Duration(n) * time.Second
}

func (md *model) read(name string, minTTL time.Duration, keepLease bool) {
	md.t.Helper()
	e := md.expect(name)
	req := &logical.Request{Operation: logical.ReadOperation, Path: credsPrefix + name}
	if minTTL > 0 {
		req.Data = map[string]any{fieldMinTTL: minTTL.String()}
	}
	got := md.do(req)
	md.checkRead(name, e, got, minTTL > 0)
	if got.err != nil {
		return
	}
	value := md.served(name, e.app, got)
	if keepLease && got.Secret != nil {
		l := &modelLease{name: name, token: value, secret: *got.Secret}
		l.secret.IssueTime = time.Now()
		md.leases = append(md.leases, l)
	}
}

// renew is the promise on leases: one for the app's token lasts as long as that, any other ends
// within a second.
func (md *model) renew(l *modelLease) {
	md.t.Helper()
	e := md.expect(l.name)
	secret := l.secret
	got := md.do(&logical.Request{Operation: logical.RenewOperation, Path: credsPrefix + l.name, Secret: &secret})
	if !e.app.exists() && got.err != nil && md.storage.readable() {
		md.fail("renewing a lease of %s, which is gone, failed: %v", l.name, got.err)
	}
	if e.app.exists() {
		md.checkRead(l.name, e, got, true)
	}
	if got.err != nil {
		return
	}
	if len(got.Data) > 0 {
		md.fail("renewing a lease of %s repeats its data", l.name)
	}
	if got.Secret.TTL == endedLease && len(got.Warnings) > 0 {
		t, _ := md.upstream.token(l.token)
		if e.app.exists() && t.account == e.app.account && t.lastCall > e.app.since && !md.upstream.rotates &&
			e.goodTill.Sub(e.at) > time.Minute && t.expires.Sub(e.at) > time.Minute {
			if rec := (tokenRecord{}); md.raw(tokenPrefix+l.name, &rec) && rec.AccessToken == l.token {
				md.fail("a lease of %s was ended though its token is the app's", l.name)
			}
		}
		return
	}
	md.checkToken(l.name, e.app, l.token, got.Secret.TTL)
	md.apps[l.name].readAt = len(md.upstream.callsOf(""))
	if most := time.Since(l.secret.IssueTime) + got.Secret.TTL; got.Secret.MaxTTL > most+time.Second {
		md.fail("a lease of %s may be extended to %s past its issue, its token ends at %s", l.name, got.Secret.MaxTTL, most)
	}
}

func (md *model) revoke(l *modelLease) {
	md.t.Helper()
	calls := len(md.upstream.callsOf(""))
	secret := l.secret
	got := md.do(&logical.Request{Operation: logical.RevokeOperation, Path: credsPrefix + l.name, Secret: &secret})
	if got.err != nil || len(md.upstream.callsOf("")) != calls {
		md.fail("revoking a lease of %s: %v", l.name, got.err)
	}
}

// refresh fetches at most once in ten seconds, and not while DingTalk asked for quiet.
func (md *model) refresh(name string) {
	md.t.Helper()
	e := md.expect(name)
	a := md.apps[name]
	forced := a.forcedAt
	began := time.Now()
	got := md.do(&logical.Request{Operation: logical.UpdateOperation, Path: refreshPrefix + name})
	if !e.app.exists() {
		return
	}
	calls := md.upstream.callsOf(e.app.key)[e.calls:]
	if e.alone && a.inMemory && len(calls) > 0 {
		if began.Sub(forced) < forceInterval {
			md.fail("refresh/%s made a call %s after the last one", name, began.Sub(forced))
		}
		if began.Before(a.deafTill) {
			md.fail("refresh/%s made a call though DingTalk asked for quiet", name)
		}
	}
	if e.healthy && got.err != nil {
		md.fail("refresh/%s failed though all is well: %v", name, got.err)
	}
	if got.status != http.StatusInternalServerError {
		a.inMemory, a.usedAt = true, time.Now()
	}
	if len(calls) > 0 && e.alone {
		a.forcedAt = began
		a.quietTill = time.Time{}
		if calls[len(calls)-1].failed == moodThrottling {
			a.deafTill = calls[len(calls)-1].ended.Add(moodRetryAfter)
		}
		if got.err == nil && len(got.Warnings) == 0 {
			a.deafTill = time.Time{}
		}
	}
}

// status sets nothing off, and what it calls good is served by the next read.
func (md *model) status(name string) {
	md.t.Helper()
	e := md.expect(name)
	got := md.do(&logical.Request{Operation: logical.ReadOperation, Path: statusPrefix + name})
	if e.alone && len(md.upstream.callsOf(e.app.key)) != e.calls {
		md.fail("status/%s made a call", name)
	}
	if got.err != nil {
		if e.app.exists() && md.storage.readable() {
			md.fail("status/%s failed: %v", name, got.err)
		}
		return
	}
	a := md.apps[name]
	a.inMemory, a.usedAt = true, time.Now()
	if state := got.Data["state"]; state == string(stateFresh) || state == string(stateDue) {
		a.servedTill, a.shownAt = time.Now().Add(secondsIn(got, "ttl")), len(md.upstream.callsOf(""))
	}
	if !md.storage.readable() {
		return
	}
	config := md.do(&logical.Request{Operation: logical.ReadOperation, Path: configPrefix + name})
	want := map[string]any{
		fieldAppKey: a.key, fieldBaseURL: a.host, fieldLeased: a.leased,
		fieldRefreshBefore: int64(a.refreshBefore / time.Second), fieldRequestTimeout: int64(a.timeout / time.Second),
	}
	if config.err != nil || !maps.Equal(config.Data, want) {
		md.fail("config/%s answers %v, %v is in force", name, config.Data, want)
	}
}

// readBeside starts a read and goes on.
func (md *model) readBeside(name string) {
	p := &pendingRead{name: name, began: *md.apps[name], got: make(chan answer, 1)}
	md.pending = append(md.pending, p)
	go func() { p.got <- md.m.read(p.name) }()
	synctest.Wait()
}

// settle takes the answers of reads that have ended by now, or waits for all of them.
func (md *model) settle(all bool) {
	md.t.Helper()
	md.pending = slices.DeleteFunc(md.pending, func(p *pendingRead) bool {
		var got answer
		if all {
			got = <-p.got
		} else {
			select {
			case got = <-p.got:
			default:
				return false
			}
		}
		md.note("the read of %s beside other operations: %d %v", p.name, got.status, got.err)
		md.checkShown(fmt.Sprint(got.err))
		a := *md.apps[p.name]
		md.apps[p.name].readAt = len(md.upstream.callsOf(""))
		switch {
		case got.err == nil:
			value := got.Data["access_token"].(string)
			// It may have ended a while ago, before the last write or after it.
			if t, ok := md.upstream.token(value); !ok || !slices.Contains(modelKeys(p.name), t.key) ||
				t.account == a.account && a.generation == p.began.generation && t.lastCall <= a.since {
				md.fail("a read of %s beside other operations was served a wrong token", p.name)
			}
		case got.status == http.StatusInternalServerError && !md.storage.everFaulty && !errors.Is(got.err, context.Canceled):
			md.fail("a read of %s beside other operations: %v", p.name, got.err)
		}
		return true
	})
}

func (md *model) restart() {
	md.m.start()
	for _, a := range md.apps {
		a.forget()
	}
	md.bannedTill, md.bannedAt = map[string]time.Time{}, map[string]time.Time{}
	synctest.Wait()
}

func (md *model) invalidate(key string) {
	md.m.engine.InvalidateKey(md.t.Context(), key)
	for name, a := range md.apps {
		if strings.HasSuffix(key, "/"+name) {
			a.forget()
		}
	}
	synctest.Wait()
}

func (md *model) periodic() {
	md.t.Helper()
	before := md.upstream.callsOf("")
	began := time.Now()
	if err := md.m.engine.periodic(md.t.Context(), &logical.Request{Storage: md.storage}); err != nil ||
		time.Since(began) > 0 {
		md.fail("the periodic function took %s: %v", time.Since(began), err)
	}
	synctest.Wait()
	for _, c := range md.upstream.callsOf("")[len(before):] {
		for _, name := range modelNames {
			granted := func(o *upstreamCall) bool { return o.account == c.account && o.granted != "" }
			if slices.Contains(modelKeys(name), c.key) && len(md.pending) == 0 &&
				slices.ContainsFunc(before[min(md.apps[name].readAt, len(before)):], granted) {
				md.fail("the background fetched a token for %s, which nobody has read since the last", name)
			}
		}
	}
	for _, a := range md.apps {
		if time.Since(a.usedAt) >= minIdle-time.Second {
			a.forget() // it may have been dropped
		}
	}
}

// writeElsewhere has another node write, which this one is told of.
func (md *model) writeElsewhere(name string, data map[string]any) {
	md.t.Helper()
	here := md.m.engine
	md.m.engine = nil
	md.m.start()
	md.note("another node")
	if data == nil {
		md.delete(name)
	} else {
		md.write(name, logical.UpdateOperation, data)
	}
	md.m.engine.Cleanup(context.Background())
	md.m.engine = here
	for _, prefix := range []string{configPrefix, tokenPrefix} {
		md.invalidate(prefix + name)
	}
}

// recover heals everything and waits until all must be well again: then every app whose credentials
// are good is served.
func (md *model) recover() {
	md.t.Helper()
	md.upstream.set(func() { md.upstream.mood, md.upstream.delay, md.upstream.lifetime = moodWell, 0, 2*time.Hour })
	md.storage.setMode(faultNone, onAll)
	md.note("all is mended")
	time.Sleep(maxRetryAfter + maxRequestTimeout + longestBackOff)
	md.settle(true)
	for _, again := range []bool{false, true} {
		for _, name := range modelNames {
			md.checkCalls()
			md.status(name)
			md.read(name, 0, false)
		}
		if !again {
			md.restart()
		}
	}
	md.m.requireNoLock()
	md.checkShown(md.m.log.String())
}

// The operations, each followed by an argument: the app's number and three times what else there is
// to choose.
const (
	opReadBeside byte = iota
	opConfigure
	opPatch
	opTune
	opRotateInVault
	opMove
	opRotateAtDingTalk
	opDelete
	opMinTTL
	opRenew
	opRevoke
	opRefresh
	opStatus
	opSleep
	opSleepLong
	opMood
	opStorage
	opRestart
	opInvalidate
	opPeriodic
	opSpeed
	opWriteElsewhere
	opDeleteElsewhere
	opRead // and all above, which makes it one in four
	ops    = 32
)

// run decodes a byte string to operations and carries them out.
func (md *model) run(script []byte) {
	md.t.Helper()
	for i := 0; i+1 < len(script) && i < 2*150; i += 2 {
		arg := int(script[i+1])
		md.operate(script[i]%ops, arg/len(modelNames), modelNames[arg%len(modelNames)])
		md.checkCalls()
		md.settle(false)
	}
	md.recover()
}

func (md *model) operate(op byte, arg int, name string) {
	md.t.Helper()
	key := modelKeys(name)[arg%2]
	switch op {
	case opReadBeside:
		md.readBeside(name)
	case opConfigure:
		data := map[string]any{fieldAppKey: key, fieldAppSecret: modelSecret(key, arg/2%3), fieldBaseURL: modelHosts[arg/6%2]}
		if arg/12%3 > 0 {
			data[fieldVerifyConnection] = arg/12%3 == 1
		}
		md.write(name, logical.UpdateOperation, data)
	case opPatch:
		md.write(name, logical.PatchOperation, map[string]any{fieldLeased: arg%2 == 0, fieldRefreshBefore: arg * 40})
	case opTune:
		md.write(name, logical.UpdateOperation, map[string]any{
			fieldRequestTimeout:   1 + arg%30,
			fieldVerifyConnection: arg%4 == 0,
		})
	case opRotateInVault:
		data := map[string]any{fieldAppSecret: modelSecret(md.apps[name].key, arg%3)}
		if arg/3%2 == 1 {
			data[fieldVerifyConnection] = false
		}
		md.write(name, logical.UpdateOperation, data)
	case opMove:
		data := map[string]any{fieldBaseURL: modelHosts[arg%2], fieldVerifyConnection: false}
		if arg/2%2 == 1 {
			data = map[string]any{fieldAppKey: key, fieldVerifyConnection: false}
		}
		md.write(name, logical.PatchOperation, data)
	case opRotateAtDingTalk:
		md.upstream.set(func() {
			md.upstream.accepted[key] = []string{modelSecret(key, arg/2%3), modelSecret(key, arg/6%3)}
		})
		md.note("%s: secrets %d and %d are good", key, arg/2%3, arg/6%3)
	case opDelete:
		md.delete(name)
	case opMinTTL:
		md.read(name, time.Duration(arg+1)*90*time.Second, false)
	case opRenew:
		if len(md.leases) > 0 {
			md.renew(md.leases[arg%len(md.leases)])
		}
	case opRevoke:
		if len(md.leases) > 0 {
			md.revoke(md.leases[arg%len(md.leases)])
		}
	case opRefresh:
		md.refresh(name)
	case opStatus:
		md.status(name)
	case opSleep:
		md.sleep(time.Duration(arg) * 213 * time.Millisecond)
	case opSleepLong:
		md.sleep(time.Duration(arg+1) * 97 * time.Second)
	case opMood: // half of them a good one
		md.upstream.set(func() { md.upstream.mood = []mood{mood(arg % int(moods)), moodWell}[arg/int(moods)%2] })
		md.note("DingTalk's mood is %d", md.upstream.mood)
	case opStorage:
		md.storage.setMode([]faultMode{faultNone, faultBefore, faultAfter, faultNone}[arg%4], faultsOnly(arg/4)%onlys)
		md.note("storage's faults are of kind %d on calls of kind %d", md.storage.mode, md.storage.only)
	case opRestart:
		md.note("restart")
		md.restart()
	case opInvalidate:
		md.note("invalidate %s", name)
		md.invalidate([]string{configPrefix, tokenPrefix}[arg%2] + name)
	case opPeriodic:
		md.note("periodic")
		md.periodic()
	case opWriteElsewhere:
		md.writeElsewhere(name, map[string]any{
			fieldAppKey: key, fieldAppSecret: modelSecret(key, arg/2%3),
			fieldLeased: arg/6%2 == 0, fieldVerifyConnection: false,
		})
	case opDeleteElsewhere:
		md.writeElsewhere(name, nil)
	case opSpeed:
		md.upstream.set(func() {
			md.upstream.delay = time.Duration(arg%6*arg) * 50 * time.Millisecond
			md.upstream.rotates = arg%2 == 1
			md.upstream.lifetime = []time.Duration{2 * time.Hour, 20 * time.Second, 5 * time.Minute, 3 * time.Second}[arg/6%4]
		})
		md.note("DingTalk takes %s, rotates %t, tokens live %s", md.upstream.delay, md.upstream.rotates, md.upstream.lifetime)
	default:
		md.read(name, 0, arg%4 == 0)
	}
}

func (md *model) sleep(d time.Duration) {
	md.note("sleep %s", d)
	time.Sleep(d)
	synctest.Wait()
}
