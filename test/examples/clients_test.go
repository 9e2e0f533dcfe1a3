// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A reader reads a client before copying it, and does so as long as it is short.
func TestClients_have_at_most_80_lines(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(examplesDir, "clients", "*"))
	require.NoError(t, err)
	programs := 0
	for _, file := range files {
		if !slices.Contains([]string{".cs", ".go", ".java", ".js", ".php", ".py", ".sh"}, filepath.Ext(file)) {
			continue
		}
		programs++
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.LessOrEqual(t, strings.Count(string(content), "\n"), 80, file)
	}
	require.Equal(t, 7, programs)
}
