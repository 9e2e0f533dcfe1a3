// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Builds of the plugin that differ from the one under bin/: in the version that they report, or by
// being open to measurement.

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
)

// The programs that are the plugin.
const (
	pluginPackage   = "./cmd/vault-plugin-secrets-dingtalk"
	measuredPackage = "./test/e2e/measured"
)

// pluginBuild is a program in the plugin directory of one Vault.
type pluginBuild struct {
	path    string
	command string // as the catalog has it
	version string
	sha256  string
}

// build builds a program that reports a version into the Vault's plugin directory.
func (v *vaultServer) build(t *testing.T, program, version string) pluginBuild {
	t.Helper()
	return v.buildFrom(t, "../..", program, version)
}

// firstRelease is the first line of the changelog's entry for the first release.
const firstRelease = "## [0.1.0] - "

// buildFirstRelease builds the plugin as it was first released: from its tag or, where there is
// none, from the commit that dated that release in the changelog. Only sources that came without git
// skip the test. In a shallow clone it fetches the history.
func (v *vaultServer) buildFirstRelease(t *testing.T) pluginBuild {
	t.Helper()
	git := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", "../.."}, args...)...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	if _, err := os.Stat("../../.git"); err != nil {
		t.Skip("this copy of the sources came without git's history, which has the first release")
	}
	find := func() string {
		if tagged := git("rev-parse", "--verify", "--quiet", "v0.1.0^{commit}"); tagged != "" {
			return tagged
		}
		commit, _, _ := strings.Cut(git("log", "--reverse", "--format=%H", "-S"+firstRelease, "--", "CHANGELOG.md"), "\n")
		if !strings.Contains(git("show", commit+":backend.go"), `Version = "v0.1.0"`) {
			return ""
		}
		return commit
	}
	commit := find()
	if commit == "" && git("rev-parse", "--is-shallow-repository") == "true" {
		git("fetch", "--quiet", "--unshallow", "--tags")
		commit = find()
	}
	require.NotEmpty(t, commit, "the first release is not in git's history: fetch all of it, with the tags")
	dir := t.TempDir()
	archive := filepath.Join(dir, "sources.tar")
	for _, args := range [][]string{
		{"git", "-C", "../..", "archive", "--output=" + archive, commit},
		{"tar", "-xf", archive, "-C", dir},
	} {
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "get the sources of the first release: %s", out)
	}
	return v.buildFrom(t, dir, pluginPackage, "v0.1.0")
}

// buildFrom is build, from other sources.
func (v *vaultServer) buildFrom(t *testing.T, sources, program, version string) pluginBuild {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	b := pluginBuild{command: pluginName + "-" + version, version: version}
	b.path = filepath.Join(filepath.Dir(v.pluginPath), b.command)
	// As `make build` does it, so that most comes from the build cache.
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

// register puts a build into the catalog under its own version.
func (v *vaultServer) register(t *testing.T, b pluginBuild, env ...string) {
	t.Helper()
	require.NoError(t, v.root.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name:    pluginName,
		Type:    api.PluginTypeSecrets,
		Command: b.command,
		SHA256:  b.sha256,
		Version: b.version,
		Env:     env,
	}), "register %s", b.version)
}

// enableVersion enables a version of the plugin at a path of its own.
func (v *vaultServer) enableVersion(t *testing.T, b pluginBuild) *mount {
	t.Helper()
	m := &mount{v: v, path: fmt.Sprintf("dingtalk-%d", mountCount.Add(1))}
	require.NoError(t, v.root.Sys().Mount(m.path, &api.MountInput{
		Type: pluginName, Config: api.MountConfigInput{PluginVersion: b.version},
	}), "enable %s", b.version)
	return m
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

// enableMeasured enables the plugin in the build that tells what it takes.
func (v *vaultServer) enableMeasured(t *testing.T) (*mount, measured) {
	t.Helper()
	b := v.build(t, measuredPackage, "v0.0.0-measured")
	socket := filepath.Join(v.dir, "measure.sock")
	v.register(t, b, "DINGTALK_E2E_MEASURE="+socket)
	m := v.enableVersion(t, b)
	pids, err := subprocess.Children(v.proc.PID(), b.path)
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
