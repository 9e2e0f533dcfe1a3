// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A real Vault Agent with each of the configurations in examples/agent. Its file, which an
// application reads, must not hold a token that DingTalk refuses. DingTalk must not be called more
// than necessary.

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

// agentModes are the two ways in which the engine responds to an Agent.
var agentModes = map[string]bool{"leased": true, "unleased": false}

// agent is a running Vault Agent and the one file that it renders.
type agent struct {
	*vaultClient
	*harness.Rendered
}

// prepareAgent makes the directory of an Agent. It holds the credentials of a role that may read
// these paths. A script, unless it is empty, replaces the program that command.hcl runs; $FILE is
// its name for the rendered file.
func prepareAgent(t *testing.T, v *harness.VaultServer, credsPaths []string, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	var policy strings.Builder
	for _, path := range credsPaths {
		policy.WriteString(harness.RunnableExample(t, "policies/reader.hcl", map[string]string{harness.ExampleCreds: path}))
	}
	newRole(t, v, dir, policy.String())
	if script != "" {
		script = "#!/bin/sh\nFILE='" + filepath.Join(dir, "dingtalk.env") + "'\n" + script
		program := harness.PutFile(t, dir, "token-changed", script)
		require.NoError(t, os.Chmod(program, 0o700))
	}
	return dir
}

// agentPlaceholders are what every example of an Agent says and what is here.
func agentPlaceholders(v *harness.VaultServer, dir string) map[string]string {
	return map[string]string{harness.ExampleVault: v.Addr, "/etc/vault-agent": dir, "/run/myapp": dir}
}

// startAgent runs an Agent for one app with a configuration from examples/agent.
func startAgent(t *testing.T, dir, name string, a *harness.App) *agent {
	t.Helper()
	here := agentPlaceholders(a.Mount.Vault, dir)
	here[harness.ExampleCreds] = a.CredsPath()
	if name == "command.hcl" {
		here["/usr/local/bin"] = dir
	}
	client := startVaultClient(t, "agent", dir, harness.RunnableExample(t, "agent/"+name, here))
	return &agent{vaultClient: client, Rendered: harness.NewRendered(filepath.Join(dir, "dingtalk.env"), a.DingTalk, 1)}
}

// commandLog is where a script that ends in this line leaves the file's content at each run.
const commandLog = "cat \"$FILE\" >>\"$FILE.log\"\n"

// requireCommandRanForEach checks that the command ran once for each content of the file, and found
// it there.
func (g *agent) requireCommandRanForEach(t *testing.T) {
	t.Helper()
	var ran []byte
	harness.WaitFor(t, 10*time.Second, "the command has run for the last content of the file", func() bool {
		ran, _ = os.ReadFile(g.File + ".log")
		return strings.HasSuffix(string(ran), g.Last())
	})
	if string(ran) != strings.Join(g.Contents, "") {
		t.Fatalf("the file changed %d times, but the command found other contents", len(g.Contents))
	}
}

func TestAgent_file_holds_a_live_token_for_two_minutes_at_two_calls_a_lifetime(t *testing.T) {
	t.Parallel()
	const lifetime, half = 20 * time.Second, time.Minute
	for mode, leased := range agentModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, lifetime)
			a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"leased": leased})
			calls := harness.NewCallLog(a)
			g := startAgent(t, prepareAgent(t, a.Mount.Vault, []string{a.CredsPath()}, commandLog), "command.hcl", a)
			files := []*harness.Rendered{g.Rendered}

			calls.WatchFiles(t, 30*time.Second, "the Agent renders the token", files, func() bool { return g.Holds(a) })
			info, err := os.Stat(g.File)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), info.Mode(), "mode of the file")

			// DingTalk extends the token each time it is asked for it: the file stays, and so does the
			// application.
			calls.Pass(t, half, files)
			require.Len(t, g.Contents, 1, "contents of the file while the token is extended")
			g.requireCommandRanForEach(t)

			// DingTalk returns another token each time, and the old ones live on to their end: the file and
			// the command follow.
			dt.RotateTokens(a.Key, true)
			calls.Pass(t, half, files)
			dt.RotateTokens(a.Key, false)
			require.Greater(t, len(g.Contents), int(half/lifetime), "contents of the file while the token is replaced")
			harness.WatchFiles(t, lifetime, "the file holds the last token", files, func() bool { return g.Holds(a) })
			g.requireCommandRanForEach(t)
			calls.RequireAtMostTwoPer(t, lifetime)
			t.Logf(
				"%d calls in six lifetimes, %d contents, dead for %s at most",
				len(calls.At),
				len(g.Contents),
				g.Longest,
			)

			// DingTalk ends the token before its time, which nobody is told of. The Agent's next renewal or
			// read finds out.
			dt.ExpireTokens(a.Key)
			ended := time.Now()
			g.MayBeDead = lifetime
			harness.WatchFiles(
				t,
				lifetime,
				"the file holds the new token",
				files,
				func() bool { return g.Holds(a) },
			)
			g.requireCommandRanForEach(t)
			t.Logf("a token that DingTalk ended was replaced after %s", time.Since(ended).Round(time.Millisecond))
		})
	}
}

