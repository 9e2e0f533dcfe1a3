// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	oneApp = `{"appList":[{"agentId":1000001,"name":"simulated app","desc":"the app that the token belongs to",` +
		`"appId":0,"appStatus":1,"developType":0}]}`

	invalidToken = `^\{"requestid":"` + requestID + `","code":"InvalidAuthentication","message":"不合法的access_token"\}$`
	missingToken = `^\{"requestid":"` + requestID + `","code":"AuthenticationFailed\.MissingParameter",` +
		`"message":"缺少参数：x-acs-dingtalk-access-token"\}$`
)

// call makes a request of the API that a token opens, with the token in the named header.
func (c *client) call(t *testing.T, method, header, token string) response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, c.url+simulator.AppsPath, http.NoBody)
	require.NoError(t, err)
	if header != "" {
		req.Header.Set(header, token)
	}
	res, err := c.http.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(res.Body)
	require.NoError(t, err)
	return response{res.StatusCode, res.Header, body.String()}
}

func (c *client) callWith(t *testing.T, token string) response {
	t.Helper()
	return c.call(t, http.MethodGet, simulator.TokenHeader, token)
}

func (c *client) requireAccepts(t *testing.T, token string) {
	t.Helper()
	res := c.callWith(t, token)
	require.Equal(t, http.StatusOK, res.status, res.body)
}

func (c *client) requireRefuses(t *testing.T, token string) {
	t.Helper()
	res := c.callWith(t, token)
	require.Equal(t, http.StatusBadRequest, res.status)
	require.Regexp(t, invalidToken, res.body)
}

func TestAPI_answers_a_live_token(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)

	for _, header := range []string{"x-acs-dingtalk-access-token", "X-Acs-Dingtalk-Access-Token"} {
		res := c.call(t, http.MethodGet, header, token)
		assert.Equal(t, http.StatusOK, res.status)
		assert.Equal(t, "application/json", res.header.Get("Content-Type"))
		assert.JSONEq(t, oneApp, res.body)
	}
}

func TestAPI_refuses_a_token_that_it_never_gave(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)

	for _, wrong := range []string{"0123456789abcdef0123456789abcdef", "x", "Bearer " + token, token + "0", token[:31]} {
		c.requireRefuses(t, wrong)
	}
	one, other := c.callWith(t, "x"), c.callWith(t, "x")
	assert.NotEqual(t, one.body, other.body, "each reply has its own request id")
	assert.Equal(t, "application/json", one.header.Get("Content-Type"))
}

func TestAPI_asks_for_the_header_where_there_is_no_token_in_it(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)

	for header, value := range map[string]string{
		"":                    "",
		"Authorization":       "Bearer " + token,
		"Access-Token":        token,
		simulator.TokenHeader: "",
	} {
		res := c.call(t, http.MethodGet, header, value)
		assert.Equal(t, http.StatusBadRequest, res.status, header)
		assert.Regexp(t, missingToken, res.body, header)
	}
}

// callOld makes a request of the old host's API.
func (c *client) callOld(t *testing.T, query string) response {
	t.Helper()
	address := c.url + simulator.DepartmentsPath + query
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader("{}"))
	require.NoError(t, err)
	res, err := c.http.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(res.Body)
	require.NoError(t, err)
	return response{res.StatusCode, res.Header, body.String()}
}

func TestAPI_of_the_old_host_takes_the_token_in_the_query_and_refuses_with_status_200(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)

	res := c.callOld(t, "?access_token="+token)
	assert.Equal(t, http.StatusOK, res.status)
	assert.Regexp(t, `^\{"errcode":0,"errmsg":"ok","result":\[\{"dept_id":2,`, res.body)
	for _, query := range []string{"", "?access_token=", "?access_token=x", "?token=" + token} {
		res := c.callOld(t, query)
		assert.Equal(t, http.StatusOK, res.status, query)
		assert.Regexp(t, `^\{"errcode":88,"sub_code":"40014","sub_msg":"不合法的access_token",`, res.body, query)
	}
	accepted, refused := c.Calls(appKey)
	assert.Equal(t, []int{1, 0}, []int{accepted, refused})
	accepted, refused = c.Calls(simulator.AnyApp)
	assert.Equal(t, []int{1, 4}, []int{accepted, refused})
}

