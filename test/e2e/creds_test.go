// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Reading creds/<app>: what an answer holds, and how many calls it costs upstream.

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
)

func TestCreds_a_thousand_cold_reads_by_50_clients_make_one_upstream_call(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	// A slow first answer has the clients meet in the one flight.
	dt.SetFault(a.key, simulator.Fault{Delay: time.Second, Times: 1})

	const clients, readsEach = 50, 20
	type result struct {
		*api.Secret
		took, left time.Duration // of the read, and of the token when the answer came
	}
	results := make(chan result, clients*readsEach)
	start := make(chan struct{})
	var readers sync.WaitGroup
	for range clients {
		client := a.m.v.client(t)
		readers.Go(func() {
			<-start
			for range readsEach {
				began := time.Now()
				secret, err := client.Logical().Read(a.credsPath())
				took := time.Since(began)
				if err != nil || secret == nil {
					t.Errorf("no answer: %v", err)
					return
				}
				results <- result{secret, took, dt.left(tokenIn(secret))}
			}
		})
	}
	close(start)
	readers.Wait()
	close(results)

	token := dt.LastToken(a.key)
	noteSecret(token, "an access token")
	count := 0
	for r := range results {
		count++
		requireSameToken(t, tokenIn(r.Secret), token) // every reader gets the one token
		requireTTL(t, r.Secret, r.left, r.took)
	}
	require.Equal(t, clients*readsEach, count)
	require.Equal(t, 1, a.calls(), "upstream calls")
	require.Len(t, a.leases(t), clients*readsEach, "every read is a lease of its own")
}

func TestCreds_leased_answer_holds_the_token_alone(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)

	secret := a.read(t)
	require.Len(t, secret.Data, 1)
	requireSameToken(t, tokenIn(secret), dt.LastToken(a.key)) // the token is DingTalk's
	require.NotEmpty(t, secret.LeaseID)
	require.True(t, secret.Renewable)
	require.Empty(t, secret.Warnings)
	require.InDelta(t, dt.left(tokenIn(secret)).Seconds(), leaseTTL(secret).Seconds(), leaseSlack.Seconds())
}

func TestCreds_unleased_answer_carries_its_own_life(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, fields{"leased": false, "refresh_before": "200s"})

	before := time.Now()
	secret := a.read(t)
	after := time.Now()

	require.Empty(t, secret.LeaseID)
	require.Zero(t, secret.LeaseDuration)
	require.False(t, secret.Renewable)
	require.Empty(t, secret.Warnings)
	require.Empty(t, a.leases(t))

	names := make([]string, 0, len(secret.Data))
	for name := range secret.Data {
		names = append(names, name)
	}
	require.ElementsMatch(t,
		[]string{"access_token", "expires_at", "ttl", "rotation_period", "last_vault_rotation"}, names)
	requireSameToken(t, tokenIn(secret), dt.LastToken(a.key)) // the token is DingTalk's

	require.Equal(t, 7000*time.Second, seconds(t, secret.Data["rotation_period"]), "the lifetime less the window")
	require.InDelta(
		t,
		7000,
		seconds(t, secret.Data["ttl"]).Seconds(),
		2+after.Sub(before).Seconds(),
		"counts to the start of the window",
	)

	expires := utcTime(t, secret.Data["expires_at"])
	require.WithinRange(t, expires, before.Add(fullLifetime-time.Second), after.Add(fullLifetime))
	require.False(
		t,
		expires.After(time.Now().Add(dt.left(tokenIn(secret))).Add(time.Second)),
		"never after DingTalk's end",
	)
	require.WithinRange(t, utcTime(t, secret.Data["last_vault_rotation"]), before.Add(-time.Second), after)
}

func TestCreds_min_ttl_refreshes_a_token_that_lives_too_short(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, 24*time.Second)
	a := newMount(t).newApp(t, dt, nil)
	read := func(minTTL string) (token string, ttl time.Duration, warnings []string) {
		secret, err := a.m.v.root.Logical().ReadWithData(a.credsPath(), map[string][]string{"min_ttl": {minTTL}})
		require.NoError(t, err)
		noteSecret(tokenIn(secret), "an access token")
		return tokenIn(secret), leaseTTL(secret), secret.Warnings
	}

	first, _, warnings := read("10s")
	require.Empty(t, warnings)
	require.Equal(t, 1, a.calls())

	_, _, warnings = read("1h")
	require.NotEmpty(t, warnings, "more than three quarters of the lifetime is cut with a warning")
	require.Equal(t, 1, a.calls(), "a token with more than three quarters left is long enough for anyone")

	dt.waitForAge(t, first, 13*time.Second)
	second, ttl, warnings := read("16s")
	require.Empty(t, warnings)
	require.Equal(t, 2, a.calls())
	requireSameToken(t, first, second) // DingTalk extends the same token
	require.GreaterOrEqual(t, ttl, 22*time.Second)

	_, _, warnings = read("17s")
	require.Empty(t, warnings)
	require.Equal(t, 2, a.calls(), "the extended token is long enough")
}

func TestCreds_of_two_apps_are_each_their_own(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	one, two := m.newApp(t, dt, nil), m.newApp(t, dt, nil)
	requireSameToken(t, one.token(t), dt.LastToken(one.key))
	requireSameToken(t, two.token(t), dt.LastToken(two.key))
	requireOtherToken(t, one.token(t), two.token(t)) // two apps never share a token
}

func TestCreds_of_one_name_in_two_mounts_are_each_their_own(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	one := newMount(t).newApp(t, dt, nil)
	two := newMount(t).unstoredApp(dt)
	two.name = one.name
	_, err := two.m.v.root.Logical().Write(two.configPath(), two.config())
	require.NoError(t, err)
	requireSameToken(t, one.token(t), dt.LastToken(one.key))
	requireSameToken(t, two.token(t), dt.LastToken(two.key))

	one.delete(t)
	_, err = one.tryRead()
	refused(t, err, 400)
	requireSameToken(t, two.token(t), dt.LastToken(two.key))
}

