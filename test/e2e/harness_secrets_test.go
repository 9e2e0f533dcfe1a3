// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// What must never be seen: every app secret and token that the tests make or meet is noted here.
// Each Vault's log and audit file is searched for them at its end, and whatever a failing test
// prints is masked.

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
	secrets   = map[string]string{} // value to what it is

	vaultTokenPattern = regexp.MustCompile(`\bhv[sbr]\.[A-Za-z0-9_-]{20,}`)
)

// noteSecret adds a value that must not appear in any log.
func noteSecret(value, what string) {
	if value == "" {
		return
	}
	secretsMu.Lock()
	defer secretsMu.Unlock()
	secrets[value] = what
}

// secretReplacer puts what it is in the place of every known secret.
func secretReplacer() *strings.Replacer {
	secretsMu.Lock()
	defer secretsMu.Unlock()
	pairs := make([]string, 0, 2*len(secrets))
	for value, what := range secrets {
		pairs = append(pairs, value, "<"+what+">")
	}
	return strings.NewReplacer(pairs...)
}

// newSecret makes an app secret that nothing else in the run contains.
func newSecret() string {
	value := "e2eSecret-" + randomHex(12)
	noteSecret(value, "an app secret")
	return value
}

func randomHex(n int) string {
	raw := make([]byte, n)
	_, _ = rand.Read(raw)
	return hex.EncodeToString(raw)
}

// mask makes text safe to print.
func mask(text string) string {
	return vaultTokenPattern.ReplaceAllString(secretReplacer().Replace(text), "<a Vault token>")
}

// assertNoSecret checks a text that a user or a log gets to see.
func assertNoSecret(t *testing.T, where, text string) {
	t.Helper()
	if secretReplacer().Replace(text) != text {
		t.Errorf("%s holds a secret:\n%s", where, mask(text))
	}
}

// requireSameToken compares tokens without printing any.
func requireSameToken(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Fatal("not the token that was expected")
	}
}

func requireOtherToken(t *testing.T, got, unwanted string) {
	t.Helper()
	if got == unwanted {
		t.Fatal("the same token as before")
	}
}

// searchFile looks for known secrets in a log and names the first lines that hold one.
func searchFile(path string) error {
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
			leaks = append(leaks, fmt.Errorf("%s, line %d: %s", path, number, mask(line)))
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
