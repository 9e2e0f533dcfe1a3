// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is who acts in the simulation's world: readers, holders of leases, the operator, those
// who start and end Vault's servers, and DingTalk's weather. What may happen is dealt from decks of
// cards, so that all of it does, and often.

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// mostPatience is longer than any request may take. Apps that are read more often have several
// clients, so that one which waits does not keep the others from reading.
const mostPatience = 35 * time.Second

// deck deals its cards in random order, every one once before any comes again.
type deck[T interface{ event() string }] struct {
	cards []T
	dealt int
}

// newDeck announces what will happen, so that what never did is found out.
func newDeck[T interface{ event() string }](w *world, cards []T) *deck[T] {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range cards {
		w.events[c.event()] += 0
	}
	return &deck[T]{cards: cards}
}

func (d *deck[T]) deal(r *rand.Rand) T {
	if d.dealt%len(d.cards) == 0 {
		r.Shuffle(len(d.cards), func(i, j int) { d.cards[i], d.cards[j] = d.cards[j], d.cards[i] })
	}
	d.dealt++
	return d.cards[(d.dealt-1)%len(d.cards)]
}

// between draws a duration.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)+1))
}

// spread draws a duration within a fifth of d.
func spread(r *rand.Rand, d time.Duration) time.Duration { return between(r, d*4/5, d*6/5) }

// use starts all that goes on as long as there are apps: reads, renewals and Vault's periodic
// function.
func (w *world) use() {
	for _, a := range w.apps {
		if a.crowd.every == 0 {
			continue
		}
		clients := max(1, int(mostPatience/a.crowd.every))
		for n := range clients {
			w.act("client "+strconv.Itoa(n)+" of "+a.name, func(r *rand.Rand) {
				w.readOften(a, time.Duration(clients)*a.crowd.every, r)
			})
		}
		for n := range a.crowd.holders {
			if a.leasedFirst {
				w.act("holder "+strconv.Itoa(n)+" of "+a.name, func(r *rand.Rand) { w.hold(a, r) })
			}
		}
	}
	w.act("periodic", func(r *rand.Rand) {
		for w.sleep(spread(r, time.Minute)) {
			if i := w.active.Load(); i != nil {
				i.tickAsVault()
			}
		}
	})
}

// tickAsVault calls the periodic function, which must not keep Vault waiting.
func (i *instance) tickAsVault() {
	began := time.Now()
	i.w.mu.Lock()
	i.ticked = began
	for a, u := range i.apps {
		lifetime := time.Minute
		if last := latest(i.known[a.inForce]); last != nil {
			lifetime = max(lifetime, last.lifetime)
		}
		if began.Sub(u.used) >= lifetime-time.Second { // of the clock's
			i.forget(a)
		}
	}
	i.w.mu.Unlock()
	got := i.do(logical.RollbackOperation, "", nil)
	if took := time.Since(began); took > 0 || got.err != nil {
		i.w.violate(nil, "prompt periodic function", "it took %s: %v", took, got.err)
	}
}

// readOften reads an app again and again.
func (w *world) readOften(a *simulatedApp, every time.Duration, r *rand.Rand) {
	for pause := between(r, 0, every); w.sleep(pause); pause = spread(r, every) {
		var query map[string]any
		if a.asksForMore && r.IntN(4) == 0 {
			query = map[string]any{fieldMinTTL: strconv.Itoa(r.IntN(4000))}
		}
		w.read(a, query)
	}
}

// leaseHeld is a lease as Vault and its holder have it.
type leaseHeld struct {
	app     *simulatedApp
	token   string
	secret  logical.Secret
	expires time.Time

	increment time.Duration // that its holder asks for
}

var errLeaseExpired = errors.New("lease not found or lease is not renewable")

