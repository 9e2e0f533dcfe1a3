// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A real consul-template, which Nomad uses too. As with Agent, what counts is the file that an
// application reads: it must not hold a token that DingTalk refuses.

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// startConsulTemplate runs consul-template with a token of Vault's that may read one app.
func startConsulTemplate(t *testing.T, a *app) *rendered {
	t.Helper()
	program, err := findBinary("CONSUL_TEMPLATE_BIN", "../../bin/consul-template")
	require.NoError(t, err, "run `make test-e2e`, or set CONSUL_TEMPLATE_BIN to what scripts/consul-template prints")
	dir := t.TempDir()
	token := a.m.v.newToken(t, runnableExample(t, "policies/reader.hcl", map[string]string{exampleCreds: a.credsPath()})+`
path "sys/leases/renew" {
  capabilities = ["update"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
`)
	r := newRendered(filepath.Join(dir, "dingtalk.env"), a.dt, 1)
	config := putFile(t, dir, "consul-template.hcl", fmt.Sprintf(`
kill_signal = "SIGTERM"

vault {
  address = %q
}

template {
  contents             = "{{ with secret \"%s\" }}DINGTALK_ACCESS_TOKEN={{ .Data.access_token }}\n{{ end }}"
  destination          = %q
  perms                = "0600"
  error_on_missing_key = true
}
`, a.m.v.addr, a.credsPath(), r.file))
	log := filepath.Join(dir, "consul-template.log")
	env := append(vaultClientEnv(dir), "VAULT_TOKEN="+token)
	proc, err := startProcess("consul-template of "+t.Name(), log, env, program, "-config="+config, "-log-level=debug")
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := proc.stop(10 * time.Second); err != nil {
			t.Error(err)
		}
		if err := searchFile(log); err != nil {
			t.Errorf("secrets in consul-template's log: %v", err)
		}
		if t.Failed() {
			lines := strings.Split(fileText(t, log), "\n")
			t.Logf("the end of consul-template's log:\n%s", mask(strings.Join(lines[max(0, len(lines)-60):], "\n")))
		}
	})
	return r
}

func TestConsulTemplate_file_holds_a_live_token_at_two_calls_a_lifetime(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	for mode, leased := range agentModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, lifetime)
			a := newMount(t).newApp(t, dt, fields{"leased": leased})
			calls := &callLog{a: a, last: time.Now()}
			r := startConsulTemplate(t, a)
			pass := func(d time.Duration) {
				t.Helper()
				end := time.Now().Add(d)
				watchFiles(t, d+time.Second, "time passes", []*rendered{r}, func() bool {
					calls.look()
					return time.Now().After(end)
				})
			}
			watchFiles(t, 30*time.Second, "the token is rendered", []*rendered{r}, func() bool {
				calls.look()
				return r.holds(a)
			})

			// DingTalk extends the token each time it is asked for it: the file stays.
			pass(lifetime + lifetime/2)
			require.Len(t, r.contents, 1, "contents of the file while the token is extended")

			// DingTalk gives another token each time, the old ones live on to their end: the file follows.
			dt.RotateTokens(a.key, true)
			pass(2 * lifetime)
			dt.RotateTokens(a.key, false)
			require.Greater(t, len(r.contents), 2, "contents of the file while the token is replaced")
			watchFiles(t, lifetime, "the file holds the last token", []*rendered{r}, func() bool { return r.holds(a) })
			calls.requireAtMostTwoPer(t, lifetime)

			// DingTalk ends the token before its time, which nobody is told of. The next renewal or read finds
			// out.
			dt.ExpireTokens(a.key)
			r.mayBeDead = lifetime
			watchFiles(t, lifetime, "the file holds the token that DingTalk gives now", []*rendered{r}, func() bool {
				return r.holds(a)
			})
		})
	}
}
