// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	requestID = `[0-9A-F]{8}-[0-9A-F]{4}-4[0-9A-F]{3}-[89AB][0-9A-F]{3}-[0-9A-F]{12}`

	rejected = `^\{"requestid":"` + requestID + `",` +
		`"code":"invalidClientIdOrSecret","message":"无效的clientId或者clientSecret"\}$`
	missingBody = `^\{"requestid":"` + requestID + `",` +
		`"code":"Missingbody","message":"body is mandatory for this action\."\}$`
	goodReply = `^\{"accessToken":"[0-9a-f]{32}","expireIn":7200\}$`
)

func TestSimulator_answers_good_credentials_to_the_letter(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
		res := c.must(t, http.MethodPost, simulator.TokenPath, contentType, credentials(appKey, appSecret))
		assert.Equal(t, http.StatusOK, res.status)
		assert.Equal(t, "application/json", res.header.Get("Content-Type"))
		assert.Regexp(t, goodReply, res.body)
	}
}

func TestSimulator_rejects_wrong_credentials_to_the_letter(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetApp("dinggone", "gone-secret")
	c.RemoveApp("dinggone")

	for name, body := range map[string]string{
		"wrong secret":      credentials(appKey, "wrong"),
		"unknown key":       credentials("dingunknown", appSecret),
		"empty credentials": credentials("", ""),
		"removed app":       credentials("dinggone", "gone-secret"),
	} {
		res := c.post(t, body)
		assert.Equal(t, http.StatusBadRequest, res.status, name)
		assert.Equal(t, "application/json", res.header.Get("Content-Type"), name)
		assert.Regexp(t, rejected, res.body, name)
	}
	one, other := c.post(t, credentials("", "")), c.post(t, credentials("", ""))
	assert.NotEqual(t, one.body, other.body, "each reply has its own request id")
	assert.Empty(t, c.LastToken("dinggone"))
}

func TestSimulator_misses_the_body_of_anything_but_a_JSON_object(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	good := credentials(appKey, appSecret)

	for name, in := range map[string]struct{ contentType, body string }{
		"form": {
			"application/x-www-form-urlencoded", url.Values{"appKey": {appKey}, "appSecret": {appSecret}}.Encode(),
		},
		"form type, JSON body": {"application/x-www-form-urlencoded", good},
		"no type":              {"", good},
		"empty":                {"application/json", ""},
		"malformed":            {"application/json", good[:20]},
		"followed by more":     {"application/json", good + good},
		"array":                {"application/json", "[" + good + "]"},
		"null":                 {"application/json", "null"},
		"too long":             {"application/json", good + strings.Repeat(" ", 64<<10)},
	} {
		res := c.must(t, http.MethodPost, simulator.TokenPath, in.contentType, in.body)
		assert.Equal(t, http.StatusBadRequest, res.status, name)
		assert.Regexp(t, missingBody, res.body, name)
	}
}

func TestSimulator_reads_field_names_to_the_letter(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	for body, code := range map[string]string{
		`{}`: "MissingappKey",
		`{"appkey":"dingtestapp","appSecret":"GT-lsu-made-up-secret"}`: "MissingappKey",
		`{"appKey":1,"appSecret":"GT-lsu-made-up-secret"}`:             "MissingappKey",
		`{"appKey":"dingtestapp","appsecret":"GT-lsu-made-up-secret"}`: "MissingappSecret",
	} {
		res := c.post(t, body)
		assert.Equal(t, http.StatusBadRequest, res.status, body)
		assert.Contains(t, res.body, `"code":"`+code+`"`, body)
	}
}

func TestSimulator_answers_a_wrong_path_with_200_and_an_errcode(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	for _, path := range []string{
		"/", "/v1.0/oauth2/accesstoken", simulator.TokenPath + "/", "/" + simulator.TokenPath, "/simulator",
	} {
		res := c.must(t, http.MethodPost, path, "application/json", credentials(appKey, appSecret))
		assert.Equal(t, http.StatusOK, res.status, path)
		assert.JSONEq(t, `{"errcode":404,"errmsg":"请求的URI地址不存在"}`, res.body, path)
	}
	assert.Zero(t, c.Requests(simulator.AnyApp), "they are no token requests")
}

func TestSimulator_answers_a_wrong_method_with_404(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
		res := c.must(t, method, simulator.TokenPath, "application/json", credentials(appKey, appSecret))
		assert.Equal(t, http.StatusNotFound, res.status, method)
		assert.Contains(t, res.body, `"code":"InvalidAction.NotFound"`, method)
	}
}

