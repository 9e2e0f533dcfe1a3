// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

// Secrets that no log may hold: every app secret and token that the tests make or meet is noted
// here. The log and the audit log of each Vault are searched for them at its end, and the output of
// a failing test is masked.

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
)

var (
	secretsMu sync.Mutex
	secrets   = map[string]string{} // what each value is

	// VaultTokenPattern matches any token of Vault's.
	VaultTokenPattern = regexp.MustCompile(`\bhv[sbr]\.[A-Za-z0-9_-]{20,}`)
)

// NoteSecret adds a value that must not appear in any log.
func NoteSecret(value, what string) {
	if value == "" {
		return
	}
	secretsMu.Lock()
	defer secretsMu.Unlock()
	secrets[value] = what
}

// secretReplacer replaces every known secret with what it is.
func secretReplacer() *strings.Replacer {
	secretsMu.Lock()
	defer secretsMu.Unlock()
	pairs := make([]string, 0, 2*len(secrets))
	for value, what := range secrets {
		pairs = append(pairs, value, "<"+what+">")
	}
	return strings.NewReplacer(pairs...)
}

// NewSecret returns an app secret that nothing else in the run contains.
func NewSecret() string {
	value := "e2eSecret-" + RandomHex(12)
	NoteSecret(value, "an app secret")
	return value
}

// RandomHex returns n random bytes in hex.
func RandomHex(n int) string {
	raw := make([]byte, n)
	_, _ = rand.Read(raw)
	return hex.EncodeToString(raw)
}

// Mask returns a text that is safe to print.
func Mask(text string) string {
	return VaultTokenPattern.ReplaceAllString(secretReplacer().Replace(text), "<a Vault token>")
}

// AssertNoSecret fails the test if a text holds a secret.
func AssertNoSecret(t *testing.T, where, text string) {
	t.Helper()
	if secretReplacer().Replace(text) != text {
		t.Errorf("%s holds a secret:\n%s", where, Mask(text))
	}
}

// RequireSameToken requires two tokens to be the same, without printing any.
func RequireSameToken(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Fatal("not the token that was expected")
	}
}

// RequireOtherToken requires two tokens to differ, without printing any.
func RequireOtherToken(t *testing.T, got, unwanted string) {
	t.Helper()
	if got == unwanted {
		t.Fatal("the same token as before")
	}
}

// SearchFile searches a log for known secrets. The error names the first lines that hold one.
func SearchFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()

	replacer := secretReplacer()
	lines := bufio.NewReaderSize(file, 1<<20)
	var leaks []error
	for number := 1; len(leaks) < 10; number++ {
		line, err := lines.ReadString('\n')
		if replacer.Replace(line) != line {
			leaks = append(leaks, fmt.Errorf("%s, line %d: %s", path, number, Mask(line)))
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(leaks...)
}
