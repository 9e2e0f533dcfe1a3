// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Writing config/<app>: what the engine verifies and what it refuses, with which text, and that a
// refused write changes nothing.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestConfig_read_answers_every_field_but_the_secret(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	before := time.Now()
	a := m.NewApp(t, dt, nil)

	created := m.ReadData(t, a.ConfigPath())
	setAt := created["app_secret_set_at"]
	require.WithinRange(t, utcTime(t, setAt), before.Add(-time.Second), time.Now())
	require.Equal(t, map[string]any{
		"app_key": a.Key, "base_url": dt.URL, "corp_id": "", "leased": true,
		"refresh_before": json.Number("200"), "request_timeout": json.Number("10"), "app_secret_set_at": setAt,
	}, created)

	require.Nil(t, a.Update(t, harness.Fields{"refresh_before": "5m", "request_timeout": 3, "leased": "false"}))
	require.Equal(t, map[string]any{
		"app_key": a.Key, "base_url": dt.URL, "corp_id": "", "leased": false,
		"refresh_before": json.Number("300"), "request_timeout": json.Number("3"), "app_secret_set_at": setAt,
	}, m.ReadData(t, a.ConfigPath()), "an update changes what it names")

	_, err := m.Vault.Root.Logical().JSONMergePatch(t.Context(), a.ConfigPath(), map[string]any{"leased": true})
	require.NoError(t, err)
	require.Equal(t, true, m.ReadData(t, a.ConfigPath())["leased"])
	require.Equal(
		t,
		json.Number("300"),
		m.ReadData(t, a.ConfigPath())["refresh_before"],
		"a patch changes what it names",
	)
	require.Zero(t, a.Calls(), "settings cost no call upstream")

	require.Equal(t, http.StatusNoContent, m.Vault.HTTP(t, "POST", a.ConfigPath(), "", `{"refresh_before":"200s"}`).Status)
	a.Delete(t)
	require.Equal(t, http.StatusNotFound, m.Vault.HTTP(t, "GET", a.ConfigPath(), "", "").Status)
	a.Delete(t) // deleting what is gone is no error
}

func TestConfig_create_verifies_the_credentials_and_keeps_the_token(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.UnstoredApp(dt)

	_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), a.Config())
	require.NoError(t, err)
	require.Equal(t, 1, a.Calls())
	harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
	require.Equal(t, 1, a.Calls(), "the verification's token is the first that is served")

	a.Update(t, a.Config())
	a.Update(t, harness.Fields{"refresh_before": "100s"})
	require.Equal(t, 1, a.Calls(), "the same credentials are not verified again")

	require.Equal(t, []string{a.Name}, m.List(t, m.Path+"/config/"))
}

func TestConfig_create_with_a_wrong_secret_stores_nothing(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.UnstoredApp(dt)
	dt.SetApp(a.Key, harness.NewSecret())

	_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), a.Config())
	requireRejectedCredentials(t, harness.Refused(t, err, http.StatusBadRequest))
	require.Equal(t, 1, a.Calls(), "rejected credentials are not tried again")
	require.Equal(t, http.StatusNotFound, m.Vault.HTTP(t, "GET", a.ConfigPath(), "", "").Status)
	require.Empty(t, m.List(t, m.Path+"/config/"))
}

func TestConfig_update_with_a_wrong_secret_leaves_the_old_entry_in_force(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.NewApp(t, dt, nil)
	token := a.Token(t)
	before := m.ReadData(t, a.ConfigPath())

	for _, body := range []harness.Fields{
		a.Rotation(harness.NewSecret()),
		{"app_secret": harness.NewSecret(), "base_url": dt.URL, "app_key": "dingsomebodyelse", "leased": false},
	} {
		_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), body)
		requireRejectedCredentials(t, harness.Refused(t, err, http.StatusBadRequest))
		_, err = m.Vault.Root.Logical().JSONMergePatch(t.Context(), a.ConfigPath(), body)
		requireRejectedCredentials(t, harness.Refused(t, err, http.StatusBadRequest))
	}
	require.Equal(t, before, m.ReadData(t, a.ConfigPath()))
	calls := a.Calls()
	harness.RequireSameToken(t, a.Token(t), token) // the old entry's token serves
	require.Equal(t, calls, a.Calls())

	// The stored secret is still the right one.
	refreshed := a.RefreshNow(t)
	require.Empty(t, refreshed.Warnings)
	require.Equal(t, calls+1, a.Calls())
}