// hold keeps a lease on the app's token alive for ever.
func (w *world) hold(a *simulatedApp, r *rand.Rand) {
	for pause := spread(r, time.Minute); w.sleep(pause); {
		pause = spread(r, 5*time.Minute)
		if l := w.issue(a); l != nil {
			if r.IntN(4) == 0 {
				l.increment = 24 * time.Hour
			}
			if !w.watch(l, r) {
				return
			}
			w.revoke(l)
			pause = 10 * time.Millisecond // the network's
		}
	}
}

// issue reads with a lease; nil is that it failed.
func (w *world) issue(a *simulatedApp) *leaseHeld {
	got := w.read(a, nil)
	if got.err != nil || got.Response == nil || got.Secret == nil {
		return nil
	}
	l := &leaseHeld{app: a, token: got.Data["access_token"].(string), secret: *got.Secret}
	l.secret.IssueTime = time.Now()
	ttl, _, err := framework.CalculateTTL(w.system, 0, got.Secret.TTL, 0, got.Secret.MaxTTL, 0, time.Time{})
	require.NoError(w.t, err)
	l.expires = time.Now().Add(ttl)
	return l
}

// watch renews a lease until it is time to read again, at the times and with the grace of Vault's
// api.LifetimeWatcher: at once, then each time two thirds of what is left are over; errors are
// tried again ever more slowly. It returns false at the end of the world.
func (w *world) watch(l *leaseHeld, r *rand.Rand) bool {
	grace := func(d time.Duration) time.Duration { return between(r, d/10, d/5) }
	renewed, granted := time.Now(), time.Until(l.expires)
	before := granted
	threshold := grace(granted)
	var failingSince time.Time
	var retry time.Duration
	for {
		var left, pause time.Duration
		ttl, err := w.renew(l)
		if err == nil {
			renewed, granted, left, retry = time.Now(), ttl, ttl, 0
			if left > before {
				threshold = grace(left)
			}
			pause = left*2/3 + threshold/3
		} else {
			left = time.Until(renewed.Add(granted))
			if retry == 0 {
				failingSince, retry = time.Now(), 10*time.Second
			}
			pause = between(r, retry/2, retry*3/2)
			if time.Since(failingSince)+pause > granted {
				return true
			}
			retry = min(2*retry, 5*time.Minute)
		}
		before = left
		if left <= threshold || left-pause <= threshold {
			return true
		}
		if !w.sleep(pause) {
			return false
		}
	}
}

// fault is a card of the weather's.
type fault struct {
	name  string
	lasts time.Duration
	simulator.Fault
}

func (f fault) event() string { return f.name }

func weatherCards() []fault {
	return []fault{
		{"outage", time.Minute, simulator.Fault{Kind: simulator.FaultReset}},
		{"outage", 5 * time.Minute, simulator.Fault{Kind: simulator.FaultUnavailableEmpty}},
		{"outage", 30 * time.Minute, simulator.Fault{Kind: simulator.FaultHang}},
		{"outage", time.Hour, simulator.Fault{Kind: simulator.FaultUnavailableUnknown, Delay: 700 * time.Millisecond}},
		{"outage", 150 * time.Minute, simulator.Fault{Kind: simulator.FaultReset}},
		{"throttling", 10 * time.Minute, simulator.Fault{Kind: simulator.FaultThrottledQPS}},
		{
			"throttling with Retry-After", 20 * time.Minute,
			simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "90"},
		},
		{"throttling with Retry-After", time.Hour, simulator.Fault{Kind: simulator.FaultThrottledQPS, RetryAfter: "3600"}},
		{"ban", 5 * time.Minute, simulator.Fault{Kind: simulator.FaultBanned}},
		{"slow responses", time.Hour, simulator.Fault{Delay: 650 * time.Millisecond}},
		{"slow responses", 30 * time.Minute, simulator.Fault{Delay: 8300 * time.Millisecond}},
		{"responses slower than request_timeout", 30 * time.Minute, simulator.Fault{Delay: 40 * time.Second}},
		{"broken responses", 15 * time.Minute, simulator.Fault{Kind: simulator.FaultTruncated}},
		{"broken responses", 15 * time.Minute, simulator.Fault{Kind: simulator.FaultHTML}},
	}
}

