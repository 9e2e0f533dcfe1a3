// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Reading creds/<app>: what a response holds, and how many calls it costs upstream.

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestCreds_a_thousand_cold_reads_by_50_clients_make_one_upstream_call(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	// A slow first response makes the clients share one fetch.
	dt.SetFault(a.Key, simulator.Fault{Delay: time.Second, Times: 1})

	const clients, readsEach = 50, 20
	type result struct {
		*api.Secret
		took, left time.Duration // of the read, and of the token when the response arrived
	}
	results := make(chan result, clients*readsEach)
	start := make(chan struct{})
	var readers sync.WaitGroup
	for range clients {
		client := a.Mount.Vault.Client(t)
		readers.Go(func() {
			<-start
			for range readsEach {
				began := time.Now()
				secret, err := client.Logical().Read(a.CredsPath())
				took := time.Since(began)
				if err != nil || secret == nil {
					t.Errorf("no response: %v", err)
					return
				}
				results <- result{secret, took, dt.Remaining(harness.TokenIn(secret))}
			}
		})
	}
	close(start)
	readers.Wait()
	close(results)

	token := dt.LastToken(a.Key)
	harness.NoteSecret(token, "an access token")
	count := 0
	for r := range results {
		count++
		harness.RequireSameToken(t, harness.TokenIn(r.Secret), token) // every reader gets the one token
		requireTTL(t, r.Secret, r.left, r.took)
	}
	require.Equal(t, clients*readsEach, count)
	require.Equal(t, 1, a.Calls(), "upstream calls")
	require.Len(t, a.Leases(t), clients*readsEach, "every read is a lease of its own")
}

func TestCreds_leased_response_holds_the_token_alone(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)

	secret := a.Read(t)
	require.Len(t, secret.Data, 1)
	harness.RequireSameToken(t, harness.TokenIn(secret), dt.LastToken(a.Key)) // the token is DingTalk's
	require.NotEmpty(t, secret.LeaseID)
	require.True(t, secret.Renewable)
	require.Empty(t, secret.Warnings)
	require.InDelta(
		t, dt.Remaining(harness.TokenIn(secret)).Seconds(), leaseTTL(secret).Seconds(), leaseSlack.Seconds(),
	)
}

func TestCreds_unleased_response_has_its_own_ttl(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"leased": false, "refresh_before": "200s"})

	before := time.Now()
	secret := a.Read(t)
	after := time.Now()

	require.Empty(t, secret.LeaseID)
	require.Zero(t, secret.LeaseDuration)
	require.False(t, secret.Renewable)
	require.Empty(t, secret.Warnings)
	require.Empty(t, a.Leases(t))

	names := make([]string, 0, len(secret.Data))
	for name := range secret.Data {
		names = append(names, name)
	}
	require.ElementsMatch(t,
		[]string{"access_token", "expires_at", "ttl", "rotation_period", "last_vault_rotation"}, names)
	harness.RequireSameToken(t, harness.TokenIn(secret), dt.LastToken(a.Key)) // the token is DingTalk's

	require.Equal(t, 7000*time.Second, harness.Seconds(t, secret.Data["rotation_period"]), "the lifetime less the window")
	require.InDelta(
		t,
		7000,
		harness.Seconds(t, secret.Data["ttl"]).Seconds(),
		2+after.Sub(before).Seconds(),
		"counts to the start of the window",
	)

	expires := utcTime(t, secret.Data["expires_at"])
	require.WithinRange(t, expires, before.Add(harness.FullLifetime-time.Second), after.Add(harness.FullLifetime))
	require.False(
		t,
		expires.After(time.Now().Add(dt.Remaining(harness.TokenIn(secret))).Add(time.Second)),
		"never after DingTalk's end",
	)
	require.WithinRange(t, utcTime(t, secret.Data["last_vault_rotation"]), before.Add(-time.Second), after)
}

