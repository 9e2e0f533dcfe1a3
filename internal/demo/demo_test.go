// SPDX-License-Identifier: MPL-2.0

//go:build unix

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// newTestStage is a stage whose output is kept, and whose working directory is the test's.
func newTestStage(t *testing.T, ctx context.Context, set settings) (*stage, *bytes.Buffer) {
	t.Helper()
	t.Setenv("VAULT_ADDR", "https://vault.example.com")
	t.Setenv("DINGTALK_APP_SECRET", "the user's")
	t.Chdir("/") // restored at the end
	set.bin, set.vault = "/no/bin", "/no/vault"
	s := newStage(ctx, set, t.TempDir())
	var printed bytes.Buffer
	s.out = &printed
	return s, &printed
}

func TestSettings(t *testing.T) {
	vault, err := os.Executable()
	require.NoError(t, err)
	for _, c := range []struct {
		name                 string
		key, secret, baseURL string
		corpID               string
		live                 bool
		err                  string
	}{
		{name: "the simulator"},
		{name: "the live API", key: "k", secret: "s", live: true},
		{name: "another edition", key: "k", secret: "s", baseURL: "https://api.dingtalk.io", live: true},
		{name: "the unified call", key: "k", secret: "s", corpID: "dingcorp", live: true},
		{name: "no secret", key: "k", err: "set both DINGTALK_APP_KEY and DINGTALK_APP_SECRET"},
		{name: "no key", secret: "s", err: "set both DINGTALK_APP_KEY and DINGTALK_APP_SECRET"},
		{name: "neither", baseURL: "https://api.dingtalk.io", err: "DINGTALK_BASE_URL is for the live API"},
		{name: "no app for the organization", corpID: "dingcorp", err: "and so is DINGTALK_CORP_ID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, err := readSettings(func(name string) string {
				return map[string]string{
					"DINGTALK_APP_KEY": c.key, "DINGTALK_APP_SECRET": c.secret, "DINGTALK_BASE_URL": c.baseURL,
					"DINGTALK_CORP_ID": c.corpID, "VAULT_BIN": vault,
				}[name]
			})
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.live, set.live)
			require.Equal(t, c.baseURL, set.baseURL)
			require.Equal(t, c.corpID, set.corpID)
			require.Equal(t, vault, set.vault)
			require.NotEmpty(t, set.appSecret)
		})
	}
}

func TestSettings_without_a_Vault(t *testing.T) {
	_, err := readSettings(func(string) string { return "" })
	require.ErrorContains(t, err, "VAULT_BIN")
}

func TestQuote_is_one_word_of_the_shell(t *testing.T) {
	for _, text := range []string{"", "plain-1.2/x:y", "two words", `it's "$HOME" \ *`, "line\nbreak"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+quote(text)).Output()
		require.NoError(t, err)
		require.Equal(t, text, string(out))
	}
	require.Equal(t, "plain-1.2/x:y", quote("plain-1.2/x:y"))
}

func TestStage_commands_are_printed_run_and_checked(t *testing.T) {
	s, printed := newTestStage(t, t.Context(), settings{appSecret: `a "secret"`})
	require.True(t, s.perform(func(s *stage) {
		s.begin("The first")
		s.runFor(3, "echo 'key  the value'; echo keys none; exit 3")
		s.expect("key", s.field("key"), "the value")
		s.expect("no key", s.field("ke"), "")
		s.expectOutput("keys", "none")

		s.capture(`printf %s "$DINGTALK_APP_SECRET"; env`)
		s.expectOutput(`a "secret"`)
		require.NotContains(t, s.output, "DINGTALK_APP_SECRET", "in no program's environment")
		require.NotContains(t, s.output, "VAULT_ADDR")
	}))
	require.Equal(t, `
==> 1. The first

$ echo 'key  the value'; echo keys none; exit 3
key  the value
keys none
`, printed.String())
	require.NoError(t, s.close())
	require.NoDirExists(t, s.work)
}

func TestStage_a_step_that_fails_ends_the_play(t *testing.T) {
	for name, step := range map[string]func(s *stage){
		"another status":        func(s *stage) { s.run("false") },
		"another value":         func(s *stage) { s.expect("it", "this", "that") },
		"no such output":        func(s *stage) { s.capture("echo this"); s.expectOutput("that") },
		"a program that ends":   func(s *stage) { s.launch("it", "true"); s.await("it ended", "it.log", "never") },
		"an output that closed": func(s *stage) { s.out = brokenPipe{}; s.note("unseen") },
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newTestStage(t, t.Context(), settings{})
			require.False(t, s.perform(func(s *stage) {
				step(s)
				require.Fail(t, "it went on")
			}))
			require.NoError(t, s.close())
		})
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestStage_an_interrupt_ends_a_command_at_once(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s, _ := newTestStage(t, ctx, settings{})
	began := time.Now()
	time.AfterFunc(200*time.Millisecond, func() { cancel(interrupt(syscall.SIGINT)) })
	require.False(t, s.perform(func(s *stage) {
		s.launch("background", "sleep 100")
		s.run("trap '' INT TERM; sleep 100; true")
	}))
	require.NoError(t, s.close())
	require.Less(t, time.Since(began), 10*time.Second)
}

func TestStage_secrets_of_the_live_API_are_not_printed(t *testing.T) {
	s, printed := newTestStage(t, t.Context(), settings{live: true, appSecret: "the-secret"})
	require.True(t, s.perform(func(s *stage) {
		s.run(`echo "access_token  $(printf %s the)-token"; echo "$DINGTALK_APP_SECRET"`)
		s.expect("the token itself", s.field("access_token"), "the-token")
		s.note("the-token")
	}))
	require.NoError(t, s.close())
	require.NotContains(t, printed.String(), "the-")
	require.Contains(t, printed.String(), "access_token  ********\n********\n--- ********\n")
}
