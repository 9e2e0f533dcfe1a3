// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// change is a control operation that is to succeed.
func (c *client) change(t *testing.T, method, path, body string) {
	t.Helper()
	res := c.must(t, method, path, "", body)
	require.Equal(t, http.StatusNoContent, res.status, res.body)
	require.Empty(t, res.body)
}

// set makes the app's requests fail, by the control API.
func (c *client) set(t *testing.T, app string, f simulator.Fault) {
	t.Helper()
	body, err := json.Marshal(f)
	require.NoError(t, err)
	c.change(t, http.MethodPut, "/simulator/faults/"+app, string(body))
}

func TestControl_faults_are_set_and_cleared(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	c.change(t, http.MethodPut, "/simulator/faults/"+appKey, `{"kind":"html","status":502,"retry_after":"7","times":1}`)
	res := c.ask(t)
	assert.Equal(t, 502, res.status)
	assert.Equal(t, "7", res.header.Get("Retry-After"))
	assert.Equal(t, 200, c.ask(t).status)

	c.change(t, http.MethodPut, "/simulator/faults/"+appKey, `{"kind":"expire-in","expire_in":9223372036854775807}`)
	assert.Contains(t, c.ask(t).body, `"expireIn":9223372036854775807}`)

	c.change(t, http.MethodPut, "/simulator/faults/*", `{"kind":"banned"}`)
	assert.Equal(t, 403, c.post(t, "not JSON").status)
	assert.Equal(t, 200, c.ask(t).status, "the app's own fault wins")
	c.change(t, http.MethodDelete, "/simulator/faults/"+appKey, "")
	assert.Equal(t, 403, c.ask(t).status)
	c.change(t, http.MethodDelete, "/simulator/faults/*", "")
	assert.Regexp(t, goodReply, c.ask(t).body)

	c.change(t, http.MethodPut, "/simulator/faults/*", `{"kind":"banned"}`)
	c.change(t, http.MethodPut, "/simulator/faults/"+appKey, `{"kind":"banned"}`)
	c.change(t, http.MethodDelete, "/simulator/faults", "")
	assert.Regexp(t, goodReply, c.ask(t).body)
}

func TestControl_takes_a_fault_as_Go_writes_it(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	for _, kind := range simulator.FaultKinds() {
		body, err := json.Marshal(simulator.Fault{Kind: kind})
		require.NoError(t, err)
		c.change(t, http.MethodPut, "/simulator/faults/"+appKey, string(body))
	}
}

func TestControl_apps_come_and_go(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	c.change(t, http.MethodPut, "/simulator/apps/dingnew", `{"secret":"new-secret"}`)
	assert.Regexp(t, goodReply, c.post(t, credentials("dingnew", "new-secret")).body)
	c.change(t, http.MethodDelete, "/simulator/apps/dingnew", "")
	assert.Regexp(t, rejected, c.post(t, credentials("dingnew", "new-secret")).body)

	c.change(t, http.MethodPut, "/simulator/apps/a%2Fb", `{"secret":"new-secret"}`)
	assert.Regexp(t, goodReply, c.post(t, credentials("a/b", "new-secret")).body)
}

func TestControl_lifetime_rotation_and_expiry(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	c.change(t, http.MethodPut, "/simulator/lifetime", `{"lifetime":"90s"}`)
	first, expireIn := c.token(t)
	assert.EqualValues(t, 90, expireIn)

	c.change(t, http.MethodPut, "/simulator/rotate/"+appKey, `{"on":true}`)
	second, _ := c.token(t)
	assert.NotEqual(t, first, second)
	c.change(t, http.MethodPut, "/simulator/rotate/"+appKey, `{"on":false}`)
	again, _ := c.token(t)
	assert.Equal(t, second, again)

	c.change(t, http.MethodPost, "/simulator/expire/"+appKey, "")
	assert.LessOrEqual(t, c.lifeLeft(t, first), time.Duration(0))
	assert.LessOrEqual(t, c.lifeLeft(t, second), time.Duration(0))
	third, _ := c.token(t)
	assert.NotEqual(t, second, third)
}

func TestControl_tells_requests_and_the_life_of_a_token(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)
	c.post(t, "not JSON")

	for path, want := range map[string]string{
		"/simulator/requests/" + appKey:   `{"requests":1}`,
		"/simulator/requests/dingunknown": `{"requests":0}`,
		"/simulator/requests/*":           `{"requests":2}`,
	} {
		res := c.must(t, http.MethodGet, path, "", "")
		assert.Equal(t, http.StatusOK, res.status)
		assert.Equal(t, "application/json", res.header.Get("Content-Type"))
		assert.JSONEq(t, want, res.body, path)
	}

	var life struct {
		Known   bool
		Seconds int64
	}
	res := c.must(t, http.MethodPost, "/simulator/life", "", `{"token":"`+token+`"}`)
	require.NoError(t, json.Unmarshal([]byte(res.body), &life))
	assert.True(t, life.Known)
	assert.InDelta(t, 7200, life.Seconds, 60)
	c.ExpireTokens(appKey)
	res = c.must(t, http.MethodPost, "/simulator/life", "", `{"token":"`+token+`"}`)
	assert.JSONEq(t, `{"known":true,"seconds":0}`, res.body)
	res = c.must(t, http.MethodPost, "/simulator/life", "", `{"token":"never issued"}`)
	assert.JSONEq(t, `{"known":false,"seconds":0}`, res.body)
}

