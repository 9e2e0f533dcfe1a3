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
)

func TestUpgrade_a_version_deregistered_while_it_runs_fails_when_its_process_ends_until_it_is_registered_again(
	t *testing.T,
) {
	t.Parallel()
	v := startVault(t, vaultOptions{storage: storageInmem})
	older, newer := v.build(t, pluginPackage, "v0.1.0-old"), v.build(t, pluginPackage, "v0.2.0")
	v.register(t, older)
	m := v.enableVersion(t, older)
	dt := startDingTalk(t, fullLifetime)
	a := m.newApp(t, dt, nil)
	token := a.token(t)

	// An upgrade that stops before the reload.
	v.register(t, newer)
	require.NoError(t, v.root.Sys().TuneMountAllowNil(m.path, api.TuneMountConfigInput{PluginVersion: &newer.version}))
	require.NoError(t, v.root.Sys().DeregisterPlugin(&api.DeregisterPluginInput{
		Name: pluginName, Type: api.PluginTypeSecrets, Version: older.version,
	}))
	requireSameToken(t, a.token(t), token)

	for _, pid := range processesRunning(t, older.path) {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	// The read under which the process ends says so first.
	var said error
	waitFor(t, 20*time.Second, "reads fail for want of the version", func() bool {
		_, said = a.tryRead()
		return said != nil && strings.Contains(said.Error(), "plugin not found in the catalog")
	})
	require.Contains(t, refused(t, said, http.StatusInternalServerError), pluginName+", version="+older.version)

	v.register(t, older)
	requireSameToken(t, a.token(t), token)
	m.reload(t)
	requireSameToken(t, a.token(t), token)
	require.Empty(t, processesRunning(t, older.path), "the version that the mount was tuned to runs")
	require.Equal(t, 1, dt.Requests("*"))
}
