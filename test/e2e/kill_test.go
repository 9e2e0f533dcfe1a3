// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The plugin's process is killed under load, again and again, as the kernel kills one that uses too
// much memory. Vault starts another, which must continue from storage as if nothing happened.

import (
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

// pluginDead are the errors that Vault itself returns for requests that were under way in the
// plugin's process when that died, or that come before Vault knows of its end. A request after that
// waits until Vault has started another process.
var pluginDead = []knownError{
	{
		kind:   "the plugin died over the request",
		status: http.StatusInternalServerError,
		text:   unavailable(`error reading from server: EOF`),
	},
	{
		kind:   "the plugin died over the request: reset",
		status: http.StatusInternalServerError,
		text:   unavailable(`error reading from server: read unix @->\S+: read: connection reset by peer`),
	},
	{
		kind:   "the plugin had just died",
		status: http.StatusInternalServerError,
		text: unavailable(
			`connection error: desc = "transport: error while dialing: dial unix \S+: connect: connection refused"`,
		),
	},
	{
		kind:   "the plugin is known to be dead",
		status: http.StatusInternalServerError,
		text:   regexp.MustCompile(`^1 error occurred:\n\t\* plugin is shut down$`),
	},
	{
		kind:   "the plugin died over the handshake",
		status: http.StatusInternalServerError,
		text: unavailable(
			`connection error: desc = "transport: authentication handshake failed: (EOF|(read|write) unix @?->\S+: (read|write): (connection reset by peer|broken pipe))"`,
		),
	},
}

// unavailable is how Vault words an error of its connection to a plugin.
func unavailable(cause string) *regexp.Regexp {
	return regexp.MustCompile(`^1 error occurred:\n\t\* rpc error: code = Unavailable desc = ` + cause + `$`)
}

func TestPlugin_killed_fifty_times_serves_the_stored_tokens_at_no_call(t *testing.T) {
	t.Parallel()
	const kills = 50
	const readersAtOnce = 16
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	// Two mounts share the process, so that two backends find it dead at the same time.
	mounts := []*harness.Mount{v.Enable(t), v.Enable(t)}
	var apps []*harness.App
	tokens := map[*harness.App]string{}
	for i := range 8 {
		a := mounts[i%2].NewApp(t, dt, harness.Fields{"leased": i%4 < 2})
		tokens[a] = a.Token(t)
		apps = append(apps, a)
	}
	calls := len(apps)

	var dead atomic.Bool         // from just before a kill until all apps are served again
	var servedSince atomic.Int64 // when that was, in nanoseconds
	got := newAccount(pluginDead, func(from, _ time.Time) bool {
		return dead.Load() || from.UnixNano() <= servedSince.Load()
	})
	clients := patientClients(t, v, readersAtOnce)
	load := got.load(t, clients, 5*time.Millisecond, tokens)

	random := rand.New(rand.NewPCG(1, 0))
	var longest time.Duration
	for range kills {
		got.waitForCalm(t, 50+random.IntN(200))
		pid := v.PluginPID(t)
		began := time.Now()
		dead.Store(true)
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		for _, a := range apps {
			harness.WaitFor(
				t,
				20*time.Second,
				"the app is served again",
				func() bool { return got.read(clients[0], a, tokens[a]) },
			)
		}
		longest = max(longest, time.Since(began))
		require.NotEqual(t, pid, v.PluginPID(t), "another process serves")
		servedSince.Store(time.Now().UnixNano())
		dead.Store(false)
	}
	got.waitForCalm(t, 500)
	load.end()

	t.Logf(
		"%d kills, all apps of both mounts served again after %s at the latest",
		kills,
		longest.Round(time.Millisecond),
	)
	for _, a := range apps {
		harness.RequireSameToken(t, a.Token(t), tokens[a]) // the stored token
		require.Equal(t, "fresh", a.Status(t)["state"])
	}
	require.Equal(t, calls, dt.Requests("*"), "no call upstream in all that time")
	got.requireClean(t)

	require.Equal(t, []int{v.PluginPID(t)}, processesRunning(t, v.PluginPath), "one plugin process, and no orphan")
	require.NoError(t, v.Proc.Signal(syscall.SIGTERM))
	harness.WaitFor(t, 30*time.Second, "Vault ends", func() bool { return !v.Proc.Running() })
	require.Empty(t, processesRunning(t, v.PluginPath), "none once Vault has ended")
}

// processesRunning lists every process that runs the given binary, whoever its parent is.
func processesRunning(t *testing.T, program string) []int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(t, err)
	var pids []int
	for _, link := range links {
		if exe, err := os.Readlink(link); err == nil && exe == program {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}