// weather is what befalls all apps of one host at a time.
func (w *world) weather(host string, r *rand.Rand) {
	cards := newDeck(w, weatherCards())
	for w.sleep(between(r, 30*time.Minute, 6*time.Hour)) {
		f := cards.deal(r)
		w.count(f.name)
		w.hosts[host].SetFault(simulator.AnyApp, f.Fault)
		goesOn := w.sleep(spread(r, f.lasts))
		w.hosts[host].ClearFault(simulator.AnyApp)
		if !goesOn {
			return
		}
	}
}

const tokensEnded = "token replaced by DingTalk before its time"

func mishapCards() []fault {
	return []fault{
		{"IP not allowed for one app", 20 * time.Minute, simulator.Fault{Kind: simulator.FaultIPNotAllowed}},
		{"permission denied to one app", 20 * time.Minute, simulator.Fault{Kind: simulator.FaultPermissionDenied}},
		{"one app throttled", 2 * time.Hour, simulator.Fault{Kind: simulator.FaultThrottledQPS}},
		{tokensEnded, 0, simulator.Fault{}},
	}
}

// mishaps are what befalls a single app.
func (w *world) mishaps(r *rand.Rand) {
	cards := newDeck(w, mishapCards())
	for w.sleep(between(r, 5*time.Minute, 40*time.Minute)) {
		a, f := w.someApp(r), cards.deal(r)
		w.count(f.name)
		g := w.moment(a).inForce
		if g == nil {
			continue
		}
		key := g.key
		if f.name == tokensEnded {
			w.endTokens(a, key)
			continue
		}
		lasts := spread(r, f.lasts)
		w.hosts[a.host].SetFault(key, f.Fault)
		w.actors.Go(func() {
			time.Sleep(lasts)
			w.hosts[a.host].ClearFault(key)
		})
	}
}

// endTokens makes DingTalk end an app's tokens, which nobody is told.
func (w *world) endTokens(a *simulatedApp, key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for token, t := range w.granted {
		w.ended[token] = w.ended[token] || t.key == key
	}
	w.hosts[a.host].ExpireTokens(key)
}

// someApp draws an app, the busy ones more often than their number would have it, and never one
// that nobody reads.
func (w *world) someApp(r *rand.Rand) *simulatedApp {
	for {
		n := len(w.apps)
		if r.IntN(4) == 0 {
			n = 10
		}
		if a := w.apps[r.IntN(n)]; a.crowd.every != 0 {
			return a
		}
	}
}

// change is a card of the operator's.
type change struct {
	name                                        string
	tune, secret, key, verify, inFlight, remake bool
}

func (c change) event() string { return c.name }

func (c change) rotates() bool { return c.secret || c.key }

func changeCards() []change {
	return []change{
		{name: "tuning", tune: true},
		{name: "tuning in mid-flight", tune: true, inFlight: true},
		{name: "same values again"},
		{name: "same values again in mid-flight", inFlight: true},
		{name: "new secret, verified", secret: true, verify: true},
		{name: "new secret, unverified", secret: true},
		{name: "new secret in mid-flight", secret: true, verify: true, inFlight: true},
		{name: "new app key, verified", key: true, verify: true},
		{name: "new app key, unverified", key: true},
		{name: "new app key in mid-flight, unverified", key: true, inFlight: true},
		{name: "new app key in mid-flight, verified", key: true, verify: true, inFlight: true},
		{name: "deleted and made again", remake: true},
		{name: "deleted and made again in mid-flight", remake: true, inFlight: true},
	}
}

// operate rewrites configurations.
func (w *world) operate(r *rand.Rand) {
	cards := newDeck(w, changeCards())
	for w.sleep(between(r, 5*time.Minute, 25*time.Minute)) {
		a, c := w.someApp(r), cards.deal(r)
		dice := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		if a.writing.TryLock() {
			w.count(c.name)
			w.actors.Go(func() {
				defer a.writing.Unlock()
				w.change(a, c, dice)
			})
		}
	}
}