// requireRejectedCredentials checks that an error says what DingTalk said and what to check.
func requireRejectedCredentials(t *testing.T, text string) {
	t.Helper()
	assert.Contains(t, text, "invalidClientIdOrSecret", "DingTalk's code")
	assert.Contains(t, text, "无效的clientId或者clientSecret", "DingTalk's message")
	assert.Regexp(t, `(?i)request ?id\W+[0-9A-Za-z-]{8,}`, text, "DingTalk's request id")
	for _, hint := range []string{"app_key", "app_secret", "base_url", "published"} {
		assert.Contains(t, text, hint, "the hint")
	}
}

func TestConfig_update_that_moves_the_app_needs_its_secret(t *testing.T) {
	t.Parallel()
	dt, other := harness.StartDingTalk(t, harness.FullLifetime), harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.NewApp(t, dt, nil)
	token := a.Token(t)
	other.SetApp(a.Key, a.Secret)

	for _, body := range []harness.Fields{{"base_url": other.URL}, {"app_key": "dingother"}} {
		for _, verify := range []bool{true, false} {
			body["verify_connection"] = verify
			_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), body)
			require.Contains(t, harness.Refused(t, err, http.StatusBadRequest), "app_secret")
		}
	}
	require.Zero(t, other.Requests("*"), "the stored secret went nowhere")
	harness.RequireSameToken(t, a.Token(t), token)

	a.Update(t, harness.Fields{"base_url": other.URL, "app_secret": a.Secret})
	require.Equal(t, 1, other.Requests(a.Key))
	harness.RequireSameToken(t, a.Token(t), other.LastToken(a.Key)) // the new host's token is served
}

// Somebody who may write config/ knows no secret, but can move an app to a host of theirs with a
// junk one. The operator who then rotates the secret as ever is told so, instead of sending it
// there.
func TestConfig_operator_is_not_led_to_send_the_next_secret_to_another_host(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	dt, theirs := harness.StartDingTalk(t, harness.FullLifetime), harness.StartDingTalk(t, harness.FullLifetime)
	var received sync.Map
	evil := serveUpstream(t, "127.0.0.1", nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		received.Store(string(body), true)
		r.Body = io.NopCloser(bytes.NewReader(body))
		theirs.ServeHTTP(w, r)
	}))
	evilURL := "http://" + evil.addr

	a := m.UnstoredApp(dt)
	onDingTalk := a.Config()
	onDingTalk["base_url"], onDingTalk["verify_connection"] = "https://api.dingtalk.com", false
	_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), onDingTalk)
	require.NoError(t, err)

	policy := "writer-of-" + m.Path
	require.NoError(t, m.Vault.Root.Sys().PutPolicy(policy,
		fmt.Sprintf("path \"%s/config/*\" {\n  capabilities = [\"update\", \"patch\"]\n}\n", m.Path)))
	created, err := m.Vault.Root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{policy}})
	require.NoError(t, err)
	harness.NoteSecret(created.Auth.ClientToken, "a Vault token")
	writer := m.Vault.Client(t)
	writer.SetToken(created.Auth.ClientToken)
	junk := harness.NewSecret()
	theirs.SetApp(a.Key, junk)
	for _, verify := range []bool{false, true} { // their host even says that the junk is right
		_, err = writer.Logical().Write(a.ConfigPath(), map[string]any{
			"base_url": evilURL, "app_secret": junk, "verify_connection": verify,
		})
		require.NoError(t, err)
	}
	_, err = a.TryRead() // is sent there, with the junk
	require.NoError(t, err)

	next := harness.NewSecret()
	dt.SetApp(a.Key, next)
	for _, args := range [][]string{
		{"write", a.ConfigPath(), "app_secret=-"},
		{"patch", a.ConfigPath(), "app_secret=-"},
		{"write", a.ConfigPath(), "app_secret=-", "app_key=" + a.Key},
		{"write", a.ConfigPath(), "app_secret=-", "verify_connection=false"},
	} {
		result := m.Vault.CLIWithInput(t, next, args...)
		require.Equal(t, 2, result.Status, args)
		require.Contains(t, result.Stderr, "Code: 400", args)
		require.Contains(t, result.Stderr,
			"a write with app_secret must name base_url too, since the stored one, "+evilURL, args)
		harness.AssertNoSecret(t, "the refusal", result.Stdout+result.Stderr)
	}
	require.Equal(t, evilURL, m.ReadData(t, a.ConfigPath())["base_url"])

	m.Vault.CLIWithInput(t, next, "write", a.ConfigPath(), "app_secret=-", "base_url="+dt.URL).Succeeded(t)
	harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
	count := 0
	received.Range(func(body, _ any) bool {
		count++
		assert.Contains(t, body, junk)
		return assert.NotContains(t, body, next)
	})
	require.Positive(t, count)
}

