// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package consumers

// A real consul-template, which Nomad uses too. Its file, which an application reads, must not hold
// a token that DingTalk refuses.

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

// startConsulTemplate runs consul-template with a token of Vault's that may read one app.
func startConsulTemplate(t *testing.T, a *harness.App) *harness.Rendered {
	t.Helper()
	program := harness.ConsulTemplateBin(t)
	dir := t.TempDir()
	policy := harness.RunnableExample(t, "policies/reader.hcl", map[string]string{harness.ExampleCreds: a.CredsPath()})
	token := a.Mount.Vault.NewToken(t, policy+`
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
	r := harness.NewRendered(filepath.Join(dir, "dingtalk.env"), a.DingTalk, 1)
	config := harness.PutFile(t, dir, "consul-template.hcl", fmt.Sprintf(`
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
`, a.Mount.Vault.Addr, a.CredsPath(), r.File))
	log := filepath.Join(dir, "consul-template.log")
	env := append(harness.ClientEnv(dir), "VAULT_TOKEN="+token)
	proc, err := harness.StartProcess("consul-template of "+t.Name(), log, env,
		program, "-config="+config, "-log-level=debug")
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := proc.Terminate(10 * time.Second); err != nil {
			t.Error(err)
		}
		if err := harness.SearchFile(log); err != nil {
			t.Errorf("secrets in consul-template's log: %v", err)
		}
		if t.Failed() {
			lines := strings.Split(harness.FileText(t, log), "\n")
			t.Logf("the end of consul-template's log:\n%s", harness.Mask(strings.Join(lines[max(0, len(lines)-60):], "\n")))
		}
	})
	return r
}

func TestConsulTemplate_file_holds_a_live_token_at_two_calls_a_lifetime(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	for mode, leased := range map[string]bool{"leased": true, "unleased": false} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, lifetime)
			a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"leased": leased})
			calls := harness.NewCallLog(a)
			r := startConsulTemplate(t, a)
			files := []*harness.Rendered{r}
			calls.WatchFiles(t, 30*time.Second, "the token is rendered", files, func() bool { return r.Holds(a) })

			// DingTalk extends the token each time it is asked for it: the file stays.
			calls.Pass(t, lifetime+lifetime/2, files)
			require.Len(t, r.Contents, 1, "contents of the file while the token is extended")

			// DingTalk returns another token each time, the old ones live on to their end: the file follows.
			dt.RotateTokens(a.Key, true)
			calls.Pass(t, 2*lifetime, files)
			dt.RotateTokens(a.Key, false)
			require.Greater(t, len(r.Contents), 2, "contents of the file while the token is replaced")
			harness.WatchFiles(t, lifetime, "the file holds the last token", files, func() bool { return r.Holds(a) })
			calls.RequireAtMostTwoPer(t, lifetime)

			// DingTalk ends the token before its time, which nobody is told of. The next renewal or read
			// finds out.
			dt.ExpireTokens(a.Key)
			r.MayBeDead = lifetime
			harness.WatchFiles(t, lifetime, "the file holds the new token", files, func() bool { return r.Holds(a) })
		})
	}
}

func TestDefaultLeaseTTL_consul_template_holds_a_replaced_token_for_twice_as_long_at_most(t *testing.T) {
	t.Parallel()
	a := harness.NewTunedApp(t)
	r := startConsulTemplate(t, a)
	a.RequireHolderFollows(t, func() bool {
		r.Look(t)
		return r.Holds(a)
	})
}
