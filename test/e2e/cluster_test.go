// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Three Vault servers over raft storage as one cluster, any of which a test may kill. An account
// counts what readers get meanwhile: the right token, an expected error of Vault's own, or anything
// else, which fails the test.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

// clientPatience is how long a reader waits for a response: longer than any election, so that a
// wait without end is seen.
const clientPatience = 20 * time.Second

type cluster struct {
	nodes []*harness.VaultServer

	mu    sync.Mutex
	downs []downtime
}

// downtime is from just before a node was killed until it served again; a zero end is not yet.
type downtime struct {
	host     string
	from, to time.Time
}

func (d downtime) overlaps(from, to time.Time) bool {
	return d.from.Before(to) && (d.to.IsZero() || d.to.After(from))
}

// startCluster starts servers that share one raft storage, the first of them being the leader.
func startCluster(t *testing.T, size int) *cluster {
	t.Helper()
	first := harness.StartVault(t, harness.VaultOptions{Name: "node-0", Storage: harness.StorageRaft})
	c := &cluster{nodes: []*harness.VaultServer{first}}
	// A new node becomes a voter once it was stable for this long.
	_, err := first.Root.Logical().
		Write("sys/storage/raft/autopilot/configuration", harness.Fields{"server_stabilization_time": "1s"})
	require.NoError(t, err, "configure raft")
	for i := range size - 1 {
		c.nodes = append(c.nodes, harness.StartNode(t, "node-"+strconv.Itoa(i+1), first))
	}
	for _, v := range c.nodes {
		c.waitUntilServing(t, v)
	}
	harness.WaitFor(t, time.Minute, "every node votes", func() bool {
		state, err := first.Root.Sys().RaftAutopilotState()
		return err == nil && state.Healthy && len(state.Voters) == size
	})
	return c
}

// leader is the node that says it is active, if any does.
func (c *cluster) leader() *harness.VaultServer {
	for _, v := range c.nodes {
		if v.Proc == nil || !v.Proc.Running() {
			continue
		}
		if health, err := v.Root.Sys().Health(); err == nil && health.Initialized && !health.Sealed && !health.Standby {
			return v
		}
	}
	return nil
}

func (c *cluster) waitForLeader(t *testing.T) *harness.VaultServer {
	t.Helper()
	var leader *harness.VaultServer
	harness.WaitFor(t, time.Minute, "the cluster has a leader", func() bool {
		leader = c.leader()
		return leader != nil
	})
	return leader
}

// kill ends a node with SIGKILL: the server alone, whose plugin process then outlives it for a
// while as a crash of the server leaves it, or both, as a machine that loses its power does.
func (c *cluster) kill(t *testing.T, v *harness.VaultServer, withPlugin bool) {
	t.Helper()
	c.mu.Lock()
	c.downs = append(c.downs, downtime{host: strings.TrimPrefix(v.Addr, "http://"), from: time.Now()})
	c.mu.Unlock()
	if withPlugin {
		require.NoError(t, v.Proc.Kill(), "kill %s", v.Opts.Name)
		return
	}
	require.NoError(t, syscall.Kill(v.Proc.PID(), syscall.SIGKILL), "kill %s", v.Opts.Name)
}

// revive starts a killed node over its own storage and unseals it, and waits until it serves.
func (c *cluster) revive(t *testing.T, v *harness.VaultServer) {
	t.Helper()
	require.NoError(t, v.Proc.Kill(), "end what is left of %s", v.Opts.Name)
	require.NoError(t, v.Start(), "start %s again", v.Opts.Name)
	_, err := v.Root.Sys().Unseal(v.UnsealKey)
	require.NoError(t, err, "unseal %s again", v.Opts.Name)
	// Without this port Vault keeps running, and never serves.
	harness.WaitFor(
		t,
		30*time.Second,
		v.Opts.Name+" listens at "+v.ClusterAddr+", unless another program has taken that port",
		func() bool {
			connection, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", v.ClusterAddr)
			if err != nil {
				return false
			}
			return connection.Close() == nil
		},
	)
	c.waitUntilServing(t, v)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.downs[len(c.downs)-1].to = time.Now()
}

// waitUntilServing waits until a node serves requests, by itself or through the leader.
func (c *cluster) waitUntilServing(t *testing.T, v *harness.VaultServer) {
	t.Helper()
	var last error
	defer func() {
		if t.Failed() {
			t.Logf("%s responded: %v", v.Opts.Name, last)
		}
	}()
	harness.WaitFor(t, time.Minute, v.Opts.Name+" serves", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // one that hangs must not take the whole minute
		defer cancel()
		_, last = v.Root.Auth().Token().LookupSelfWithContext(ctx)
		return last == nil
	})
}

// disturbed reports whether any node was down at a moment between two.
func (c *cluster) disturbed(from, to time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.downs, func(d downtime) bool { return d.overlaps(from, to) })
}

// wasDown reports whether this node was down at a moment between two.
func (c *cluster) wasDown(host string, from, to time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.downs, func(d downtime) bool { return d.host == host && d.overlaps(from, to) })
}

// patientClients are clients as readers use them: each with connections of its own, no retries, and
// an end to its patience.
func patientClients(t *testing.T, v *harness.VaultServer, count int) []*api.Client {
	t.Helper()
	clients := make([]*api.Client, count)
	for i := range clients {
		clients[i] = v.Client(t)
		clients[i].SetClientTimeout(clientPatience)
	}
	return clients
}