// change writes until it is done.
func (w *world) change(a *simulatedApp, c change, r *rand.Rand) {
	if c.inFlight {
		w.slowCall(a, r)
		time.Sleep(between(r, 0, time.Second))
	}
	w.mu.Lock()
	g := a.inForce
	w.mu.Unlock()
	data := map[string]any{}
	if c.remake {
		w.delete(a)
		data[fieldLeased], data[fieldVerifyConnection] = a.leasedFirst, r.IntN(2) == 0
		time.Sleep(between(r, 0, time.Minute))
	}
	if c.rotates() {
		g = w.rotate(a, c.key)
		time.Sleep(between(r, 0, time.Minute))
		data["verify_connection"] = c.verify
	}
	if c.tune {
		data["request_timeout"] = 1 + r.IntN(30)
		data["refresh_before"] = r.IntN(600)
	}
	for w.write(a, logical.UpdateOperation, g, data).err != nil {
		if !w.sleep(between(r, 10*time.Second, 10*time.Minute)) {
			return
		}
	}
}

// slowCall has DingTalk take its time for the next call of an app, and one made.
func (w *world) slowCall(a *simulatedApp, r *rand.Rand) {
	if g := w.moment(a).inForce; g != nil {
		w.hosts[a.host].SetFault(g.key, simulator.Fault{Delay: between(r, time.Second, 8*time.Second), Times: 1})
	}
	w.actors.Go(func() { w.refresh(a) })
}

// handover is a card of those who start and end Vault's servers.
type handover struct {
	name                         string
	clean, kill, amidWrite, lead bool
	behind                       time.Duration // the new instance's clock is, by up to so much; negative is ahead
}

func (h handover) event() string { return h.name }

func handoverCards() []handover {
	const some = 5 * time.Minute
	return []handover{
		{name: "restart", clean: true},
		{name: "restart, clock set back", clean: true, behind: some},
		{name: "restart, clock set forward", clean: true, behind: -some},
		{name: "process killed", kill: true},
		{name: "process killed amid a config write", kill: true, amidWrite: true},
		{name: "leader change, old one not cleaned up", lead: true},
		{name: "leader change, clock behind", lead: true, behind: some},
		{name: "leader change, clock ahead", lead: true, behind: -some},
	}
}

// handOvers end the engine's instance and start the next, most times with calls in the air.
func (w *world) handOvers(r *rand.Rand) {
	cards := newDeck(w, handoverCards())
	for w.sleep(between(r, 30*time.Minute, 5*time.Hour)) {
		c := cards.deal(r)
		for range r.IntN(10) {
			w.slowCall(w.someApp(r), r)
		}
		time.Sleep(between(r, 0, 3*time.Second))
		w.count(c.name)
		w.handOver(c, r)
	}
}

func (w *world) handOver(c handover, r *rand.Rand) {
	old := w.active.Load()
	behind := c.behind / time.Second * time.Duration(r.IntN(int(time.Second)))
	down := between(r, time.Second, time.Minute)
	switch {
	case c.clean:
		w.active.Store(nil)
		old.clean()
		time.Sleep(down)
		w.active.Store(w.newInstance(behind))
	case c.kill:
		if a := w.someApp(r); c.amidWrite && a.writing.TryLock() {
			defer a.writing.Unlock()
			g := w.rotate(a, true)
			w.mu.Lock()
			old.killAfter = g
			w.mu.Unlock()
			w.write(a, logical.UpdateOperation, g, map[string]any{"verify_connection": r.IntN(2) == 0})
		}
		w.mu.Lock()
		old.deposed, old.killed = true, true
		w.mu.Unlock()
		w.active.Store(nil)
		time.Sleep(down)
		w.active.Store(w.newInstance(behind))
		old.clean() // only because a test cannot kill goroutines
	case c.lead:
		w.active.Store(w.newInstance(behind))
		w.actors.Go(func() {
			time.Sleep(down)
			old.tickAsVault()
			time.Sleep(down)
			old.clean()
		})
	}
}
