// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// What docs/troubleshooting.md says of a node that lacks the plugin's binary, such as a pod whose
// volume is empty after its restart.

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

// withoutBinary does something while the plugin's binary is not in the plugin directory.
func withoutBinary(t *testing.T, v *harness.VaultServer, do func()) {
	t.Helper()
	aside := v.PluginPath + ".aside"
	require.NoError(t, os.Rename(v.PluginPath, aside))
	do()
	require.NoError(t, os.Rename(aside, v.PluginPath))
}

// skipMounts unseals Vault without the plugin's binary. It then serves, but not the engine's mounts.
func skipMounts(t *testing.T, v *harness.VaultServer) {
	t.Helper()
	withoutBinary(t, v, func() {
		require.NoError(t, v.Root.Sys().Seal())
		require.NoError(t, v.Unseal())
	})
}

// endWithoutBinary ends the plugin's process while its binary is not there, and returns the error of
// a read. The read under which the process ends has another.
func endWithoutBinary(t *testing.T, a *harness.App) (said error) {
	t.Helper()
	v := a.Mount.Vault
	pid := v.PluginPID(t)
	withoutBinary(t, v, func() {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		harness.WaitFor(t, 20*time.Second, "reads fail for want of the binary", func() bool {
			_, said = a.TryRead()
			return said != nil && strings.Contains(said.Error(), "no such file or directory")
		})
	})
	return said
}

func TestBinary_that_is_lost_while_it_runs_fails_reads_when_its_process_ends_until_it_is_back(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	a := v.Enable(t).NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
	token := a.Token(t)

	harness.Refused(t, endWithoutBinary(t, a), http.StatusInternalServerError)
	harness.RequireSameToken(t, a.Token(t), token)
	a.Update(t, harness.Fields{"leased": false})
}

func TestBinary_that_is_lost_as_Vault_is_unsealed_needs_more_than_a_reload_once_it_is_back(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageRaft})
	a := v.Enable(t).NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
	token := a.Token(t)
	write := func() error {
		_, err := v.Root.Logical().Write(a.ConfigPath(), harness.Fields{"leased": false})
		return err
	}

	skipMounts(t, v)
	require.Contains(t, harness.FileText(t, v.LogPath()), "failed to create mount entry: path="+a.Mount.Path)
	require.Contains(t, harness.Refused(t, write(), http.StatusNotFound), "route entry found, but backend is nil")

	a.Mount.Reload(t)
	harness.RequireSameToken(t, a.Token(t), token)
	said := harness.Refused(t, write(), http.StatusInternalServerError)
	require.Contains(t, said, "cannot write to storage during setup")
	a.Mount.Reload(t)
	harness.Refused(t, write(), http.StatusInternalServerError)

	require.NoError(t, v.Root.Sys().StepDown())
	harness.WaitFor(t, time.Minute, "the node is active again and sets up its mounts", func() bool {
		return write() == nil
	})
	harness.RequireSameToken(t, a.Token(t), token)
}
