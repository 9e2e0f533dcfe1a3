// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// The faults of the unified call are tested with those of the older one.

const (
	defaultPath = "/v1.0/oauth2/dingcorp0123456789abcdef/token"
	unifiedBody = `{"client_id":"dingtestapp","client_secret":"GT-lsu-made-up-secret","grant_type":"client_credentials"}`

	// corpA and corpB are the organizations of a third-party app.
	corpA, corpB = "dingA", "dingB"
)

// startIn runs a simulator whose app runs in corpA and corpB.
func startIn(t *testing.T) *client {
	t.Helper()
	c := start(t, simulator.Options{})
	c.SetApp(appKey, appSecret, corpA, corpB)
	return c
}

func TestUnified_answers_good_credentials_to_the_letter(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
		res := c.must(t, http.MethodPost, defaultPath, contentType, unifiedBody)
		assert.Equal(t, http.StatusOK, res.status)
		assert.Equal(t, "application/json", res.header.Get("Content-Type"))
		assert.Regexp(t, `^\{"access_token":"[0-9a-f]{32}","expires_in":7200\}$`, res.body)
	}
}

func TestUnified_refuses_to_the_letter(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetApp("dingother", "other-secret", corpA)
	const invalid = `"code":"invalid.client","message":"无效的clientId或者clientSecret"`

	for name, in := range map[string]struct {
		corpID, body string
		status       int
		want         string
	}{
		"wrong secret": {simulator.DefaultCorpID, unifiedCredentials(appKey, "wrong"), 400, invalid},
		"unknown id":   {simulator.DefaultCorpID, unifiedCredentials("dingunknown", appSecret), 400, invalid},
		"wrong secret, an organization of others": {corpA, unifiedCredentials(appKey, "wrong"), 400, invalid},
		"an organization of others": {
			corpA, unifiedBody, 401, `"code":"unauthorized.client","message":"应用未被授权"`,
		},
		"no such organization": {"dingnone", unifiedBody, 500, `"code":"unknownError","message":"未知错误"`},
		"wrong grant type": {
			simulator.DefaultCorpID, strings.Replace(unifiedBody, "client_credentials", "authorization_code", 1),
			400, `"code":"unsupported.grant.type","message":"不支持的grant_type"`,
		},
		"no grant type": {
			simulator.DefaultCorpID, `{"client_id":"dingtestapp","client_secret":"x"}`,
			400, `"code":"Missinggrant_type","message":"grant_type is mandatory for this action."`,
		},
		"names of the older call": {
			simulator.DefaultCorpID, credentials(appKey, appSecret),
			400, `"code":"Missingclient_id","message":"client_id is mandatory for this action."`,
		},
		"names of the SDK": {
			simulator.DefaultCorpID, `{"client_id":"dingtestapp","clientSecret":"x","grantType":"client_credentials"}`,
			400, `"code":"Missingclient_secret","message":"client_secret is mandatory for this action."`,
		},
		"not JSON": {
			simulator.DefaultCorpID, url.Values{"client_id": {appKey}}.Encode(),
			400, `"code":"Missingbody","message":"body is mandatory for this action."`,
		},
	} {
		res := c.in(in.corpID).post(t, in.body)
		assert.Equal(t, in.status, res.status, name)
		assert.Equal(t, "application/json", res.header.Get("Content-Type"), name)
		assert.Regexp(t, `^\{"requestid":"`+requestID+`",`, res.body, name)
		assert.Contains(t, res.body, ","+in.want+"}", name)
	}
	res := c.must(t, http.MethodGet, defaultPath, "", "")
	assert.Equal(t, http.StatusNotFound, res.status)
	assert.Contains(t, res.body, `"code":"InvalidAction.NotFound"`)
}

func TestUnified_path_has_one_corpId(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	for _, path := range []string{
		"/v1.0/oauth2/token", "/v1.0/oauth2//token", "/v1.0/oauth2/a/b/token", defaultPath + "/", "/v2.0" + defaultPath,
		"/v1.0/oauth2/" + simulator.DefaultCorpID + "/Token",
	} {
		res := c.must(t, http.MethodPost, path, "application/json", unifiedBody)
		assert.Equal(t, http.StatusOK, res.status, path)
		assert.JSONEq(t, `{"errcode":404,"errmsg":"请求的URI地址不存在"}`, res.body, path)
	}
	assert.Zero(t, c.Requests(simulator.AnyApp), "they are no token requests")
}

