// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A real Vault Agent with each of the configurations in examples/agent. What counts is the file
// that an application reads: it must not hold a token that DingTalk refuses, and DingTalk must not
// be called more than it takes.

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// agentModes are the two ways in which the engine answers an Agent.
var agentModes = map[string]bool{"leased": true, "unleased": false}

// agent is a running Vault Agent and the one file that it renders.
type agent struct {
	*vaultClient
	*rendered
}

// prepareAgent makes the folder for an Agent: with the credentials of a role that may read these
// paths and, unless it is empty, a script in the place of the program that command.hcl runs, to
// which $FILE is the rendered file.
func prepareAgent(t *testing.T, v *vaultServer, credsPaths []string, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	var policy strings.Builder
	for _, path := range credsPaths {
		policy.WriteString(runnableExample(t, "policies/reader.hcl", map[string]string{exampleCreds: path}))
	}
	v.newRole(t, dir, policy.String())
	if script != "" {
		program := putFile(t, dir, "token-changed", "#!/bin/sh\nFILE='"+filepath.Join(dir, "dingtalk.env")+"'\n"+script)
		require.NoError(t, os.Chmod(program, 0o700))
	}
	return dir
}

// agentPlaceholders are what every example of an Agent says and what is here.
func agentPlaceholders(v *vaultServer, dir string) map[string]string {
	return map[string]string{exampleVault: v.addr, "/etc/vault-agent": dir, "/run/myapp": dir}
}

// startAgent runs an Agent for one app with a configuration from examples/agent.
func startAgent(t *testing.T, dir, name string, a *app) *agent {
	t.Helper()
	here := agentPlaceholders(a.m.v, dir)
	here[exampleCreds] = a.credsPath()
	if name == "command.hcl" {
		here["/usr/local/bin"] = dir
	}
	client := startVaultClient(t, "agent", dir, runnableExample(t, "agent/"+name, here))
	return &agent{vaultClient: client, rendered: newRendered(filepath.Join(dir, "dingtalk.env"), a.dt, 1)}
}

// commandLog is where a script that ends in this line leaves the file's content at each run.
const commandLog = "cat \"$FILE\" >>\"$FILE.log\"\n"

// requireCommandRanForEach checks that the command ran once for each content of the file, and found
// it there.
func (g *agent) requireCommandRanForEach(t *testing.T) {
	t.Helper()
	var ran []byte
	waitFor(t, 10*time.Second, "the command has run for the last content of the file", func() bool {
		ran, _ = os.ReadFile(g.file + ".log")
		return strings.HasSuffix(string(ran), g.last())
	})
	if string(ran) != strings.Join(g.contents, "") {
		t.Fatalf("the file changed %d times, but the command found other contents", len(g.contents))
	}
}

func TestAgent_file_holds_a_live_token_for_two_minutes_at_two_calls_a_lifetime(t *testing.T) {
	t.Parallel()
	const lifetime, half = 20 * time.Second, time.Minute
	for mode, leased := range agentModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, lifetime)
			a := newMount(t).newApp(t, dt, fields{"leased": leased})
			calls := &callLog{a: a, last: time.Now()}
			g := startAgent(t, prepareAgent(t, a.m.v, []string{a.credsPath()}, commandLog), "command.hcl", a)
			files := []*rendered{g.rendered}
			pass := func(d time.Duration) {
				t.Helper()
				end := time.Now().Add(d)
				watchFiles(t, d+time.Second, "time passes", files, func() bool {
					calls.look()
					return time.Now().After(end)
				})
			}

			watchFiles(t, 30*time.Second, "the Agent renders the token", files, func() bool {
				calls.look()
				return g.holds(a)
			})
			info, err := os.Stat(g.file)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), info.Mode(), "mode of the file")

			// DingTalk extends the token each time it is asked for it: the file stays, and so does the
			// application.
			pass(half)
			require.Len(t, g.contents, 1, "contents of the file while the token is extended")
			g.requireCommandRanForEach(t)

			// DingTalk gives another token each time, the old ones live on to their end: the file and the
			// command follow.
			dt.RotateTokens(a.key, true)
			pass(half)
			dt.RotateTokens(a.key, false)
			require.Greater(t, len(g.contents), int(half/lifetime), "contents of the file while the token is replaced")
			watchFiles(t, lifetime, "the file holds the last token", files, func() bool { return g.holds(a) })
			g.requireCommandRanForEach(t)
			calls.requireAtMostTwoPer(t, lifetime)
			t.Logf(
				"%d calls in six lifetimes, %d contents, dead for %s at most",
				len(calls.at),
				len(g.contents),
				g.longest,
			)

			// DingTalk ends the token before its time, which nobody is told of. The Agent's next renewal or
			// read finds out.
			dt.ExpireTokens(a.key)
			ended := time.Now()
			g.mayBeDead = lifetime
			watchFiles(
				t,
				lifetime,
				"the file holds the token that DingTalk gives now",
				files,
				func() bool { return g.holds(a) },
			)
			g.requireCommandRanForEach(t)
			t.Logf("a token that DingTalk ended was replaced after %s", time.Since(ended).Round(time.Millisecond))
		})
	}
}

