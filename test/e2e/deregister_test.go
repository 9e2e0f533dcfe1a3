// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// What docs/troubleshooting.md says of a version that is deregistered while it runs.

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestUpgrade_a_version_deregistered_while_it_runs_fails_when_its_process_ends_until_it_is_registered_again(
	t *testing.T,
) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	older, newer := buildPlugin(t, v, pluginPackage, "v0.1.0-old"), buildPlugin(t, v, pluginPackage, "v0.2.0")
	registerBuild(t, v, older)
	m := v.EnableVersion(t, older.version)
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := m.NewApp(t, dt, nil)
	token := a.Token(t)

	// An upgrade that stops before the reload.
	registerBuild(t, v, newer)
	require.NoError(t, v.Root.Sys().TuneMountAllowNil(m.Path, api.TuneMountConfigInput{PluginVersion: &newer.version}))
	require.NoError(t, v.Root.Sys().DeregisterPlugin(&api.DeregisterPluginInput{
		Name: harness.PluginName, Type: api.PluginTypeSecrets, Version: older.version,
	}))
	harness.RequireSameToken(t, a.Token(t), token)

	for _, pid := range processesRunning(t, older.path) {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	// The read under which the process ends says so first.
	var said error
	harness.WaitFor(t, 20*time.Second, "reads fail for want of the version", func() bool {
		_, said = a.TryRead()
		return said != nil && strings.Contains(said.Error(), "plugin not found in the catalog")
	})
	text := harness.Refused(t, said, http.StatusInternalServerError)
	require.Contains(t, text, harness.PluginName+", version="+older.version)

	registerBuild(t, v, older)
	harness.RequireSameToken(t, a.Token(t), token)
	m.Reload(t)
	harness.RequireSameToken(t, a.Token(t), token)
	require.Empty(t, processesRunning(t, older.path), "the version that the mount was tuned to runs")
	require.Equal(t, 1, dt.Requests("*"))
}