func TestUnified_token_is_one_for_each_app_and_organization(t *testing.T) {
	t.Parallel()
	c := startIn(t)
	c.SetApp("dingother", "other-secret", corpA)
	other := c.in(corpA).post(t, unifiedCredentials("dingother", "other-secret"))

	seen := map[string]bool{c.LastToken("dingother"): true}
	assert.Contains(t, other.body, c.LastToken("dingother"))
	for i, corpID := range []string{corpA, corpB, ""} {
		token, _ := c.in(corpID).token(t)
		assert.False(t, seen[token])
		seen[token] = true
		assert.Len(t, seen, i+2)
		again, _ := c.in(corpID).token(t)
		assert.Equal(t, token, again)
		assert.Equal(t, token, c.LastTokenIn(appKey, corpID))
		assert.Equal(t, token, c.LastToken(appKey), "of whatever call")
		assert.Equal(t, corpID, c.Organization(token))
		owner, live := c.Owner(token)
		assert.Equal(t, appKey, owner)
		assert.True(t, live)
	}
	assert.Empty(t, c.LastTokenIn(appKey, "dingnone"))
	assert.Empty(t, c.Organization("never issued"))
}

func TestUnified_repeat_extends_the_token_of_its_organization_alone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.SetApp(appKey, appSecret, corpA, corpB)
		inA, _ := c.in(corpA).token(t)
		inB, _ := c.in(corpB).token(t)
		older, _ := c.token(t)

		time.Sleep(time.Hour)
		again, expiresIn := c.in(corpA).token(t)
		assert.Equal(t, inA, again)
		assert.EqualValues(t, 7200, expiresIn)
		assert.Equal(t, 2*time.Hour, c.lifeLeft(t, inA))
		assert.Equal(t, time.Hour, c.lifeLeft(t, inB))
		assert.Equal(t, time.Hour, c.lifeLeft(t, older))

		time.Sleep(time.Hour)
		next, _ := c.in(corpB).token(t)
		assert.NotEqual(t, inB, next, "it had expired")
	})
}

func TestUnified_rotation_and_expiry_are_for_all_of_an_apps_tokens(t *testing.T) {
	t.Parallel()
	c := startIn(t)
	c.RotateTokens(appKey, true)
	first, _ := c.in(corpA).token(t)
	second, _ := c.in(corpA).token(t)
	assert.NotEqual(t, first, second)
	c.RotateTokens(appKey, false)

	inB, _ := c.in(corpB).token(t)
	older, _ := c.token(t)
	c.ExpireTokens(appKey)
	for _, token := range []string{first, second, inB, older} {
		assert.LessOrEqual(t, c.lifeLeft(t, token), time.Duration(0))
	}
	third, _ := c.in(corpA).token(t)
	assert.NotContains(t, []string{first, second}, third)
}

func TestUnified_token_opens_the_API_which_tells_the_organization(t *testing.T) {
	t.Parallel()
	c := startIn(t)
	token, _ := c.in(corpA).token(t)

	res := c.callWith(t, token)
	assert.Equal(t, http.StatusOK, res.status)
	assert.JSONEq(t, strings.Replace(oneApp, "belongs to", "belongs to, in "+corpA, 1), res.body)
	accepted, refused := c.Calls(appKey)
	assert.Equal(t, [2]int{1, 0}, [2]int{accepted, refused})
	c.ExpireTokens(appKey)
	c.requireRefuses(t, token)
}

func TestUnified_requests_are_counted_by_app_and_organization(t *testing.T) {
	t.Parallel()
	c := startIn(t)
	c.in(corpA).ask(t)
	c.in(corpA).post(t, unifiedCredentials(appKey, "wrong"))
	c.in(corpA).post(t, unifiedCredentials("dingunknown", "x"))
	c.in(corpA).post(t, "not JSON")
	c.in(corpB).ask(t)
	c.in("dingnone").ask(t)
	c.ask(t)

	assert.Equal(t, 5, c.Requests(appKey), "on both calls")
	assert.Equal(t, 7, c.Requests(simulator.AnyApp))
	for _, want := range []struct {
		app, corpID string
		requests    int
	}{
		{appKey, corpA, 2},
		{appKey, corpB, 1},
		{appKey, "dingnone", 1},
		{appKey, simulator.DefaultCorpID, 0},
		{appKey, "", 1},
		{"dingunknown", corpA, 1},
		{simulator.AnyApp, corpA, 4},
		{simulator.AnyApp, "", 1},
	} {
		assert.Equal(t, want.requests, c.RequestsIn(want.app, want.corpID), want)
	}
}

func TestUnified_fault_of_an_app_hits_both_calls(t *testing.T) {
	t.Parallel()
	c := startIn(t)
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, Times: 2})
	assert.Equal(t, 429, c.in(corpA).ask(t).status)
	assert.Equal(t, 429, c.ask(t).status)
	assert.Equal(t, 200, c.in(corpA).ask(t).status)
	c.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultBanned})
	assert.Equal(t, 403, c.in(corpB).ask(t).status)
}

func TestUnified_faults_repeat_the_request_and_the_token_of_its_organization(t *testing.T) {
	t.Parallel()
	c := startIn(t)
	token, _ := c.in(corpA).token(t)
	c.in(corpB).token(t)
	for part, want := range map[string]string{
		simulator.PartBody: unifiedBody, simulator.PartSecret: appSecret, simulator.PartToken: token,
	} {
		c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultEchoRequest, Part: part})
		assert.Contains(t, c.in(corpA).ask(t).body, `"message":`+quoted(t, want)+`}`)
	}
}

