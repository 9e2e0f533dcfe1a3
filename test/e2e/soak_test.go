// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Load over a long time: many clients read many apps whose tokens live for half a minute, while
// DingTalk fails one call in ten. Every response is checked, and the memory, goroutines and files
// of the plugin's process must not grow.

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

const (
	soakEnv  = "E2E_SOAK"      // how long the load is held, such as 15m
	seedEnv  = "E2E_SOAK_SEED" // repeats the choices of a run, though not its timing
	soakTime = 2 * time.Minute

	soakApps     = 500
	soakClients  = 100
	soakLifetime = 30 * time.Second
	soakFailures = 10                     // one call in so many
	soakPause    = 250 * time.Millisecond // between two requests of one client
)

// upstreamErrors are the engine's errors for an app that has no token, by what DingTalk did.
var upstreamErrors = []knownError{
	{
		kind:   "credentials rejected",
		status: http.StatusBadRequest,
		text:   regexp.MustCompile(`DingTalk rejected the credentials of app "`),
	},
	{
		kind:   "IP not allowed",
		status: http.StatusBadRequest,
		text:   regexp.MustCompile(`DingTalk does not allow Vault's IP address for app "`),
	},
	{
		kind:   "request rejected",
		status: http.StatusBadRequest,
		text:   regexp.MustCompile(`DingTalk rejected the token request for app "`),
	},
	{
		kind:   "throttled",
		status: http.StatusBadGateway,
		text:   regexp.MustCompile(`DingTalk throttles the token requests for app "`),
	},
	{
		kind:   "unavailable",
		status: http.StatusBadGateway,
		text:   regexp.MustCompile(`DingTalk could not serve the token request for app "`),
	},
	{
		kind: "unreachable or too slow", status: http.StatusBadGateway,
		text: regexp.MustCompile(`could not get a token for app ".*" from `),
	},
	{
		kind:   "redirected",
		status: http.StatusBadGateway,
		text:   regexp.MustCompile(`answered the token request for app ".*" with a redirect`),
	},
	{
		kind:   "malformed response",
		status: http.StatusBadGateway,
		text:   regexp.MustCompile(`answered the token request for app ".*" with something that is not a token`),
	},
	{
		kind:   "ran out on the way",
		status: http.StatusServiceUnavailable,
		text:   regexp.MustCompile(`the token expired while it was being handed out`),
	},
}

func TestSoak_holds_its_promises_under_load_and_takes_no_more_over_time(t *testing.T) {
	t.Parallel()
	duration, seed := soakSettings(t)
	t.Logf("%s of %d clients over %d apps, seed %d", duration, soakClients, soakApps, seed)

	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	m, process := enableMeasured(t, v)
	dt := startUnreliableDingTalk(t, soakLifetime, soakFailures, seed)
	s := &soak{v: v, dt: dt, started: time.Now(), errors: map[string]int{}, wrong: map[string]int{}}
	for i := range soakApps {
		a := m.NewApp(t, dt.DingTalk, harness.Fields{"leased": i%2 == 0, "request_timeout": "3s"})
		dt.RotateTokens(a.Key, i%5 == 0) // DingTalk is not said to do that, but a lease has to end if it does
		s.apps = append(s.apps, a)
	}
	idle := process.usage(t)

	clients := make([]*soakClient, soakClients)
	for i, client := range patientClients(t, v, soakClients) {
		clients[i] = &soakClient{soak: s, client: client, random: rand.New(rand.NewPCG(seed, uint64(i)+1))}
	}
	s.started = time.Now()
	load := startReaders(t, soakClients, soakPause, func(i, turn int) { clients[i].turn(turn) })
	rows := s.observe(t, process, duration)
	load.end()
	s.held = time.Since(s.started)

	s.report(t, rows)
	s.requireTruth(t)
	s.requireFlat(t, rows)

	// Idle connections to DingTalk are kept for a while, one more than there are processors, each by
	// two goroutines.
	kept := int64(runtime.NumCPU() + 1)
	var after usage
	harness.WaitFor(t, time.Minute, "the load over, its goroutines and files go", func() bool {
		after = process.usage(t)
		return after.goroutines <= idle.goroutines+2*kept+1 && after.files <= idle.files+kept+1
	})
	t.Logf("before the load and after it: %d and %d goroutines, %.1f and %.1f MiB of heap, %d and %d open files",
		idle.goroutines, after.goroutines, mib(idle.heapBytes), mib(after.heapBytes), idle.files, after.files)
}