// One host has one spelling, so that its bans and waits hold for all its apps.
func TestConfig_base_url_is_stored_in_its_canonical_form(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	a := m.UnstoredApp(harness.StartDingTalk(t, harness.FullLifetime))
	for given, stored := range map[string]string{
		"https://API.DingTalk.IO":         "https://api.dingtalk.io",
		"https://api.dingtalk.io/":        "https://api.dingtalk.io",
		"https://api.dingtalk.io:443":     "https://api.dingtalk.io",
		"https://api.dingtalk.io:00443":   "https://api.dingtalk.io",
		"https://api.dingtalk.com:08443/": "https://api.dingtalk.com:8443",
		"http://127.0.0.1:80":             "http://127.0.0.1",
		"http://127.0.0.1:018300":         "http://127.0.0.1:18300",
		"http://[0:0:0:0:0:0:0:1]:8300":   "http://[::1]:8300",
		"https://[2001:DB8:0:0::1]":       "https://[2001:db8::1]",
	} {
		body := a.Config()
		body["base_url"], body["verify_connection"] = given, false
		_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), body)
		require.NoError(t, err, given)
		require.Equal(t, stored, m.ReadData(t, a.ConfigPath())["base_url"], given)
	}
	for _, given := range []string{"https://api.dingtalk.io.", "https://api.dingtalk.io.:443", "https://localhost."} {
		body := a.Config()
		body["base_url"] = given
		_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), body)
		require.Contains(t, harness.Refused(t, err, http.StatusBadRequest), "its host ends in a dot", given)
	}
}

func TestConfig_unknown_field_gets_a_warning_from_Vault(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.NewApp(t, dt, nil)
	before := m.ReadData(t, a.ConfigPath())

	misspelled := fmt.Sprintf(`{"app_secrets":%q,"leased":true}`, harness.NewSecret())
	reply := m.Vault.HTTP(t, "POST", a.ConfigPath(), "", misspelled)
	require.Equal(t, http.StatusOK, reply.Status)
	var body struct{ Warnings []string }
	require.NoError(t, json.Unmarshal([]byte(reply.Body), &body))
	require.NotEmpty(t, body.Warnings)
	require.Contains(t, strings.Join(body.Warnings, "\n"), "app_secrets")
	harness.AssertNoSecret(t, "the response", reply.Body)
	require.Equal(t, before, m.ReadData(t, a.ConfigPath()))
}

func TestConfig_names_have_a_longest_length_and_no_slash(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.UnstoredApp(dt)
	body := a.Config()
	body["verify_connection"] = false
	raw, err := json.Marshal(body)
	require.NoError(t, err)

	for _, name := range []string{"team/app", strings.Repeat("n", 129), "a%20b", "a%2Fb", "-app", "app-", "%E5%BA%94"} {
		for _, path := range []string{"config", "creds", "status", "refresh"} {
			method, payload := "GET", ""
			switch path {
			case "config":
				method, payload = "POST", string(raw)
			case "refresh":
				method = "POST"
			}
			reply := m.Vault.HTTP(t, method, m.Path+"/"+path+"/"+name, "", payload)
			assert.Contains(
				t,
				[]int{http.StatusBadRequest, http.StatusNotFound},
				reply.Status,
				"%s/%s: %s",
				path,
				name,
				reply.Body,
			)
			assert.Contains(t, reply.Body, `"errors"`, "%s/%s", path, name)
			harness.AssertNoSecret(t, "the response", reply.Body)
		}
	}
	require.Empty(t, m.List(t, m.Path+"/config/"))

	for _, name := range []string{strings.Repeat("n", 128), "team.app_1-x", "7"} {
		reply := m.Vault.HTTP(t, "POST", m.Path+"/config/"+name, "", string(raw))
		require.Equal(t, http.StatusNoContent, reply.Status, "%s: %s", name, harness.Mask(reply.Body))
	}
	require.Len(t, m.List(t, m.Path+"/config/"), 3)
}