func TestUnified_faults_can_have_any_token_and_lifetime(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{}).in(simulator.DefaultCorpID)
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultToken, Token: "a b", ExpireIn: `"soon"`})
	assert.JSONEq(t, `{"access_token":"a b","expires_in":"soon"}`, c.ask(t).body)
}

func TestUnified_endless_body_is_a_token_without_end(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{}).in(simulator.DefaultCorpID)
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultEndlessBody})
	res := c.open(t)
	defer res.Body.Close()
	const want = `{"access_token":"0123456789abcdef0123456789abcdef`
	head := make([]byte, len(want))
	_, err := io.ReadFull(res.Body, head)
	require.NoError(t, err)
	assert.Contains(t, string(head), want)
}

func TestUnified_app_keeps_its_organizations_until_it_is_given_others(t *testing.T) {
	t.Parallel()
	c := startIn(t)
	c.SetApp(appKey, appSecret)
	assert.Equal(t, 200, c.in(corpA).ask(t).status)
	assert.Equal(t, 401, c.in(simulator.DefaultCorpID).ask(t).status)
	c.RemoveApp(appKey)
	assert.Contains(t, c.in(corpA).ask(t).body, "invalid.client", "the organization is still there")

	c.SetApp(appKey, appSecret, corpB)
	assert.Equal(t, 200, c.in(corpB).ask(t).status)
	assert.Equal(t, 500, c.in(corpA).ask(t).status, "nobody runs there any more")
}

func TestUnified_organizations_can_be_given_to_New(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{CorpIDs: map[string][]string{appKey: {corpA}}})
	assert.Equal(t, 200, c.in(corpA).ask(t).status)
	assert.Equal(t, 401, c.in(simulator.DefaultCorpID).ask(t).status)
}

func TestUnified_corpId_is_letters_and_digits(t *testing.T) {
	t.Parallel()
	s := simulator.New(simulator.Options{})
	for _, corpID := range []string{"", "a/b", "a-b", "企业", "a\n", strings.Repeat("a", 65)} {
		require.Error(t, simulator.CheckCorpIDs([]string{corpA, corpID}), "%q", corpID)
		assert.Panics(t, func() { s.SetApp(appKey, appSecret, corpID) }, "%q", corpID)
	}
	require.NoError(t, simulator.CheckCorpIDs([]string{"0", simulator.DefaultCorpID, strings.Repeat("Z", 64)}))
}

func TestUnified_control_sets_and_tells_organizations(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	app := "/simulator/apps/" + appKey
	c.change(t, http.MethodPut, app, `{"secret":"new","corp_ids":["dingA","dingB"]}`)
	c.change(t, http.MethodPut, app, `{"secret":"`+appSecret+`"}`)
	c.in(corpA).ask(t)
	token, _ := c.in(corpB).token(t)
	c.ask(t)

	for path, want := range map[string]string{
		"/simulator/requests/" + appKey:               `{"requests":3}`,
		"/simulator/requests/" + appKey + "/dingA":    `{"requests":1}`,
		"/simulator/requests/" + appKey + "/dingnone": `{"requests":0}`,
		"/simulator/requests/*/dingB":                 `{"requests":1}`,
	} {
		assert.JSONEq(t, want, c.must(t, http.MethodGet, path, "", "").body, path)
	}
	c.ExpireTokens(appKey)
	res := c.must(t, http.MethodPost, "/simulator/life", "", `{"token":"`+token+`"}`)
	assert.JSONEq(t, `{"known":true,"seconds":0,"corp_id":"dingB"}`, res.body)

	for body, want := range map[string]string{
		`{"secret":"x","corp_ids":[]}`:      `"corp_ids" is empty`,
		`{"secret":"x","corp_ids":["a/b"]}`: `"corp_ids": a corpId is 1 to 64 letters and digits`,
		`{"secret":"x","corp_ids":"dingA"}`: "the body is not the JSON wanted here",
		`{"corp_ids":["dingA"]}`:            `"secret" is missing or empty`,
	} {
		res := c.must(t, http.MethodPut, app, "", body)
		assert.Equal(t, http.StatusBadRequest, res.status, body)
		assert.Contains(t, errorOf(t, res), want, body)
	}
	assert.Equal(t, 200, c.in(corpA).ask(t).status, "nothing has changed")
}

func TestUnified_log_names_the_organization_if_there_is_one(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := start(t, simulator.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c.in(simulator.DefaultCorpID).ask(t)
	c.in("secretinthepath").ask(t)
	require.NoError(t, c.Close()) // nothing is logged after it

	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	require.Len(t, lines, 2)
	assert.Contains(t, lines[0], "app=dingtestapp corp_id="+simulator.DefaultCorpID+" status=200 ")
	assert.Contains(t, lines[1], "app=dingtestapp corp_id=unknown status=500 ")
	assert.NotContains(t, log.String(), appSecret)
	assert.NotContains(t, log.String(), "secretinthepath")
}
