// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file checks every response and every call against the ledger: a token must be the app's,
// alive, and no longer promised than it lives as far as its instance can know; a failure must have
// had to be, and say why; a call must be one that somebody needs, and that nothing stands against;
// a write must be what storage holds; and nothing but creds/ shows a secret or a token. What may be
// in memory only is promised as long as the app cannot have left it.

import (
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

// tooMany is how many broken promises end the simulation.
const tooMany = 20

// violate notes a promise that the engine broke. It is called with w.mu held.
func (w *world) violate(a *simulatedApp, promise, format string, args ...any) {
	name := "-"
	if a != nil {
		name = a.name
	}
	day := time.Since(w.begins).Hours() / 24
	text := fmt.Sprintf("seed %d, day %.5f, app %s, %s: %s", w.seed, day, name, promise, fmt.Sprintf(format, args...))
	w.t.Error(text)
	w.note("%s", text)
	w.broken++
	w.stopped.Store(w.broken >= tooMany)
}

func (q *request) violate(promise, format string, args ...any) {
	q.w.violate(q.app, promise, format, args...)
}

func (w *world) count(event string, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events[event] += times
}

func (w *world) moment(a *simulatedApp) moment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a.moment
}

// request is one request for an app, from its beginning to its response.
type request struct {
	w     *world
	i     *instance
	app   *simulatedApp
	begun time.Time
	at    moment
	now   time.Time
	got   response

	// What was so when it began: the deliveries of which the instance had one, and whether it was
	// fetching.
	had     []*delivery
	fetches bool
	sure    bool // the app is in memory, and nothing but fetches changed it

	// generations are those of which the response may be, oldest first; nil stands for an app that is
	// not configured. More than one only where a write came in between.
	generations []*generation
}

// uses is the counter of such requests in the air.
func (q *request) uses(req *logical.Request) *int {
	u := q.i.upkeepOf(q.app)
	rejected, rejects := req.Data[fieldRejectedToken]
	current := func(d *delivery) bool { return d.token == rejected }
	switch {
	case rejects && !slices.ContainsFunc(q.candidates(q.app.inForce), current) &&
		!slices.ContainsFunc(q.candidates(q.app.before), current):
		return &u.beside
	case req.Operation == logical.RenewOperation:
		return &u.renewals
	case strings.HasPrefix(req.Path, refreshPrefix):
		return &u.forcing
	case !strings.HasPrefix(req.Path, credsPrefix) || req.Operation != logical.ReadOperation:
		return &u.others
	case len(req.Data) > 0:
		return &u.longer
	default:
		return &u.reads
	}
}

// request begins one to the active instance; nil is that Vault is down.
func (w *world) request(a *simulatedApp) *request {
	q := &request{w: w, app: a, i: w.active.Load(), begun: time.Now(), at: w.moment(a)}
	if q.i == nil {
		w.count("request while Vault was down", 1)
		return nil
	}
	return q
}

// exchange sends the request and notes what it got. It is called with w.mu held, and gives it back
// meanwhile.
func (q *request) exchange(uses *int, req *logical.Request) {
	op := req.Operation
	*uses++
	func() {
		q.w.mu.Unlock()
		defer q.w.mu.Lock()
		q.got = q.i.send(q.w.t.Context(), req)
		q.now = time.Now()
		time.Sleep(time.Nanosecond) // until what ended in the same moment has noted it
	}()
	*uses--
	q.w.checkResponse(q.app, op, req.Path, q.got)
}

// send sends a request that writes no configuration; nil is that Vault is down, or went down before
// it responded.
func (w *world) send(a *simulatedApp, req *logical.Request) *request {
	q := w.request(a)
	if q == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	q.now = q.begun
	u := q.i.upkeepOf(a)
	uses, since := q.uses(req), u.since
	q.had, q.fetches = slices.Clone(q.i.current(a.inForce, q.begun)), q.i.calling[a.inForce] > 0
	q.sure = u.loaded && u.writes == 0
	if uses != &u.others {
		u.used, u.evicted = q.begun, false
	}
	q.exchange(uses, req)
	q.sure = q.sure && since.Equal(u.since) && q.at == a.moment && !q.i.killed && !q.i.cleaned && a.faulted.Before(q.begun)
	q.checkWait(uses == &u.reads && q.got.err == nil)
	if uses != &u.others {
		u.used, u.evicted = q.now, false
		u.loaded = u.loaded || a.inForce != nil && since.Equal(u.since) && q.got.status < http.StatusInternalServerError
	}
	for _, g := range [...]*generation{q.at.before, q.at.inForce, a.before, a.inForce} {
		if (g != nil || q.at.inForce == nil || a.inForce == nil) && !slices.Contains(q.generations, g) {
			q.generations = append(q.generations, g)
		}
	}
	if q.i.killed {
		w.events["response lost with the process"]++
		return nil
	}
	return q
}