func TestAgent_goes_on_across_restarts_of_Vault_and_of_the_plugin(t *testing.T) {
	t.Parallel()
	const lifetime = 30 * time.Second
	v := startVault(t, vaultOptions{storage: storageRaft})
	dt := startDingTalk(t, lifetime)
	m := v.enable(t)
	var files []*rendered
	var apps []*app
	for _, leased := range agentModes {
		a := m.newApp(t, dt, fields{"leased": leased})
		apps = append(apps, a)
		files = append(files, startAgent(t, prepareAgent(t, v, []string{a.credsPath()}, ""), "one-app.hcl", a).rendered)
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
	watchFiles(
		t,
		30*time.Second,
		"both Agents render their token",
		files,
		each(func(i int) bool { return files[i].holds(apps[i]) }),
	)
	first := []string{files[0].last(), files[1].last()}

	for _, event := range []struct {
		what string
		do   func()
	}{
		{"Vault restarts", func() { v.restart(t) }},
		{"the plugin's process is killed", func() { v.killPlugin(t) }},
		{"the plugin is reloaded", func() { m.reload(t) }},
		{"Vault is killed", func() { v.crash(t) }},
	} {
		// Neither Agent is about to come back, so that there is time for Vault to start.
		watchFiles(t, 2*lifetime, "both tokens have more than half of their life left", files, each(func(i int) bool {
			return dt.left(apps[i].dt.LastToken(apps[i].key)) > lifetime/2
		}))
		before := []int{apps[0].calls(), apps[1].calls()}
		event.do()
		watchFiles(
			t,
			lifetime,
			event.what+", and both Agents go on",
			files,
			each(func(i int) bool { return apps[i].calls() > before[i] }),
		)
	}
	for i := range apps {
		require.Equal(t, []string{first[i]}, files[i].contents, "one token all the time")
	}
}

func TestAgent_renders_once_Vault_is_there_at_the_start_and_after_an_outage(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	// The example has the Agent wait for 30 s at most, and Vault's client makes three attempts at a
	// read.
	const comesBack = 40 * time.Second
	for mode, leased := range agentModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			v := startVault(t, vaultOptions{storage: storageRaft})
			dt := startDingTalk(t, lifetime)
			a := v.enable(t).newApp(t, dt, fields{"leased": leased})
			dir := prepareAgent(t, v, []string{a.credsPath()}, "")
			require.NoError(t, v.stop())

			g := startAgent(t, dir, "one-app.hcl", a)
			files := []*rendered{g.rendered}
			waitFor(t, 30*time.Second, "the Agent has tried to log in twice", func() bool {
				return strings.Count(g.logged(t), "error authenticating") >= 2
			})
			require.NoFileExists(t, g.file)
			v.bootAgain(t)
			watchFiles(t, comesBack, "the Agent renders the token", files, func() bool { return g.holds(a) })

			// Vault is away for longer than the token lives. The file stays as it is, and dies.
			require.NoError(t, v.stop())
			g.mayBeDead = lifetime + comesBack
			watchFiles(t, 2*lifetime, "the token dies", files, func() bool { return dt.left(dt.LastToken(a.key)) <= 0 })
			require.True(t, g.proc.Running(), "the Agent has not given up")
			v.bootAgain(t)
			back := time.Now()
			watchFiles(t, comesBack, "the file holds a live token", files, func() bool { return g.holds(a) })
			t.Logf("a live token %s after Vault was back", time.Since(back).Round(time.Millisecond))

			g.mayBeDead = deadAtMost
			calls := a.calls()
			watchFiles(
				t,
				2*lifetime,
				"the Agent keeps the token alive again",
				files,
				func() bool { return a.calls() >= calls+2 },
			)
		})
	}
}

