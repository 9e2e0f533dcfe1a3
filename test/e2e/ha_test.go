// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A cluster whose leaders are killed under load. Every acknowledged config and token must survive,
// and DingTalk must not get more calls.

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

// leaderless are the errors that Vault itself returns while its cluster has no leader, or the
// node that was asked does not know it yet. In addition there is what a client sees of a node that
// is dead: a connection refused, reset or ended. A busy machine can hold a leader up until the
// others elect another one, though nobody has killed it.
var leaderless = []knownError{
	{
		kind:    "the node knows of no leader",
		status:  http.StatusInternalServerError,
		text:    regexp.MustCompile(`^local node not active but active cluster node not found$`),
		anytime: true,
	},
	{
		kind:    "the node knows of no leader to redirect to",
		status:  http.StatusServiceUnavailable,
		text:    regexp.MustCompile(`^no active Vault instance found$`),
		anytime: true,
	},
	{
		kind:   "the node is still sealed after its start",
		status: http.StatusServiceUnavailable,
		text:   regexp.MustCompile(`^Vault is sealed$`),
	},
	// Vault's log has "node is not the leader" then.
	{
		kind:    "the leader stopped leading over the request",
		status:  http.StatusInternalServerError,
		text:    regexp.MustCompile(`^1 error occurred:\n\t\* internal error$`),
		anytime: true,
	},
}

func TestHA_ten_killed_leaders_lose_no_config_and_cost_no_call(t *testing.T) {
	t.Parallel()
	const kills = 10
	const readersPerNode = 4
	c := startCluster(t, 3)
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := c.waitForLeader(t).Enable(t)

	var apps []*harness.App
	tokens := map[*harness.App]string{}
	for i := range 8 {
		a := m.NewApp(t, dt, harness.Fields{"leased": i%2 == 0, "refresh_before": 100 + i})
		tokens[a] = a.Token(t)
		apps = append(apps, a)
	}
	calls := len(apps)
	require.Equal(t, calls, dt.Requests("*"))

	got := newAccount(leaderless, c.disturbed)
	got.unreachable = c.wasDown
	var clients []*api.Client
	for _, v := range c.nodes {
		clients = append(clients, patientClients(t, v, readersPerNode)...)
	}
	load := got.load(t, clients, 20*time.Millisecond, tokens)
	written := startWriter(t, c, m)

	for round := range kills {
		got.waitForCalm(t, 200)
		leader := c.waitForLeader(t)
		killed := time.Now()
		c.kill(t, leader, round%2 == 0)
		next := c.waitForLeader(t)
		elected := time.Since(killed)

		at := &harness.Mount{Vault: next, Path: m.Path}
		for _, a := range apps {
			here := *a
			here.Mount = at
			harness.RequireSameToken(
				t,
				harness.TokenIn(onceLed(t, here.TryRead)),
				tokens[a],
			) // the first read by the new leader serves the stored token
		}
		require.Equal(t, calls, dt.Requests("*"), "no call upstream after election %d", round+1)
		acknowledged := written.check(t, at, false)
		for _, v := range c.nodes {
			if v != leader {
				c.waitUntilServing(t, v)
			}
		}
		survived := time.Since(killed)
		outlived := len(processesRunning(t, leader.PluginPath))
		c.revive(t, leader)
		t.Logf(
			"election %d: a new leader after %s, both survivors serve after %s, the killed node after %s; %d configs acknowledged; plugin processes that outlived their server: %d",
			round+1,
			elected.Round(10*time.Millisecond),
			survived.Round(10*time.Millisecond),
			time.Since(killed).Round(10*time.Millisecond),
			acknowledged,
			outlived,
		)
	}
	got.waitForCalm(t, 200)
	load.end()
	written.end()

	for _, v := range c.nodes {
		at := &harness.Mount{Vault: v, Path: m.Path}
		for i, a := range apps {
			config := configOnceLed(t, at, a)
			require.Equal(t, a.Key, config["app_key"])
			require.Equal(t, i%2 == 0, config["leased"])
			require.Equal(t, time.Duration(100+i)*time.Second, harness.Seconds(t, config["refresh_before"]))
		}
		written.check(t, at, true)
	}
	require.Equal(t, calls, dt.Requests("*"), "no call upstream in all that time")
	for _, v := range c.nodes {
		require.Greater(t, got.right[v.Addr], 200, "reads from every address")
	}
	got.requireClean(t)
}

// onceLed reads, and reads again while the cluster has no leader.
func onceLed(t *testing.T, read func() (*api.Secret, error)) *api.Secret {
	t.Helper()
	var secret *api.Secret
	var err error
	harness.WaitFor(t, time.Minute, "the cluster has a leader", func() bool {
		secret, err = read()
		var response *api.ResponseError
		return !errors.As(err, &response) ||
			!slices.ContainsFunc(leaderless, func(known knownError) bool { return known.matches(response) })
	})
	require.NoError(t, err)
	require.NotNil(t, secret)
	return secret
}

// configOnceLed is an app's stored config.
func configOnceLed(t *testing.T, m *harness.Mount, a *harness.App) map[string]any {
	t.Helper()
	return onceLed(t, func() (*api.Secret, error) { return m.Vault.Root.Logical().Read(a.ConfigPath()) }).Data
}

// writer creates apps all the time, each verified at a DingTalk of its own, and remembers what the
// cluster acknowledged.
type writer struct {
	*readers
	dt *harness.DingTalk

	mu      sync.Mutex
	acks    []*acknowledged
	checked int // how many of them a check has seen already
	failed  int
}

// acknowledged is an app whose config the cluster said it stored, with its first token.
type acknowledged struct {
	*harness.App
	token string
	calls int
}

func startWriter(t *testing.T, c *cluster, m *harness.Mount) *writer {
	t.Helper()
	w := &writer{dt: harness.StartDingTalk(t, harness.FullLifetime)}
	var clients []*api.Client
	for _, v := range c.nodes {
		clients = append(clients, patientClients(t, v, 1)...)
	}
	w.readers = startReaders(t, 1, 250*time.Millisecond, func(_, turn int) {
		a := m.UnstoredApp(w.dt)
		_, err := clients[turn%len(clients)].Logical().Write(a.ConfigPath(), a.Config())
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			w.failed++ // whether it took effect is unknown, and nobody was told that it did
			return
		}
		token := w.dt.LastToken(a.Key)
		harness.NoteSecret(token, "an access token")
		w.acks = append(w.acks, &acknowledged{App: a, token: token, calls: a.Calls()})
	})
	return w
}

// check reads what was acknowledged since the last check, or ever, at a node, and counts it.
func (w *writer) check(t *testing.T, at *harness.Mount, all bool) int {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	from := w.checked
	if all {
		from = 0
	}
	for _, ack := range w.acks[from:] {
		here := *ack.App
		here.Mount = at
		require.Equal(t, ack.Key, configOnceLed(t, at, &here)["app_key"], "an acknowledged config")
		first := harness.TokenIn(onceLed(t, here.TryRead)) // it was stored with the app
		harness.RequireSameToken(t, first, ack.token)
		require.Equal(t, ack.calls, here.Calls(), "no call upstream")
	}
	w.checked = len(w.acks)
	require.NotEmpty(t, w.acks, "%d writes failed", w.failed)
	return len(w.acks)
}