func soakSettings(t *testing.T) (duration time.Duration, seed uint64) {
	t.Helper()
	duration, seed = soakTime, 1
	var err error
	if given := os.Getenv(soakEnv); given != "" { // what is drawn is for who asks for more than the tests
		seed = rand.Uint64()
		duration, err = time.ParseDuration(given)
		require.NoError(t, err, soakEnv)
		require.GreaterOrEqual(t, duration, time.Minute, soakEnv)
	}
	if given := os.Getenv(seedEnv); given != "" {
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err, seedEnv)
	}
	return duration, seed
}

// soak is the load and its results.
type soak struct {
	v       *harness.VaultServer
	dt      *unreliable
	apps    []*harness.App // every other one leased
	started time.Time
	held    time.Duration // how long the load was held

	mu       sync.Mutex
	reads    int
	renewals int
	warned   int            // tokens that came with a warning, as they could not be refreshed
	ended    int            // renewals that ended a lease, its token having been replaced
	failed   int            // errors for want of a token
	errors   map[string]int // the same by kind
	wrong    map[string]int // whatever breaks a promise
	slowest  time.Duration
	shortest time.Duration // the lowest remaining TTL of a token on its arrival, below a full one
}

// soakClient is one of the clients: mostly it reads an app, now and then it renews the lease that
// it got last.
type soakClient struct {
	*soak
	client *api.Client
	random *rand.Rand
	lease  *heldLease
}

type heldLease struct {
	*harness.App
	id, token string
	ends      time.Time // no earlier than so
}

func (c *soakClient) turn(turn int) {
	if turn == 0 {
		time.Sleep(time.Duration(c.random.Int64N(int64(soakPause)))) // otherwise all clients ask at the same moment forever
	}
	if c.lease != nil && c.random.IntN(10) == 0 {
		c.renew(c.lease)
		return
	}
	i := c.random.IntN(len(c.apps))
	c.read(c.apps[i], i%2 == 0)
}

func (c *soakClient) read(a *harness.App, leased bool) {
	usable, began := c.dt.usableUntil(a.Key), time.Now()
	secret, err := c.client.Logical().Read(a.CredsPath())
	now := time.Now()
	if err != nil || secret == nil {
		c.refused(a, err, usable, began)
		return
	}
	token := harness.TokenIn(secret)
	left := c.dt.Remaining(token)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	c.slowest = max(c.slowest, now.Sub(began))
	c.warned += min(1, len(secret.Warnings))
	if c.shortest == 0 || left < c.shortest {
		c.shortest = left
	}
	if c.dt.owner(token) != a.Key {
		c.wrong["a token that is not the app's"]++
	}
	if left <= 0 {
		c.wrong["an expired token"]++
	}
	if leased {
		if outlives(secret, left, now.Sub(began)) {
			c.wrong["a lease that outlives its token"]++
		}
		c.lease = &heldLease{App: a, id: secret.LeaseID, token: token, ends: began.Add(leaseTTL(secret))}
		return
	}
	said, err := time.Parse(time.RFC3339, fmt.Sprint(secret.Data["expires_at"]))
	if err != nil || said.After(now.Add(left+time.Second)) {
		c.wrong["an expires_at after the token's end"]++
	}
	if secret.LeaseID != "" {
		c.wrong["a lease that was not asked for"]++
	}
}

func (c *soakClient) renew(held *heldLease) {
	usable, began := c.dt.usableUntil(held.Key), time.Now()
	renewal, err := c.client.Sys().Renew(held.id, 0)
	now := time.Now()
	c.lease = nil
	if err != nil && (leaseOver.MatchString(err.Error()) && !now.Before(held.ends.Add(-time.Second)) ||
		pastEnd.MatchString(err.Error()) && c.dt.Remaining(held.token) < 2*time.Second) {
		return
	}
	if err != nil || renewal == nil {
		c.refused(held.App, err, usable, began)
		return
	}
	left := c.dt.Remaining(held.token)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renewals++
	c.slowest = max(c.slowest, now.Sub(began))
	switch {
	case leaseTTL(renewal) == time.Second && len(renewal.Warnings) > 0:
		c.ended++
	case outlives(renewal, left, now.Sub(began)):
		c.wrong["a renewed lease that outlives its token"]++
	default:
		held.ends = began.Add(leaseTTL(renewal))
		c.lease = held
	}
}

// outlives reports whether a lease certainly ends after its token: counted from when it was asked
// for, though it began later.
func outlives(lease *api.Secret, left, took time.Duration) bool {
	return leaseTTL(lease) > left+took+time.Second
}

