// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package readme

// The demo as it is when all goes well, and above all when not: it has to tell, and to leave
// nothing behind. That it runs through with the simulator, TestReadme_works_as_written shows.

import (
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

type demo struct {
	cmd     *exec.Cmd
	printed output
	temp    string // where it may make its temporary directory
}

// startDemo starts bin/demo, with bin/ as the Makefile leaves it.
func startDemo(t *testing.T, env ...string) *demo {
	t.Helper()
	// Not the test's own directory: its long name would not leave room for the paths of sockets.
	temp, err := os.MkdirTemp("", "demo") //nolint:usetesting // see above
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(temp) })
	for _, program := range []string{"demo", "dingtalk-simulator", pluginName} {
		require.FileExists(t, root+"/bin/"+program, "run `make build simulator bin/demo` first")
	}

	d := &demo{cmd: exec.CommandContext(t.Context(), root+"/bin/demo"), temp: temp}
	d.cmd.Env = append(append(environment(t), "PATH="+os.Getenv("PATH"), "TMPDIR="+temp), env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.printed, &d.printed
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	d.cmd.WaitDelay = 30 * time.Second
	require.NoError(t, d.cmd.Start())
	return d
}

// end waits for the end, and returns the exit status.
func (d *demo) end(t *testing.T) int {
	t.Helper()
	_ = d.cmd.Wait()
	left, err := os.ReadDir(d.temp)
	require.NoError(t, err)
	assert.Empty(t, left, "files left behind")
	for _, address := range regexp.MustCompile(`127\.0\.0\.1:[1-9][0-9]*`).FindAllString(d.printed.String(), -1) {
		if connection, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address); err == nil {
			_ = connection.Close()
			assert.Fail(t, "something still listens on "+address)
		}
	}
	// Where there is no /proc, nothing is found. A killed process may take a moment to be gone.
	gone := func() bool { return !d.hasProcess(t) }
	assert.Eventually(t, gone, 10*time.Second, 20*time.Millisecond, "a process is left behind")
	return d.cmd.ProcessState.ExitCode()
}

// hasProcess reports whether a process has the temporary directory in its environment, as all that
// the demo starts do.
func (d *demo) hasProcess(t *testing.T) bool {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	return slices.ContainsFunc(environments, func(file string) bool {
		environment, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(environment), d.temp)
	})
}

func (d *demo) await(t *testing.T, text string) {
	t.Helper()
	printed := func() bool { return strings.Contains(d.printed.String(), text) }
	require.Eventually(t, printed, time.Minute, 10*time.Millisecond, text)
}

func TestDemo_interrupted_leaves_nothing_behind(t *testing.T) {
	t.Parallel()
	const lastMoment = "$ kill "
	for name, at := range map[string]string{
		"as a program starts":  "$ dingtalk-simulator",
		"as Vault starts":      "$ vault server",
		"as a command runs":    "$ vault secrets enable",
		"as the Agent starts":  "$ env -u VAULT_TOKEN vault agent",
		"as everything stops":  lastMoment,
		"before anything runs": "==> 1.",
	} {
		for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
			t.Run(name+" by "+signal.String(), func(t *testing.T) {
				d := startDemo(t)
				d.await(t, at)
				require.NoError(t, syscall.Kill(-d.cmd.Process.Pid, signal), "as the terminal does, to the whole group")
				status := d.end(t)
				if at == lastMoment && status == 0 {
					return // it was done before the signal came
				}
				require.Equal(t, 128+int(signal), status, "it printed:\n%s", &d.printed)
				require.Contains(t, d.printed.String(), "Interrupted in step ")
			})
		}
	}
}

func TestDemo_killed_leaves_nothing_behind(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	d.await(t, "$ vault secrets enable")
	require.NoError(t, d.cmd.Process.Kill())
	d.end(t)
}

// A command that takes no notice of a Ctrl-C neither makes the demo forget it nor keeps it waiting.
func TestDemo_interrupted_while_a_program_ignores_it(t *testing.T) {
	t.Parallel()
	fake := filepath.Join(t.TempDir(), "vault")
	script := `#!/bin/sh
[ "$1" = status ] || exec ` + vaultBin(t) + ` "$@"
trap '' INT TERM
: >"$HOME/ignoring"
sleep 100
`
	require.NoError(t, os.WriteFile(fake, []byte(script), 0o700))

	d := startDemo(t, "VAULT_BIN="+fake)
	d.await(t, "$ vault status")
	require.Eventually(t, func() bool {
		files, err := filepath.Glob(d.temp + "/*/ignoring")
		return err == nil && len(files) == 1
	}, time.Minute, 10*time.Millisecond)
	began := time.Now()
	require.NoError(t, syscall.Kill(-d.cmd.Process.Pid, syscall.SIGINT))
	require.Equal(t, 128+int(syscall.SIGINT), d.end(t), "it printed:\n%s", &d.printed)
	require.Less(t, time.Since(began), time.Minute)
	require.Contains(t, d.printed.String(), "Interrupted in step 2, ")
}

func TestDemo_with_the_live_API_shows_neither_the_secret_nor_the_token(t *testing.T) {
	t.Parallel()
	dingtalk := simulator.New(simulator.Options{})
	url, err := dingtalk.Start("127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { dingtalk.Close() })
	const key = `ding"$key`
	secret := rand.Text() + `*$"\`
	dingtalk.SetApp(key, secret)
	live := []string{"DINGTALK_APP_KEY=" + key, "DINGTALK_BASE_URL=" + url}

	for _, corpID := range []string{"", simulator.DefaultCorpID} { // one call, and the other
		d := startDemo(t, append(live, "DINGTALK_APP_SECRET="+secret, "DINGTALK_CORP_ID="+corpID)...)
		_ = d.cmd.Wait()
		printed := d.printed.String()
		require.Zero(t, d.cmd.ProcessState.ExitCode(), "it printed:\n%s", printed)
		require.Contains(t, printed, "DINGTALK_ACCESS_TOKEN=****")
		require.NotContains(t, printed, secret)
		require.NotContains(t, printed, dingtalk.LastToken(key))
		require.Equal(t, 2, dingtalk.RequestsIn(key, corpID), "one with the right secret, one with a wrong one")
	}

	// The wrong credentials make the step fail that stores them, with DingTalk's own words.
	wrong := rand.Text()
	d := startDemo(t, append(live, "DINGTALK_APP_SECRET="+wrong)...)
	_ = d.cmd.Wait()
	require.Equal(t, 1, d.cmd.ProcessState.ExitCode())
	require.Contains(t, d.printed.String(), "FAILED in step 5, Store an app")
	require.Contains(t, d.printed.String(), "invalidClientIdOrSecret")
	require.NotContains(t, d.printed.String(), wrong)

	for _, some := range [][]string{live, live[:1], {"DINGTALK_APP_SECRET=" + secret}} {
		d = startDemo(t, some...)
		require.Equal(t, 1, d.end(t))
		require.Contains(t, d.printed.String(), "set both DINGTALK_APP_KEY and DINGTALK_APP_SECRET")
	}
}
