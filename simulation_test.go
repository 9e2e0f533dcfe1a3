// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file simulates the engine for a month in virtual time: 200 apps, their readers and the holders
// of their leases, an operator who rewrites configurations, Vault servers that come and go, and a
// DingTalk that fails in every way known. Every single response is checked against a ledger of what
// DingTalk gave to whom, and a table shows what it took. The world with its ledger, the actors and the
// checks have files of their own, and FuzzOperations drives the same world from bytes.
//
//	go test -run Simulation -v .                          the same seed each time
//	go test -run Simulation -v . -simulation.seed=0       a new one, which is printed
//	go test -run Simulation -v . -simulation.seed=42      what the actors did in the run with this seed
//
// The seed decides all that the actors do. What it cannot decide is the engine's own jitter.

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

var (
	seedFlag = flag.Uint64("simulation.seed", 3234222806, "seed of the simulation; 0 draws one")
	daysFlag = flag.Int("simulation.days", 1, "days of virtual time that the simulation runs for")
)

const (
	mainHost  = "http://127.0.0.1"
	otherHost = "http://127.0.0.2" // the other edition, where tokens are short-lived

	mainLifetime = 2 * time.Hour
)

// lifetimeAt is how long a host's tokens live.
func lifetimeAt(host string) time.Duration {
	if host == otherHost {
		return 20 * time.Minute
	}
	return mainLifetime
}

// crowd is a group of apps that are used alike. It is a row of the table.
type crowd struct {
	name    string
	apps    int
	every   time.Duration // between two reads of an app; zero is never
	holders int           // of leases, for each app that has them

	// What its apps saw, under world.mu.
	reads, failed, renewals, calls, callsFailed, least int

	waits          int           // reads and renewals that waited for DingTalk though there had been a token
	longest, limit time.Duration // the longest wait of a reader, and the app's request_timeout then
	shortest       time.Duration // lease at its issue
}

func TestSimulation_nothing_is_lost_and_nothing_stale_in_a_month_of_faults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		oneKey := &crowd{name: "every minute, one key", apps: 6, every: time.Minute, holders: 1}
		w := newWorld(t, []*crowd{
			{name: "every 2 seconds", apps: 1, every: 2 * time.Second},
			{name: "every minute", apps: 9, every: time.Minute, holders: 3},
			{name: "every 10 minutes", apps: 40, every: 10 * time.Minute, holders: 1},
			{name: "every hour", apps: 60, every: time.Hour, holders: 1},
			{name: "every 6 hours", apps: 50, every: 6 * time.Hour},
			{name: "once a day", apps: 33, every: 24 * time.Hour},
			oneKey,
			{name: "never", apps: 1},
		})
		var first *simulatedApp
		for n, a := range w.apps {
			a.leasedFirst = n%3 != 0
			a.asksForMore = n%5 == 2
			if n%8 == 1 {
				a.host = otherHost
			}
			a.rotating = n%7 == 3
			switch {
			case a.crowd == oneKey: // in several organizations, which differ by corp_id
				first = cmp.Or(first, a)
				a.twin, first.twin = first, a
				a.host, a.rotating, a.corp = mainHost, false, organizations[n%len(organizations)]
			case n%9 == 4: // two apps of the engine share an app key, as where one is leased and one is not
				twin := w.apps[n-1]
				a.twin, twin.twin = twin, a
				a.host, a.rotating = twin.host, twin.rotating
			}
			w.configure(a)
		}
		w.use()
		for host := range w.hosts {
			w.act("weather "+host, func(r *rand.Rand) { w.weather(host, r) })
		}
		w.act("mishaps", w.mishaps)
		w.act("operator", w.operate)
		w.act("handovers", w.handOvers)
		w.end()

		t.Log(w.table())
		require.Zero(t, w.crowds[len(w.crowds)-1].calls, "calls for an app that nobody reads")
		for event, times := range w.events {
			if *daysFlag < 10 {
				break // not every card is dealt by then
			}
			require.NotZero(t, times, "it never came to %q: the simulation is too short", event)
		}
	})
}