var (
	// leaseOver is how Vault refuses to renew a lease that has ended.
	leaseOver = regexp.MustCompile(`lease not found|lease expired|lease is not renewable`)
	// pastEnd is how it refuses one whose token ran out between the plugin's response and its own sum.
	pastEnd = regexp.MustCompile(`past the max TTL, cannot renew`)
)

// refused counts an error: there may only be one where the engine had no token to serve.
func (c *soakClient) refused(a *harness.App, err error, usable, began time.Time) {
	now := time.Now()
	kind, text := "an empty response", ""
	known := false
	var response *api.ResponseError
	switch {
	case errors.As(err, &response):
		text = strings.Join(response.Errors, "\n")
		kind = fmt.Sprintf("%d %s", response.StatusCode, text)
		for _, e := range upstreamErrors {
			asRead := response.StatusCode == e.status
			asRenewal := response.StatusCode == http.StatusBadRequest &&
				strings.HasPrefix(text, "failed to renew entry: ") // Vault's doing
			named := strings.Contains(text, a.Name) || e.status == http.StatusServiceUnavailable
			if (asRead || asRenewal) && named && e.text.MatchString(text) {
				kind, known = e.kind, true
			}
		}
	case err != nil:
		kind = err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slowest = max(c.slowest, now.Sub(began))
	if strings.Contains(text, a.Secret) ||
		text != "" && c.dt.LastToken(a.Key) != "" && strings.Contains(text, c.dt.LastToken(a.Key)) {
		c.wrong["a secret in an error"]++
	}
	switch {
	case !known:
		c.wrong["an error of another kind: "+harness.Mask(kind)]++
	case now.Before(usable):
		c.wrong["an error although a token was there: "+kind]++
	default:
		c.failed++
		c.errors[kind]++
	}
}

// soakRow is what was seen in one interval: counts since the start, and the least that the process
// took.
type soakRow struct {
	at                                     time.Duration
	reads, renewals, errors, calls, faults int
	leases                                 int
	usage
}

// observe watches for the whole time, and returns one row for each interval.
func (s *soak) observe(t *testing.T, process measured, duration time.Duration) []soakRow {
	t.Helper()
	interval := max(10*time.Second, duration/30)
	looks := time.NewTicker(interval / 10)
	defer looks.Stop()
	var rows []soakRow
	for end := interval; end <= duration; end += interval {
		least := process.usage(t)
		for time.Since(s.started) < end {
			<-looks.C
			least = least.least(process.usage(t))
		}
		row := soakRow{at: end, leases: leaseCount(t, s.v), usage: least}
		row.calls, row.faults = s.dt.counts()
		s.mu.Lock()
		row.reads, row.renewals, row.errors = s.reads, s.renewals, s.failed
		s.mu.Unlock()
		rows = append(rows, row)
	}
	return rows
}

func (s *soak) report(t *testing.T, rows []soakRow) {
	t.Helper()
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(
		table,
		"time\treads\treads/s\trenewals\terrors\tupstream\tof it failed\tleases\tgoroutines\theap MiB\tRSS MiB\tthreads\tfiles\t",
	)
	var before soakRow
	for _, r := range rows {
		fmt.Fprintf(
			table,
			"%s\t%d\t%.0f\t%d\t%d\t%d\t%d\t%d\t%d\t%.1f\t%.1f\t%d\t%d\t\n",
			r.at,
			r.reads-before.reads,
			float64(r.reads-before.reads)/(r.at-before.at).Seconds(),
			r.renewals-before.renewals,
			r.errors-before.errors,
			r.calls-before.calls,
			r.faults-before.faults,
			r.leases,
			r.goroutines,
			mib(r.heapBytes),
			mib(r.rssBytes),
			r.threads,
			r.files,
		)
		before = r
	}
	_ = table.Flush()
	t.Logf("what came in each interval, and the least that the process took in it:\n%s", text.String())

	s.mu.Lock()
	defer s.mu.Unlock()
	calls, failed := s.dt.counts()
	perApp := float64(s.held) / float64(soakLifetime-soakLifetime/4)
	t.Logf(
		"%d reads (%d with a warning), %d renewals (%d ended a lease); the slowest response after %s, the lowest remaining TTL on arrival %s",
		s.reads,
		s.warned,
		s.renewals,
		s.ended,
		s.slowest.Round(time.Millisecond),
		s.shortest.Round(time.Millisecond),
	)
	t.Logf("%d calls upstream, of them %d made to fail; without any failure, %d apps read all the time need about %.0f",
		calls, failed, soakApps, perApp*soakApps)
	t.Logf("%d errors, each while the app had no token to serve:", s.failed)
	for _, kind := range slices.Sorted(maps.Keys(s.errors)) {
		t.Logf("%6d × %s", s.errors[kind], kind)
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// requireTruth checks that no response was wrong, and that the run was one: enough of everything
// that it is about.
func (s *soak) requireTruth(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, count := range s.wrong {
		t.Errorf("%6d × %s", count, kind)
	}
	for _, a := range s.apps {
		early, failed := s.dt.earlyCalls(a.Key)
		if len(early) == 0 {
			continue
		}
		// On a machine that stands still a good response can arrive too late for the engine, which counts
		// a failure then.
		counted, err := a.Status(t)["upstream_failures"].(json.Number).Int64()
		require.NoError(t, err)
		assert.LessOrEqual(
			t,
			len(early),
			int(counted)-failed,
			"calls for a token with more than half of its TTL remaining: %s",
			early,
		)
	}
	calls, failed := s.dt.counts()
	s.dt.mu.Lock()
	defer s.dt.mu.Unlock()
	assert.Empty(
		t,
		s.dt.broken[:min(len(s.dt.broken), 10)],
		"%d times the engine asked DingTalk for more than it may",
		len(s.dt.broken),
	)
	for _, kind := range s.dt.kinds {
		assert.Positive(t, s.dt.failed[kind], "calls that failed by %s", kind)
	}
	assert.InDelta(t, 1.0/soakFailures, float64(failed)/float64(calls), 0.03, "the share of failing calls")
	assert.Positive(t, s.failed, "apps without a token")
	assert.Positive(t, s.warned, "tokens that could not be refreshed")
	assert.Positive(t, s.renewals-s.ended, "leases that were renewed")
	assert.Positive(t, s.ended, "leases whose token was replaced")
	assert.Greater(t, s.reads, int(s.held.Seconds())*soakClients/2, "reads")
}

// requireFlat checks that what the process takes does not grow once it is warm: a straight line
// through the figures of the intervals rises by no more, from the first to the last, than a leak
// worth the name would.
func (s *soak) requireFlat(t *testing.T, rows []soakRow) {
	t.Helper()
	warm := min(time.Minute, rows[len(rows)-1].at/4)
	rows = slices.DeleteFunc(slices.Clone(rows), func(r soakRow) bool { return r.at <= warm })
	require.Greater(t, len(rows), 3)
	for _, figure := range []struct {
		name     string
		of       func(r soakRow) float64
		share    float64 // of the mean that it may rise by
		absolute float64 // and what it may rise by in any case
	}{
		{"goroutines", func(r soakRow) float64 { return float64(r.goroutines) }, 0.05, 5},
		{"MiB of heap", func(r soakRow) float64 { return mib(r.heapBytes) }, 0.05, 0.5},
		{"MiB of resident memory", func(r soakRow) float64 { return mib(r.rssBytes) }, 0.05, 2},
		{"threads", func(r soakRow) float64 { return float64(r.threads) }, 0, 2},
		{"open files", func(r soakRow) float64 { return float64(r.files) }, 0, 3},
	} {
		var figures []float64
		for _, r := range rows {
			figures = append(figures, figure.of(r))
		}
		mean, rise := trend(figures)
		allowed := max(figure.absolute, figure.share*mean)
		t.Logf(
			"%s: %.1f on the average, a trend of %+.2f from %s to %s; allowed is +%.2f",
			figure.name,
			mean,
			rise,
			rows[0].at,
			rows[len(rows)-1].at,
			allowed,
		)
		assert.LessOrEqual(t, rise, allowed, "the rise in %s", figure.name)
	}
}

// trend is the mean of the figures, and by how much the straight line that fits them best rises
// from the first to the last.
func trend(figures []float64) (mean, rise float64) {
	n := float64(len(figures))
	for _, y := range figures {
		mean += y / n
	}
	var above, below float64
	for i, y := range figures {
		x := float64(i) - (n-1)/2
		above += x * (y - mean)
		below += x * x
	}
	return mean, above / below * (n - 1)
}

// leaseCount is how many leases Vault holds, by its own metrics.
func leaseCount(t *testing.T, v *harness.VaultServer) int {
	t.Helper()
	reply := v.HTTP(t, http.MethodGet, "sys/metrics", "", "")
	require.Equal(t, http.StatusOK, reply.Status)
	var metrics struct {
		Gauges []struct {
			Name  string
			Value float64
		}
	}
	require.NoError(t, json.Unmarshal([]byte(reply.Body), &metrics))
	for _, gauge := range metrics.Gauges {
		if strings.HasSuffix(gauge.Name, "expire.num_leases") {
			return int(gauge.Value)
		}
	}
	return 0
}
