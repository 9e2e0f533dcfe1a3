// SPDX-License-Identifier: MPL-2.0

// Package mutants breaks the engine on purpose, one rule at a time, and wants the tests to notice.
// It is what shows that a test was not lost when tests were merged.
package mutants

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../.."

// mutant is one deliberate fault: a text of a source file replaced by another, and the test that
// catches it.
type mutant struct {
	rule     string
	file     string
	from, to string
	caughtBy string
}

func read(t *testing.T, file string) string {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(source)
}

func TestMutants_are_of_the_present_sources_and_in_the_docs(t *testing.T) {
	docs := read(t, "docs/reliability.md")
	var tests strings.Builder
	files, err := filepath.Glob(filepath.Join(root, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		tests.WriteString(read(t, filepath.Base(file)))
	}
	for _, m := range mutants {
		if !strings.Contains(tests.String(), "func "+m.caughtBy+"(") {
			t.Errorf("%s: there is no test %s", m.rule, m.caughtBy)
		}
		if n := strings.Count(read(t, m.file), m.from); n != 1 {
			t.Errorf("%s: %s has the text %d times: %s", m.rule, m.file, n, m.from)
		}
		if row := "| " + m.rule + " | `" + m.caughtBy + "` |"; !strings.Contains(docs, row) {
			t.Errorf("docs/reliability.md lacks the row\n%s", row)
		}
	}
}