func TestControl_refuses_bad_input_and_changes_nothing(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	first, _ := c.token(t)

	for _, in := range []struct{ method, path, body, want string }{
		{"PUT", "/simulator/faults/" + appKey, ``, "the body is empty"},
		{"PUT", "/simulator/faults/" + appKey, `hang`, "the body is not the JSON wanted here"},
		{"PUT", "/simulator/faults/" + appKey, `{"kind":"hang"} {}`, "something follows"},
		{"PUT", "/simulator/faults/" + appKey, `{"kind":"hung"}`, `unknown fault kind "hung"; the kinds are error, `},
		{"PUT", "/simulator/faults/" + appKey, `{"kind":"hang","expireIn":1}`, `unknown field "expireIn"`},
		{"PUT", "/simulator/faults/" + appKey, `{"kind":"html","status":204}`, "status 204"},
		{"PUT", "/simulator/faults/" + appKey, `{"kind":"html","times":-1}`, "times -1"},
		{"PUT", "/simulator/faults/" + appKey, `{"kind":"html","delay":"soon"}`, `delay "soon"`},
		{"PUT", "/simulator/faults/" + appKey, `{"kind":"html","delay":3}`, "delay"},
		{"PUT", "/simulator/faults/" + appKey, `{"kind":"raw","interval":"soon"}`, `interval "soon"`},
		{
			"PUT", "/simulator/faults/" + appKey, `{"kind":"echo-request","part":"x"}`,
			`unknown part "x"; the parts are body, `,
		},
		{
			"PUT", "/simulator/faults/" + appKey, `{"kind":"echo-request","encoding":"x"}`,
			`unknown encoding "x"; the encodings are plain, `,
		},
		{"PUT", "/simulator/apps/" + appKey, ``, "the body is empty"},
		{"PUT", "/simulator/apps/" + appKey, `{}`, `"secret" is missing or empty`},
		{"PUT", "/simulator/apps/" + appKey, `{"secret":""}`, `"secret" is missing or empty`},
		{"PUT", "/simulator/apps/*", `{"secret":"x"}`, "stands for all apps"},
		{"DELETE", "/simulator/apps/dingunknown", ``, `there is no app "dingunknown"`},
		{"PUT", "/simulator/lifetime", `{"lifetime":"500ms"}`, `"lifetime" is "500ms"`},
		{"PUT", "/simulator/lifetime", `{"lifetime":"-2h"}`, `"lifetime" is "-2h"`},
		{"PUT", "/simulator/lifetime", `{"lifetime":"soon"}`, `"lifetime" is "soon"`},
		{"PUT", "/simulator/lifetime", `{}`, `"lifetime" is ""`},
		{"PUT", "/simulator/lifetime", ``, "the body is empty"},
		{"PUT", "/simulator/rotate/" + appKey, `{}`, `"on" is missing`},
		{"PUT", "/simulator/rotate/" + appKey, ``, "the body is empty"},
		{"PUT", "/simulator/rotate/dingunknown", `{"on":true}`, `there is no app "dingunknown"`},
		{"POST", "/simulator/expire/dingunknown", ``, `there is no app "dingunknown"`},
		{"POST", "/simulator/life", `{}`, `"token" is missing or empty`},
		{"POST", "/simulator/life", ``, "the body is empty"},
	} {
		res := c.must(t, in.method, in.path, "application/json", in.body)
		assert.Equal(t, http.StatusBadRequest, res.status, in)
		assert.Equal(t, "application/json", res.header.Get("Content-Type"))
		assert.Contains(t, errorOf(t, res), in.want, in)
	}
	again, expireIn := c.token(t)
	assert.Equal(t, first, again)
	assert.EqualValues(t, 7200, expireIn)
}

func TestControl_says_so_when_there_is_no_such_operation(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	for _, in := range []struct{ method, path string }{
		{"GET", "/simulator/"},
		{"GET", "/simulator/faults/" + appKey},
		{"POST", "/simulator/lifetime"},
		{"PUT", "/simulator/apps/a/b"},
	} {
		res := c.must(t, in.method, in.path, "application/json", `{"secret":"x"}`)
		assert.Equal(t, http.StatusNotFound, res.status, in)
		assert.Contains(t, errorOf(t, res), "there is no control operation "+in.method+" "+in.path)
	}
}

func TestControl_is_not_counted_and_not_hit_by_faults(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultHang})
	res := c.must(t, http.MethodGet, "/simulator/requests/*", "", "")
	assert.JSONEq(t, `{"requests":0}`, res.body)
}

func errorOf(t *testing.T, res response) string {
	t.Helper()
	var e struct{ Error string }
	require.NoError(t, json.Unmarshal([]byte(res.body), &e), res.body)
	return e.Error
}