// tokenLike is what DingTalk's tokens look like, and much else.
var tokenLike = regexp.MustCompile(`[0-9a-f]{32}`)

// checkShown checks that a text holds no secret and no token. It is called with w.mu held, as all
// that follow.
func (w *world) checkShown(a *simulatedApp, text string) {
	if strings.Contains(text, "secret-") || slices.ContainsFunc(tokenLike.FindAllString(text, -1), func(like string) bool {
		return w.granted[like].key != ""
	}) {
		w.violate(a, "nothing leaks", "a secret or a token is shown: %s", text)
	}
}

// checkResponse checks what holds of every response.
func (w *world) checkResponse(a *simulatedApp, op logical.Operation, path string, got response) {
	shown := ""
	if got.err != nil {
		shown = got.err.Error()
	}
	if got.Response != nil && (len(got.Warnings) > 0 || !strings.HasPrefix(path, credsPrefix)) {
		shown += fmt.Sprint(got.Warnings)
		if !strings.HasPrefix(path, credsPrefix) {
			shown += fmt.Sprint(got.Data)
		}
	}
	w.note("%s %s: %d %s", op, path, got.status, shown)
	w.checkShown(a, shown)
}

// checkWait checks that nobody waited for longer than request_timeout and a second. A reader waits for
// nothing where the token is as wanted, or another waits for the fetch, and two seconds at most
// where there is a token.
func (q *request) checkWait(plain bool) {
	a, c, took := q.app, q.app.crowd, q.now.Sub(q.begun)
	if plain && q.sure && len(q.had) > 0 {
		wanted := func(d *delivery) bool { return !q.wanting(d, q.begun) && !q.wanting(d, q.now) }
		lives := func(d *delivery) bool { return d.remaining(q.now) >= leastLife }
		most := longestPatience + settled
		switch {
		case every(q.had, wanted):
			most = 0
		case !every(q.had, lives):
			most = time.Hour
		case q.fetches:
			most = settled
		}
		if took > most {
			q.violate("patience", "a reader who could be served waited for %s", took)
		}
	}
	limit := max(q.at.limit, a.limit)
	if took > limit+time.Second && !q.i.killed {
		q.w.violate(a, "bounded wait", "waited for %s, with a request_timeout of %s", took, limit)
	}
	if took > 100*time.Millisecond && !a.served.IsZero() && q.begun.After(a.served) { // more than storage takes
		c.waits++
	}
	if took > c.longest {
		c.longest, c.limit = took, limit
	}
}

// every reports whether something holds of all deliveries.
func every(ds []*delivery, holds func(d *delivery) bool) bool {
	return !slices.ContainsFunc(ds, func(d *delivery) bool { return !holds(d) })
}

// wanting reports whether a reader would have the token refreshed: it is due, or its lease would
// begin in the second half of its life.
func (q *request) wanting(d *delivery, now time.Time) bool {
	left := d.remaining(now)
	return d.skew != 0 || left < leastLife || left <= d.window(q.at.tuning) || q.at.leased && left < d.lifetime/2
}