func TestAgent_goes_on_across_restarts_of_Vault_and_of_the_plugin(t *testing.T) {
	t.Parallel()
	const lifetime = 30 * time.Second
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageRaft})
	dt := harness.StartDingTalk(t, lifetime)
	m := v.Enable(t)
	var files []*harness.Rendered
	var apps []*harness.App
	for _, leased := range agentModes {
		a := m.NewApp(t, dt, harness.Fields{"leased": leased})
		apps = append(apps, a)
		files = append(files, startAgent(t, prepareAgent(t, v, []string{a.CredsPath()}, ""), "one-app.hcl", a).Rendered)
	}
	each := func(holds func(int) bool) func() bool {
		return func() bool {
			for i := range apps {
				if !holds(i) {
					return false
				}
			}
			return true
		}
	}
	harness.WatchFiles(
		t,
		30*time.Second,
		"both Agents render their token",
		files,
		each(func(i int) bool { return files[i].Holds(apps[i]) }),
	)
	first := []string{files[0].Last(), files[1].Last()}

	for _, event := range []struct {
		what string
		do   func()
	}{
		{"Vault restarts", func() { v.Restart(t) }},
		{"the plugin's process is killed", func() { v.KillPlugin(t) }},
		{"the plugin is reloaded", func() { m.Reload(t) }},
		{"Vault is killed", func() { v.Crash(t) }},
	} {
		// Neither Agent is about to come back, so that there is time for Vault to start.
		harness.WatchFiles(t, 2*lifetime, "more than half of both TTLs remains", files, each(func(i int) bool {
			return dt.Remaining(apps[i].DingTalk.LastToken(apps[i].Key)) > lifetime/2
		}))
		before := []int{apps[0].Calls(), apps[1].Calls()}
		event.do()
		harness.WatchFiles(
			t,
			lifetime,
			event.what+", and both Agents go on",
			files,
			each(func(i int) bool { return apps[i].Calls() > before[i] }),
		)
	}
	for i := range apps {
		require.Equal(t, []string{first[i]}, files[i].Contents, "one token all the time")
	}
}

func TestAgent_renders_once_Vault_is_there_at_the_start_and_after_an_outage(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	// The example makes the Agent wait for 30 s at most, and Vault's client makes three attempts at a
	// read.
	const comesBack = 40 * time.Second
	for mode, leased := range agentModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageRaft})
			dt := harness.StartDingTalk(t, lifetime)
			a := v.Enable(t).NewApp(t, dt, harness.Fields{"leased": leased})
			dir := prepareAgent(t, v, []string{a.CredsPath()}, "")
			require.NoError(t, v.Stop())

			g := startAgent(t, dir, "one-app.hcl", a)
			files := []*harness.Rendered{g.Rendered}
			harness.WaitFor(t, 30*time.Second, "the Agent has tried to log in twice", func() bool {
				return strings.Count(g.logged(t), "error authenticating") >= 2
			})
			require.NoFileExists(t, g.File)
			v.StartAgain(t)
			harness.WatchFiles(t, comesBack, "the Agent renders the token", files, func() bool { return g.Holds(a) })

			// Vault is away for longer than the token lives. The file stays as it is, and dies.
			require.NoError(t, v.Stop())
			g.MayBeDead = lifetime + comesBack
			harness.WatchFiles(t, 2*lifetime, "the token dies", files, func() bool {
				return dt.Remaining(dt.LastToken(a.Key)) <= 0
			})
			require.True(t, g.proc.Running(), "the Agent has not given up")
			v.StartAgain(t)
			back := time.Now()
			harness.WatchFiles(t, comesBack, "the file holds a live token", files, func() bool { return g.Holds(a) })
			t.Logf("a live token %s after Vault was back", time.Since(back).Round(time.Millisecond))

			g.MayBeDead = harness.DeadAtMost
			calls := a.Calls()
			harness.WatchFiles(
				t,
				2*lifetime,
				"the Agent keeps the token alive again",
				files,
				func() bool { return a.Calls() >= calls+2 },
			)
		})
	}
}