func TestSimulation_without_faults_DingTalk_gets_the_fewest_calls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		unleased := &crowd{name: "unleased", apps: 1, every: 10 * time.Second}
		leased := &crowd{name: "leased", apps: 1, every: 10 * time.Second}
		renewed := &crowd{name: "renewed", apps: 1, every: 10 * time.Second, holders: 5}
		idle := &crowd{name: "never", apps: 1}
		w := newWorld(t, []*crowd{unleased, leased, renewed, idle})
		for _, a := range w.apps {
			a.leasedFirst = a.crowd != unleased
			w.configure(a)
		}
		w.hosts[mainHost].SetFault(simulator.AnyApp, simulator.Fault{Delay: time.Second})
		w.use()
		w.end()

		t.Log(w.table())
		const pass = time.Minute + time.Minute/5 // of the background, at most
		span := time.Duration(*daysFlag) * 24 * time.Hour
		for c, ahead := range map[*crowd]time.Duration{
			unleased: mainLifetime * 3 / 4, leased: mainLifetime / 2, renewed: mainLifetime / 2,
		} {
			apart := ahead - time.Minute
			require.LessOrEqual(t, c.calls, int((span+apart-1)/apart)+1, c.name)
			require.GreaterOrEqual(t, c.calls, int(span/(ahead+pass)), "%s: refreshed ahead", c.name)
			require.GreaterOrEqual(t, c.calls, c.least, c.name)
			require.Zero(t, c.failed, c.name)
			require.Zero(t, c.callsFailed, c.name)
		}
		require.Zero(t, idle.calls)
		require.Zero(t, unleased.waits, "nobody waits but for the very first token")
		require.Less(t, leased.waits, leased.calls/10, "readers wait only where a pass of the background came late")
		for _, c := range []*crowd{leased, renewed} { // another reader waits for the call that takes a second
			require.GreaterOrEqual(t, c.shortest, mainLifetime/2-time.Minute, c.name)
		}
	})
}

func TestSimulation_an_outage_of_nearly_half_the_lifetime_fails_no_read_and_no_renewal(t *testing.T) {
	t.Parallel()
	for mode, outage := range map[string]time.Duration{"leased": 58 * time.Minute, "unleased": 28 * time.Minute} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, []*crowd{
					{name: mode + ", every 10 seconds", apps: 2, every: 10 * time.Second, holders: 1},
					{name: mode + ", every minute", apps: 3, every: time.Minute, holders: 2},
				})
				outages := min(200, 10**daysFlag)
				w.ends = w.begins.AddDate(1, 0, 0)
				for _, a := range w.apps {
					a.leasedFirst = mode == "leased"
					w.configure(a)
				}
				w.use()
				w.act("outages", func(r *rand.Rand) {
					for range outages {
						w.sleep(5*time.Minute + between(r, 0, mainLifetime))
						kinds := []simulator.Fault{
							{Kind: simulator.FaultReset},
							{Kind: simulator.FaultHang},
							{Kind: simulator.FaultUnavailableEmpty},
							{Kind: simulator.FaultThrottledQPS},
							{Delay: time.Minute},
						}
						w.hosts[mainHost].SetFault(simulator.AnyApp, kinds[r.IntN(len(kinds))])
						w.sleep(outage)
						w.hosts[mainHost].ClearFault(simulator.AnyApp)
					}
					w.sleep(5 * time.Minute)
					w.stopped.Store(true)
				})
				w.end()

				t.Log(w.table())
				for _, c := range w.crowds {
					require.Zero(t, c.failed, "%s: %v", c.name, w.reasons)
				}
			})
		})
	}
}

// table shows what the simulation took.
func (w *world) table() string {
	var text strings.Builder
	out := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(out, "%d days, seed %d, promises broken: %d\n\n", *daysFlag, w.seed, w.broken)
	fmt.Fprintln(out, "apps read\tapps\treads\tfailed\trenewals\tupstream calls\t"+
		"of these failed\tleast possible\twaited\tlongest wait\t")
	for _, c := range w.crowds {
		fmt.Fprintf(out, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.3f s of %s\t\n", c.name, c.apps, c.reads, c.failed,
			c.renewals, c.calls, c.callsFailed, c.least, c.waits, c.longest.Seconds(), c.limit+time.Second)
	}
	section := func(title string, counts map[string]int) {
		fmt.Fprintf(out, "\n%s\t\n", title)
		for _, name := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(out, "%s\t%d\t\n", name, counts[name])
		}
	}
	section("reads and renewals that failed, having no token, for", w.reasons)
	section("what happened", w.events)
	section("handed out, which nobody could know better", w.unknowable)
	_ = out.Flush() // it writes to memory
	return text.String()
}