func TestSimulator_repeats_the_token_within_its_lifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})

		first, expireIn := c.token(t)
		assert.EqualValues(t, 7200, expireIn)
		assert.Equal(t, 2*time.Hour, c.lifeLeft(t, first))

		time.Sleep(2*time.Hour - time.Nanosecond)
		assert.Equal(t, time.Nanosecond, c.lifeLeft(t, first))
		again, expireIn := c.token(t)
		assert.Equal(t, first, again)
		assert.EqualValues(t, 7200, expireIn)
		assert.Equal(t, 2*time.Hour, c.lifeLeft(t, first), "asking extends it to a full lifetime")
	})
}

func TestSimulator_gives_a_new_token_after_the_lifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})

		first, _ := c.token(t)
		time.Sleep(2 * time.Hour)
		assert.Zero(t, c.lifeLeft(t, first))
		second, _ := c.token(t)
		assert.NotEqual(t, first, second)
		assert.Equal(t, second, c.LastToken(appKey))
		assert.Equal(t, 2*time.Hour, c.lifeLeft(t, second))

		time.Sleep(time.Hour)
		assert.Equal(t, -time.Hour, c.lifeLeft(t, first), "an expired token stays known and expired")
	})
}

func TestSimulator_rejected_credentials_do_not_extend_the_token(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})

		token, _ := c.token(t)
		time.Sleep(time.Hour)
		c.post(t, credentials(appKey, "wrong"))
		assert.Equal(t, time.Hour, c.lifeLeft(t, token))
	})
}

func TestSimulator_rotation_lets_older_tokens_live_to_their_end(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.RotateTokens(appKey, true)

		first, _ := c.token(t)
		time.Sleep(time.Hour)
		second, _ := c.token(t)
		assert.NotEqual(t, first, second)
		assert.Equal(t, time.Hour, c.lifeLeft(t, first), "a newer token does not extend it")
		assert.Equal(t, 2*time.Hour, c.lifeLeft(t, second))

		c.RotateTokens(appKey, false)
		again, _ := c.token(t)
		assert.Equal(t, second, again)
	})
}

func TestSimulator_expiring_ends_every_token_of_the_app_alone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.SetApp("dingother", "other-secret")
		c.RotateTokens(appKey, true)
		first, _ := c.token(t)
		second, _ := c.token(t)
		c.RotateTokens(appKey, false)
		c.post(t, credentials("dingother", "other-secret"))
		time.Sleep(time.Minute)

		c.ExpireTokens(appKey)
		assert.Zero(t, c.lifeLeft(t, first))
		assert.Zero(t, c.lifeLeft(t, second))
		assert.Equal(t, 2*time.Hour-time.Minute, c.lifeLeft(t, c.LastToken("dingother")))
		third, _ := c.token(t)
		assert.NotContains(t, []string{first, second}, third)
	})
}

func TestSimulator_lifetime_can_be_changed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{TokenLifetime: 90 * time.Second})

		token, expireIn := c.token(t)
		assert.EqualValues(t, 90, expireIn)
		c.SetTokenLifetime(2500 * time.Millisecond)
		assert.Equal(t, 90*time.Second, c.lifeLeft(t, token), "what was promised holds")
		_, expireIn = c.token(t)
		assert.EqualValues(t, 2, expireIn, "whole seconds")
		assert.Equal(t, 2500*time.Millisecond, c.lifeLeft(t, token))
		c.SetTokenLifetime(0)
		_, expireIn = c.token(t)
		assert.EqualValues(t, 7200, expireIn)
	})
}

func TestSimulator_changing_an_apps_secret_keeps_its_token(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	first, _ := c.token(t)
	c.SetApp(appKey, "new-secret")
	assert.Regexp(t, rejected, c.ask(t).body)
	assert.Contains(t, c.post(t, credentials(appKey, "new-secret")).body, first)

	c.RemoveApp(appKey)
	assert.Regexp(t, rejected, c.post(t, credentials(appKey, "new-secret")).body)
	assert.Positive(t, c.lifeLeft(t, first))
}

func TestSimulator_does_not_know_a_token_it_never_issued(t *testing.T) {
	t.Parallel()
	s := simulator.New(simulator.Options{})
	left, known := s.LifeLeft("0123456789abcdef0123456789abcdef")
	assert.False(t, known)
	assert.Zero(t, left)
	assert.Empty(t, s.LastToken("dingunknown"))
}

