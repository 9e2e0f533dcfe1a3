// SPDX-License-Identifier: MPL-2.0

//go:build e2e || release

package release

// Builds of the plugin in other places than the checkout.

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	dingtalk "vault-plugin-secrets-dingtalk"
)

// copySources copies what a build needs into a directory.
func copySources(t *testing.T, to string) {
	t.Helper()
	for _, dir := range []string{"cmd/" + plugin, "internal", "scripts"} {
		require.NoError(t, os.CopyFS(filepath.Join(to, dir), os.DirFS(filepath.Join(root, dir))))
	}
	for _, pattern := range []string{"*.go", "go.mod", "go.sum", "Makefile"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, files, pattern)
		for _, file := range files {
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(to, filepath.Base(file)), content, 0o600))
		}
	}
}

// makeBuild runs `make build` in a directory, and returns the program. The environment is this one
// with what is given; neither a make above this one nor flags of Go's play a part.
func makeBuild(t *testing.T, dir string, env ...string) []byte {
	t.Helper()
	var clean []string
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		switch {
		case strings.HasPrefix(name, "MAKE"), name == "MFLAGS", name == "GOFLAGS", strings.EqualFold(name, "version"):
		default:
			clean = append(clean, pair)
		}
	}
	printed := run(t, dir, append(clean, env...), "make", "build")
	program, err := os.ReadFile(filepath.Join(dir, "bin", plugin))
	require.NoError(t, err)
	require.Contains(t, printed, "SHA-256 of bin/"+plugin+" "+dingtalk.Version+": "+digest(program)+"\n")
	return program
}

func run(t *testing.T, dir string, env []string, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = dir, env
	printed, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %s:\n%s", program, strings.Join(args, " "), printed)
	return string(printed)
}

// goEnv is a setting of Go's.
func goEnv(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, root, os.Environ(), "go", "env", name))
}
