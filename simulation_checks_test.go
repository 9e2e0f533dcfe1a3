// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file checks every answer in the simulation against the ledger: a token must be the app's,
// alive, and no longer promised than it lives as far as its instance can know; a failure must have
// had to be, and say why.

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// tooMany is how many broken promises end the simulation.
const tooMany = 20

// violate notes a promise that the engine broke.
func (w *world) violate(a *simulatedApp, promise, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violateLocked(a, promise, format, args...)
}

func (w *world) violateLocked(a *simulatedApp, promise, format string, args ...any) {
	name := "-"
	if a != nil {
		name = a.name
	}
	day := (time.Duration(*daysFlag)*24*time.Hour - time.Until(w.ends)).Hours() / 24
	w.t.Errorf("seed %d, day %.5f, app %s, %s: %s", w.seed, day, name, promise, fmt.Sprintf(format, args...))
	w.broken[promise]++
	if w.stopped.Load() {
		return
	}
	total := 0
	for _, n := range w.broken {
		total += n
	}
	w.stopped.Store(total >= tooMany)
}

func (w *world) count(event string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events[event]++
}

// moment is what is in force for an app at a moment.
type moment struct {
	inForce, before *generation
	timeout         time.Duration
}

func (w *world) moment(a *simulatedApp) moment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return moment{a.inForce, a.before, a.timeout}
}

// request is one read or renewal, from its beginning to its answer.
type request struct {
	w     *world
	i     *instance
	app   *simulatedApp
	begun time.Time
	at    moment
	now   time.Time
	got   answer

	// generations are those of which the answer may be, oldest first. More than one only where a write
	// came in between.
	generations []*generation
}

// send sends a request to the active instance; nil is that Vault is down, or went down before it
// answered.
func (w *world) send(a *simulatedApp, req *logical.Request) *request {
	q := &request{w: w, app: a, i: w.active.Load(), begun: time.Now()}
	if q.i == nil {
		w.count("request while Vault was down")
		return nil
	}
	q.at = w.moment(a)
	q.got = q.i.send(w.t.Context(), req)
	q.now = time.Now()
	time.Sleep(time.Nanosecond) // until what ended in the same moment has noted it
	w.checkWait(a, q.i, q.begun, q.now.Sub(q.begun), q.at)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range [...]*generation{q.at.before, q.at.inForce, a.before, a.inForce} {
		if g != nil && !slices.Contains(q.generations, g) {
			q.generations = append(q.generations, g)
		}
	}
	if q.i.killed {
		w.events["answer lost with the process"]++
		return nil
	}
	return q
}

// checkWait checks that nobody waited for longer than request_timeout and a second.
func (w *world) checkWait(a *simulatedApp, i *instance, begun time.Time, took time.Duration, at moment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	limit := max(at.timeout, a.timeout)
	if took > limit+time.Second && !i.killed {
		w.violateLocked(a, "bounded wait", "waited for %s, with a request_timeout of %s", took, limit)
	}
	if took > 100*time.Millisecond && !a.served.IsZero() && begun.After(a.served) { // more than storage takes
		a.crowd.waits++
	}
	if c := a.crowd; took > c.longest {
		c.longest, c.limit = took, limit
	}
}

