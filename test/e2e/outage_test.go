// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// What readers get while DingTalk is unavailable, and which tokens outlive Vault and the plugin's
// process.

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestOutage_the_current_token_serves_until_it_expires_and_never_after(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	// With how much left a read refreshes the token first.
	refreshedAt := map[string]time.Duration{"leased": lifetime / 2, "unleased": lifetime / 4}
	for name, tune := range map[string]harness.Fields{
		"leased":   {"request_timeout": "1s"},
		"unleased": {"request_timeout": "1s", "leased": false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, lifetime)
			a := harness.NewMount(t).NewApp(t, dt, tune)
			token := a.Token(t)
			require.NoError(t, dt.Close())

			served, warned := 0, 0
			for {
				before := dt.Remaining(token)
				secret, err := a.TryRead()
				after := dt.Remaining(token)
				if err != nil {
					// The engine counts whole seconds from before its request was sent, so it may end a little
					// early.
					require.Less(t, after, 3*time.Second, "a live token is served")
					harness.Refused(t, err, http.StatusBadGateway)
					break
				}
				served++
				harness.RequireSameToken(t, harness.TokenIn(secret), token) // the current token
				require.Positive(t, after, "an expired token is never served")
				switch {
				case after > refreshedAt[name]+1200*time.Millisecond: // the engine counts whole seconds, and from a little earlier
					require.Empty(t, secret.Warnings, "%s before the end", after)
				case before < refreshedAt[name]:
					require.NotEmpty(
						t,
						secret.Warnings,
						"a warning for a token that cannot be refreshed",
					)
					warned++
				}
				if name == "leased" {
					require.LessOrEqual(t, leaseTTL(secret), before)
					require.GreaterOrEqual(t, leaseTTL(secret), 2*time.Second)
				} else {
					require.LessOrEqual(t, harness.Seconds(t, secret.Data["ttl"]), before)
					require.GreaterOrEqual(t, harness.Seconds(t, secret.Data["ttl"]), time.Second)
				}
				time.Sleep(100 * time.Millisecond) // so that the reads are spread over the token's life
			}
			require.Greater(t, served, 10)
			require.Greater(t, warned, 2)

			harness.WaitFor(t, 5*time.Second, "the token has expired", func() bool { return dt.Remaining(token) < 0 })
			for range 5 {
				_, err := a.TryRead()
				text := harness.Refused(t, err, http.StatusBadGateway)
				assert.Contains(t, text, a.Name)
				assert.Regexp(t, nextAttempt, text)
			}
			status := a.Status(t)
			assert.Contains(t, []any{"expired", "absent"}, status["state"])
			assert.NotEmpty(t, status["last_error"])
			assert.NotEmpty(t, status["last_error_at"])
			assert.NotEmpty(t, status["next_attempt_at"])
		})
	}
}

func TestOutage_retries_of_the_client_meet_the_remembered_error(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultUnavailableEmpty})

	client := a.Mount.Vault.Client(t)
	client.SetMaxRetries(2) // the client library's default
	began := time.Now()
	_, err := client.Logical().Read(a.CredsPath())
	harness.Refused(t, err, http.StatusBadGateway)
	require.Greater(t, time.Since(began), 1500*time.Millisecond, "the client has repeated the request")
	require.Equal(t, 3, a.Calls(), "the attempts of one fetch")
	status := a.Status(t)
	require.Equal(t, json.Number("3"), status["upstream_calls"])
	require.Equal(t, json.Number("3"), status["upstream_failures"])
}

func TestToken_outlives_seal_restart_and_a_killed_plugin(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageRaft})
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := v.Enable(t)
	leased, unleased := m.NewApp(t, dt, nil), m.NewApp(t, dt, harness.Fields{"leased": false})
	first := leased.Read(t)
	want := map[*harness.App]string{leased: harness.TokenIn(first), unleased: unleased.Token(t)}
	const calls = 2

	check := func(t *testing.T) {
		t.Helper()
		for a, token := range want {
			harness.RequireSameToken(t, a.Token(t), token) // the stored token is served
		}
		renewal, took := timedRenew(t, leased, first.LeaseID, 0)
		requireNoWarning(t, renewal, time.Now(), took)
		require.InDelta(
			t, dt.Remaining(want[leased]).Seconds(), leaseTTL(renewal).Seconds(), leaseSlack.Seconds(),
		)
		require.Equal(t, calls, dt.Requests("*"), "no call upstream")
		require.Equal(t, "fresh", leased.Status(t)["state"])
	}

	check(t)
	v.MustCLI(t, "operator", "seal")
	require.NoError(t, v.Unseal())
	check(t)

	v.Restart(t)
	check(t)

	v.KillPlugin(t)
	check(t)

	v.KillPlugin(t)
	v.Restart(t)
	check(t)

	v.Crash(t)
	check(t)
}

func TestPlugin_reload_keeps_the_token_and_ends_the_back_off(t *testing.T) {
	t.Parallel()
	harness.SkipOnOpenBao(t, "vault plugin reload -type")
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := v.Enable(t)
	good, bad := m.NewApp(t, dt, nil), m.NewApp(t, dt, nil)
	token := good.Token(t)
	dt.SetApp(bad.Key, harness.NewSecret())
	_, err := bad.TryRead()
	harness.Refused(t, err, http.StatusBadRequest)
	require.Equal(t, 2, dt.Requests("*"))

	dt.SetApp(bad.Key, bad.Secret)
	_, err = bad.TryRead()
	harness.Refused(t, err, http.StatusBadRequest)
	require.Equal(t, 2, dt.Requests("*"), "the remembered error")

	v.MustCLI(t, "plugin", "reload", "-type=secret", "-plugin="+harness.PluginName)
	harness.RequireSameToken(t, good.Token(t), token)
	require.Equal(t, 2, dt.Requests("*"), "the stored token is served")
	harness.RequireSameToken(t, bad.Token(t), dt.LastToken(bad.Key)) // back-off lives in memory only
}