func TestSimulator_counts_requests_by_the_app_they_name(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	c.ask(t)
	c.post(t, credentials(appKey, "wrong"))
	c.must(t, http.MethodPost, simulator.TokenPath, "text/plain", credentials(appKey, appSecret))
	c.post(t, credentials("dingunknown", "x"))
	c.post(t, "not JSON")
	c.must(t, http.MethodGet, simulator.TokenPath, "", "")

	assert.Equal(t, 3, c.Requests(appKey), "whatever the reply")
	assert.Equal(t, 1, c.Requests("dingunknown"))
	assert.Equal(t, 0, c.Requests("dingother"))
	assert.Equal(t, 6, c.Requests(simulator.AnyApp))
}

func TestSimulator_counts_the_requests_under_way_until_they_end_in_whatever_way(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultHang})
		c.SetFault("dingslow", simulator.Fault{Delay: 2 * time.Second})
		ctx, giveUp := context.WithTimeout(t.Context(), time.Second)
		defer giveUp()
		for _, body := range []string{credentials(appKey, appSecret), credentials("dingslow", "x")} {
			go func() { _, _ = c.do(ctx, http.MethodPost, simulator.TokenPath, "application/json", body) }()
		}
		go func() {
			_, _ = c.do(t.Context(), http.MethodPost, simulator.TokenPath, "application/json", credentials("dingslow", "x"))
		}()
		underWay := func() []int {
			synctest.Wait()
			return []int{c.UnderWay(appKey), c.UnderWay("dingslow"), c.UnderWay("dingother"), c.UnderWay(simulator.AnyApp)}
		}
		assert.Equal(t, []int{1, 2, 0, 3}, underWay())
		time.Sleep(time.Second)
		assert.Equal(t, []int{0, 1, 0, 1}, underWay(), "two clients have gone")
		time.Sleep(time.Second)
		assert.Equal(t, []int{0, 0, 0, 0}, underWay(), "the last one has its response")
	})
}

func TestSimulator_tells_whose_a_token_is(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		token, _ := c.token(t)
		owner, live := c.Owner(token)
		assert.Equal(t, appKey, owner)
		assert.True(t, live)
		time.Sleep(simulator.DefaultTokenLifetime)
		owner, live = c.Owner(token)
		assert.Equal(t, appKey, owner, "also when it has expired")
		assert.False(t, live)
		owner, _ = c.Owner("0123456789abcdef0123456789abcdef")
		assert.Empty(t, owner)
	})
}

func TestSimulator_gives_one_token_to_concurrent_requests(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})

	const clients = 50
	tokens := make([]string, clients)
	var wg sync.WaitGroup
	for i := range tokens {
		wg.Go(func() {
			res, err := c.tryAsk(t.Context())
			assert.NoError(t, err)
			tokens[i] = res.body
		})
	}
	wg.Wait()
	for _, body := range tokens {
		assert.Regexp(t, goodReply, body)
		assert.Equal(t, tokens[0], body)
	}
	assert.Equal(t, clients, c.Requests(appKey))
}

func TestSimulator_logs_a_line_for_each_token_request_and_no_secret(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := start(t, simulator.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})

	token, _ := c.token(t)
	rejectedReply := c.post(t, credentials(appKey, "wrong-secret"))
	c.post(t, credentials(appSecret, appKey)) // the two mixed up
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultEchoSecret})
	c.ask(t)
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultReset})
	_, err := c.tryAsk(t.Context())
	require.Error(t, err)
	require.NoError(t, c.Close()) // nothing is logged after it

	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	require.Len(t, lines, 5)
	assert.Regexp(t, `msg="token request" app=dingtestapp status=200 request_id=`+requestID+` fault=none$`, lines[0])
	assert.Regexp(t, `app=dingtestapp status=400 request_id=`+requestID+` fault=none$`, lines[1])
	assert.Contains(
		t,
		rejectedReply.body,
		between(lines[1], "request_id=", " "),
		"the log has the request id of the reply",
	)
	assert.Contains(t, lines[2], "app=unknown status=400")
	assert.Contains(t, lines[3], "status=400")
	assert.Contains(t, lines[3], "fault=echo-secret")
	assert.Contains(t, lines[4], "status=0")
	for _, secret := range []string{appSecret, "wrong-secret", token} {
		assert.NotContains(t, log.String(), secret)
	}
}

func between(s, before, after string) string {
	_, s, _ = strings.Cut(s, before)
	s, _, _ = strings.Cut(s, after)
	return s
}