func TestAgent_keeps_the_tokens_of_several_apps_in_one_file(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	dt := startDingTalk(t, lifetime)
	m := newMount(t)
	leased, unleased := m.newApp(t, dt, fields{"leased": true}), m.unstoredApp(dt)
	dir := prepareAgent(t, m.v, []string{leased.credsPath(), unleased.credsPath()}, "")
	putFile(t, dir, "several-apps.ctmpl", runnableExample(t, "agent/several-apps.ctmpl", map[string]string{
		exampleCreds: leased.credsPath(), otherCreds: unleased.credsPath(),
	}))
	c := startVaultClient(t, "agent", dir, runnableExample(t, "agent/several-apps.hcl", agentPlaceholders(m.v, dir)))
	file := newRendered(filepath.Join(dir, "dingtalk.env"), dt, 2)
	files := []*rendered{file}

	// While one app cannot be read there is no file at all.
	waitFor(t, 30*time.Second, "the Agent has read one app and failed with the other", func() bool {
		return leased.calls() > 0 &&
			strings.Contains(c.logged(t), fmt.Sprintf("app %q is not configured", unleased.name))
	})
	require.NoFileExists(t, file.file)
	body := unleased.config()
	body["leased"] = false
	_, err := m.v.root.Logical().Write(unleased.configPath(), body)
	require.NoError(t, err)
	watchFiles(
		t,
		40*time.Second,
		"the Agent renders both tokens",
		files,
		func() bool { return file.holds(leased, unleased) },
	)
	require.Equal(
		t,
		fmt.Sprintf(
			"MYAPP_ACCESS_TOKEN=%s\nOTHERAPP_ACCESS_TOKEN=%s\n",
			dt.LastToken(leased.key),
			dt.LastToken(unleased.key),
		),
		file.last(),
	)

	// Each token is kept alive, and when one changes so does its line.
	for _, a := range []*app{leased, unleased} {
		before, contents := dt.LastToken(a.key), len(file.contents)
		dt.RotateTokens(a.key, true)
		watchFiles(
			t,
			2*lifetime,
			"one app has another token",
			files,
			func() bool { return dt.LastToken(a.key) != before },
		)
		dt.RotateTokens(a.key, false)
		watchFiles(t, lifetime, "the file follows", files, func() bool { return file.holds(leased, unleased) })
		require.Len(t, file.contents, contents+1, "the file changed once")
	}
}

func TestAgent_goes_on_with_the_file_when_the_command_fails(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	for mode, leased := range agentModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, lifetime)
			a := newMount(t).newApp(t, dt, fields{"leased": leased})
			g := startAgent(t, prepareAgent(t, a.m.v, []string{a.credsPath()}, commandLog+"exit 1\n"), "command.hcl", a)
			dt.RotateTokens(a.key, true)
			watchFiles(
				t,
				4*lifetime,
				"three tokens were rendered",
				[]*rendered{g.rendered},
				func() bool { return len(g.contents) == 3 },
			)
			g.requireCommandRanForEach(t)
		})
	}
}