func TestCreds_min_ttl_refreshes_a_token_that_lives_too_short(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, 24*time.Second)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	read := func(minTTL string) (token string, ttl time.Duration, warnings []string) {
		secret, err := a.Mount.Vault.Root.Logical().ReadWithData(a.CredsPath(), map[string][]string{"min_ttl": {minTTL}})
		require.NoError(t, err)
		harness.NoteSecret(harness.TokenIn(secret), "an access token")
		return harness.TokenIn(secret), leaseTTL(secret), secret.Warnings
	}

	first, _, warnings := read("10s")
	require.Empty(t, warnings)
	require.Equal(t, 1, a.Calls())

	_, _, warnings = read("1h")
	require.NotEmpty(t, warnings, "more than three quarters of the lifetime is cut with a warning")
	require.Equal(t, 1, a.Calls(), "a token with more than three quarters left is long enough for anyone")

	dt.WaitForAge(t, first, 13*time.Second)
	second, ttl, warnings := read("16s")
	require.Empty(t, warnings)
	require.Equal(t, 2, a.Calls())
	harness.RequireSameToken(t, first, second) // DingTalk extends the same token
	require.GreaterOrEqual(t, ttl, 22*time.Second)

	_, _, warnings = read("17s")
	require.Empty(t, warnings)
	require.Equal(t, 2, a.Calls(), "the extended token is long enough")
}

func TestCreds_of_two_apps_are_each_their_own(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	one, two := m.NewApp(t, dt, nil), m.NewApp(t, dt, nil)
	harness.RequireSameToken(t, one.Token(t), dt.LastToken(one.Key))
	harness.RequireSameToken(t, two.Token(t), dt.LastToken(two.Key))
	harness.RequireOtherToken(t, one.Token(t), two.Token(t)) // two apps never share a token
}

func TestCreds_of_one_name_in_two_mounts_are_each_their_own(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	one := harness.NewMount(t).NewApp(t, dt, nil)
	two := harness.NewMount(t).UnstoredApp(dt)
	two.Name = one.Name
	_, err := two.Mount.Vault.Root.Logical().Write(two.ConfigPath(), two.Config())
	require.NoError(t, err)
	harness.RequireSameToken(t, one.Token(t), dt.LastToken(one.Key))
	harness.RequireSameToken(t, two.Token(t), dt.LastToken(two.Key))

	one.Delete(t)
	_, err = one.TryRead()
	harness.Refused(t, err, 400)
	harness.RequireSameToken(t, two.Token(t), dt.LastToken(two.Key))
}

func TestCreds_reader_that_gives_up_fails_nobody_else(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	dt.SetFault(a.Key, simulator.Fault{Delay: 3 * time.Second, Times: 1})

	hasty, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	client := a.Mount.Vault.Client(t)
	var readers sync.WaitGroup
	readers.Go(func() {
		_, err := client.Logical().ReadWithContext(hasty, a.CredsPath())
		assert.ErrorIs(t, err, context.Canceled)
	})
	harness.WaitFor(t, 10*time.Second, "the call upstream is under way", func() bool { return a.Calls() == 1 })
	readers.Go(func() {
		if _, err := a.TryRead(); err != nil {
			t.Errorf("a reader that waits: %v", err)
		}
	})
	time.Sleep(500 * time.Millisecond) // so that both wait for it
	giveUp()
	readers.Wait()
	harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
	require.Equal(t, 1, a.Calls())
}

func TestCreds_reader_across_a_change_of_secret_gets_the_new_token(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	dt.RotateTokens(a.Key, true)
	dt.SetFault(a.Key, simulator.Fault{Delay: 3 * time.Second, Times: 1})

	var across string
	var reader sync.WaitGroup
	reader.Go(func() {
		secret, err := a.TryRead()
		if err != nil {
			t.Errorf("the reader: %v", err)
			return
		}
		across = harness.TokenIn(secret)
	})
	harness.WaitFor(t, 10*time.Second, "the old secret is on its way", func() bool { return a.Calls() == 1 })
	old := dt.LastToken(a.Key)
	harness.NoteSecret(old, "an access token")
	fresh := harness.NewSecret()
	dt.SetApp(a.Key, fresh)
	rotation := a.Rotation(fresh)
	rotation["verify_connection"] = false
	a.Update(t, rotation)

	reader.Wait()
	harness.RequireOtherToken(t, across, old)
	harness.RequireSameToken(t, across, dt.LastToken(a.Key))
	harness.RequireSameToken(t, a.Token(t), across)
	require.Equal(t, 2, a.Calls())
}

