// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Response wrapping of creds/<app>: whoever asks for it gets no token but a wrapping token, which
// gives the answer once. That a wrapping lives no longer than the token in it is also tested in
// leases_test.go.

import (
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bothModes are an app whose answers have a lease and one whose answers have none.
var bothModes = map[string]fields{"leased": {"leased": true}, "unleased": {"leased": false}}

// wrapped reads the app's credentials wrapped, and checks that the answer is a wrapping and nothing
// else.
func (a *app) wrapped(t *testing.T, client *api.Client, ttl string) *api.SecretWrapInfo {
	t.Helper()
	secret, err := readWrapped(client, a.credsPath(), ttl)
	require.NoError(t, err)
	require.NotNil(t, secret.WrapInfo, "a wrapping")
	require.Empty(t, secret.Data)
	require.Empty(t, secret.LeaseID)
	require.Equal(t, a.credsPath(), secret.WrapInfo.CreationPath, "which whoever opens it can check")
	noteSecret(secret.WrapInfo.Token, "a wrapping token")
	noteSecret(a.dt.LastToken(a.key), "an access token")
	return secret.WrapInfo
}

func readWrapped(client *api.Client, path, ttl string) (*api.Secret, error) {
	client.SetWrappingLookupFunc(func(string, string) string { return ttl })
	defer client.SetWrappingLookupFunc(nil)
	return client.Logical().Read(path)
}

// requireAnswer checks that an unwrapped answer is what a read without wrapping gives.
func (a *app) requireAnswer(t *testing.T, secret *api.Secret, tune fields) {
	t.Helper()
	token := a.dt.LastToken(a.key)
	requireSameToken(t, tokenIn(secret), token)
	if tune["leased"].(bool) {
		require.Len(t, secret.Data, 1)
		require.NotEmpty(t, secret.LeaseID)
		require.True(t, secret.Renewable)
		require.InDelta(
			t,
			a.dt.left(token).Seconds(),
			leaseTTL(secret).Seconds(),
			5,
			"the lease began when it was wrapped",
		)
		return
	}
	require.Len(t, secret.Data, 5)
	require.Empty(t, secret.LeaseID)
	require.InDelta(
		t,
		a.dt.left(token).Seconds(),
		time.Until(utcTime(t, secret.Data["expires_at"])).Seconds(),
		leaseSlack.Seconds(),
	)
	require.Positive(t, seconds(t, secret.Data["ttl"]))
}

func TestWrapping_gives_the_answer_once(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	for name, tune := range bothModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, fullLifetime)
			a := m.newApp(t, dt, tune)
			wrapping := a.wrapped(t, m.v.client(t), "5m")
			require.Equal(t, 300, wrapping.TTL)
			require.Equal(t, 1, a.calls(), "the token was fetched")

			// Whoever gets it has no token of Vault but this.
			bearer, err := m.v.newClient(wrapping.Token)
			require.NoError(t, err)
			secret, err := bearer.Logical().Unwrap("")
			require.NoError(t, err)
			a.requireAnswer(t, secret, tune)

			_, err = bearer.Logical().Unwrap("")
			refused(t, err, http.StatusBadRequest)
			_, err = m.v.client(t).Logical().Unwrap(wrapping.Token)
			refused(t, err, http.StatusBadRequest)
			require.Equal(t, 1, a.calls(), "opening a wrapping asks DingTalk for nothing")

			if tune["leased"].(bool) {
				require.Equal(t, []string{secret.LeaseID[len(a.credsPath())+1:]}, a.leases(t))
				a.renew(t, secret.LeaseID, 0)
			} else {
				require.Empty(t, a.leases(t))
			}
		})
	}
}

func TestWrapping_with_the_CLI_shows_the_token_only_to_who_unwraps(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	for name, tune := range bothModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, fullLifetime)
			a := m.newApp(t, dt, tune)
			table := m.v.mustCLI(t, "read", "-wrap-ttl=5m", a.credsPath())
			noteSecret(dt.LastToken(a.key), "an access token")
			assertNoSecret(t, "the wrapped answer", table)
			table = mask(table)
			assert.NotContains(t, table, "access_token")
			assert.Regexp(t, `(?m)^wrapping_token_ttl: +5m$`, table)
			assert.Regexp(t, `(?m)^wrapping_token_creation_path: +`+regexp.QuoteMeta(a.credsPath())+`$`, table)

			wrappingToken := m.v.mustCLI(t, "read", "-wrap-ttl=5m", "-field=wrapping_token", a.credsPath())
			noteSecret(wrappingToken, "a wrapping token")
			bearer := *m.v
			bearer.rootToken = wrappingToken // in its environment, not on its command line
			var secret api.Secret
			decoder := json.NewDecoder(strings.NewReader(bearer.mustCLI(t, "unwrap", "-format=json")))
			decoder.UseNumber()
			require.NoError(t, decoder.Decode(&secret))
			a.requireAnswer(t, &secret, tune)

			again := bearer.cli(t, "unwrap", "-format=json")
			require.Equal(t, 2, again.status)
			assert.Contains(t, again.stderr, "wrapping token is not valid or does not exist")
			assertNoSecret(t, "the second attempt", again.stdout+again.stderr)
		})
	}
}

