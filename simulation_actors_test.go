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

// card is something that may happen. Playing it reports whether it did.
type card struct {
	event string
	play  func(r *rand.Rand) bool
}

// deal plays cards in random order, with a pause before each, and every one once before any comes
// again.
func (w *world) deal(r *rand.Rand, least, most time.Duration, cards ...card) {
	for _, c := range cards {
		w.count(c.event, 0) // so that what never happens is found out
	}
	for dealt := 0; w.sleep(between(r, least, most)); dealt++ {
		if dealt%len(cards) == 0 {
			r.Shuffle(len(cards), func(i, j int) { cards[i], cards[j] = cards[j], cards[i] })
		}
		if c := cards[dealt%len(cards)]; c.play(r) {
			w.count(c.event, 1)
		}
	}
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
	w.act("monitoring", func(r *rand.Rand) {
		for w.sleep(spread(r, 15*time.Second)) {
			w.status(w.apps[r.IntN(len(w.apps))])
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
		if began.Sub(u.used) < lifetime-time.Second { // of the clock's
			continue
		}
		i.forget(a)
		u.evicted = began.Sub(u.used) > max(lifetime, mainLifetime)+time.Second && i.calling[a.inForce] == 0 &&
			u.reads+u.longer+u.renewals+u.forcing+u.beside+u.writes == 0 && a.inForce != nil &&
			!i.cools(a.inForce, began) &&
			(i.refused[a.inForce] == nil || began.Sub(i.refused[a.inForce].ended) > longestBackOff)
	}
	i.w.mu.Unlock()
	got := i.do(logical.RollbackOperation, "", nil)
	if took := time.Since(began); took > 0 || got.err != nil {
		i.w.mu.Lock()
		defer i.w.mu.Unlock()
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
		if got := w.read(a, query); got.err == nil && r.IntN(2) == 0 {
			token := got.Data["access_token"].(string)
			w.mu.Lock()
			refused := w.granted[token].ended
			w.mu.Unlock()
			if refused {
				w.reject(a, token)
			}
		}
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
			switch r.IntN(4) {
			case 0:
				l.increment = 24 * time.Hour
			case 1: // as Vault Secrets Operator does
				l.increment = time.Until(l.expires)
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
	granted := time.Until(l.expires)
	renewed, before, threshold := time.Now(), granted, grace(granted)
	var failingSince time.Time
	var retry time.Duration
	for pause := time.Duration(0); w.sleep(pause); {
		var left time.Duration
		if ttl, err := w.renew(l); err == nil {
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
		if left-pause <= threshold {
			return true
		}
	}
	return false
}

// weather is what befalls all apps of one host at a time.
func (w *world) weather(host string, r *rand.Rand) {
	fault := func(event string, lasts time.Duration, f simulator.Fault) card {
		return card{event, func(r *rand.Rand) bool {
			w.hosts[host].SetFault(simulator.AnyApp, f)
			w.sleep(spread(r, lasts))
			w.hosts[host].ClearFault(simulator.AnyApp)
			return true
		}}
	}
	const minute = time.Minute
	w.deal(r, 30*minute, 6*time.Hour,
		fault("outage", minute, simulator.Fault{Kind: simulator.FaultReset}),
		fault("outage", 5*minute, simulator.Fault{Kind: simulator.FaultUnavailableEmpty}),
		fault("outage", 30*minute, simulator.Fault{Kind: simulator.FaultHang}),
		fault("outage", 60*minute, simulator.Fault{Kind: simulator.FaultUnavailableUnknown, Delay: 700 * time.Millisecond}),
		fault("outage", 150*minute, simulator.Fault{Kind: simulator.FaultReset}),
		fault("throttling", 10*minute, simulator.Fault{Kind: simulator.FaultThrottledQPS}),
		fault("Retry-After", 20*minute, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "90"}),
		fault("Retry-After", 60*minute, simulator.Fault{Kind: simulator.FaultThrottledQPS, RetryAfter: "3600"}),
		fault("ban", 5*minute, simulator.Fault{Kind: simulator.FaultBanned}),
		fault("slow responses", 60*minute, simulator.Fault{Delay: 650 * time.Millisecond}),
		fault("slow responses", 30*minute, simulator.Fault{Delay: 8300 * time.Millisecond}),
		fault("responses slower than request_timeout", 30*minute, simulator.Fault{Delay: 40 * time.Second}),
		fault("broken responses", 15*minute, simulator.Fault{Kind: simulator.FaultTruncated}),
		fault("broken responses", 15*minute, simulator.Fault{Kind: simulator.FaultHTML}),
	)
}

// mishaps are what befalls a single app.
func (w *world) mishaps(r *rand.Rand) {
	mishap := func(event string, lasts time.Duration, kind string) card {
		return card{event, func(r *rand.Rand) bool {
			a, lasts := w.someApp(r), spread(r, lasts)
			g := w.moment(a).inForce
			switch {
			case g == nil:
				return false
			case kind == "":
				w.endTokens(g.key)
			default:
				w.hosts[a.host].SetFault(g.key, simulator.Fault{Kind: kind})
				w.actors.Go(func() {
					time.Sleep(lasts)
					w.hosts[a.host].ClearFault(g.key)
				})
			}
			return true
		}}
	}
	w.deal(r, 5*time.Minute, 40*time.Minute,
		mishap("IP not allowed for one app", 20*time.Minute, simulator.FaultIPNotAllowed),
		mishap("permission denied to one app", 20*time.Minute, simulator.FaultPermissionDenied),
		mishap("one app throttled", 2*time.Hour, simulator.FaultThrottledQPS),
		mishap("token replaced by DingTalk before its time", 0, ""),
		card{"default_lease_ttl tuned", func(r *rand.Rand) bool {
			lasts := between(r, 10*time.Minute, 2*time.Hour)
			w.tuneLeases(between(r, 30*time.Second, 30*time.Minute))
			w.actors.Go(func() {
				time.Sleep(lasts)
				w.tuneLeases(untuned)
			})
			return true
		}},
	)
}

// endTokens makes DingTalk end a key's tokens, which nobody is told.
func (w *world) endTokens(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for token, t := range w.granted {
		t.ended = t.ended || t.key == key
		w.granted[token] = t
	}
	for _, host := range w.hosts {
		host.ExpireTokens(key)
	}
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

// change is what an operator does to an app's configuration.
type change struct {
	tune, secret, key, corp, verify, inFlight, remake bool
}

// operate rewrites configurations.
func (w *world) operate(r *rand.Rand) {
	does := func(event string, c change) card {
		return card{event, func(r *rand.Rand) bool {
			a, dice := w.someApp(r), rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
			if !a.writing.TryLock() {
				return false
			}
			w.actors.Go(func() {
				defer a.writing.Unlock()
				w.change(a, c, dice)
			})
			return true
		}}
	}
	w.deal(r, 5*time.Minute, 25*time.Minute,
		does("tuning", change{tune: true}),
		does("tuning in mid-flight", change{tune: true, inFlight: true}),
		does("same values again", change{}),
		does("same values again in mid-flight", change{inFlight: true}),
		does("new secret, verified", change{secret: true, verify: true}),
		does("new secret, unverified", change{secret: true}),
		does("new secret in mid-flight", change{secret: true, verify: true, inFlight: true}),
		does("new app key, verified", change{key: true, verify: true}),
		does("new app key, unverified", change{key: true}),
		does("new app key in mid-flight, unverified", change{key: true, inFlight: true}),
		does("new app key in mid-flight, verified", change{key: true, verify: true, inFlight: true}),
		does("new corp_id, verified", change{corp: true, verify: true}),
		does("new corp_id, unverified", change{corp: true}),
		does("new corp_id in mid-flight", change{corp: true, verify: true, inFlight: true}),
		does("deleted and made again", change{remake: true}),
		does("deleted and made again in mid-flight", change{remake: true, inFlight: true}),
	)
}

// change writes until it is done.
func (w *world) change(a *simulatedApp, c change, r *rand.Rand) {
	if c.inFlight {
		w.slowCall(a, r)
		time.Sleep(between(r, 0, time.Second))
	}
	g, data := a.newest, map[string]any{} // those in force, unless a write was cut short
	if c.remake {
		w.delete(a)
		data[fieldLeased], data[fieldVerifyConnection] = a.leasedFirst, r.IntN(2) == 0
		time.Sleep(between(r, 0, time.Minute))
	}
	switch {
	case c.secret || c.key:
		g = w.rotate(a, c.key)
		time.Sleep(between(r, 0, time.Minute))
		data["verify_connection"] = c.verify
	case c.corp:
		g, data["verify_connection"] = w.authorize(a, r), c.verify
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

// slowCall makes DingTalk slow for the next call of an app, and makes one.
func (w *world) slowCall(a *simulatedApp, r *rand.Rand) {
	if g := w.moment(a).inForce; g != nil {
		w.hosts[a.host].SetFault(g.key, simulator.Fault{Delay: between(r, time.Second, 8*time.Second), Times: 1})
	}
	w.actors.Go(func() { w.refresh(a) })
}

// handover is how one of Vault's servers takes over from another, or from itself after a restart.
type handover struct {
	kill, amidWrite, lead bool
	behind                time.Duration // the new instance's clock is, by up to so much; negative is ahead
}

// handOvers end the engine's instance and start the next, most times with calls in the air.
func (w *world) handOvers(r *rand.Rand) {
	does := func(event string, h handover) card {
		return card{event, func(r *rand.Rand) bool {
			for range r.IntN(10) {
				w.slowCall(w.someApp(r), r)
			}
			time.Sleep(between(r, 0, 3*time.Second))
			w.handOver(h, r)
			return true
		}}
	}
	const some = 5 * time.Minute
	w.deal(r, 30*time.Minute, 5*time.Hour,
		does("restart", handover{}),
		does("restart, clock set back", handover{behind: some}),
		does("restart, clock set forward", handover{behind: -some}),
		does("process killed", handover{kill: true}),
		does("process killed amid a config write", handover{kill: true, amidWrite: true}),
		does("leader change, old one not cleaned up", handover{lead: true}),
		does("leader change, clock behind", handover{lead: true, behind: some}),
		does("leader change, clock ahead", handover{lead: true, behind: -some}),
	)
}

func (w *world) handOver(c handover, r *rand.Rand) {
	old := w.active.Load()
	behind := c.behind / time.Second * time.Duration(r.IntN(int(time.Second)))
	down := between(r, time.Second, time.Minute)
	if c.lead {
		w.active.Store(w.newInstance(behind))
		w.actors.Go(func() {
			time.Sleep(down)
			old.tickAsVault()
			time.Sleep(down)
			old.clean()
		})
		return
	}
	if a := w.someApp(r); c.amidWrite && a.writing.TryLock() {
		dice := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		defer w.actors.Go(func() { // and the operator sees to it
			defer a.writing.Unlock()
			w.change(a, change{}, dice)
		})
		g := w.rotate(a, true)
		w.mu.Lock()
		old.killAfter = g
		w.mu.Unlock()
		w.write(a, logical.UpdateOperation, g, map[string]any{"verify_connection": r.IntN(2) == 0})
	}
	w.mu.Lock()
	old.deposed, old.killed = old.deposed || c.kill, c.kill
	w.mu.Unlock()
	w.active.Store(nil)
	if !c.kill {
		old.clean()
	}
	time.Sleep(down)
	w.active.Store(w.newInstance(behind))
	if c.kill {
		old.clean() // only because a test cannot kill goroutines
	}
}
