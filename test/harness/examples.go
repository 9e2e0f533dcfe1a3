// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

// Files of examples/ as users run them. Only addresses, paths and the mount are replaced.

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Values in the examples that users replace.
const (
	ExamplesDir  = "../../examples"
	ExampleVault = "https://vault.example.com:8200"
	ExampleCreds = "dingtalk/creds/myapp"
)

// systemPath is a path that no test may use.
var systemPath = regexp.MustCompile(`"/(etc|run|usr|var)/`)

// RunnableExample returns a file of examples/ with values replaced. The file must contain each of
// them.
func RunnableExample(t *testing.T, name string, replacements map[string]string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(ExamplesDir, name))
	require.NoError(t, err)
	var pairs []string
	for old, replacement := range replacements {
		require.Contains(t, string(content), old, "%s", name)
		pairs = append(pairs, old, replacement)
	}
	text := strings.NewReplacer(pairs...).Replace(string(content))
	require.NotRegexp(t, systemPath, text, "%s", name)
	return text
}

// PutFile writes a file that only its owner can read.
func PutFile(t *testing.T, dir, name, content string) (path string) {
	t.Helper()
	path = filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// ClientEnv is the environment of a Vault client. It holds nothing about Vault: all of that is in
// the client's configuration.
func ClientEnv(dir string) []string {
	return []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir}
}

// FileText returns the content of a file.
func FileText(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(content)
}