func TestWrapping_for_longer_than_the_token_lives_ends_with_it(t *testing.T) {
	t.Parallel()
	const lifetime = 8 * time.Second
	m := newMount(t)
	for name, tune := range bothModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, lifetime)
			a := m.newApp(t, dt, tune)
			client := m.v.client(t)
			a.token(t)
			began := time.Now()
			wrapping := a.wrapped(t, client, "1h")
			left, took := dt.left(dt.LastToken(a.key)), time.Since(began)
			ttl := time.Duration(wrapping.TTL) * time.Second
			require.LessOrEqual(t, ttl, left+took+leaseSlack)
			require.Greater(t, ttl, left-leaseSlack, "and not sooner")

			waitFor(t, lifetime+5*time.Second, "the wrapping is gone", func() bool {
				_, err := client.Logical().Write("sys/wrapping/lookup", fields{"token": wrapping.Token})
				return err != nil
			})
			_, err := client.Logical().Unwrap(wrapping.Token)
			refused(t, err, http.StatusBadRequest)
		})
	}
}

func TestWrapping_an_error_comes_as_it_is(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	_, err := readWrapped(m.v.client(t), m.path+"/creds/nobody", "5m")
	require.Contains(t, refused(t, err, http.StatusBadRequest), "config/nobody")
}

func TestWrapping_keeps_what_the_answer_warns_of_inside(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	client := a.m.v.client(t)
	client.SetWrappingLookupFunc(func(string, string) string { return "5m" })
	wrapped, err := client.Logical().ReadWithData(a.credsPath(), url.Values{"min_ttl": {"2h"}})
	require.NoError(t, err)
	require.NotNil(t, wrapped.WrapInfo)
	noteSecret(wrapped.WrapInfo.Token, "a wrapping token")
	noteSecret(dt.LastToken(a.key), "an access token")
	client.SetWrappingLookupFunc(nil)
	secret, err := client.Logical().Unwrap(wrapped.WrapInfo.Token)
	require.NoError(t, err)
	requireSameToken(t, tokenIn(secret), dt.LastToken(a.key))
	require.Len(t, secret.Warnings, 1)
	require.Contains(t, secret.Warnings[0], "min_ttl")
}

//nolint:tparallel // the subtests share one app
func TestWrapping_can_be_forced_by_a_policy(t *testing.T) {
	t.Parallel()
	w := newPolicyWorld(t)
	a := w.apps["myapp"]
	a.token(t)
	forced, free := w.write(t, "reader-wrapped.hcl"), w.write(t, "reader.hcl")
	holders := map[string][]string{"that policy": {forced}, "that policy and one that allows all reads": {forced, free}}
	for _, tune := range []fields{{"leased": true}, {"leased": false}} {
		a.update(t, tune)
		for who, policies := range holders {
			t.Run(who, func(t *testing.T) {
				auth, err := w.v.root.Auth().Token().Create(&api.TokenCreateRequest{Policies: policies})
				require.NoError(t, err)
				noteSecret(auth.Auth.ClientToken, "a Vault token")
				client, err := w.v.newClient(auth.Auth.ClientToken)
				require.NoError(t, err)

				for _, ttl := range []string{"", "9s", "301s", "1h"} {
					_, err := readWrapped(client, a.credsPath(), ttl)
					assert.Contains(
						t,
						refused(t, err, http.StatusForbidden),
						"permission denied",
						"wrapped for %q",
						ttl,
					)
				}
				_, err = readWrapped(client, w.apps["other"].credsPath(), "60s")
				refused(t, err, http.StatusForbidden)

				for _, ttl := range []string{"10s", "5m"} {
					wrapping := a.wrapped(t, client, ttl)
					secret, err := client.Logical().Unwrap(wrapping.Token)
					require.NoError(t, err)
					a.requireAnswer(t, secret, tune)
				}
			})
		}
	}

	t.Run("and still ends with a token that lives shorter than the policy demands", func(t *testing.T) {
		dt := startDingTalk(t, 8*time.Second)
		dt.SetApp(a.key, a.secret)
		a.dt = dt
		a.update(t, a.config())
		auth, err := w.v.root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{forced}})
		require.NoError(t, err)
		noteSecret(auth.Auth.ClientToken, "a Vault token")
		client, err := w.v.newClient(auth.Auth.ClientToken)
		require.NoError(t, err)
		require.LessOrEqual(t, a.wrapped(t, client, "10s").TTL, 8)
	})
}
