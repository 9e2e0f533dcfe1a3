// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The commands that operators type, and their output.

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestCLI_the_life_of_an_app(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	v := m.Vault
	a := m.UnstoredApp(dt)

	// The secret is read from standard input, with the line break that echo adds.
	out := v.CLIWithInput(t, a.Secret+"\n", "write", a.ConfigPath(),
		"app_key="+a.Key, "app_secret=-", "base_url="+dt.URL).Succeeded(t)
	require.Contains(t, out, "Success! Data written to: "+a.ConfigPath())
	require.Equal(t, 1, a.Calls(), "verified, so the line break is gone")

	table := tableOf(v.MustCLI(t, "read", a.ConfigPath()))
	require.Regexp(t, aDateTime, table["app_secret_set_at"])
	delete(table, "app_secret_set_at")
	require.Equal(t, map[string]string{
		"app_key": a.Key, "base_url": dt.URL, "corp_id": "n/a", "leased": "true", "refresh_before": "200",
		"request_timeout": "10",
	}, table)

	table = tableOf(v.MustCLI(t, "read", a.CredsPath()))
	token := dt.LastToken(a.Key)
	harness.NoteSecret(token, "an access token")
	harness.RequireSameToken(t, table["access_token"], token)
	require.True(t, strings.HasPrefix(table["lease_id"], a.CredsPath()+"/"), table["lease_id"])
	require.Regexp(t, `^(2h|1h59m5[0-9]s)$`, table["lease_duration"])
	require.Equal(t, "true", table["lease_renewable"])
	require.Len(t, table, 4)

	// The token and nothing else.
	harness.RequireSameToken(t, v.MustCLI(t, "read", "-field=access_token", a.CredsPath()), token)

	renewed := tableOf(v.MustCLI(t, "lease", "renew", table["lease_id"]))
	require.Equal(t, table["lease_id"], renewed["lease_id"])
	require.Regexp(t, `^(2h|1h59m[45][0-9]s)$`, renewed["lease_duration"])

	longer := v.CLI(t, "read", a.CredsPath(), "min_ttl=30m")
	harness.RequireSameToken(t, tableOf(longer.Succeeded(t))["access_token"], token)
	require.NotContains(t, longer.Stderr, "WARNING")
	require.Equal(t, 1, a.Calls())

	table = tableOf(v.MustCLI(t, "read", a.StatusPath()))
	require.Equal(t, "fresh", table["state"])
	table = tableOf(v.MustCLI(t, "write", "-f", a.RefreshPath()))
	require.Equal(t, "fresh", table["state"])
	require.Equal(t, 2, a.Calls())
	again := v.CLI(t, "write", "-f", a.RefreshPath())
	require.Equal(t, "fresh", tableOf(again.Succeeded(t))["state"])
	require.Contains(t, again.Stderr, "WARNING", "the second is too soon")
	require.Equal(t, 2, a.Calls())

	v.MustCLI(t, "patch", a.ConfigPath(), "leased=false", "refresh_before=5m")
	table = tableOf(v.MustCLI(t, "read", a.CredsPath()))
	harness.RequireSameToken(t, table["access_token"], token) // settings keep the token
	require.NotContains(t, table, "lease_id")
	require.Equal(t, "1h55m", table["rotation_period"])
	require.Equal(t, 2, a.Calls())

	require.Equal(t, []string{"Keys", "----", a.Name}, strings.Fields(v.MustCLI(t, "list", m.Path+"/config")))
	require.Contains(t, v.MustCLI(t, "delete", a.ConfigPath()), "Success!")
	empty := v.CLI(t, "list", m.Path+"/config")
	require.Equal(t, 2, empty.Status)
	require.Contains(t, empty.Stderr, "No value found")
	require.Equal(t, 2, v.CLI(t, "read", a.ConfigPath()).Status)

	gone := v.CLI(t, "read", a.CredsPath())
	require.Equal(t, 2, gone.Status)
	require.Contains(t, gone.Stderr, "config/"+a.Name, "what to write")
}

