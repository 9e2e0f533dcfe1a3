// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Writing config/<app>: what is verified, what is refused and in which words, and that a refused
// write changes nothing.

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
)

func TestConfig_read_answers_every_field_but_the_secret(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	before := time.Now()
	a := m.newApp(t, dt, nil)

	created := m.readData(t, a.configPath())
	setAt := created["app_secret_set_at"]
	require.WithinRange(t, utcTime(t, setAt), before.Add(-time.Second), time.Now())
	require.Equal(t, map[string]any{
		"app_key": a.key, "base_url": dt.url, "corp_id": "", "leased": true,
		"refresh_before": json.Number("200"), "request_timeout": json.Number("10"), "app_secret_set_at": setAt,
	}, created)

	require.Nil(t, a.update(t, fields{"refresh_before": "5m", "request_timeout": 3, "leased": "false"}))
	require.Equal(t, map[string]any{
		"app_key": a.key, "base_url": dt.url, "corp_id": "", "leased": false,
		"refresh_before": json.Number("300"), "request_timeout": json.Number("3"), "app_secret_set_at": setAt,
	}, m.readData(t, a.configPath()), "an update changes what it names")

	_, err := m.v.root.Logical().JSONMergePatch(t.Context(), a.configPath(), map[string]any{"leased": true})
	require.NoError(t, err)
	require.Equal(t, true, m.readData(t, a.configPath())["leased"])
	require.Equal(
		t,
		json.Number("300"),
		m.readData(t, a.configPath())["refresh_before"],
		"a patch changes what it names",
	)
	require.Zero(t, a.calls(), "settings cost no call upstream")

	require.Equal(t, http.StatusNoContent, m.v.http(t, "POST", a.configPath(), "", `{"refresh_before":"200s"}`).status)
	a.delete(t)
	require.Equal(t, http.StatusNotFound, m.v.http(t, "GET", a.configPath(), "", "").status)
	a.delete(t) // deleting what is gone is no error
}

func TestConfig_create_verifies_the_credentials_and_keeps_the_token(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.unstoredApp(dt)

	_, err := m.v.root.Logical().Write(a.configPath(), a.config())
	require.NoError(t, err)
	require.Equal(t, 1, a.calls())
	requireSameToken(t, a.token(t), dt.LastToken(a.key))
	require.Equal(t, 1, a.calls(), "the verification's token is the first that is served")

	a.update(t, a.config())
	a.update(t, fields{"refresh_before": "100s"})
	require.Equal(t, 1, a.calls(), "the same credentials are not verified again")

	require.Equal(t, []string{a.name}, m.list(t, m.path+"/config/"))
}

func TestConfig_create_with_a_wrong_secret_stores_nothing(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.unstoredApp(dt)
	dt.SetApp(a.key, newSecret())

	_, err := m.v.root.Logical().Write(a.configPath(), a.config())
	requireRejectedCredentials(t, refused(t, err, http.StatusBadRequest))
	require.Equal(t, 1, a.calls(), "rejected credentials are not tried again")
	require.Equal(t, http.StatusNotFound, m.v.http(t, "GET", a.configPath(), "", "").status)
	require.Empty(t, m.list(t, m.path+"/config/"))
}

func TestConfig_update_with_a_wrong_secret_leaves_the_old_entry_in_force(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newApp(t, dt, nil)
	token := a.token(t)
	before := m.readData(t, a.configPath())

	for _, body := range []fields{
		a.rotation(newSecret()),
		{"app_secret": newSecret(), "base_url": dt.url, "app_key": "dingsomebodyelse", "leased": false},
	} {
		_, err := m.v.root.Logical().Write(a.configPath(), body)
		requireRejectedCredentials(t, refused(t, err, http.StatusBadRequest))
		_, err = m.v.root.Logical().JSONMergePatch(t.Context(), a.configPath(), body)
		requireRejectedCredentials(t, refused(t, err, http.StatusBadRequest))
	}
	require.Equal(t, before, m.readData(t, a.configPath()))
	calls := a.calls()
	requireSameToken(t, a.token(t), token) // the old entry's token serves
	require.Equal(t, calls, a.calls())

	// The stored secret is still the right one.
	refreshed := a.refreshNow(t)
	require.Empty(t, refreshed.Warnings)
	require.Equal(t, calls+1, a.calls())
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
	dt, other := startDingTalk(t, fullLifetime), startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newApp(t, dt, nil)
	token := a.token(t)
	other.SetApp(a.key, a.secret)

	for _, body := range []fields{{"base_url": other.url}, {"app_key": "dingother"}} {
		for _, verify := range []bool{true, false} {
			body["verify_connection"] = verify
			_, err := m.v.root.Logical().Write(a.configPath(), body)
			require.Contains(t, refused(t, err, http.StatusBadRequest), "app_secret")
		}
	}
	require.Zero(t, other.Requests("*"), "the stored secret went nowhere")
	requireSameToken(t, a.token(t), token)

	a.update(t, fields{"base_url": other.url, "app_secret": a.secret})
	require.Equal(t, 1, other.Requests(a.key))
	requireSameToken(t, a.token(t), other.LastToken(a.key)) // the new host's token is served
}

