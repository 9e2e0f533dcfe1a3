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
	daysFlag = flag.Int("simulation.days", 2, "days of virtual time that the simulation runs for")
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
}

func TestSimulation_nothing_is_lost_and_nothing_stale_in_a_month_of_faults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, []*crowd{
			{name: "every second", apps: 1, every: time.Second},
			{name: "every minute", apps: 9, every: time.Minute, holders: 3},
			{name: "every 10 minutes", apps: 40, every: 10 * time.Minute, holders: 1},
			{name: "every hour", apps: 60, every: time.Hour, holders: 1},
			{name: "every 6 hours", apps: 50, every: 6 * time.Hour},
			{name: "once a day", apps: 39, every: 24 * time.Hour},
			{name: "never", apps: 1},
		})
		for n, a := range w.apps {
			a.leasedFirst = n%3 != 0
			a.asksForMore = n%5 == 2
			if n%8 == 1 {
				a.host = otherHost
			}
			a.rotating = n%7 == 3
			if n%9 == 4 { // two apps of the engine share an app key, as where one is leased and one is not
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
		read := &crowd{name: "read", apps: 1, every: 10 * time.Second}
		renewed := &crowd{name: "renewed", apps: 1, every: 10 * time.Second, holders: 5}
		idle := &crowd{name: "never", apps: 1}
		w := newWorld(t, []*crowd{read, renewed, idle})
		for _, a := range w.apps {
			a.leasedFirst = a.crowd == renewed
			w.configure(a)
		}
		w.hosts[mainHost].SetFault(simulator.AnyApp, simulator.Fault{Delay: time.Second})
		w.use()
		w.end()

		t.Log(w.table())
		span := time.Duration(*daysFlag) * 24 * time.Hour
		atMost := func(apart time.Duration) int { return int((span+apart-1)/apart) + 1 }
		require.LessOrEqual(t, read.calls, atMost(mainLifetime-defaultRefreshBefore-3*time.Minute))
		require.LessOrEqual(t, renewed.calls, atMost(mainLifetime/2))
		require.Zero(t, idle.calls)
		for _, c := range []*crowd{read, renewed} {
			require.GreaterOrEqual(t, c.calls, c.least)
			require.Zero(t, c.failed)
			require.Zero(t, c.callsFailed)
		}
		require.Zero(t, read.waits, "nobody waits but for the very first token")
	})
}

// table shows what the simulation took.
func (w *world) table() string {
	var text strings.Builder
	out := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(out, "%d days, seed %d, promises broken: %d\n\n", *daysFlag, w.seed, w.broken)
	fmt.Fprintln(out, "apps read\tapps\treads\tfailed\trenewals\tupstream calls\t"+
		"of these failed\tleast possible\tlongest wait\t")
	for _, c := range w.crowds {
		fmt.Fprintf(out, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.3f s of %s\t\n", c.name, c.apps, c.reads, c.failed,
			c.renewals, c.calls, c.callsFailed, c.least, c.longest.Seconds(), c.limit+time.Second)
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
