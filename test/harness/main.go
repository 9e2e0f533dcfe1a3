// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package harness holds what the end-to-end tests share: a real Vault server with the plugin, a
// simulator in place of DingTalk, apps that both know, and the search for secrets in logs.
package harness

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

// PluginName is the name of the plugin's binary, and its name in the catalog.
const PluginName = "vault-plugin-secrets-dingtalk"

// Where the tests find their binaries and keep their files. Main sets them once.
var (
	VaultBin  string
	PluginBin string
	WorkRoot  string
	onOpenBao bool // VaultBin is OpenBao, a fork of Vault
)

// parallelTests is how many tests run at once, unless -parallel is set. They mostly wait for tokens
// to age, so there can be more of them than processors.
const parallelTests = 8

// Main runs the tests of a package and ends the process. Without the two binaries it fails and says
// how to build them.
func Main(m *testing.M) {
	subprocess.RunGuard()
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	flag.Parse()
	if !flagGiven("test.parallel") {
		if err := flag.Set("test.parallel", strconv.Itoa(parallelTests)); err != nil {
			return fail(err)
		}
	}

	var err error
	if VaultBin, err = FindBinary("VAULT_BIN", "../../bin/vault"); err != nil {
		return fail(err)
	}
	if PluginBin, err = FindBinary("PLUGIN_BIN", "../../bin/"+PluginName); err != nil {
		return fail(err)
	}
	clearVaultEnvironment()
	if onOpenBao, err = isOpenBao(VaultBin); err != nil {
		return fail(err)
	}

	if WorkRoot, err = os.MkdirTemp("", "dingtalk-e2e-"); err != nil {
		return fail(err)
	}
	if err = subprocess.StartGuard(WorkRoot); err != nil {
		return fail(err)
	}

	code := m.Run()
	if err = stopSharedVault(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: the shared Vault:", err)
		code = 1
	}
	if err = subprocess.StopGuard(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

func flagGiven(name string) bool {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}

// FindBinary returns the absolute path of a binary: the one that the environment variable names, or
// the fallback.
func FindBinary(env, fallback string) (string, error) {
	path := os.Getenv(env)
	if path == "" {
		path = fallback
	} else if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s must be an absolute path, not %q", env, path)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("no program at %s: run `make build vault` first, or set %s", path, env)
	}
	return path, nil
}

// isOpenBao reports whether a binary is OpenBao. The first word of its version tells.
func isOpenBao(path string) (bool, error) {
	version, err := exec.CommandContext(context.Background(), path, "version").Output()
	if err != nil {
		return false, fmt.Errorf("%s version: %w", path, err)
	}
	product, _, _ := strings.Cut(string(version), " ")
	if product != "Vault" && product != "OpenBao" {
		return false, fmt.Errorf("%s is neither Vault nor OpenBao: %q", path, version)
	}
	return product == "OpenBao", nil
}

// SkipOnOpenBao skips a test of a feature that OpenBao lacks.
func SkipOnOpenBao(t *testing.T, feature string) {
	t.Helper()
	if onOpenBao {
		t.Skip("OpenBao lacks " + feature)
	}
}

// clearVaultEnvironment keeps the caller's own Vault settings out of the tests' clients.
func clearVaultEnvironment() {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") {
			_ = os.Unsetenv(name)
		}
	}
}

// The shared Vault serves every test that affects nothing but its own mount.
var shared struct {
	once sync.Once
	v    *VaultServer
	err  error
}

// SharedVault returns the Vault that a package's tests share. It starts with the first test that
// needs it.
func SharedVault(t *testing.T) *VaultServer {
	t.Helper()
	shared.once.Do(func() {
		shared.v, shared.err = launchVault(VaultOptions{Name: "shared", Storage: StorageInmem, Audit: true})
	})
	require.NoError(t, shared.err, "start the shared Vault")
	shared.v.reportOnFailure(t)
	return shared.v
}

func stopSharedVault() error {
	if shared.v == nil {
		return nil
	}
	stopErr := shared.v.Stop()
	return errors.Join(stopErr, shared.v.FindLeaks())
}