// badField is a value of one field that must be refused: as JSON, and words that the refusal has to
// hold, in addition to the field's name.
type badField struct {
	field, value string
	says         []string
}

func badFields() []badField {
	hidden := func() string { // a secret that must not come back, as a JSON string
		return fmt.Sprintf("%q", harness.NewSecret())
	}
	const credential = "512"
	rows := []badField{
		{"app_secret", `""`, []string{credential}},
		{"app_secret", `"\n"`, []string{credential}},
		{"app_secret", fmt.Sprintf(`"%s "`, harness.NewSecret()), []string{credential, "space"}},
		{"app_secret", fmt.Sprintf(`"%s\n\n"`, harness.NewSecret()), []string{credential}},
		{"app_secret", fmt.Sprintf(`"%s密"`, harness.NewSecret()), []string{credential, "ASCII"}},
		{"app_secret", fmt.Sprintf(`"%s\u0000"`, harness.NewSecret()), []string{credential}},
		{"app_secret", fmt.Sprintf(`"%s%s"`, harness.NewSecret(), strings.Repeat("x", 512)), []string{credential}},
		{"app_secret", `[` + hidden() + `,` + hidden() + `]`, []string{"string"}},
		{"app_secret", `[` + hidden() + `]`, []string{"string"}},
		{"app_secret", `[]`, []string{"string"}},
		{"app_secret", `{"value":` + hidden() + `}`, []string{"string"}},
		{"app_secret", `[{"deep":[` + hidden() + `]}]`, []string{"string"}},
		{"app_secret", secretNumber(), []string{"string"}},
		{"app_secret", `true`, []string{"string"}},
		{"app_secret", `null`, []string{"string"}},

		{"app_key", `""`, []string{credential}},
		{"app_key", `"ding key"`, []string{credential, "space"}},
		{"app_key", `"ding\tkey"`, []string{credential}},
		{"app_key", `"钉钉"`, []string{credential, "ASCII"}},
		{"app_key", `"` + strings.Repeat("k", 513) + `"`, []string{credential}},
		{"app_key", `["dingone","dingtwo"]`, nil},
		{"app_key", `{"key":"dingone"}`, nil},

		{"corp_id", `"ding-corp"`, []string{"ding-corp", "1 to 64 letters and digits"}},
		{"corp_id", `"../accessToken"`, []string{"1 to 64 letters and digits"}},
		{"corp_id", `"ding corp"`, []string{"ding corp", "1 to 64 letters and digits"}},
		{"corp_id", `" "`, []string{"1 to 64 letters and digits"}},
		{"corp_id", `"钉钉"`, []string{"钉钉", "1 to 64 letters and digits"}},
		{"corp_id", `"` + strings.Repeat("c", 65) + `"`, []string{"65", "1 to 64 letters and digits"}},
		{"corp_id", hidden(), []string{"1 to 64 letters and digits"}},
		{"corp_id", `7`, []string{"string"}},
		{"corp_id", `["dingone","dingtwo"]`, []string{"string"}},
		{"corp_id", `{"id":"dingone"}`, []string{"string"}},

		{"leased", `"maybe"`, []string{"maybe", "true", "false"}},
		{"leased", `7`, []string{"true", "false"}},
		{"leased", `""`, []string{"true", "false"}},
		{"leased", `[true]`, []string{"true", "false"}},
		{"verify_connection", `"perhaps"`, []string{"perhaps", "true", "false"}},
	}
	for _, url := range []string{
		"http://api.dingtalk.io", "http://10.0.0.1", "http://127.0.0.1.example.com", "http://[::2]",
		"https://api.dingtalk.io/v1.0", "https://api.dingtalk.io//", "https://api.dingtalk.io?x=1",
		"https://api.dingtalk.io?",
		"https://api.dingtalk.io#f", "https://api.dingtalk.io#", "https://api%2edingtalk.io", `https://api.dingtalk.io\evil`,
		"ftp://api.dingtalk.io", "api.dingtalk.io", "//api.dingtalk.io", "https:api.dingtalk.io", "https://",
		"https://:443", "",
		"https://api.dingtalk.io:0", "https://api.dingtalk.io:65536", "https://api.dingtalk.io:port",
		" https://api.dingtalk.io",
		"https://api.dingtalk.io ", "https://api.dingtalk.io\n",
	} {
		value, _ := json.Marshal(url)
		rows = append(rows, badField{"base_url", string(value), []string{"https://"}})
	}
	rows = append(rows,
		badField{"base_url", fmt.Sprintf(`"https://user:%s@api.dingtalk.io"`, harness.NewSecret()), []string{"https://"}},
		badField{"base_url", `["https://api.dingtalk.io","https://api.dingtalk.com"]`, nil},
	)
	for field, bounds := range map[string][]string{"refresh_before": {"0s", "1h"}, "request_timeout": {"1s", "30s"}} {
		for _, value := range []string{
			`"-1s"`, `-1`, `"soon"`, `"500ms"`, `"1500ms"`, `"-0.5s"`, `""`, `"61m"`, `3601`, `99999`, `"9223372036854775807"`,
			`"1d1"`, `1.5`,
		} {
			rows = append(rows, badField{field, value, append([]string{strings.Trim(value, `"`)}, bounds...)})
		}
		for _, value := range []string{`true`, `["10s","20s"]`, `{"seconds":10}`} {
			rows = append(rows, badField{field, value, bounds})
		}
	}
	return append(rows,
		badField{"request_timeout", `0`, []string{"1s", "30s"}},
		badField{"request_timeout", `"31s"`, []string{"31s", "1s", "30s"}},
	)
}

