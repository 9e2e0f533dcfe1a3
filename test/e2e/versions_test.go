// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Builds of the plugin that differ from the one in bin/: they report another version, or are open
// to measurement.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// The plugin's packages: the released one, and the one that is open to measurement.
const (
	pluginPackage   = "./cmd/vault-plugin-secrets-dingtalk"
	measuredPackage = "./test/e2e/measured"
)

// pluginBuild is a plugin binary in the plugin directory of one Vault.
type pluginBuild struct {
	path    string
	command string // as the catalog has it
	version string
	sha256  string
}

// buildPlugin builds a binary that reports a version into the Vault's plugin directory.
func buildPlugin(t *testing.T, v *harness.VaultServer, program, version string) pluginBuild {
	t.Helper()
	return buildFrom(t, v, "../..", program, version)
}

// firstRelease is the first line of the changelog's entry for the first release.
const firstRelease = "## [0.1.0] - "

// buildFirstRelease builds the plugin as it was first released: from its tag or, where there is
// none, from the commit that dated that release in the changelog. Sources that came without git's
// history, as from an archive or in a shallow clone, skip the test.
func buildFirstRelease(t *testing.T, v *harness.VaultServer) pluginBuild {
	t.Helper()
	// In containers the checkout often belongs to another user, in which case git asks for this.
	gitCommand := func(args ...string) []string {
		return append([]string{"git", "-c", "safe.directory=*", "-C", "../.."}, args...)
	}
	git := func(args ...string) string {
		command := gitCommand(args...)
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	commit := git("rev-parse", "--verify", "--quiet", "v0.1.0^{commit}")
	if commit == "" {
		commit, _, _ = strings.Cut(git("log", "--reverse", "--format=%H", "-S"+firstRelease, "--", "CHANGELOG.md"), "\n")
	}
	if !strings.Contains(git("show", commit+":backend.go"), `Version = "v0.1.0"`) {
		t.Skip("git has no history back to the first release: `git fetch --unshallow --tags` gets it")
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "sources.tar")
	for _, args := range [][]string{
		gitCommand("archive", "--output="+archive, commit),
		{"tar", "-xf", archive, "-C", dir},
	} {
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "get the sources of the first release: %s", out)
	}
	return buildFrom(t, v, dir, pluginPackage, "v0.1.0")
}

// buildFrom is build, from other sources.
func buildFrom(t *testing.T, v *harness.VaultServer, sources, program, version string) pluginBuild {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	b := pluginBuild{command: harness.PluginName + "-" + version, version: version}
	b.path = filepath.Join(filepath.Dir(v.PluginPath), b.command)
	// As `make build` does it, so that most is in the build cache.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags", "e2e",
		"-ldflags", "-s -w -X vault-plugin-secrets-dingtalk.Version="+version, "-o", b.path, program)
	cmd.Dir = sources
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "build %s: %s", program, out)

	content, err := os.ReadFile(b.path)
	require.NoError(t, err)
	digest := sha256.Sum256(content)
	b.sha256 = hex.EncodeToString(digest[:])
	return b
}

// registerBuild puts a build into the catalog under its own version.
func registerBuild(t *testing.T, v *harness.VaultServer, b pluginBuild, env ...string) {
	t.Helper()
	require.NoError(t, v.Root.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name:    harness.PluginName,
		Type:    api.PluginTypeSecrets,
		Command: b.command,
		SHA256:  b.sha256,
		Version: b.version,
		Env:     env,
	}), "register %s", b.version)
}

// usage is what a process takes.
type usage struct {
	goroutines, heapBytes    int64 // as the process says itself, after a garbage collection
	rssBytes, threads, files int64 // as the kernel says
}

// measured is a plugin process that is open to measurement.
type measured struct {
	pid    int
	socket string
}

// enableMeasured enables the build of the plugin that reports what it takes.
func enableMeasured(t *testing.T, v *harness.VaultServer) (*harness.Mount, measured) {
	t.Helper()
	b := buildPlugin(t, v, measuredPackage, "v0.0.0-measured")
	socket := filepath.Join(v.Dir, "measure.sock")
	registerBuild(t, v, b, "DINGTALK_E2E_MEASURE="+socket)
	m := v.EnableVersion(t, b.version)
	pids, err := subprocess.Children(v.Proc.PID(), b.path)
	require.NoError(t, err)
	require.Len(t, pids, 1, "one process serves the mount")
	return m, measured{pid: pids[0], socket: socket}
}

func (m measured) usage(t *testing.T) usage {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", m.socket)
	require.NoError(t, err, "ask the plugin's process")
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
	var said struct {
		Goroutines int64 `json:"goroutines"`
		HeapBytes  int64 `json:"heap_bytes"`
	}
	require.NoError(t, json.NewDecoder(conn).Decode(&said))

	rss, err := subprocess.Status(m.pid, "VmRSS")
	require.NoError(t, err)
	threads, err := subprocess.Status(m.pid, "Threads")
	require.NoError(t, err)
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.pid))
	require.NoError(t, err)
	return usage{
		goroutines: said.Goroutines, heapBytes: said.HeapBytes,
		rssBytes: rss << 10, threads: threads, files: int64(len(files)),
	}
}

// least takes the lesser of each figure: what is there at every moment, without the requests that
// are under way at one.
func (u usage) least(other usage) usage {
	return usage{
		goroutines: min(u.goroutines, other.goroutines),
		heapBytes:  min(u.heapBytes, other.heapBytes),
		rssBytes: min(
			u.rssBytes,
			other.rssBytes,
		),
		threads: min(u.threads, other.threads),
		files:   min(u.files, other.files),
	}
}