func TestAPI_refuses_a_token_from_its_end_on(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		token, _ := c.token(t)

		time.Sleep(2*time.Hour - time.Nanosecond)
		c.requireAccepts(t, token)
		time.Sleep(time.Nanosecond)
		c.requireRefuses(t, token)
	})
}

func TestAPI_accepts_a_token_that_was_extended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		token, _ := c.token(t)
		time.Sleep(time.Hour)
		c.token(t)
		time.Sleep(90 * time.Minute)
		c.requireAccepts(t, token)
	})
}

func TestAPI_refuses_a_token_that_was_ended_and_accepts_the_one_in_its_place(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	first, _ := c.token(t)
	c.ExpireTokens(appKey)
	second, _ := c.token(t)

	c.requireRefuses(t, first)
	c.requireAccepts(t, second)
}

func TestAPI_accepts_an_older_token_to_its_own_end(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.RotateTokens(appKey, true)
		first, _ := c.token(t)
		time.Sleep(time.Hour)
		second, _ := c.token(t)
		c.requireAccepts(t, first)

		time.Sleep(time.Hour)
		c.requireRefuses(t, first)
		c.requireAccepts(t, second)
	})
}

func TestAPI_answers_a_wrong_method_with_404(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)

	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		res := c.call(t, method, simulator.TokenHeader, token)
		assert.Equal(t, http.StatusNotFound, res.status, method)
		assert.Contains(t, res.body, `"code":"InvalidAction.NotFound"`, method)
	}
}

func TestAPI_is_counted_by_the_app_of_the_token_and_is_no_token_request(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)

	c.requireAccepts(t, token)
	c.requireAccepts(t, token)
	c.ExpireTokens(appKey)
	c.requireRefuses(t, token)
	c.requireRefuses(t, "x")
	c.call(t, http.MethodGet, "", "")

	for key, want := range map[string][2]int{appKey: {2, 1}, "dingother": {0, 0}, simulator.AnyApp: {2, 3}} {
		accepted, refused := c.Calls(key)
		assert.Equal(t, want, [2]int{accepted, refused}, key)
	}
	assert.Equal(t, 1, c.Requests(simulator.AnyApp))
	for path, want := range map[string]string{
		"/simulator/calls/" + appKey: `{"accepted":2,"refused":1}`,
		"/simulator/calls/*":         `{"accepted":2,"refused":3}`,
	} {
		res := c.must(t, http.MethodGet, path, "", "")
		assert.Equal(t, http.StatusOK, res.status)
		assert.JSONEq(t, want, res.body, path)
	}
}

func TestAPI_is_not_hit_by_faults(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)
	c.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultHang})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultHang})
	c.requireAccepts(t, token)
}

func TestAPI_logs_a_line_for_each_call_and_no_token(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := start(t, simulator.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	token, _ := c.token(t)
	log.Reset()
	c.callWith(t, token)
	unknown := c.callWith(t, appSecret)
	require.NoError(t, c.Close()) // nothing is logged after it

	lines := bytes.Split(bytes.TrimSpace(log.Bytes()), []byte("\n"))
	require.Len(t, lines, 2)
	assert.Regexp(t, `msg="API call" app=dingtestapp status=200 request_id=`+requestID+`$`, string(lines[0]))
	assert.Regexp(t, `msg="API call" app=unknown status=400 request_id=`+requestID+`$`, string(lines[1]))
	assert.Contains(
		t,
		unknown.body,
		between(string(lines[1])+" ", "request_id=", " "),
		"the log has the request id of the reply",
	)
	assert.NotContains(t, log.String(), token)
	assert.NotContains(t, log.String(), appSecret)
}
