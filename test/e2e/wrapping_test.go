// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Response wrapping of creds/<app>: the reader gets a wrapping token, which returns the response
// once. That a wrapping ends with the token in it is also tested in leases_test.go.

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

	"vault-plugin-secrets-dingtalk/test/harness"
)

// bothModes are an app whose responses have a lease and one whose responses have none.
var bothModes = map[string]harness.Fields{"leased": {"leased": true}, "unleased": {"leased": false}}

// wrappedToken reads the app's credentials wrapped, and checks that the response is a wrapping and
// nothing else.
func wrappedToken(t *testing.T, a *harness.App, client *api.Client, ttl string) *api.SecretWrapInfo {
	t.Helper()
	secret, err := readWrapped(client, a.CredsPath(), ttl)
	require.NoError(t, err)
	require.NotNil(t, secret.WrapInfo, "a wrapping")
	require.Empty(t, secret.Data)
	require.Empty(t, secret.LeaseID)
	require.Equal(t, a.CredsPath(), secret.WrapInfo.CreationPath, "which whoever opens it can check")
	harness.NoteSecret(secret.WrapInfo.Token, "a wrapping token")
	harness.NoteSecret(a.DingTalk.LastToken(a.Key), "an access token")
	return secret.WrapInfo
}

func readWrapped(client *api.Client, path, ttl string) (*api.Secret, error) {
	client.SetWrappingLookupFunc(func(string, string) string { return ttl })
	defer client.SetWrappingLookupFunc(nil)
	return client.Logical().Read(path)
}

// requireCreds checks that an unwrapped response is what a read without wrapping returns.
func requireCreds(t *testing.T, a *harness.App, secret *api.Secret, tune harness.Fields) {
	t.Helper()
	token := a.DingTalk.LastToken(a.Key)
	harness.RequireSameToken(t, harness.TokenIn(secret), token)
	if tune["leased"].(bool) {
		require.Len(t, secret.Data, 1)
		require.NotEmpty(t, secret.LeaseID)
		require.True(t, secret.Renewable)
		require.InDelta(
			t,
			a.DingTalk.Remaining(token).Seconds(),
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
		a.DingTalk.Remaining(token).Seconds(),
		time.Until(utcTime(t, secret.Data["expires_at"])).Seconds(),
		leaseSlack.Seconds(),
	)
	require.Positive(t, harness.Seconds(t, secret.Data["ttl"]))
}

func TestWrapping_gives_the_response_once(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	for name, tune := range bothModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, tune)
			wrapping := wrappedToken(t, a, m.Vault.Client(t), "5m")
			require.Equal(t, 300, wrapping.TTL)
			require.Equal(t, 1, a.Calls(), "the token was fetched")

			// Whoever gets it has no token of Vault but this.
			bearer, err := m.Vault.NewClient(wrapping.Token)
			require.NoError(t, err)
			secret, err := bearer.Logical().Unwrap("")
			require.NoError(t, err)
			requireCreds(t, a, secret, tune)

			_, err = bearer.Logical().Unwrap("")
			harness.Refused(t, err, http.StatusBadRequest)
			_, err = m.Vault.Client(t).Logical().Unwrap(wrapping.Token)
			harness.Refused(t, err, http.StatusBadRequest)
			require.Equal(t, 1, a.Calls(), "opening a wrapping asks DingTalk for nothing")

			if tune["leased"].(bool) {
				require.Equal(t, []string{secret.LeaseID[len(a.CredsPath())+1:]}, a.Leases(t))
				renewLease(t, a, secret.LeaseID, 0)
			} else {
				require.Empty(t, a.Leases(t))
			}
		})
	}
}

func TestWrapping_with_the_CLI_shows_the_token_only_to_who_unwraps(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	for name, tune := range bothModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, tune)
			table := m.Vault.MustCLI(t, "read", "-wrap-ttl=5m", a.CredsPath())
			harness.NoteSecret(dt.LastToken(a.Key), "an access token")
			harness.AssertNoSecret(t, "the wrapped response", table)
			table = harness.Mask(table)
			assert.NotContains(t, table, "access_token")
			assert.Regexp(t, `(?m)^wrapping_token_ttl: +5m$`, table)
			assert.Regexp(t, `(?m)^wrapping_token_creation_path: +`+regexp.QuoteMeta(a.CredsPath())+`$`, table)

			wrappingToken := m.Vault.MustCLI(t, "read", "-wrap-ttl=5m", "-field=wrapping_token", a.CredsPath())
			harness.NoteSecret(wrappingToken, "a wrapping token")
			bearer := *m.Vault
			bearer.RootToken = wrappingToken // in its environment, not on its command line
			var secret api.Secret
			decoder := json.NewDecoder(strings.NewReader(bearer.MustCLI(t, "unwrap", "-format=json")))
			decoder.UseNumber()
			require.NoError(t, decoder.Decode(&secret))
			requireCreds(t, a, &secret, tune)

			again := bearer.CLI(t, "unwrap", "-format=json")
			require.Equal(t, 2, again.Status)
			assert.Contains(t, again.Stderr, "wrapping token is not valid or does not exist")
			harness.AssertNoSecret(t, "the second attempt", again.Stdout+again.Stderr)
		})
	}
}