// Somebody who may write config/ knows no secret, but can move an app to a host of theirs with a
// junk one. The operator who then rotates the secret as ever is told so, instead of sending it
// there.
func TestConfig_operator_is_not_led_to_send_the_next_secret_to_another_host(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	dt, theirs := startDingTalk(t, fullLifetime), startDingTalk(t, fullLifetime)
	var received sync.Map
	evil := serveUpstream(t, "127.0.0.1", nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		received.Store(string(body), true)
		r.Body = io.NopCloser(bytes.NewReader(body))
		theirs.ServeHTTP(w, r)
	}))
	evilURL := "http://" + evil.addr

	a := m.unstoredApp(dt)
	onDingTalk := a.config()
	onDingTalk["base_url"], onDingTalk["verify_connection"] = "https://api.dingtalk.com", false
	_, err := m.v.root.Logical().Write(a.configPath(), onDingTalk)
	require.NoError(t, err)

	policy := "writer-of-" + m.path
	require.NoError(t, m.v.root.Sys().PutPolicy(policy,
		fmt.Sprintf("path \"%s/config/*\" {\n  capabilities = [\"update\", \"patch\"]\n}\n", m.path)))
	login, err := m.v.root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{policy}})
	require.NoError(t, err)
	noteSecret(login.Auth.ClientToken, "a Vault token")
	writer := m.v.client(t)
	writer.SetToken(login.Auth.ClientToken)
	junk := newSecret()
	theirs.SetApp(a.key, junk)
	for _, verify := range []bool{false, true} { // their host even says that the junk is right
		_, err = writer.Logical().Write(a.configPath(), map[string]any{
			"base_url": evilURL, "app_secret": junk, "verify_connection": verify,
		})
		require.NoError(t, err)
	}
	_, err = a.tryRead() // goes there, with the junk
	require.NoError(t, err)

	next := newSecret()
	dt.SetApp(a.key, next)
	for _, args := range [][]string{
		{"write", a.configPath(), "app_secret=-"},
		{"patch", a.configPath(), "app_secret=-"},
		{"write", a.configPath(), "app_secret=-", "app_key=" + a.key},
		{"write", a.configPath(), "app_secret=-", "verify_connection=false"},
	} {
		result := m.v.cliWithInput(t, next, args...)
		require.Equal(t, 2, result.status, args)
		require.Contains(t, result.stderr, "Code: 400", args)
		require.Contains(t, result.stderr,
			"a write with app_secret must name base_url too, since the stored one, "+evilURL, args)
		assertNoSecret(t, "the refusal", result.stdout+result.stderr)
	}
	require.Equal(t, evilURL, m.readData(t, a.configPath())["base_url"])

	m.v.cliWithInput(t, next, "write", a.configPath(), "app_secret=-", "base_url="+dt.url).succeeded(t)
	requireSameToken(t, a.token(t), dt.LastToken(a.key))
	count := 0
	received.Range(func(body, _ any) bool {
		count++
		assert.Contains(t, body, junk)
		return assert.NotContains(t, body, next)
	})
	require.Positive(t, count)
}

// One host has one spelling, so that a ban or a wait of its is that of all its apps.
func TestConfig_base_url_is_stored_in_its_canonical_form(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	a := m.unstoredApp(startDingTalk(t, fullLifetime))
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
		body := a.config()
		body["base_url"], body["verify_connection"] = given, false
		_, err := m.v.root.Logical().Write(a.configPath(), body)
		require.NoError(t, err, given)
		require.Equal(t, stored, m.readData(t, a.configPath())["base_url"], given)
	}
	for _, given := range []string{"https://api.dingtalk.io.", "https://api.dingtalk.io.:443", "https://localhost."} {
		body := a.config()
		body["base_url"] = given
		_, err := m.v.root.Logical().Write(a.configPath(), body)
		require.Contains(t, refused(t, err, http.StatusBadRequest), "its host ends in a dot", given)
	}
}

