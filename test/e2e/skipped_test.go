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
)

// withoutBinary does something while the plugin's binary is not in the plugin directory.
func (v *vaultServer) withoutBinary(t *testing.T, do func()) {
	t.Helper()
	aside := v.pluginPath + ".aside"
	require.NoError(t, os.Rename(v.pluginPath, aside))
	do()
	require.NoError(t, os.Rename(aside, v.pluginPath))
}

// skipMounts unseals Vault without the plugin's binary. It then serves, but not the engine's mounts.
func (v *vaultServer) skipMounts(t *testing.T) {
	t.Helper()
	v.withoutBinary(t, func() {
		require.NoError(t, v.root.Sys().Seal())
		require.NoError(t, v.unseal())
	})
}

// endWithoutBinary ends the plugin's process while its binary is not there, and returns the error of
// a read. The read under which the process ends has another.
func (a *app) endWithoutBinary(t *testing.T) (said error) {
	t.Helper()
	pid := a.m.v.pluginPID(t)
	a.m.v.withoutBinary(t, func() {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		waitFor(t, 20*time.Second, "reads fail for want of the binary", func() bool {
			_, said = a.tryRead()
			return said != nil && strings.Contains(said.Error(), "no such file or directory")
		})
	})
	return said
}

func TestBinary_that_is_lost_while_it_runs_fails_reads_when_its_process_ends_until_it_is_back(t *testing.T) {
	t.Parallel()
	v := startVault(t, vaultOptions{storage: storageInmem})
	a := v.enable(t).newApp(t, startDingTalk(t, fullLifetime), nil)
	token := a.token(t)

	refused(t, a.endWithoutBinary(t), http.StatusInternalServerError)
	requireSameToken(t, a.token(t), token)
	a.update(t, fields{"leased": false})
}

func TestBinary_that_is_lost_as_Vault_is_unsealed_needs_more_than_a_reload_once_it_is_back(t *testing.T) {
	t.Parallel()
	v := startVault(t, vaultOptions{storage: storageRaft})
	a := v.enable(t).newApp(t, startDingTalk(t, fullLifetime), nil)
	token := a.token(t)
	write := func() error {
		_, err := v.root.Logical().Write(a.configPath(), fields{"leased": false})
		return err
	}

	v.skipMounts(t)
	require.Contains(t, fileText(t, v.logPath()), "failed to create mount entry: path="+a.m.path)
	require.Contains(t, refused(t, write(), http.StatusNotFound), "route entry found, but backend is nil")

	a.m.reload(t)
	requireSameToken(t, a.token(t), token)
	require.Contains(t, refused(t, write(), http.StatusInternalServerError), "cannot write to storage during setup")
	a.m.reload(t)
	refused(t, write(), http.StatusInternalServerError)

	require.NoError(t, v.root.Sys().StepDown())
	waitFor(t, time.Minute, "the node is active again, and sets its mounts up", func() bool { return write() == nil })
	requireSameToken(t, a.token(t), token)
}