// knownError is an error that a fault explains.
type knownError struct {
	kind    string // for the account
	status  int
	text    *regexp.Regexp // all of the message
	anytime bool           // it may come without a fault, by what only a busy machine did
}

func (e knownError) matches(response *api.ResponseError) bool {
	return e.status == response.StatusCode && e.text.MatchString(wording(response))
}

func wording(response *api.ResponseError) string {
	return strings.TrimSpace(strings.Join(response.Errors, "\n"))
}

// account is what many readers got.
type account struct {
	allowed []knownError
	// disturbed reports whether there was a fault between two moments: without one only what may come
	// at any time is allowed.
	disturbed func(from, to time.Time) bool
	// unreachable reports whether the fault explains that a host could not be talked to; nil means it
	// never does.
	unreachable func(host string, from, to time.Time) bool

	mu      sync.Mutex
	right   map[string]int // right tokens, by the address that was asked
	errors  map[string]int // the allowed ones, by kind
	wrong   map[string]int // everything else
	slowest time.Duration
}

func newAccount(allowed []knownError, disturbed func(from, to time.Time) bool) *account {
	return &account{
		allowed:   allowed,
		disturbed: disturbed,
		right:     map[string]int{},
		errors:    map[string]int{},
		wrong:     map[string]int{},
	}
}

// read reads an app through the client and counts the response, which must be the token or an
// allowed error. It reports whether it was the token.
func (k *account) read(client *api.Client, a *harness.App, token string) bool {
	began := time.Now()
	secret, err := client.Logical().Read(a.CredsPath())
	now := time.Now()
	kind, explained := "", false
	switch {
	case err != nil:
		var anytime bool
		kind, explained, anytime = k.explain(err, began, now)
		if explained && !anytime && !k.disturbed(began, now) {
			kind, explained = kind+", with nothing amiss", false
		}
	case secret == nil:
		kind = "an empty response"
	case harness.TokenIn(secret) != token:
		kind = "not the token of the app"
	case len(secret.Warnings) > 0:
		kind = "a warning: " + strings.Join(secret.Warnings, "; ")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.slowest = max(k.slowest, now.Sub(began))
	switch {
	case kind == "":
		k.right[client.Address()]++
		return true
	case explained:
		k.errors[kind]++
	default:
		k.wrong[harness.Mask(socketPath.ReplaceAllString(kind, "<socket>"))]++
	}
	return false
}

// explain names an error and reports whether it is one of Vault's own that are to be expected, and
// whether even without a fault.
func (k *account) explain(err error, from, to time.Time) (kind string, explained, anytime bool) {
	var response *api.ResponseError
	if errors.As(err, &response) {
		for _, known := range k.allowed {
			if known.matches(response) {
				return known.kind, true, known.anytime
			}
		}
		return fmt.Sprintf("%d %s", response.StatusCode, wording(response)), false, false
	}
	var failed *url.Error
	if !errors.As(err, &failed) {
		return err.Error(), false, false
	}
	if failed.Timeout() {
		return "no response in time: " + err.Error(), false, false
	}
	where, parseErr := url.Parse(failed.URL)
	if parseErr != nil || k.unreachable == nil || !k.unreachable(where.Host, from, to) {
		return err.Error(), false, false
	}
	return "the connection to the killed node", true, false
}

// socketPath is what differs between the errors of one plugin process and the next.
var socketPath = regexp.MustCompile(`/\S+/plugin\d+`)

// rightSoFar counts the right tokens.
func (k *account) rightSoFar() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	sum := 0
	for _, count := range k.right {
		sum += count
	}
	return sum
}

// waitForCalm waits until readers got so many more right tokens.
func (k *account) waitForCalm(t *testing.T, more int) {
	t.Helper()
	enough := k.rightSoFar() + more
	harness.WaitFor(t, 30*time.Second, "readers get tokens", func() bool { return k.rightSoFar() >= enough })
}

// requireClean requires that there were only right tokens and allowed errors, and logs how many of
// each.
func (k *account) requireClean(t *testing.T) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, address := range slices.Sorted(maps.Keys(k.right)) {
		t.Logf("%6d × the right token from %s", k.right[address], address)
	}
	t.Logf("the slowest response took %s", k.slowest.Round(time.Millisecond))
	for _, kind := range slices.Sorted(maps.Keys(k.errors)) {
		t.Logf("%6d × %s", k.errors[kind], kind)
	}
	for kind, count := range k.wrong {
		t.Errorf("%6d × neither the right token nor an error of Vault's own that the fault explains: %s", count, kind)
	}
}

// load makes every client read the apps in turn until it is stopped.
func (k *account) load(
	t *testing.T, clients []*api.Client, pause time.Duration, tokens map[*harness.App]string,
) *readers {
	t.Helper()
	apps := slices.Collect(maps.Keys(tokens))
	return startReaders(t, len(clients), pause, func(i, turn int) {
		a := apps[(i+turn)%len(apps)]
		k.read(clients[i], a, tokens[a])
	})
}

// readers read until they are stopped.
type readers struct {
	stop chan struct{}
	all  sync.WaitGroup
}

func startReaders(t *testing.T, count int, pause time.Duration, read func(i, turn int)) *readers {
	t.Helper()
	r := &readers{stop: make(chan struct{})}
	for i := range count {
		r.all.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for turn := 0; ; turn++ {
				read(i, turn)
				select {
				case <-r.stop:
					return
				case <-tick.C:
				}
			}
		})
	}
	t.Cleanup(r.end)
	return r
}

// end stops the readers and waits for them. A second call does nothing.
func (r *readers) end() {
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
	r.all.Wait()
}