func TestConfig_unknown_field_gets_a_warning_from_Vault(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newApp(t, dt, nil)
	before := m.readData(t, a.configPath())

	reply := m.v.http(t, "POST", a.configPath(), "", fmt.Sprintf(`{"app_secrets":%q,"leased":true}`, newSecret()))
	require.Equal(t, http.StatusOK, reply.status)
	var body struct{ Warnings []string }
	require.NoError(t, json.Unmarshal([]byte(reply.body), &body))
	require.NotEmpty(t, body.Warnings)
	require.Contains(t, strings.Join(body.Warnings, "\n"), "app_secrets")
	assertNoSecret(t, "the answer", reply.body)
	require.Equal(t, before, m.readData(t, a.configPath()))
}

func TestConfig_names_have_a_longest_length_and_no_slash(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.unstoredApp(dt)
	body := a.config()
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
			reply := m.v.http(t, method, m.path+"/"+path+"/"+name, "", payload)
			assert.Contains(
				t,
				[]int{http.StatusBadRequest, http.StatusNotFound},
				reply.status,
				"%s/%s: %s",
				path,
				name,
				reply.body,
			)
			assert.Contains(t, reply.body, `"errors"`, "%s/%s", path, name)
			assertNoSecret(t, "the answer", reply.body)
		}
	}
	require.Empty(t, m.list(t, m.path+"/config/"))

	for _, name := range []string{strings.Repeat("n", 128), "team.app_1-x", "7"} {
		reply := m.v.http(t, "POST", m.path+"/config/"+name, "", string(raw))
		require.Equal(t, http.StatusNoContent, reply.status, "%s: %s", name, mask(reply.body))
	}
	require.Len(t, m.list(t, m.path+"/config/"), 3)
}

// badField is a value of one field that must be refused: as JSON, and words that the refusal has to
// hold besides the field's name.
type badField struct {
	field, value string
	says         []string
}

