// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The commands that people type, and what they see.

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCLI_the_life_of_an_app(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	v := m.v
	a := m.unstoredApp(dt)

	// The secret comes by standard input, with the line break that echo adds.
	out := v.cliWithInput(t, a.secret+"\n", "write", a.configPath(),
		"app_key="+a.key, "app_secret=-", "base_url="+dt.url).succeeded(t)
	require.Contains(t, out, "Success! Data written to: "+a.configPath())
	require.Equal(t, 1, a.calls(), "verified, so the line break is gone")

	table := tableOf(v.mustCLI(t, "read", a.configPath()))
	require.Regexp(t, aDateTime, table["app_secret_set_at"])
	delete(table, "app_secret_set_at")
	require.Equal(t, map[string]string{
		"app_key": a.key, "base_url": dt.url, "corp_id": "n/a", "leased": "true", "refresh_before": "200",
		"request_timeout": "10",
	}, table)

	table = tableOf(v.mustCLI(t, "read", a.credsPath()))
	token := dt.LastToken(a.key)
	noteSecret(token, "an access token")
	requireSameToken(t, table["access_token"], token)
	require.True(t, strings.HasPrefix(table["lease_id"], a.credsPath()+"/"), table["lease_id"])
	require.Regexp(t, `^(2h|1h59m5[0-9]s)$`, table["lease_duration"])
	require.Equal(t, "true", table["lease_renewable"])
	require.Len(t, table, 4)

	requireSameToken(t, v.mustCLI(t, "read", "-field=access_token", a.credsPath()), token) // the token and nothing else

	renewed := tableOf(v.mustCLI(t, "lease", "renew", table["lease_id"]))
	require.Equal(t, table["lease_id"], renewed["lease_id"])
	require.Regexp(t, `^(2h|1h59m[45][0-9]s)$`, renewed["lease_duration"])

	longer := v.cli(t, "read", a.credsPath(), "min_ttl=30m")
	requireSameToken(t, tableOf(longer.succeeded(t))["access_token"], token)
	require.NotContains(t, longer.stderr, "WARNING")
	require.Equal(t, 1, a.calls())

	table = tableOf(v.mustCLI(t, "read", a.statusPath()))
	require.Equal(t, "fresh", table["state"])
	table = tableOf(v.mustCLI(t, "write", "-f", a.refreshPath()))
	require.Equal(t, "fresh", table["state"])
	require.Equal(t, 2, a.calls())
	again := v.cli(t, "write", "-f", a.refreshPath())
	require.Equal(t, "fresh", tableOf(again.succeeded(t))["state"])
	require.Contains(t, again.stderr, "WARNING", "the second comes too soon")
	require.Equal(t, 2, a.calls())

	v.mustCLI(t, "patch", a.configPath(), "leased=false", "refresh_before=5m")
	table = tableOf(v.mustCLI(t, "read", a.credsPath()))
	requireSameToken(t, table["access_token"], token) // settings keep the token
	require.NotContains(t, table, "lease_id")
	require.Equal(t, "1h55m", table["rotation_period"])
	require.Equal(t, 2, a.calls())

	require.Equal(t, []string{"Keys", "----", a.name}, strings.Fields(v.mustCLI(t, "list", m.path+"/config")))
	require.Contains(t, v.mustCLI(t, "delete", a.configPath()), "Success!")
	empty := v.cli(t, "list", m.path+"/config")
	require.Equal(t, 2, empty.status)
	require.Contains(t, empty.stderr, "No value found")
	require.Equal(t, 2, v.cli(t, "read", a.configPath()).status)

	gone := v.cli(t, "read", a.credsPath())
	require.Equal(t, 2, gone.status)
	require.Contains(t, gone.stderr, "config/"+a.name, "what to write")
}

func TestCLI_takes_the_secret_from_a_file(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	for _, ending := range []string{"", "\n", "\r\n"} {
		a := m.unstoredApp(dt)
		file := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(file, []byte(a.secret+ending), 0o600))
		m.v.mustCLI(t, "write", a.configPath(), "app_key="+a.key, "app_secret=@"+file, "base_url="+dt.url)
		requireSameToken(t, a.token(t), dt.LastToken(a.key))
	}
}