func TestWrapping_for_longer_than_the_token_lives_ends_with_it(t *testing.T) {
	t.Parallel()
	const lifetime = 8 * time.Second
	m := harness.NewMount(t)
	for name, tune := range bothModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, lifetime)
			a := m.NewApp(t, dt, tune)
			client := m.Vault.Client(t)
			a.Token(t)
			began := time.Now()
			wrapping := wrappedToken(t, a, client, "1h")
			left, took := dt.Remaining(dt.LastToken(a.Key)), time.Since(began)
			ttl := time.Duration(wrapping.TTL) * time.Second
			require.LessOrEqual(t, ttl, left+took+leaseSlack)
			require.Greater(t, ttl, left-leaseSlack, "and not sooner")

			harness.WaitFor(t, lifetime+5*time.Second, "the wrapping is gone", func() bool {
				_, err := client.Logical().Write("sys/wrapping/lookup", harness.Fields{"token": wrapping.Token})
				return err != nil
			})
			_, err := client.Logical().Unwrap(wrapping.Token)
			harness.Refused(t, err, http.StatusBadRequest)
		})
	}
}

func TestWrapping_an_error_comes_as_it_is(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	_, err := readWrapped(m.Vault.Client(t), m.Path+"/creds/nobody", "5m")
	require.Contains(t, harness.Refused(t, err, http.StatusBadRequest), "config/nobody")
}

func TestWrapping_keeps_the_warnings_of_the_response_inside(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	client := a.Mount.Vault.Client(t)
	client.SetWrappingLookupFunc(func(string, string) string { return "5m" })
	wrapped, err := client.Logical().ReadWithData(a.CredsPath(), url.Values{"min_ttl": {"2h"}})
	require.NoError(t, err)
	require.NotNil(t, wrapped.WrapInfo)
	harness.NoteSecret(wrapped.WrapInfo.Token, "a wrapping token")
	harness.NoteSecret(dt.LastToken(a.Key), "an access token")
	client.SetWrappingLookupFunc(nil)
	secret, err := client.Logical().Unwrap(wrapped.WrapInfo.Token)
	require.NoError(t, err)
	harness.RequireSameToken(t, harness.TokenIn(secret), dt.LastToken(a.Key))
	require.Len(t, secret.Warnings, 1)
	require.Contains(t, secret.Warnings[0], "min_ttl")
}

//nolint:tparallel // the subtests share one app
func TestWrapping_can_be_forced_by_a_policy(t *testing.T) {
	t.Parallel()
	w := newPolicyWorld(t)
	a := w.apps["myapp"]
	a.Token(t)
	forced, free := w.write(t, "reader-wrapped.hcl"), w.write(t, "reader.hcl")
	holders := map[string][]string{"that policy": {forced}, "that policy and one that allows all reads": {forced, free}}
	for _, tune := range []harness.Fields{{"leased": true}, {"leased": false}} {
		a.Update(t, tune)
		for who, policies := range holders {
			t.Run(who, func(t *testing.T) {
				auth, err := w.v.Root.Auth().Token().Create(&api.TokenCreateRequest{Policies: policies})
				require.NoError(t, err)
				harness.NoteSecret(auth.Auth.ClientToken, "a Vault token")
				client, err := w.v.NewClient(auth.Auth.ClientToken)
				require.NoError(t, err)

				for _, ttl := range []string{"", "9s", "301s", "1h"} {
					_, err := readWrapped(client, a.CredsPath(), ttl)
					assert.Contains(
						t,
						harness.Refused(t, err, http.StatusForbidden),
						"permission denied",
						"wrapped for %q",
						ttl,
					)
				}
				_, err = readWrapped(client, w.apps["other"].CredsPath(), "60s")
				harness.Refused(t, err, http.StatusForbidden)

				for _, ttl := range []string{"10s", "5m"} {
					wrapping := wrappedToken(t, a, client, ttl)
					secret, err := client.Logical().Unwrap(wrapping.Token)
					require.NoError(t, err)
					requireCreds(t, a, secret, tune)
				}
			})
		}
	}

	t.Run("and still ends with a token that lives shorter than the policy demands", func(t *testing.T) {
		dt := harness.StartDingTalk(t, 8*time.Second)
		dt.SetApp(a.Key, a.Secret)
		a.DingTalk = dt
		a.Update(t, a.Config())
		auth, err := w.v.Root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{forced}})
		require.NoError(t, err)
		harness.NoteSecret(auth.Auth.ClientToken, "a Vault token")
		client, err := w.v.NewClient(auth.Auth.ClientToken)
		require.NoError(t, err)
		require.LessOrEqual(t, wrappedToken(t, a, client, "10s").TTL, 8)
	})
}