func badFields() []badField {
	hidden := func() string { // a secret that must not come back, as a JSON string
		return fmt.Sprintf("%q", newSecret())
	}
	const credential = "512"
	rows := []badField{
		{"app_secret", `""`, []string{credential}},
		{"app_secret", `"\n"`, []string{credential}},
		{"app_secret", fmt.Sprintf(`"%s "`, newSecret()), []string{credential, "space"}},
		{"app_secret", fmt.Sprintf(`"%s\n\n"`, newSecret()), []string{credential}},
		{"app_secret", fmt.Sprintf(`"%s密"`, newSecret()), []string{credential, "ASCII"}},
		{"app_secret", fmt.Sprintf(`"%s\u0000"`, newSecret()), []string{credential}},
		{"app_secret", fmt.Sprintf(`"%s%s"`, newSecret(), strings.Repeat("x", 512)), []string{credential}},
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
		badField{"base_url", fmt.Sprintf(`"https://user:%s@api.dingtalk.io"`, newSecret()), []string{"https://"}},
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
	for _, digit := range randomHex(10) {
		number += string('0' + digit%10)
	}
	noteSecret(number, "an app secret")
	return number
}

func TestConfig_refuses_every_invalid_field_and_changes_nothing(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newApp(t, dt, nil)
	token := a.token(t)
	config, status := m.readData(t, a.configPath()), a.status(t)
	newcomer := m.unstoredApp(dt)

	const patchType = "application/merge-patch+json"
	refuse := func(method, path, contentType, body string, row badField) {
		what := mask(fmt.Sprintf("%s %s %s", method, path, body))
		reply := m.v.http(t, method, path, contentType, body)
		assert.Equal(t, http.StatusBadRequest, reply.status, "%s: %s", what, mask(reply.body))
		var problem struct{ Errors []string }
		decodeJSON(t, reply.body, &problem)
		text := strings.Join(problem.Errors, "\n")
		assertNoSecret(t, "the refusal of "+what, text)
		assert.Contains(t, text, row.field, "%s names the field", what)
		for _, words := range row.says {
			assert.Contains(t, text, words, "%s says what was given and what is allowed", what)
		}
	}

	for _, row := range badFields() {
		alone := fmt.Sprintf(`{%q:%s}`, row.field, row.value)
		refuse("POST", a.configPath(), "", alone, row)
		refuse("PATCH", a.configPath(), patchType, alone, row)

		whole := newcomer.config()
		delete(whole, row.field)
		raw, err := json.Marshal(whole)
		require.NoError(t, err)
		refuse(
			"POST",
			newcomer.configPath(),
			"",
			strings.TrimSuffix(string(raw), "}")+","+strings.TrimPrefix(alone, "{"),
			row,
		)
	}

	for _, field := range []string{
		"app_key", "app_secret", "corp_id", "base_url", "refresh_before", "request_timeout", "leased",
		"verify_connection",
	} {
		refuse("PATCH", a.configPath(), patchType, fmt.Sprintf(`{%q:null}`, field), badField{field: field})
	}
	for _, missing := range []string{"app_key", "app_secret"} {
		whole := newcomer.config()
		delete(whole, missing)
		raw, err := json.Marshal(whole)
		require.NoError(t, err)
		refuse("POST", newcomer.configPath(), "", string(raw), badField{field: missing, says: []string{"required"}})
	}

	require.Equal(t, config, m.readData(t, a.configPath()), "the stored config is as it was")
	after := a.status(t)
	delete(status, "ttl")
	delete(after, "ttl")
	require.Equal(t, status, after, "the token's state is as it was")
	requireSameToken(t, a.token(t), token)
	require.Equal(t, []string{a.name}, m.list(t, m.path+"/config/"), "nothing new was stored")
	require.Equal(t, 1, dt.Requests("*"), "none of it went upstream")
}

func TestCreds_refuses_an_invalid_min_ttl(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	for _, value := range []string{"-5s", "soon", "500ms", "-1", "1.5"} {
		_, err := a.m.v.root.Logical().ReadWithData(a.credsPath(), map[string][]string{"min_ttl": {value}})
		text := refused(t, err, http.StatusBadRequest)
		assert.Contains(t, text, "min_ttl")
		assert.Contains(t, text, value, "what was given")
	}
	require.Zero(t, a.calls())
}

func TestConfig_delete_leaves_nothing_in_storage(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	mounted, err := m.v.root.Sys().GetMount(m.path)
	require.NoError(t, err)
	stored := func(key string) []string { return m.list(t, "sys/raw/logical/"+mounted.UUID+"/"+key) }

	a, other := m.newApp(t, dt, nil), m.newApp(t, dt, nil)
	require.ElementsMatch(t, []string{a.name, other.name}, stored("config/"))
	require.Empty(t, stored("token/"), "nothing was fetched yet")
	a.read(t)
	require.Equal(t, []string{a.name}, stored("token/"), "a token is stored before it is served")
	require.ElementsMatch(t, []string{"config/", "token/"}, stored(""))

	a.delete(t)
	require.Equal(t, []string{other.name}, stored("config/"))
	require.Empty(t, stored("token/"))
}

func TestConfig_create_that_DingTalk_fails_stores_nothing(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	elsewhere := startDingTalk(t, fullLifetime)
	t.Cleanup(func() { assert.Zero(t, elsewhere.Requests("*"), "a redirect is never followed") })
	for _, c := range faultCases() {
		c.leadTo(elsewhere)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := m.unstoredApp(startDingTalk(t, fullLifetime))
			a.dt.SetFault(a.key, c.fault)
			body := a.config()
			body["request_timeout"] = faultTimeout.String()

			began := time.Now()
			_, err := m.v.root.Logical().Write(a.configPath(), body)
			require.Less(t, time.Since(began), faultBound)
			noteSecret(a.dt.LastToken(a.key), "an access token")
			reply := m.v.http(t, "GET", a.configPath(), "", "")
			if c.status == 0 {
				require.NoError(t, err)
				require.Equal(t, http.StatusOK, reply.status)
				return
			}
			text := refused(t, err, c.status)
			for _, words := range c.says {
				if words != nextAttempt { // there will be none
					require.Regexp(t, words, text)
				}
			}
			require.Equal(t, http.StatusNotFound, reply.status)
		})
	}
}

func TestConfig_new_generation_drops_the_old_token_and_the_back_off(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, fields{"request_timeout": "1s"})
	dt.SetFault(a.key, simulator.Fault{Kind: simulator.FaultUnavailableEmpty})
	_, err := a.tryRead()
	refused(t, err, http.StatusBadGateway)
	calls := a.calls()
	_, err = a.tryRead()
	refused(t, err, http.StatusBadGateway)
	require.Equal(t, calls, a.calls(), "the back-off holds")

	dt.ClearFaults()
	fresh := newSecret()
	dt.SetApp(a.key, fresh)
	rotation := a.rotation(fresh)
	rotation["verify_connection"] = false
	a.update(t, rotation)
	began := time.Now()
	requireSameToken(t, a.token(t), dt.LastToken(a.key))
	require.Less(t, time.Since(began), 4*time.Second, "new credentials do not wait for the old ones' back-off")
	require.Equal(t, calls+1, a.calls())
}