// checkExtended checks that a reader got what there is: a token as wanted; or with a warning that
// it could not be refreshed, or without one while it is being refreshed or was a moment ago.
func (q *request) checkExtended() {
	i, g := q.i, q.app.inForce
	m := &i.upkeepOf(q.app).memory
	current := i.current(g, q.now)
	faulted := q.begun.Sub(q.app.faulted) < longestBackOff
	if !q.sure || faulted || len(q.had) != 1 || len(current) != 1 || current[0] != q.had[0] || current[0].skew != 0 {
		return
	}
	warned := strings.Contains(fmt.Sprint(q.got.Warnings), "not be refreshed")
	fetching := i.calling[g] > 0 && m.began.Before(q.now)
	starting := q.now.Sub(i.upkeepOf(q.app).looked) < settled ||
		m.last != nil && m.last.again && q.now.Sub(m.ended) < time.Second
	switch {
	case warned && fetching:
		q.violate("true warnings", "%q while the token is being refreshed", q.got.Warnings)
	case warned && m.last == nil && !i.cools(g, q.begun):
		q.violate("true warnings", "%q, and no fetch has failed", q.got.Warnings)
	case !warned && q.wanting(current[0], q.begun) && !fetching && !starting && q.now.Sub(m.forced) >= leastApart:
		q.violate("tokens are refreshed", "one with %s left is neither refreshed nor is there a warning",
			current[0].remaining(q.now))
	}
}

// current are the deliveries of which the instance goes by one, oldest first: the last that it must
// have, in memory or in storage, and those that came since. Without one that it must have, there
// are none.
func (i *instance) current(g *generation, now time.Time) []*delivery {
	all := i.known[g]
	for n, d := range slices.Backward(all) {
		if now.Sub(d.arrived) >= settled && (d == g.app.stored || d.sent.After(i.upkeepOf(g.app).since)) {
			return all[n:]
		}
	}
	return nil
}

// candidates are the deliveries of which the response may be: the current ones, or any where none has to
// be; none without a generation.
func (q *request) candidates(g *generation) []*delivery { return q.i.candidatesAt(g, q.now) }

func (i *instance) candidatesAt(g *generation, now time.Time) []*delivery {
	if current := i.current(g, now); current != nil {
		return current
	}
	return i.known[g]
}

// checkCall checks that the app may be fetched a token now.
func (i *instance) checkCall(a *simulatedApp, now time.Time) {
	u := i.upkeepOf(a)
	m := &u.memory
	m.attempts, m.began = m.attempts+1, now
	if last := m.last; last != nil && last.again && m.attempts <= 3 && now.Sub(last.ended) < time.Second {
		return // another attempt of the same fetch
	}
	m.attempts = 1
	asked := u.reads + u.longer + u.renewals + u.forcing + u.writes
	passing := now.Sub(i.ticked) <= settled || !i.w.small
	if asked == 0 && !(m.served && passing) {
		i.w.violate(a, "idle apps cost no calls", "nobody asked, and nobody has read the token since it was fetched")
	}
	if u.forcing == 0 && now.Before(m.quiet) {
		i.w.violate(a, "back-off", "a call %s before it ends", m.quiet.Sub(now))
	}
	forced := u.forcing > 0 && asked == u.forcing
	if current := i.current(a.inForce, now); len(current) == 1 && current[0].skew <= 0 { // one of the future is due
		d := current[0]
		left, unforced := d.remaining(now), d.window(a.tuning)+time.Second
		if passing && m.served {
			unforced = max(unforced, d.ahead(a.tuning)+time.Minute) // the background's next turn would be too late
		}
		limit := unforced
		switch {
		case u.longer > 0:
			limit = max(limit, d.lifetime*3/4)
		case u.renewals > 0, a.leased && u.reads > 0:
			limit = max(limit, d.lifetime/2)
		}
		if left > limit && u.forcing == 0 && u.writes == 0 {
			i.w.violate(a, "fresh tokens cost no call", "the current one has %s left", left)
		}
		forced = forced || left > unforced
	}
	if !forced {
		return
	}
	if ago := now.Sub(m.forced); ago < leastApart-settled {
		i.w.violate(a, "10 seconds", "a fetch was forced %s after another", ago)
	}
	m.forced = now
}

