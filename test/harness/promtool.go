// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// PrometheusProgram returns the path of prometheus or promtool: the binary that PROMETHEUS_BIN
// names, the one beside it, or the one in PATH.
func PrometheusProgram(t *testing.T, name string) string {
	t.Helper()
	const install = "install Debian's package prometheus, or set PROMETHEUS_BIN to the absolute path of a prometheus " +
		"with its promtool beside it"
	if path := os.Getenv("PROMETHEUS_BIN"); path != "" {
		path = filepath.Join(filepath.Dir(path), name)
		require.True(t, filepath.IsAbs(path), "PROMETHEUS_BIN is not an absolute path: %s", install)
		require.FileExists(t, path, install)
		return path
	}
	return NeedProgram(t, name, install)
}

// Promtool runs promtool in a directory, with the input on its standard input. It must succeed.
func Promtool(t *testing.T, dir, input string, args ...string) (printed string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, PrometheusProgram(t, "promtool"), args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "promtool %s: %s", strings.Join(args, " "), out)
	return string(out)
}