// read reads an app's token and checks the answer.
func (w *world) read(a *simulatedApp, query map[string]any) answer {
	q := w.send(a, &logical.Request{Operation: logical.ReadOperation, Path: credsPrefix + a.name, Data: query})
	if q == nil {
		return answer{status: http.StatusServiceUnavailable, err: errShuttingDown}
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
	switch {
	case (q.got.Secret != nil) != a.leased:
		w.violateLocked(a, "leased as configured", "it is not so, or it should not be")
	case a.leased:
		q.checkLease(all, 0, q.got.Secret.TTL, q.got.Secret.MaxTTL, time.Time{})
	default:
		q.checkUnleased(all)
	}
	q.checkMinTTL(all, query)
	if q.begun.After(a.covered) {
		a.crowd.least++
		a.covered = q.begun.Add(mainLifetime)
		if a.host == otherHost {
			a.covered = q.begun.Add(otherLifetime)
		}
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
		Operation: logical.RenewOperation, Path: credsPrefix + l.app.name,
		Secret: &secret,
	})
	if q == nil {
		return 0, errShuttingDown
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l.app.crowd.renewals++
	if q.got.err != nil {
		q.checkFailure()
		return 0, q.got.err
	}
	if q.got.Secret != &secret || len(q.got.Data) > 0 {
		w.violateLocked(l.app, "renewals return the lease", "warnings %q", q.got.Warnings)
	}
	if secret.TTL == endedLease {
		q.checkEnded(l)
		l.expires = q.now.Add(endedLease)
		return endedLease, nil
	}
	all := q.checkToken(l.token)
	if last := latest(all); last != nil && last.remaining(q.now) < last.lifetime/2 && len(q.got.Warnings) == 0 &&
		q.i.refused[last.of] == nil {
		w.violateLocked(l.app, "renewals extend", "%s left, and no warning", last.remaining(q.now))
	}
	ttl := q.checkLease(all, l.increment, secret.TTL, secret.MaxTTL, l.secret.IssueTime)
	l.expires = q.now.Add(ttl)
	return ttl, nil
}

// checkToken checks a token that was handed out, and returns its deliveries: the engine goes by one
// of them, with at least one still good. It is called with w.mu held, as all that follow.
func (q *request) checkToken(token string) []*delivery {
	var all []*delivery
	ours := false
	for _, g := range q.generations {
		ours = ours || q.w.owners[token] == g.key
		for _, d := range q.i.known[g] {
			if d.token == token {
				all = append(all, d)
			}
		}
	}
	if stored := q.app.stored; !q.i.deposed && len(q.generations) == 1 &&
		(stored == nil || stored.of != q.generations[0]) {
		q.w.violateLocked(q.app, "stored before it is served", "storage has none of these credentials")
	}
	left, _ := q.w.hosts[q.app.host].LifeLeft(token)
	switch last := latest(all); {
	case !ours:
		q.w.violateLocked(q.app, "own token", "handed out a token of %q", q.w.owners[token])
	case last == nil:
		q.w.violateLocked(q.app, "own token", "handed out a token that came to another instance, or for other credentials")
	case last.remaining(q.now) < minServed:
		q.w.violateLocked(q.app, "no expired token", "handed out with %s left", last.ends().Sub(q.now))
	case left > 0:
	case q.w.ended[token]:
		q.w.unknowable["a token that DingTalk ended before its time"]++
	case -left <= last.skew:
		q.w.unknowable["an expired token, stored by a clock ahead"]++
	default:
		q.w.violateLocked(q.app, "no expired token", "DingTalk refuses it since %s", -left)
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
		q.w.violateLocked(q.app, "true lease", "Vault makes of it: %v, %v", warnings, err)
	}
	if !slices.ContainsFunc(all, func(d *delivery) bool { return ttl == d.remaining(q.now) && lease <= ttl }) {
		q.w.violateLocked(q.app, "true lease", "a TTL of %s, a lease of %s: not the token's life", ttl, lease)
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
		q.w.violateLocked(q.app, "true expires_at and ttl", "expires_at %v, last_vault_rotation %v, ttl %v",
			q.got.Data["expires_at"], q.got.Data["last_vault_rotation"], ttl)
	}
}

// checkMinTTL checks that a reader who asked for more life got it, or was told.
func (q *request) checkMinTTL(all []*delivery, query map[string]any) {
	asked, err := parseMinTTL(query)
	if last := latest(all); err == nil && last != nil && last.remaining(q.now) < min(asked, last.lifetime*3/4) &&
		len(q.got.Warnings) == 0 {
		q.w.violateLocked(q.app, "min_ttl", "%s left without a warning, %s asked for", last.remaining(q.now), asked)
	}
}

// checkEnded checks that a lease was ended for a reason: the app has another token.
func (q *request) checkEnded(l *leaseHeld) {
	for _, g := range q.generations {
		if last := latest(q.i.known[g]); last == nil || last.token != l.token {
			return
		}
	}
	q.w.violateLocked(q.app, "leases that last", "a lease was ended though its token is the app's: %q", q.got.Warnings)
}

// checkFailure checks that a read or renewal had to fail, and says why: there is no token, by any
// generation that it may have met, and the error is what DingTalk's last answer calls for.
func (q *request) checkFailure() {
	usable := true
	for _, g := range q.generations {
		last := latest(q.i.known[g])
		usable = usable && last != nil && last.remaining(q.now) >= minServed
	}
	if usable {
		q.w.violateLocked(q.app, "usable tokens are served", "failed though there is one: %v", q.got.err)
	}
	text := q.got.err.Error()
	for _, why := range q.reasons() {
		if q.got.status == why.status && !slices.ContainsFunc(why.holds,
			func(part string) bool { return !strings.Contains(text, part) }) {
			q.w.reasons[why.reason]++
			return
		}
	}
	q.w.violateLocked(q.app, "right errors", "got %d %v", q.got.status, q.got.err)
}

// reasons are all that may have made the request fail.
func (q *request) reasons() []*refusal {
	var all []*refusal
	for _, ours := range q.generations {
		for g, why := range q.i.refused {
			for ; why != nil && g.key == ours.key; why = why.before { // by a verification of another secret, perhaps
				all = append(all, why)
			}
		}
	}
	for _, ours := range q.generations {
		if c := q.i.cooldowns[cooldownKey{q.app.host, ours.key}]; c.until.After(q.begun) { // by an app with the same key, perhaps
			all = append(all, c.why)
		}
	}
	if q.i.cooldowns[cooldownKey{baseURL: q.app.host}].until.After(q.begun) {
		all = append(all, &refusal{reason: "a ban", status: http.StatusBadGateway, holds: []string{"banned", "attempt"}})
	}
	if q.i.cleaned {
		all = append(all, &refusal{
			reason: "the end of the instance", status: http.StatusServiceUnavailable,
			holds: []string{"unloaded"},
		})
	}
	if q.now.Sub(q.begun) >= min(q.at.timeout, q.app.timeout) {
		all = append(all, &refusal{
			reason: "no answer in time", status: http.StatusBadGateway,
			holds: []string{"could not get a token for app"},
		})
	}
	return all
}