func TestCreds_reader_that_gives_up_fails_nobody_else(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	dt.SetFault(a.key, simulator.Fault{Delay: 3 * time.Second, Times: 1})

	hasty, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	client := a.m.v.client(t)
	var readers sync.WaitGroup
	readers.Go(func() {
		_, err := client.Logical().ReadWithContext(hasty, a.credsPath())
		assert.ErrorIs(t, err, context.Canceled)
	})
	waitFor(t, 10*time.Second, "the call upstream is under way", func() bool { return a.calls() == 1 })
	readers.Go(func() {
		if _, err := a.tryRead(); err != nil {
			t.Errorf("a reader that waits: %v", err)
		}
	})
	time.Sleep(500 * time.Millisecond) // so that both wait for it
	giveUp()
	readers.Wait()
	requireSameToken(t, a.token(t), dt.LastToken(a.key))
	require.Equal(t, 1, a.calls())
}

func TestCreds_reader_across_a_change_of_secret_gets_the_new_token(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	dt.RotateTokens(a.key, true)
	dt.SetFault(a.key, simulator.Fault{Delay: 3 * time.Second, Times: 1})

	var across string
	var reader sync.WaitGroup
	reader.Go(func() {
		secret, err := a.tryRead()
		if err != nil {
			t.Errorf("the reader: %v", err)
			return
		}
		across = tokenIn(secret)
	})
	waitFor(t, 10*time.Second, "the old secret is on its way", func() bool { return a.calls() == 1 })
	old := dt.LastToken(a.key)
	noteSecret(old, "an access token")
	fresh := newSecret()
	dt.SetApp(a.key, fresh)
	rotation := a.rotation(fresh)
	rotation["verify_connection"] = false
	a.update(t, rotation)

	reader.Wait()
	requireOtherToken(t, across, old)
	requireSameToken(t, across, dt.LastToken(a.key))
	requireSameToken(t, a.token(t), across)
	require.Equal(t, 2, a.calls())
}

func TestCreds_status_and_refresh_of_an_unknown_app_name_the_path_to_write(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	logical := m.v.root.Logical()
	for _, path := range []string{"creds", "status"} {
		_, err := logical.Read(m.path + "/" + path + "/nobody")
		text := refused(t, err, 400)
		assert.Contains(t, text, "nobody", path)
		assert.Contains(t, text, "config/nobody", path)
	}
	_, err := logical.Write(m.path+"/refresh/nobody", nil)
	text := refused(t, err, 400)
	assert.Contains(t, text, "config/nobody", "refresh")

	secret, err := logical.Read(m.path + "/config/nobody")
	require.NoError(t, err, "the client library turns a 404 without words into no answer")
	require.Nil(t, secret)
	require.Equal(t, 404, m.v.http(t, "GET", m.path+"/config/nobody", "", "").status)

	_, err = logical.JSONMergePatch(t.Context(), m.path+"/config/nobody", map[string]any{"leased": false})
	assert.Contains(t, refused(t, err, 404), "nobody")
	require.Empty(t, m.list(t, m.path+"/config/"), "nothing was stored")
}

func TestStatus_shows_the_state_of_the_token_and_no_secret(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)

	absent := a.status(t)
	assert.Equal(t, "absent", absent["state"])
	for _, name := range []string{"expires_at", "fetched_at", "ttl", "last_error", "last_error_at", "next_attempt_at"} {
		assert.NotContains(t, absent, name, "what does not apply is left out")
	}
	require.Zero(t, a.calls(), "status costs no call")

	before := time.Now()
	token := a.token(t)
	after := time.Now()
	fresh := a.status(t)
	assert.Equal(t, "fresh", fresh["state"])
	assert.Equal(t, json.Number("1"), fresh["upstream_calls"])
	assert.Equal(t, json.Number("0"), fresh["upstream_failures"])
	assert.InDelta(t, dt.left(token).Seconds(), seconds(t, fresh["ttl"]).Seconds(), leaseSlack.Seconds())
	assert.WithinRange(t, utcTime(t, fresh["fetched_at"]), before.Add(-time.Second), after)
	assert.WithinRange(
		t,
		utcTime(t, fresh["expires_at"]),
		before.Add(fullLifetime-time.Second),
		after.Add(fullLifetime),
	)
	for _, name := range []string{"last_error", "last_error_at", "next_attempt_at", "access_token", "app_secret"} {
		assert.NotContains(t, fresh, name)
	}

	text, err := json.Marshal(fresh)
	require.NoError(t, err)
	assertNoSecret(t, "the status", string(text))
}

func TestRefresh_fetches_at_most_once_in_ten_seconds_and_answers_like_status(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)

	first := a.refreshNow(t)
	require.Equal(t, 1, a.calls())
	require.Empty(t, first.Warnings)
	assert.Equal(t, "fresh", first.Data["state"])
	assert.Equal(t, a.status(t)["fetched_at"], first.Data["fetched_at"])
	assert.NotContains(t, first.Data, "access_token")

	soon := a.refreshNow(t)
	require.NotEmpty(t, soon.Warnings, "a refresh that came too soon says so")
	assert.Equal(t, "fresh", soon.Data["state"])
	require.Equal(t, 1, a.calls())

	requireSameToken(t, a.token(t), dt.LastToken(a.key))
	require.Equal(t, 1, a.calls(), "the fetched token serves the next read")
}

// utcTime reads a time of an answer, which must be RFC 3339 in UTC.
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