// secretNumber is a secret that lost its quotes on the way.
func secretNumber() string {
	number := "8"
	for _, digit := range harness.RandomHex(10) {
		number += string('0' + digit%10)
	}
	harness.NoteSecret(number, "an app secret")
	return number
}

func TestConfig_refuses_every_invalid_field_and_changes_nothing(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.NewApp(t, dt, nil)
	token := a.Token(t)
	config, status := m.ReadData(t, a.ConfigPath()), a.Status(t)
	newcomer := m.UnstoredApp(dt)

	const patchType = "application/merge-patch+json"
	refuse := func(method, path, contentType, body string, row badField) {
		what := harness.Mask(fmt.Sprintf("%s %s %s", method, path, body))
		reply := m.Vault.HTTP(t, method, path, contentType, body)
		assert.Equal(t, http.StatusBadRequest, reply.Status, "%s: %s", what, harness.Mask(reply.Body))
		var problem struct{ Errors []string }
		harness.DecodeJSON(t, reply.Body, &problem)
		text := strings.Join(problem.Errors, "\n")
		harness.AssertNoSecret(t, "the refusal of "+what, text)
		assert.Contains(t, text, row.field, "%s names the field", what)
		for _, words := range row.says {
			assert.Contains(t, text, words, "%s says what was given and what is allowed", what)
		}
	}

	for _, row := range badFields() {
		alone := fmt.Sprintf(`{%q:%s}`, row.field, row.value)
		refuse("POST", a.ConfigPath(), "", alone, row)
		refuse("PATCH", a.ConfigPath(), patchType, alone, row)

		whole := newcomer.Config()
		delete(whole, row.field)
		raw, err := json.Marshal(whole)
		require.NoError(t, err)
		refuse(
			"POST",
			newcomer.ConfigPath(),
			"",
			strings.TrimSuffix(string(raw), "}")+","+strings.TrimPrefix(alone, "{"),
			row,
		)
	}

	for _, field := range []string{
		"app_key", "app_secret", "corp_id", "base_url", "refresh_before", "request_timeout", "leased",
		"verify_connection",
	} {
		refuse("PATCH", a.ConfigPath(), patchType, fmt.Sprintf(`{%q:null}`, field), badField{field: field})
	}
	for _, missing := range []string{"app_key", "app_secret"} {
		whole := newcomer.Config()
		delete(whole, missing)
		raw, err := json.Marshal(whole)
		require.NoError(t, err)
		refuse("POST", newcomer.ConfigPath(), "", string(raw), badField{field: missing, says: []string{"required"}})
	}

	require.Equal(t, config, m.ReadData(t, a.ConfigPath()), "the stored config is as it was")
	after := a.Status(t)
	delete(status, "ttl")
	delete(after, "ttl")
	require.Equal(t, status, after, "the token's state is as it was")
	harness.RequireSameToken(t, a.Token(t), token)
	require.Equal(t, []string{a.Name}, m.List(t, m.Path+"/config/"), "nothing new was stored")
	require.Equal(t, 1, dt.Requests("*"), "none of it went upstream")
}

