// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// What readers get when DingTalk is away, and what of a token outlives Vault and the plugin's
// process.

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

func TestOutage_the_token_in_hand_serves_until_it_expires_and_never_after(t *testing.T) {
	t.Parallel()
	const lifetime = 16 * time.Second
	// With how much left a read refreshes the token first.
	refreshedAt := map[string]time.Duration{"leased": lifetime / 2, "unleased": lifetime / 4}
	for name, tune := range map[string]fields{
		"leased":   {"request_timeout": "1s"},
		"unleased": {"request_timeout": "1s", "leased": false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, lifetime)
			a := newMount(t).newApp(t, dt, tune)
			token := a.token(t)
			require.NoError(t, dt.Close())

			served, warned := 0, 0
			for {
				before := dt.left(token)
				secret, err := a.tryRead()
				after := dt.left(token)
				if err != nil {
					// The engine counts whole seconds from before its request was sent, so it may end a little
					// early.
					require.Less(t, after, 3*time.Second, "a token with life left is served")
					refused(t, err, http.StatusBadGateway)
					break
				}
				served++
				requireSameToken(t, tokenIn(secret), token) // the current token
				require.Positive(t, after, "an expired token is never served")
				switch {
				case after > refreshedAt[name]+1200*time.Millisecond: // the engine counts whole seconds, and from a little earlier
					require.Empty(t, secret.Warnings, "%s before the end", after)
				case before < refreshedAt[name]:
					require.NotEmpty(
						t,
						secret.Warnings,
						"a token that cannot be refreshed comes with a warning",
					)
					warned++
				}
				if name == "leased" {
					require.LessOrEqual(t, leaseTTL(secret), before)
					require.GreaterOrEqual(t, leaseTTL(secret), 2*time.Second)
				} else {
					require.LessOrEqual(t, seconds(t, secret.Data["ttl"]), before)
					require.GreaterOrEqual(t, seconds(t, secret.Data["ttl"]), time.Second)
				}
				time.Sleep(100 * time.Millisecond) // so that the reads are spread over the token's life
			}
			require.Greater(t, served, 10)
			require.Greater(t, warned, 2)

			waitFor(t, 5*time.Second, "the token has expired", func() bool { return dt.left(token) < 0 })
			for range 5 {
				_, err := a.tryRead()
				text := refused(t, err, http.StatusBadGateway)
				assert.Contains(t, text, a.name)
				assert.Regexp(t, nextAttempt, text)
			}
			status := a.status(t)
			assert.Contains(t, []any{"expired", "absent"}, status["state"])
			assert.NotEmpty(t, status["last_error"])
			assert.NotEmpty(t, status["last_error_at"])
			assert.NotEmpty(t, status["next_attempt_at"])
		})
	}
}

func TestOutage_retries_of_the_client_meet_the_remembered_error(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	dt.SetFault(a.key, simulator.Fault{Kind: simulator.FaultUnavailableEmpty})

	client := a.m.v.client(t)
	client.SetMaxRetries(2) // the client library's default
	began := time.Now()
	_, err := client.Logical().Read(a.credsPath())
	refused(t, err, http.StatusBadGateway)
	require.Greater(t, time.Since(began), 1500*time.Millisecond, "the client has repeated the request")
	require.Equal(t, 3, a.calls(), "the attempts of one fetch")
	status := a.status(t)
	require.Equal(t, json.Number("3"), status["upstream_calls"])
	require.Equal(t, json.Number("3"), status["upstream_failures"])
}

func TestToken_outlives_seal_restart_and_a_killed_plugin(t *testing.T) {
	t.Parallel()
	v := startVault(t, vaultOptions{storage: storageRaft})
	dt := startDingTalk(t, fullLifetime)
	m := v.enable(t)
	leased, unleased := m.newApp(t, dt, nil), m.newApp(t, dt, fields{"leased": false})
	first := leased.read(t)
	want := map[*app]string{leased: tokenIn(first), unleased: unleased.token(t)}
	const calls = 2

	check := func(t *testing.T) {
		t.Helper()
		for a, token := range want {
			requireSameToken(t, a.token(t), token) // the stored token is served
		}
		renewal, took := leased.timedRenew(t, first.LeaseID, 0)
		requireNoWarning(t, renewal, time.Now(), took)
		require.InDelta(t, dt.left(want[leased]).Seconds(), leaseTTL(renewal).Seconds(), leaseSlack.Seconds())
		require.Equal(t, calls, dt.Requests("*"), "no call upstream")
		require.Equal(t, "fresh", leased.status(t)["state"])
	}

	check(t)
	v.mustCLI(t, "operator", "seal")
	require.NoError(t, v.unseal())
	check(t)

	v.restart(t)
	check(t)

	v.killPlugin(t)
	check(t)

	v.killPlugin(t)
	v.restart(t)
	check(t)

	v.crash(t)
	check(t)
}

func TestPlugin_reload_keeps_the_token_and_ends_the_back_off(t *testing.T) {
	t.Parallel()
	needsVault(t, "vault plugin reload -type")
	v := startVault(t, vaultOptions{storage: storageInmem})
	dt := startDingTalk(t, fullLifetime)
	m := v.enable(t)
	good, bad := m.newApp(t, dt, nil), m.newApp(t, dt, nil)
	token := good.token(t)
	dt.SetApp(bad.key, newSecret())
	_, err := bad.tryRead()
	refused(t, err, http.StatusBadRequest)
	require.Equal(t, 2, dt.Requests("*"))

	dt.SetApp(bad.key, bad.secret)
	_, err = bad.tryRead()
	refused(t, err, http.StatusBadRequest)
	require.Equal(t, 2, dt.Requests("*"), "the remembered error")

	v.mustCLI(t, "plugin", "reload", "-type=secret", "-plugin="+pluginName)
	requireSameToken(t, good.token(t), token)
	require.Equal(t, 2, dt.Requests("*"), "the stored token is served")
	requireSameToken(t, bad.token(t), dt.LastToken(bad.key)) // back-off lives in memory only
}