func TestCreds_status_and_refresh_of_an_unknown_app_name_the_path_to_write(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	logical := m.Vault.Root.Logical()
	for _, path := range []string{"creds", "status"} {
		_, err := logical.Read(m.Path + "/" + path + "/nobody")
		text := harness.Refused(t, err, 400)
		assert.Contains(t, text, "nobody", path)
		assert.Contains(t, text, "config/nobody", path)
	}
	_, err := logical.Write(m.Path+"/refresh/nobody", nil)
	text := harness.Refused(t, err, 400)
	assert.Contains(t, text, "config/nobody", "refresh")

	secret, err := logical.Read(m.Path + "/config/nobody")
	require.NoError(t, err, "the client library turns a 404 without a text into no response")
	require.Nil(t, secret)
	require.Equal(t, 404, m.Vault.HTTP(t, "GET", m.Path+"/config/nobody", "", "").Status)

	_, err = logical.JSONMergePatch(t.Context(), m.Path+"/config/nobody", map[string]any{"leased": false})
	assert.Contains(t, harness.Refused(t, err, 404), "nobody")
	require.Empty(t, m.List(t, m.Path+"/config/"), "nothing was stored")
}

func TestStatus_shows_the_state_of_the_token_and_no_secret(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)

	absent := a.Status(t)
	assert.Equal(t, "absent", absent["state"])
	for _, name := range []string{"expires_at", "fetched_at", "ttl", "last_error", "last_error_at", "next_attempt_at"} {
		assert.NotContains(t, absent, name, "what does not apply is left out")
	}
	require.Zero(t, a.Calls(), "status costs no call")

	before := time.Now()
	token := a.Token(t)
	after := time.Now()
	fresh := a.Status(t)
	assert.Equal(t, "fresh", fresh["state"])
	assert.Equal(t, json.Number("1"), fresh["upstream_calls"])
	assert.Equal(t, json.Number("0"), fresh["upstream_failures"])
	assert.InDelta(
		t, dt.Remaining(token).Seconds(), harness.Seconds(t, fresh["ttl"]).Seconds(), leaseSlack.Seconds(),
	)
	assert.WithinRange(t, utcTime(t, fresh["fetched_at"]), before.Add(-time.Second), after)
	assert.WithinRange(
		t,
		utcTime(t, fresh["expires_at"]),
		before.Add(harness.FullLifetime-time.Second),
		after.Add(harness.FullLifetime),
	)
	for _, name := range []string{"last_error", "last_error_at", "next_attempt_at", "access_token", "app_secret"} {
		assert.NotContains(t, fresh, name)
	}

	text, err := json.Marshal(fresh)
	require.NoError(t, err)
	harness.AssertNoSecret(t, "the status", string(text))
}

func TestRefresh_fetches_at_most_once_in_ten_seconds_and_answers_like_status(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)

	first := a.RefreshNow(t)
	require.Equal(t, 1, a.Calls())
	require.Empty(t, first.Warnings)
	assert.Equal(t, "fresh", first.Data["state"])
	assert.Equal(t, a.Status(t)["fetched_at"], first.Data["fetched_at"])
	assert.NotContains(t, first.Data, "access_token")

	soon := a.RefreshNow(t)
	require.NotEmpty(t, soon.Warnings, "a refresh that came too soon says so")
	assert.Equal(t, "fresh", soon.Data["state"])
	require.Equal(t, 1, a.Calls())

	harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
	require.Equal(t, 1, a.Calls(), "the fetched token serves the next read")
}

// utcTime reads a time in a response, which must be RFC 3339 in UTC.
func utcTime(t *testing.T, value any) time.Time {
	t.Helper()
	text, ok := value.(string)
	require.True(t, ok, "a string, not %T", value)
	at, err := time.Parse(time.RFC3339, text)
	require.NoError(t, err)
	_, offset := at.Zone()
	require.Zero(t, offset, "%s is in UTC", text)
	return at
}
