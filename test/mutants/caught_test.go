// SPDX-License-Identifier: MPL-2.0

//go:build mutants

package mutants

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMutants_are_caught takes minutes: each fault is compiled.
func TestMutants_are_caught(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.rule, func(t *testing.T) {
			out, err := m.test(t)
			switch {
			case err == nil:
				t.Errorf("%s is not caught by %s", m.rule, m.caughtBy)
			case !strings.Contains(out, "--- FAIL: "+m.caughtBy):
				t.Errorf("%s: %s did not fail, but:\n%s", m.rule, m.caughtBy, out)
			}
		})
	}
}

// test runs the test with the fault in the source's place.
func (m mutant) test(t *testing.T) (out string, err error) {
	t.Helper()
	broken := filepath.Join(t.TempDir(), "broken.go")
	if err := os.WriteFile(broken, []byte(strings.Replace(read(t, m.file), m.from, m.to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := filepath.Abs(filepath.Join(root, m.file))
	if err != nil {
		t.Fatal(err)
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {source: broken}})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-count=1", "-timeout=2m", "-overlay", overlay,
		"-run", "^"+m.caughtBy+"$", ".")
	cmd.Dir = root
	text, err := cmd.CombinedOutput()
	return string(text), err
}