func TestCLI_takes_the_secret_from_a_file(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	for _, ending := range []string{"", "\n", "\r\n"} {
		a := m.UnstoredApp(dt)
		file := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(file, []byte(a.Secret+ending), 0o600))
		m.Vault.MustCLI(t, "write", a.ConfigPath(), "app_key="+a.Key, "app_secret=@"+file, "base_url="+dt.URL)
		harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
	}
}

func TestCLI_shows_why_a_write_was_refused_and_no_secret(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.UnstoredApp(dt)
	right := []string{"write", a.ConfigPath(), "app_key=" + a.Key, "base_url=" + dt.URL}

	for name, c := range map[string]struct {
		args  []string
		input string
		says  string
	}{
		"wrong secret": {append(right, "app_secret=-"), harness.NewSecret() + "\n", "invalidClientIdOrSecret"},
		"secret given twice": {
			append(right, "app_secret="+harness.NewSecret(), "app_secret="+harness.NewSecret()), "", "app_secret",
		},
		"no secret":   {right, "", "app_secret"},
		"empty input": {append(right, "app_secret=-"), "", "app_secret"},
		"two lines": {
			append(right, "app_secret=-"), harness.NewSecret() + "\n" + harness.NewSecret() + "\n", "app_secret",
		},
		"no key":       {[]string{"write", a.ConfigPath(), "app_secret=-"}, harness.NewSecret(), "app_key"},
		"bad duration": {append(right, "app_secret=-", "refresh_before=soon"), a.Secret, "refresh_before"},
		"unknown app":  {[]string{"patch", m.Path + "/config/nobody", "leased=false"}, "", "nobody"},
		"unsafe url": {
			[]string{"write", a.ConfigPath(), "app_key=k", "app_secret=-", "base_url=http://example.com"},
			a.Secret, "base_url",
		},
		"secret as map": {
			[]string{"write", a.ConfigPath(), "-"},
			`{"app_key":"k","app_secret":{"value":"` + harness.NewSecret() + `"}}`, "app_secret",
		},
	} {
		result := m.Vault.CLIWithInput(t, c.input, c.args...)
		assert.Equal(t, 2, result.Status, name)
		assert.Contains(t, result.Stderr, c.says, name)
		assert.Regexp(t, `Code: 40[04]`, result.Stderr, name)
		harness.AssertNoSecret(t, name, result.Stdout+result.Stderr)
	}
	require.Empty(t, m.List(t, m.Path+"/config/"))
}

func TestCLI_path_help_explains_every_path(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	root := m.Vault.MustCLI(t, "path-help", m.Path)
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
		help := m.Vault.MustCLI(t, "path-help", m.Path+"/"+path)
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
	m := harness.NewMount(t)
	v := m.Vault
	require.Regexp(t, `^v\d+\.\d+\.\d+`, v.PluginVersion)

	require.Regexp(t, `(?m)^`+harness.PluginName+`\s+secret\s+`+regexp.QuoteMeta(v.PluginVersion)+`\s`,
		v.MustCLI(t, "plugin", "list", "-detailed", "secret"))

	mounted, err := v.Root.Sys().GetMount(m.Path)
	require.NoError(t, err)
	require.Equal(t, harness.PluginName, mounted.Type)
	require.Equal(t, v.PluginVersion, mounted.RunningVersion)
	require.Equal(t, v.PluginSHA256, mounted.RunningSha256)

	// A registration by hand, with the version that the binary itself prints, and with another one.
	register := func(version string) harness.CLIResult {
		return v.CLI(t, "plugin", "register", "-sha256="+v.PluginSHA256, "-version="+version, "secret", harness.PluginName)
	}
	printed := strings.TrimSpace(runPlugin(t, "-version"))
	require.Equal(t, v.PluginVersion, printed)
	register(printed).Succeeded(t)
	wrong := register("v99.0.0")
	require.NotZero(t, wrong.Status)
	require.Contains(t, wrong.Stderr, "version")
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
