// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// NeedProgram returns the path of a program that the test runs. Where it is not on the PATH, the
// test is skipped, and says what to install. E2E_ALL=1 makes that a failure: CI sets it, and has
// them all.
func NeedProgram(t *testing.T, program, install string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && os.Getenv("E2E_ALL") == "" {
		t.Skipf("%s is not on the PATH: %s", program, install)
	}
	require.NoError(t, err, install)
	return path
}

// ConsulTemplateBin returns the path of the pinned consul-template: the one that CONSUL_TEMPLATE_BIN
// names, or what scripts/consul-template prints, after building it where there is none.
func ConsulTemplateBin(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("CONSUL_TEMPLATE_BIN"); path != "" {
		return path
	}
	path, err := exec.CommandContext(t.Context(), "../../scripts/consul-template").Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(path))
}
