// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package main

// The way of an image from `image push` over a registry to a mount of a real Vault, as an init
// container goes it: without a container engine, the image's files are laid out in a directory and
// its entry point is started there.

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"
)

func TestImage_from_a_registry_installs_a_plugin_that_Vault_serves(t *testing.T) {
	t.Parallel()
	plugin := program(t, "PLUGIN_BIN", "../bin/"+pluginName, "make build")
	version := strings.TrimSpace(output(t, exec.CommandContext(t.Context(), plugin, "-version")))
	tag := strings.TrimPrefix(version, "v") // as Vault names it; OpenBao keeps the v

	archive := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, run(t.Context(), []string{
		"build", "-version", version, "-time", "2026-01-02T03:04:05Z", "-licenses", "../LICENSE", "-out", archive, plugin,
	}))
	hub := httptest.NewServer(registry.New())
	t.Cleanup(hub.Close)
	repository := strings.TrimPrefix(hub.URL, "http://") + "/tools/" + pluginName
	require.NoError(t, run(t.Context(), []string{"push", archive, repository + ":" + tag, repository + ":" + version}))

	vault := startVault(t)
	for _, tag := range []string{tag, version} {
		rootfs, config := pull(t, repository+":"+tag)
		sum := vault.install(t, filepath.Join(rootfs, config.Entrypoint[0]))
		content, err := os.ReadFile(plugin)
		require.NoError(t, err)
		digest := sha256.Sum256(content)
		require.Equal(t, hex.EncodeToString(digest[:]), sum, "the binary in the image is the one that was put there")

		vault.run(t, "plugin", "register", "-sha256="+sum, "-version="+version, "-command="+pluginName+"-"+version,
			"secret", pluginName)
	}
	vault.run(t, "secrets", "enable", "-path=dingtalk", pluginName)
	require.Equal(t, version, vault.run(t, "read", "-field=running_plugin_version", "sys/mounts/dingtalk"))
	require.Contains(t, vault.run(t, "path-help", "dingtalk/config/myapp"), "app_secret")
}

// program is the path of a binary, from the environment or where a target of make has put it.
func program(t *testing.T, env, fallback, target string) string {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		path = fallback
	}
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	require.FileExists(t, path, "run `%s` first, or set %s", target, env)
	return path
}

// output is what a command printed on standard output, without the line break at its end.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.NoError(t, err, "%s: %s", cmd, &errs)
	return strings.TrimSuffix(string(out), "\n")
}

// pull lays out what this platform's image holds.
func pull(t *testing.T, reference string) (string, v1.Config) {
	t.Helper()
	ref, err := name.ParseReference(reference)
	require.NoError(t, err)
	image, err := remote.Image(ref, remote.WithContext(t.Context()),
		remote.WithPlatform(v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}))
	require.NoError(t, err)
	rootfs := t.TempDir()
	for path, file := range unpack(t, image) {
		path = filepath.Join(rootfs, path)
		if file.header.FileInfo().IsDir() {
			require.NoError(t, os.MkdirAll(path, 0o755))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, file.content, file.header.FileInfo().Mode()))
	}
	config, err := image.ConfigFile()
	require.NoError(t, err)
	return rootfs, config.Config
}

// devVault is a Vault on loopback that keeps nothing.
type devVault struct {
	bin, plugins string
	env          []string
}

func startVault(t *testing.T) *devVault {
	t.Helper()
	plugins, err := filepath.EvalSymlinks(t.TempDir()) // Vault refuses a symbolic link
	require.NoError(t, err)
	address := freeAddress(t)
	const token = "root-token-of-the-test"
	v := &devVault{
		bin:     program(t, "VAULT_BIN", "../bin/vault", "make vault"),
		plugins: plugins,
		env:     []string{"HOME=" + t.TempDir(), "VAULT_ADDR=http://" + address, "VAULT_TOKEN=" + token},
	}
	config := filepath.Join(t.TempDir(), "vault.hcl")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "plugin_directory = %q\n", plugins), 0o600))
	log := filepath.Join(t.TempDir(), "vault.log")
	out, err := os.Create(log)
	require.NoError(t, err)
	t.Cleanup(func() { out.Close() })

	cmd := exec.CommandContext(t.Context(), v.bin, "server", "-dev", "-dev-no-store-token",
		"-dev-root-token-id="+token, "-dev-listen-address="+address, "-config="+config)
	cmd.Env, cmd.Stdout, cmd.Stderr = v.env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // its plugins end with it
	cmd.WaitDelay = 20 * time.Second
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Wait() // the test's context has ended
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if text, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("Vault's log:\n%s", text)
		}
	})
	require.Eventually(t, func() bool {
		return v.command(t, "status").Run() == nil
	}, time.Minute, 200*time.Millisecond, "Vault does not start")
	return v
}

func (v *devVault) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), v.bin, args...)
	cmd.Env = v.env
	return cmd
}

func (v *devVault) run(t *testing.T, args ...string) string {
	t.Helper()
	return output(t, v.command(t, args...))
}

// install runs the image's entry point with -install, and returns what it printed.
func (v *devVault) install(t *testing.T, entrypoint string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), entrypoint, "-install", v.plugins)
	cmd.Env = []string{} // there is nothing in a container's
	return output(t, cmd)
}

// freeAddress is below the ports of outgoing connections, which could take it until Vault does, and
// between those that the other end-to-end tests choose from.
func freeAddress(t *testing.T) string {
	t.Helper()
	for port := 25000; port < 26000; port++ {
		address := fmt.Sprintf("127.0.0.1:%d", port)
		listener, err := net.Listen("tcp", address)
		if err == nil {
			require.NoError(t, listener.Close())
			return address
		}
	}
	require.FailNow(t, "no free port")
	return ""
}