func TestAgent_keeps_the_tokens_of_several_apps_in_one_file(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	m := harness.NewMount(t)
	leased, unleased := m.NewApp(t, dt, harness.Fields{"leased": true}), m.UnstoredApp(dt)
	dir := prepareAgent(t, m.Vault, []string{leased.CredsPath(), unleased.CredsPath()}, "")
	harness.PutFile(t, dir, "several-apps.ctmpl", harness.RunnableExample(t, "agent/several-apps.ctmpl", map[string]string{
		harness.ExampleCreds: leased.CredsPath(), "dingtalk/creds/otherapp": unleased.CredsPath(),
	}))
	config := harness.RunnableExample(t, "agent/several-apps.hcl", agentPlaceholders(m.Vault, dir))
	c := startVaultClient(t, "agent", dir, config)
	file := harness.NewRendered(filepath.Join(dir, "dingtalk.env"), dt, 2)
	files := []*harness.Rendered{file}

	// While one app cannot be read there is no file at all.
	harness.WaitFor(t, 30*time.Second, "the Agent has read one app and failed with the other", func() bool {
		return leased.Calls() > 0 &&
			strings.Contains(c.logged(t), fmt.Sprintf("app %q is not configured", unleased.Name))
	})
	require.NoFileExists(t, file.File)
	body := unleased.Config()
	body["leased"] = false
	_, err := m.Vault.Root.Logical().Write(unleased.ConfigPath(), body)
	require.NoError(t, err)
	harness.WatchFiles(
		t,
		40*time.Second,
		"the Agent renders both tokens",
		files,
		func() bool { return file.Holds(leased, unleased) },
	)
	require.Equal(
		t,
		fmt.Sprintf(
			"MYAPP_ACCESS_TOKEN=%s\nOTHERAPP_ACCESS_TOKEN=%s\n",
			dt.LastToken(leased.Key),
			dt.LastToken(unleased.Key),
		),
		file.Last(),
	)

	// Each token is kept alive, and when one changes so does its line.
	for _, a := range []*harness.App{leased, unleased} {
		before, contents := dt.LastToken(a.Key), len(file.Contents)
		dt.RotateTokens(a.Key, true)
		harness.WatchFiles(
			t,
			2*lifetime,
			"one app has another token",
			files,
			func() bool { return dt.LastToken(a.Key) != before },
		)
		dt.RotateTokens(a.Key, false)
		harness.WatchFiles(t, lifetime, "the file follows", files, func() bool { return file.Holds(leased, unleased) })
		require.Len(t, file.Contents, contents+1, "the file changed once")
	}
}

func TestAgent_goes_on_with_the_file_when_the_command_fails(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	for mode, leased := range agentModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, lifetime)
			a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"leased": leased})
			g := startAgent(t, prepareAgent(t, a.Mount.Vault, []string{a.CredsPath()}, commandLog+"exit 1\n"), "command.hcl", a)
			dt.RotateTokens(a.Key, true)
			harness.WatchFiles(
				t,
				4*lifetime,
				"three tokens were rendered",
				[]*harness.Rendered{g.Rendered},
				func() bool { return len(g.Contents) == 3 },
			)
			g.requireCommandRanForEach(t)
		})
	}
}
