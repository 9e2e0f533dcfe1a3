// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package e2e drives the plugin as its users do: the real binary in a real Vault server process,
// through Vault's client library, its CLI and its Agent, with the simulator on loopback in
// DingTalk's place. Without the two binaries the run fails and says how to build them. Nothing is
// skipped, except on OpenBao what that lacks, and the way back to the first release where git's
// history does not reach it.
package e2e

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

const pluginName = "vault-plugin-secrets-dingtalk"

// Where the run finds its programs and keeps its files; set once by TestMain.
var (
	vaultBin  string
	pluginBin string
	workRoot  string
	onOpenBao bool // vaultBin is OpenBao, Vault's fork
)

// parallelTests is how many tests run at once unless -parallel says otherwise. They mostly wait for
// tokens to age, so there may be more of them than processors.
const parallelTests = 8

func TestMain(m *testing.M) {
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
	if vaultBin, err = findBinary("VAULT_BIN", "../../bin/vault"); err != nil {
		return fail(err)
	}
	if pluginBin, err = findBinary("PLUGIN_BIN", "../../bin/"+pluginName); err != nil {
		return fail(err)
	}
	clearVaultEnvironment()
	if onOpenBao, err = isOpenBao(vaultBin); err != nil {
		return fail(err)
	}

	if workRoot, err = os.MkdirTemp("", "dingtalk-e2e-"); err != nil {
		return fail(err)
	}
	if err = subprocess.StartGuard(workRoot); err != nil {
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

func findBinary(env, fallback string) (string, error) {
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

// isOpenBao tells Vault and OpenBao apart, which any build does by the first word of its version.
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

// needsVault skips the test where it needs what OpenBao lacks.
func needsVault(t *testing.T, feature string) {
	t.Helper()
	if onOpenBao {
		t.Skip("OpenBao lacks " + feature)
	}
}

// clearVaultEnvironment keeps the caller's own Vault settings out of the clients made here.
func clearVaultEnvironment() {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "BAO_") {
			_ = os.Unsetenv(name)
		}
	}
}

// The shared Vault serves every test that harms nothing but its own mount.
var shared struct {
	once sync.Once
	v    *vaultServer
	err  error
}

func sharedVault(t *testing.T) *vaultServer {
	t.Helper()
	shared.once.Do(func() {
		shared.v, shared.err = launchVault(vaultOptions{name: "shared", storage: storageInmem, audit: true})
	})
	require.NoError(t, shared.err, "start the shared Vault")
	shared.v.reportOnFailure(t)
	return shared.v
}

func stopSharedVault() error {
	if shared.v == nil {
		return nil
	}
	stopErr := shared.v.stop()
	return errors.Join(stopErr, shared.v.findLeaks())
}