func TestCLI_shows_why_a_write_was_refused_and_no_secret(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.unstoredApp(dt)
	right := []string{"write", a.configPath(), "app_key=" + a.key, "base_url=" + dt.url}

	for name, c := range map[string]struct {
		args  []string
		input string
		says  string
	}{
		"wrong secret": {append(right, "app_secret=-"), newSecret() + "\n", "invalidClientIdOrSecret"},
		"secret given twice": {
			append(right, "app_secret="+newSecret(), "app_secret="+newSecret()), "", "app_secret",
		},
		"no secret":    {right, "", "app_secret"},
		"empty input":  {append(right, "app_secret=-"), "", "app_secret"},
		"two lines":    {append(right, "app_secret=-"), newSecret() + "\n" + newSecret() + "\n", "app_secret"},
		"no key":       {[]string{"write", a.configPath(), "app_secret=-"}, newSecret(), "app_key"},
		"bad duration": {append(right, "app_secret=-", "refresh_before=soon"), a.secret, "refresh_before"},
		"unknown app":  {[]string{"patch", m.path + "/config/nobody", "leased=false"}, "", "nobody"},
		"unsafe url": {
			[]string{"write", a.configPath(), "app_key=k", "app_secret=-", "base_url=http://example.com"},
			a.secret, "base_url",
		},
		"secret as map": {
			[]string{"write", a.configPath(), "-"},
			`{"app_key":"k","app_secret":{"value":"` + newSecret() + `"}}`, "app_secret",
		},
	} {
		result := m.v.cliWithInput(t, c.input, c.args...)
		assert.Equal(t, 2, result.status, name)
		assert.Contains(t, result.stderr, c.says, name)
		assert.Regexp(t, `Code: 40[04]`, result.stderr, name)
		assertNoSecret(t, name, result.stdout+result.stderr)
	}
	require.Empty(t, m.list(t, m.path+"/config/"))
}

func TestCLI_path_help_explains_every_path(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	root := m.v.mustCLI(t, "path-help", m.path)
	require.Contains(t, root, "DingTalk")
	for path, says := range map[string][]string{
		"config/": {"apps"},
		"config/myapp": {
			"app_key", "app_secret", "base_url", "refresh_before", "request_timeout", "leased",
			"verify_connection",
		},
		"creds/myapp":   {"min_ttl", "token"},
		"status/myapp":  {"token"},
		"refresh/myapp": {"token"},
	} {
		help := m.v.mustCLI(t, "path-help", m.path+"/"+path)
		require.Contains(t, help, "## DESCRIPTION", path)
		for _, words := range says {
			require.Contains(t, help, words, path)
		}
		kind, _, _ := strings.Cut(path, "/")
		require.Regexp(t, `(?m)^\s+\^`+kind+`/`, root, "the list of paths has %s", path)
	}
}

func TestPlugin_version_is_the_one_that_Vault_shows(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	v := m.v
	require.Regexp(t, `^v\d+\.\d+\.\d+`, v.pluginVersion)

	require.Regexp(t, `(?m)^`+pluginName+`\s+secret\s+`+regexp.QuoteMeta(v.pluginVersion)+`\s`,
		v.mustCLI(t, "plugin", "list", "-detailed", "secret"))

	mounted, err := v.root.Sys().GetMount(m.path)
	require.NoError(t, err)
	require.Equal(t, pluginName, mounted.Type)
	require.Equal(t, v.pluginVersion, mounted.RunningVersion)
	require.Equal(t, v.pluginSHA256, mounted.RunningSha256)

	// A registration by hand, with the version that the program itself prints, and with another one.
	register := func(version string) cliResult {
		return v.cli(t, "plugin", "register", "-sha256="+v.pluginSHA256, "-version="+version, "secret", pluginName)
	}
	printed := strings.TrimSpace(runPlugin(t, "-version"))
	require.Equal(t, v.pluginVersion, printed)
	register(printed).succeeded(t)
	wrong := register("v99.0.0")
	require.NotZero(t, wrong.status)
	require.Contains(t, wrong.stderr, "version")
}

// tableOf reads the two columns that the CLI prints.
func tableOf(out string) map[string]string {
	table := map[string]string{}
	for line := range strings.Lines(out) {
		cells := strings.Fields(line)
		if len(cells) < 2 || cells[0] == "Key" || strings.HasPrefix(cells[0], "---") {
			continue
		}
		table[cells[0]] = strings.Join(cells[1:], " ")
	}
	return table
}