// read reads an app's token and checks the response.
func (w *world) read(a *simulatedApp, query map[string]any) response {
	q := w.send(a, &logical.Request{Operation: logical.ReadOperation, Path: credsPrefix + a.name, Data: query})
	if q == nil {
		return response{status: http.StatusServiceUnavailable, err: errShuttingDown}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a.crowd.reads++
	if q.got.err != nil {
		a.crowd.failed++
		q.checkFailure()
		return q.got
	}
	token, _ := q.got.Data["access_token"].(string)
	if a.served.IsZero() {
		a.served = q.now
	}
	all := q.checkToken(token)
	leased := q.got.Secret != nil
	switch {
	case leased != q.at.leased && leased != a.leased:
		q.violate("leased as configured", "it is not so, or it should not be")
	case leased:
		q.checkLease(all, 0, q.got.Secret.TTL, q.got.Secret.MaxTTL, time.Time{})
	default:
		q.checkUnleased(all)
	}
	q.checkMinTTL(all, query)
	if query == nil {
		q.checkExtended()
	}
	if q.begun.After(a.covered) {
		a.crowd.least++
		a.covered = q.begun.Add(lifetimeAt(a.host))
	}
	return q.got
}

// renew renews a lease as Vault's expiration manager does, and returns what its holder gets.
func (w *world) renew(l *leaseHeld) (time.Duration, error) {
	if !time.Now().Before(l.expires) {
		return 0, errLeaseExpired
	}
	secret := l.secret
	secret.Increment = l.increment
	q := w.send(l.app, &logical.Request{
		Operation: logical.RenewOperation, Path: credsPrefix + l.app.name, Secret: &secret,
	})
	if q == nil {
		return 0, errShuttingDown
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l.app.crowd.renewals++
	if q.got.err != nil {
		l.app.crowd.failed++
		q.checkFailure()
		return 0, q.got.err
	}
	if q.got.Secret != &secret || len(q.got.Data) > 0 {
		q.violate("renewals return the lease", "warnings %q", q.got.Warnings)
	}
	if secret.TTL == endedTTL {
		q.checkEnded(l)
		l.expires = q.now.Add(endedTTL)
		return endedTTL, nil
	}
	all := q.checkToken(l.token)
	if last := latest(all); last != nil && last.remaining(q.begun) < last.lifetime/2 && last.lifetime >= 2*leastApart &&
		len(q.got.Warnings) == 0 && q.i.refused[last.of] == nil && len(all) == 1 {
		q.violate("renewals extend", "%s left, and no warning", last.remaining(q.now))
	}
	ttl := q.checkLease(all, l.increment, secret.TTL, secret.MaxTTL, l.secret.IssueTime)
	l.expires = q.now.Add(ttl)
	return ttl, nil
}

// checkToken checks a token that was handed out, and returns its deliveries: the engine goes by one
// of them.
func (q *request) checkToken(token string) []*delivery {
	var all []*delivery
	q.i.upkeepOf(q.app).served = true
	for _, g := range q.generations {
		for _, d := range q.candidates(g) {
			if d.token == token {
				all = append(all, d)
			}
		}
	}
	stored := q.app.stored
	if !q.i.deposed && !q.app.unstored && len(q.generations) == 1 && (stored == nil || stored.of != q.generations[0]) {
		q.violate("stored before it is served", "storage has none of these credentials")
	}
	last := latest(all)
	if last == nil {
		q.violate("own token", "handed out a token of %q that came to another instance, "+
			"for other credentials, or was replaced", q.w.granted[token].key)
		return nil
	}
	left := time.Until(q.w.granted[token].ends)
	switch {
	case !slices.ContainsFunc(all, func(d *delivery) bool { return d.remaining(q.now) >= leastLife }):
		q.violate("no expired token", "handed out with %s left", last.ends().Sub(q.now))
	case q.w.granted[token].ended:
		q.w.unknowable["a token that DingTalk ended before its time"]++
	case left > 0:
	case -left <= last.skew:
		q.w.unknowable["an expired token, stored by a clock ahead"]++
	default:
		q.violate("no expired token", "DingTalk refuses it since %s", -left)
	}
	return all
}

// latest is the delivery that an instance ought to go by. Not the one that seems to live longest: a
// clock may have been ahead.
func latest(all []*delivery) *delivery {
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1]
}

// checkLease checks that a lease ends with its token, whatever increment was asked for, and returns
// its TTL.
func (q *request) checkLease(all []*delivery, increment, ttl, maxTTL time.Duration, issued time.Time) time.Duration {
	lease, warnings, err := framework.CalculateTTL(q.w.system, increment, ttl, 0, maxTTL, 0, issued)
	if err != nil || increment == 0 && len(warnings) > 0 {
		q.violate("true lease", "Vault makes of it: %v, %v", warnings, err)
	}
	tuned := q.w.tuned[:]
	if q.now.Sub(q.w.tunedAt) > time.Second { // for which the engine may keep what Vault said
		tuned = tuned[1:]
	}
	if !slices.ContainsFunc(all, func(d *delivery) bool {
		left := d.remaining(q.now)
		return lease <= left && slices.ContainsFunc(tuned, func(most time.Duration) bool { return ttl == min(left, most) })
	}) {
		q.violate("true lease", "a TTL of %s, a lease of %s: not the token's life, or %s", ttl, lease, tuned)
	}
	if c := q.app.crowd; issued.IsZero() && (c.shortest == 0 || lease < c.shortest) {
		c.shortest = lease
	}
	return lease
}

// checkUnleased checks what stands beside a token without a lease.
func (q *request) checkUnleased(all []*delivery) {
	ttl, _ := q.got.Data["ttl"].(int64)
	if !slices.ContainsFunc(all, func(d *delivery) bool {
		return q.got.Data["expires_at"] == timestamp(d.ends()) && q.got.Data["last_vault_rotation"] == timestamp(d.sent) &&
			ttl >= 1 && time.Duration(ttl)*time.Second <= d.remaining(q.now)
	}) {
		q.violate("true expires_at and ttl", "expires_at %v, last_vault_rotation %v, ttl %v",
			q.got.Data["expires_at"], q.got.Data["last_vault_rotation"], ttl)
	}
}

// checkMinTTL checks that a reader who asked for more life got it, or was told.
func (q *request) checkMinTTL(all []*delivery, query map[string]any) {
	seconds, _ := strconv.Atoi(fmt.Sprint(query[fieldMinTTL])) // 0 where it is not given
	asked := time.Duration(seconds) * time.Second
	if last := latest(all); last != nil && len(q.got.Warnings) == 0 &&
		last.remaining(q.now) < min(asked, last.lifetime*3/4).Truncate(time.Second) {
		q.violate("min_ttl", "%s left without a warning, %s asked for", last.remaining(q.now), asked)
	}
}

// checkEnded checks that a lease was ended for a reason: the app has another token.
func (q *request) checkEnded(l *leaseHeld) {
	for _, g := range q.generations {
		current := q.i.current(g, q.now)
		others := func(d *delivery) bool { return d.token != l.token }
		if g == nil || len(current) == 0 || slices.ContainsFunc(current, others) {
			return
		}
	}
	q.violate("leases that last", "a lease was ended though its token is the app's: %q", q.got.Warnings)
}

// checkFailure checks that a read or renewal had to fail, and says why: there is no token, by any
// generation that it may have met, and the error is what DingTalk's last response calls for.
func (q *request) checkFailure() {
	usable := q.i.upkeepOf(q.app).loaded || q.app.faulted.Before(q.begun)
	for _, g := range q.generations {
		current := q.i.current(g, q.now)
		usable = usable && len(current) > 0 &&
			!slices.ContainsFunc(current, func(d *delivery) bool { return d.remaining(q.now) < leastLife })
	}
	if usable {
		q.violate("usable tokens are served", "failed though there is one: %v", q.got.err)
	}
	q.checkError(q.got.err.Error())
}

// checkError checks that the error is one of those that the request may fail with.
func (q *request) checkError(text string) {
	for _, why := range q.reasons() {
		if q.got.status == why.status && !slices.ContainsFunc(why.holds,
			func(part string) bool { return !strings.Contains(text, part) }) {
			q.w.reasons[why.reason]++
			return
		}
	}
	q.violate("right errors", "got %d %v", q.got.status, q.got.err)
}

// reasons are all that may have made the request fail.
func (q *request) reasons() []*refusal {
	var all []*refusal
	because := func(may bool, reason string, status int, holds ...string) {
		if may {
			all = append(all, &refusal{reason: reason, status: status, holds: holds})
		}
	}
	for _, ours := range q.generations {
		if ours == nil {
			because(true, "no configuration", http.StatusBadRequest, configPrefix+q.app.name)
			continue
		}
		for g, why := range q.i.refused {
			if why == nil || g.key != ours.key || g.corp != ours.corp || q.begun.Sub(why.ended) > longestBackOff {
				continue
			}
			for ; why != nil; why = why.before { // by a verification of another secret, perhaps
				all = append(all, why)
			}
		}
		keys := ours.cooldowns()
		if c := q.i.cooldowns[keys[1]]; c.until.After(q.begun) {
			all = append(all, c.why) // by an app with the same key, perhaps
		}
		ban := q.i.cooldowns[keys[0]]
		because(ban.until.After(q.begun), "a ban", http.StatusBadGateway, "banned", "attempt")
		last := latest(q.i.known[ours])
		because(last != nil && last.arrived.After(q.begun) && last.remaining(q.now) < leastLife,
			"a token that hardly lived", http.StatusServiceUnavailable, "expired")
	}
	forced := q.i.upkeepOf(q.app).forced
	because(q.begun.Sub(forced) < leastApart, "10 seconds", http.StatusBadRequest, "ago")
	because(q.i.cleaned, "the end of the instance", http.StatusServiceUnavailable, "unloaded")
	because(q.now.Sub(q.begun) >= min(q.at.timeout, q.app.timeout),
		"no response in time", http.StatusBadGateway, "could not get a token for app")
	because(q.begun.Sub(q.app.faulted) < longestBackOff, "Vault's storage", http.StatusInternalServerError, "storage")
	return all
}

// refresh fetches an app's token now; that it may fail is the operator's risk.
func (w *world) refresh(a *simulatedApp) {
	w.look(a, &logical.Request{Operation: logical.UpdateOperation, Path: refreshPrefix + a.name})
}

// reject has a token refreshed that DingTalk refuses, and reads again.
func (w *world) reject(a *simulatedApp, token string) {
	req := &logical.Request{Operation: logical.UpdateOperation, Path: refreshPrefix + a.name}
	req.Data = map[string]any{fieldRejectedToken: token}
	q := w.look(a, req)
	if q == nil || q.got.err != nil || len(q.got.Warnings) > 0 || q.fetches { // that fetch may have begun before the end
		return
	}
	got := w.read(a, nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	same := w.active.Load() == q.i && !q.i.deposed
	if same && got.err == nil && got.Data["access_token"] == token && w.granted[token].ended {
		q.violate("rejected tokens are replaced", "a refused token was handed out again")
	}
}

// status reads an app's status, which is no use of it.
func (w *world) status(a *simulatedApp) {
	i := w.active.Load()
	if i == nil {
		return
	}
	inMemory := func() bool { return i.engine.apps.inMemory(a.name) != nil }
	w.mu.Lock()
	u := i.upkeepOf(a)
	used, was := u.used, inMemory()
	if was && u.evicted {
		w.violate(a, "idle apps leave memory", "it is there, last used at %s", used)
	}
	w.mu.Unlock()
	w.look(a, &logical.Request{Operation: logical.ReadOperation, Path: statusPrefix + a.name})
	w.mu.Lock()
	defer w.mu.Unlock()
	if !was && inMemory() && used.Equal(u.used) && u.reads+u.longer+u.renewals+u.forcing+u.beside+u.writes == 0 {
		w.violate(a, "idle apps leave memory", "its status brought it back")
	}
}

// look reads an app's status, with a refresh before or without, and checks that it agrees with the
// ledger.
func (w *world) look(a *simulatedApp, req *logical.Request) *request {
	q := w.send(a, req)
	if q == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if q.got.err != nil {
		q.checkError(q.got.err.Error())
		return q
	}
	agrees := false
	for _, g := range q.generations {
		absent := g != nil && q.i.current(g, q.now) == nil
		agrees = agrees || absent && q.got.Data["state"] == string(stateAbsent)
		for _, d := range q.candidates(g) {
			agrees = agrees || q.agrees(d, q.at.tuning) || q.agrees(d, q.app.tuning)
		}
	}
	if !agrees {
		q.violate("true status", "%v", q.got.Data)
	}
	u := q.i.upkeepOf(a)
	next, _ := q.got.Data["next_attempt_at"].(string)
	if len(q.generations) == 1 && u.quiet.After(q.now) && q.begun.Sub(u.last.ended) > time.Second &&
		q.i.calling[a.inForce] == 0 && (next < timestamp(u.quiet) || q.got.Data["last_error"] == nil) {
		q.violate("true status", "fetches fail, back-off lasts until %s: %v", timestamp(u.quiet), q.got.Data)
	}
	if g := a.inForce; q.sure && q.i.calling[g] == 0 && q.now.Sub(u.ended) > time.Second && a.faulted.Before(u.since) {
		q.checkFailing(&u.memory)
	}
	return q
}

// checkFailing checks what a status says of fetches that fail.
func (q *request) checkFailing(m *memory) {
	got := q.got.Data
	failures, _ := got["consecutive_failures"].(int64)
	class, _ := got["last_error_class"].(string)
	code, _ := got["last_error_code"].(string)
	id, _ := got["last_error_request_id"].(string)
	since, _ := got["failing_since"].(string)
	if m.vague || q.i.cools(q.app.inForce, m.since) {
		return // or a fetch may have failed without a call
	}
	agrees := m.last == nil && failures == 0 && class == "" && since == ""
	for why := m.last; why != nil && !agrees; why = why.before {
		agrees = class == why.class && (class == "malformed" || code == why.code && id == why.id) &&
			int(failures) >= m.failed && int(failures) <= m.calls &&
			since >= timestamp(m.failing[0]) && since <= timestamp(m.failing[1])
	}
	if !agrees {
		q.violate("true status", "%d or %d fetches fail since %s, with %+v: %v", m.failed, m.calls, timestamp(m.failing[0]),
			m.last, got)
	}
}

var (
	failureLine = regexp.MustCompile(`\[(WARN|DEBUG)\] +fetching a token failed: app=(\S+) class=(\S+) .*` +
		`token_expires_at=(\S+)`)
	successLine = regexp.MustCompile(`(fetching tokens works again|fetched a token): app=(\S+)`)
)

// checkLog checks that the log warns when fetches start failing, fail in another way or have gone on
// failing for an hour, never else, and says when they recover.
func (i *instance) checkLog(line string) {
	now := time.Now()
	if parts := failureLine.FindStringSubmatch(line); parts != nil {
		a := i.w.byName[parts[2]]
		u := i.upkeepOf(a)
		must := u.warned.class != parts[3] || now.Sub(u.warned.at) >= warnedAgain
		if warns := parts[1] == "WARN"; must && !warns || warns && !must && u.warned.at.After(u.since) {
			i.w.violate(a, "a warning for each kind of failure and hour", "after %v: %s", u.warned, line)
		}
		if must || parts[1] == "WARN" {
			u.warned.class, u.warned.at = parts[3], now
		}
		known := i.candidatesAt(a.inForce, now)
		lives := func(d *delivery) bool { return d.remaining(now) >= leastLife }
		wrong := func(d *delivery) bool { return parts[4] != timestamp(d.ends()) }
		none := parts[4] == "none" && (i.current(a.inForce, now) == nil || !every(known, lives))
		if a.inForce != nil && !none && every(known, wrong) {
			i.w.violate(a, "true warnings", "of when the token ends: %s", line)
		}
	} else if parts := successLine.FindStringSubmatch(line); parts != nil {
		a := i.w.byName[parts[2]]
		u := i.upkeepOf(a)
		if again := parts[1] != "fetched a token"; again != (u.warned.class != "") && u.warned.at.After(u.since) {
			i.w.violate(a, "recovery is told", "after %v: %s", u.warned, line)
		}
		u.warned.class, u.warned.at = "", time.Time{}
	}
}

// agrees reports whether a status is that of a token.
func (q *request) agrees(d *delivery, c tuning) bool {
	left := d.remaining(q.now)
	state := stateFresh
	switch {
	case left < leastLife:
		state = stateExpired
	case left <= d.window(c) || d.skew > 0 && q.got.Data["state"] == string(stateDue):
		state = stateDue
	}
	return q.got.Data["state"] == string(state) && q.got.Data["ttl"] == int64(left/time.Second) &&
		q.got.Data["expires_at"] == timestamp(d.ends()) && q.got.Data["fetched_at"] == timestamp(d.sent)
}

// write writes or deletes an app's configuration and checks that what it responded is what storage
// holds. Without credentials, the data may name some of them.
func (w *world) write(a *simulatedApp, op logical.Operation, g *generation, data map[string]any) response {
	q := w.request(a)
	if q == nil {
		return response{status: http.StatusServiceUnavailable, err: errShuttingDown}
	}
	if g != nil {
		data[fieldAppKey], data[fieldAppSecret], data[fieldBaseURL], data[fieldCorpID] = g.key, g.secret, g.host, g.corp
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	old := q.at.inForce
	g, after, wrong := q.wanted(op, data)
	q.generations = []*generation{g}
	verify, given := data[fieldVerifyConnection].(bool)
	verify = g != nil && (verify || !given && g != old)
	seconds, _ := after[fieldRequestTimeout].(int64)
	a.began, a.limit = q.begun, max(a.limit, time.Duration(seconds)*time.Second)
	u := q.i.upkeepOf(a)
	uses := &u.writes
	if verify && g == old {
		uses, u.evicted = &u.forcing, false
	}
	q.exchange(uses, &logical.Request{Operation: op, Path: configPrefix + a.name, Data: data})
	if uses == &u.forcing {
		u.used, u.evicted = q.now, false
	}
	stored, err := w.storage.Get(w.t.Context(), tokenPrefix+a.name)
	require.NoError(w.t, err)
	a.before = nil
	faulted := !a.faulted.Before(q.begun)
	taken := a.inForce == g && reflect.DeepEqual(a.config(), after)
	left := a.inForce == old && a.tuning == q.at.tuning
	if left || q.got.err == nil {
		a.limit = a.timeout
	}
	if faulted || op == logical.DeleteOperation {
		q.i.forget(a)
	}
	last := latest(q.i.known[g])
	switch {
	case q.i.deposed:
	case q.got.err == nil && wrong != 0:
		q.violate("right writes", "one was taken that must not be: %v", data)
	case q.got.err == nil && (!taken || g == nil && stored != nil):
		q.violate("writes that work", "a write that was acknowledged is not in storage")
	case q.got.err == nil && verify && g != old && (last == nil || last.sent.Before(q.begun)):
		q.violate("verified writes", "taken without a token")
	case q.got.err == nil:
		u.loaded = u.loaded || g != old && g != nil && !faulted
	case !left && !(faulted && taken):
		q.violate("writes that work", "a write that failed has taken effect: %v", q.got.err)
	case wrong != 0 && q.got.status != wrong && !faulted:
		q.violate("right errors", "a write failed with %d %v", q.got.status, q.got.err)
	case wrong == 0:
		q.checkError(q.got.err.Error() + " attempt") // there is no next one to name
	}
	return q.got
}

// wanted is what is to be in force after a write, and what config/ then responds; wrong is the status
// if it must fail.
func (q *request) wanted(op logical.Operation, data map[string]any) (g *generation, after map[string]any, wrong int) {
	if op == logical.DeleteOperation {
		return nil, nil, 0
	}
	after, ok := modelConfig(q.at.config(), data)
	switch {
	case op == logical.PatchOperation && q.at.inForce == nil:
		return nil, nil, http.StatusNotFound
	case !ok:
		return nil, nil, http.StatusBadRequest
	}
	secret, given := data[fieldAppSecret].(string)
	if !given {
		secret = q.at.inForce.secret
	}
	return q.w.generations[login{
		after[fieldBaseURL].(string), after[fieldAppKey].(string), after[fieldCorpID].(string), secret,
	}], after, 0
}

func (w *world) delete(a *simulatedApp) { w.write(a, logical.DeleteOperation, nil, nil) }

// revoke revokes a lease, which always works and costs nothing.
func (w *world) revoke(l *leaseHeld) {
	secret := l.secret
	q := w.send(l.app, &logical.Request{
		Operation: logical.RevokeOperation, Path: credsPrefix + l.app.name, Secret: &secret,
	})
	if q != nil && (q.got.err != nil || q.now.After(q.begun)) {
		w.mu.Lock()
		defer w.mu.Unlock()
		q.violate("revoking works", "after %s: %v", q.now.Sub(q.begun), q.got.err)
	}
}