func TestCreds_refuses_an_invalid_min_ttl(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	for _, value := range []string{"-5s", "soon", "500ms", "-1", "1.5"} {
		_, err := a.Mount.Vault.Root.Logical().ReadWithData(a.CredsPath(), map[string][]string{"min_ttl": {value}})
		text := harness.Refused(t, err, http.StatusBadRequest)
		assert.Contains(t, text, "min_ttl")
		assert.Contains(t, text, value, "what was given")
	}
	require.Zero(t, a.Calls())
}

func TestConfig_delete_leaves_nothing_in_storage(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	mounted, err := m.Vault.Root.Sys().GetMount(m.Path)
	require.NoError(t, err)
	stored := func(key string) []string { return m.List(t, "sys/raw/logical/"+mounted.UUID+"/"+key) }

	a, other := m.NewApp(t, dt, nil), m.NewApp(t, dt, nil)
	require.ElementsMatch(t, []string{a.Name, other.Name}, stored("config/"))
	require.Empty(t, stored("token/"), "nothing was fetched yet")
	a.Read(t)
	require.Equal(t, []string{a.Name}, stored("token/"), "a token is stored before it is served")
	require.ElementsMatch(t, []string{"config/", "token/"}, stored(""))

	a.Delete(t)
	require.Equal(t, []string{other.Name}, stored("config/"))
	require.Empty(t, stored("token/"))
}

func TestConfig_create_that_DingTalk_fails_stores_nothing(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	elsewhere := harness.StartDingTalk(t, harness.FullLifetime)
	t.Cleanup(func() { assert.Zero(t, elsewhere.Requests("*"), "a redirect is never followed") })
	for _, c := range faultCases() {
		c.leadTo(elsewhere)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := m.UnstoredApp(harness.StartDingTalk(t, harness.FullLifetime))
			a.DingTalk.SetFault(a.Key, c.fault)
			body := a.Config()
			body["request_timeout"] = faultTimeout.String()

			began := time.Now()
			_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), body)
			require.Less(t, time.Since(began), faultBound)
			harness.NoteSecret(a.DingTalk.LastToken(a.Key), "an access token")
			reply := m.Vault.HTTP(t, "GET", a.ConfigPath(), "", "")
			if c.status == 0 {
				require.NoError(t, err)
				require.Equal(t, http.StatusOK, reply.Status)
				return
			}
			text := harness.Refused(t, err, c.status)
			for _, words := range c.says {
				if words != nextAttempt { // there will be none
					require.Regexp(t, words, text)
				}
			}
			require.Equal(t, http.StatusNotFound, reply.Status)
		})
	}
}

func TestConfig_new_generation_drops_the_old_token_and_the_back_off(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"request_timeout": "1s"})
	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultUnavailableEmpty})
	_, err := a.TryRead()
	harness.Refused(t, err, http.StatusBadGateway)
	calls := a.Calls()
	_, err = a.TryRead()
	harness.Refused(t, err, http.StatusBadGateway)
	require.Equal(t, calls, a.Calls(), "the back-off holds")

	dt.ClearFaults()
	fresh := harness.NewSecret()
	dt.SetApp(a.Key, fresh)
	rotation := a.Rotation(fresh)
	rotation["verify_connection"] = false
	a.Update(t, rotation)
	began := time.Now()
	harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
	require.Less(t, time.Since(began), 4*time.Second, "new credentials do not wait for the old ones' back-off")
	require.Equal(t, calls+1, a.Calls())
}
