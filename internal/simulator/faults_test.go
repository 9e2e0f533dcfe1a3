// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const hundredMB = 100_000_000

// plainReplies are the faults that are seen by their status and body alone.
var plainReplies = map[string]struct {
	fault  simulator.Fault
	status int
	body   string // a regular expression
}{
	"error": {
		simulator.Fault{Kind: simulator.FaultError, Code: "system.odd", Message: "odd <&> 奇怪"},
		400,
		`^\{"requestid":"` + requestID + `","code":"system\.odd","message":"odd .* 奇怪"\}$`,
	},
	"error with a status": {
		simulator.Fault{Kind: simulator.FaultError, Status: 504, Code: "unknownError"},
		504,
		`^\{"requestid":"` + requestID + `","code":"unknownError"\}$`,
	},
	"error without a code": {
		simulator.Fault{Kind: simulator.FaultError, Status: 500},
		500,
		`^\{"requestid":"` + requestID + `"\}$`,
	},
	"rejected-credentials": {simulator.Fault{Kind: simulator.FaultRejectedCredentials}, 400, rejected},
	"invalid-client": {
		simulator.Fault{Kind: simulator.FaultInvalidClient},
		400,
		`^\{"requestid":"` + requestID + `","code":"invalid\.client","message":".+"\}$`,
	},
	"unauthorized-client": {
		simulator.Fault{Kind: simulator.FaultUnauthorizedClient},
		401,
		`^\{"requestid":"` + requestID + `","code":"unauthorized\.client","message":".+"\}$`,
	},
	"unauthorized-client as 400": {
		simulator.Fault{Kind: simulator.FaultUnauthorizedClient, Status: 400},
		400,
		`"code":"unauthorized\.client"`,
	},
	"missing-body": {simulator.Fault{Kind: simulator.FaultMissingBody}, 400, missingBody},
	"ip-not-allowed": {
		simulator.Fault{Kind: simulator.FaultIPNotAllowed},
		403,
		`^\{"requestid":"` + requestID + `","code":"Forbidden\.AccessDenied\.IpNotInWhiteList","message":".+"\}$`,
	},
	"permission-denied": {
		simulator.Fault{Kind: simulator.FaultPermissionDenied},
		403,
		`^\{"requestid":"` + requestID + `","code":"Forbidden\.AccessDenied\.AccessTokenPermissionDenied","message":".+",` +
			`"accessdenieddetail":\{"requiredScopes":\[".+"\]\}\}$`,
	},
	"throttled-qps": {
		simulator.Fault{Kind: simulator.FaultThrottledQPS},
		403,
		`^\{"requestid":"` + requestID + `","code":"Forbidden\.AccessDenied\.QpsLimitForAppkeyAndApi","message":".+"\}$`,
	},
	"throttled-qps with another code": {
		simulator.Fault{Kind: simulator.FaultThrottledQPS, Code: "Forbidden.AccessDenied.ApiCountLimitForOrg"},
		403,
		`"code":"Forbidden\.AccessDenied\.ApiCountLimitForOrg"`,
	},
	"throttled-busy": {
		simulator.Fault{Kind: simulator.FaultThrottledBusy},
		429,
		`^\{"requestid":"` + requestID + `","code":"system\.busy","message":".+"\}$`,
	},
	"throttled-busy as 400, spelled otherwise": {
		simulator.Fault{Kind: simulator.FaultThrottledBusy, Status: 400, Code: "systemBusy"},
		400,
		`"code":"systemBusy"`,
	},
	"banned": {
		simulator.Fault{Kind: simulator.FaultBanned},
		403,
		`^\{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"xxx"\}$`,
	},
	"banned with a status": {simulator.Fault{Kind: simulator.FaultBanned, Status: 200}, 200, `^\{"status":1111,`},
	"html":                 {simulator.Fault{Kind: simulator.FaultHTML}, 403, `^<!DOCTYPE html>`},
	"html with a status":   {simulator.Fault{Kind: simulator.FaultHTML, Status: 502}, 502, `^<!DOCTYPE html>`},
	"unavailable-unknown": {
		simulator.Fault{Kind: simulator.FaultUnavailableUnknown},
		500,
		`^\{"requestid":"` + requestID + `","code":"unknownError","message":".+"\}$`,
	},
	"unavailable-busy": {
		simulator.Fault{Kind: simulator.FaultUnavailableBusy},
		500,
		`^\{"requestid":"` + requestID + `","code":"system\.busy","message":".+"\}$`,
	},
	"unavailable-server": {
		simulator.Fault{Kind: simulator.FaultUnavailableServer},
		500,
		`^\{"requestid":"` + requestID + `","code":"server\.error","message":".+"\}$`,
	},
	"unavailable-empty":               {simulator.Fault{Kind: simulator.FaultUnavailableEmpty}, 503, `^$`},
	"unavailable-empty with a status": {simulator.Fault{Kind: simulator.FaultUnavailableEmpty, Status: 502}, 502, `^$`},
	"mixed-case": {
		simulator.Fault{Kind: simulator.FaultMixedCase},
		400,
		`^\{"Code":"invalidClientIdOrSecret","Message":"无效的clientId或者clientSecret","requestId":"` + requestID + `"\}$`,
	},
	"empty-token": {
		simulator.Fault{Kind: simulator.FaultEmptyToken},
		200,
		`^\{"accessToken":"","expireIn":7200\}$`,
	},
	"expire-in missing": {
		simulator.Fault{Kind: simulator.FaultExpireIn},
		200,
		`^\{"accessToken":"[0-9a-f]{32}"\}$`,
	},
	"expire-in zero": {
		simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: `0`},
		200,
		`^\{"accessToken":"[0-9a-f]{32}","expireIn":0\}$`,
	},
	"expire-in negative": {
		simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: `-1`},
		200,
		`,"expireIn":-1\}$`,
	},
	"expire-in string": {
		simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: `"7200"`},
		200,
		`,"expireIn":"7200"\}$`,
	},
	"expire-in at the limit": {
		simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: `9223372036854775807`},
		200,
		`,"expireIn":9223372036854775807\}$`,
	},
	"errcode": {
		simulator.Fault{Kind: simulator.FaultErrcode},
		200,
		`^\{"errcode":404,"errmsg":".+"\}$`,
	},
	"truncated": {
		simulator.Fault{Kind: simulator.FaultTruncated},
		200,
		`^\{"accessToken":"[0-9a-f]{1,31}$`,
	},
	"redirect":                {simulator.Fault{Kind: simulator.FaultRedirect}, 307, `^$`},
	"no fault":                {simulator.Fault{}, 200, goodReply},
	"no fault with a header":  {simulator.Fault{RetryAfter: "1"}, 200, goodReply},
	"no fault, some time off": {simulator.Fault{Delay: time.Millisecond}, 200, goodReply},
}

func TestFault_replies_are_to_the_letter(t *testing.T) {
	t.Parallel()
	for name, want := range plainReplies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forBothCalls(t, func(t *testing.T, c *client) {
				c.SetFault(appKey, want.fault)
				res := c.ask(t)
				assert.Equal(t, want.status, res.status)
				assert.Regexp(t, c.named(want.body), res.body)
				assert.Equal(t, strconv.Itoa(len(res.body)), res.header.Get("Content-Length"))
				switch want.fault.Kind {
				case simulator.FaultHTML:
					assert.Equal(t, "text/html; charset=utf-8", res.header.Get("Content-Type"))
				case simulator.FaultUnavailableEmpty, simulator.FaultRedirect:
					assert.Empty(t, res.header.Get("Content-Type"))
				default:
					assert.Equal(t, "application/json", res.header.Get("Content-Type"))
				}
				assert.Equal(t, 1, c.Requests(appKey))

				later := want.fault
				later.RetryAfter = "Wed, 21 Oct 2026 07:28:00 GMT"
				c.SetFault(appKey, later)
				assert.Equal(t, "Wed, 21 Oct 2026 07:28:00 GMT", c.ask(t).header.Get("Retry-After"))

				c.ClearFaults()
				res = c.ask(t)
				assert.Regexp(t, c.named(goodReply), res.body)
				assert.Empty(t, res.header.Get("Retry-After"))
			})
		})
	}
}

// A kind that is added must be tested, here or by a test of its own.
func TestFault_every_kind_is_tested(t *testing.T) {
	t.Parallel()
	tested := map[string]bool{
		simulator.FaultEchoSecret: true, simulator.FaultHuge: true, simulator.FaultGzipBomb: true,
		simulator.FaultHang: true, simulator.FaultTrickle: true, simulator.FaultReset: true,
		simulator.FaultEchoRequest: true, simulator.FaultToken: true,
		simulator.FaultRaw: true, simulator.FaultStatus099: true, simulator.FaultSurplus: true,
		simulator.FaultEndlessDrip: true, simulator.FaultEndlessGzip: true, simulator.FaultEndlessGzipEmpty: true,
		simulator.FaultHTTP2GoAway: true, simulator.FaultHTTP2Silent: true, simulator.FaultHTTP2Flood: true,
	}
	for _, want := range sentStreams {
		tested[want.fault.Kind] = true
	}
	for _, want := range plainReplies {
		tested[want.fault.Kind] = true
	}
	for _, kind := range simulator.FaultKinds() {
		assert.True(t, tested[kind], kind)
	}
}

func TestFault_spoils_only_the_reply_to_good_credentials(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: "0"})
	assert.Regexp(t, rejected, c.post(t, credentials(appKey, "wrong")).body)

	c.ask(t)
	assert.InDelta(t, 7200, c.lifeLeft(t, c.LastToken(appKey)).Seconds(), 60, "the token lives as ever")
}

func TestFault_redirect_leads_to_another_host(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultRedirect})
	assert.Equal(t, "http://127.0.0.2:1/", c.ask(t).header.Get("Location"))
	c.SetFault(
		appKey,
		simulator.Fault{Kind: simulator.FaultRedirect, Location: "https://example.com/x?y=1", Status: 308},
	)
	res := c.ask(t)
	assert.Equal(t, "https://example.com/x?y=1", res.header.Get("Location"))
	assert.Equal(t, 308, res.status)
}

func TestFault_echo_secret_repeats_what_was_sent(t *testing.T) {
	t.Parallel()
	forBothCalls(t, func(t *testing.T, c *client) {
		token, _ := c.token(t)
		c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultEchoSecret})
		res := c.ask(t)
		assert.Equal(t, 400, res.status)
		var e struct{ RequestID, Code, Message string }
		require.NoError(t, json.Unmarshal([]byte(res.body), &e))
		assert.Regexp(t, requestID, e.RequestID)
		assert.NotEmpty(t, e.Code)

		printable := strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return -1
			}
			return r
		}, e.Message)
		assert.Greater(t, len(e.Message), 4000)
		assert.Less(t, len(printable), len(e.Message), "it has control characters")
		for _, secret := range []string{appSecret, token} {
			assert.Contains(t, e.Message, secret)
			assert.Greater(
				t,
				strings.Count(printable, secret),
				strings.Count(e.Message, secret),
				"some are split by control characters",
			)
		}

		assert.Equal(t, 400, c.post(t, "no secret at all").status)
	})
}

func TestFault_huge_streams_a_good_reply_of_100_MB(t *testing.T) {
	t.Parallel()
	forBothCalls(t, func(t *testing.T, c *client) {
		c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultHuge})
		res := c.open(t)
		defer res.Body.Close()
		assert.Equal(t, http.StatusOK, res.StatusCode)
		assert.Equal(t, "application/json", res.Header.Get("Content-Type"))
		assert.Equal(t, int64(-1), res.ContentLength, "it is streamed")
		c.assertHuge(t, res.Body)
	})
}

func TestFault_huge_ends_when_the_client_has_enough(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultHuge})
	res := c.open(t)
	defer res.Body.Close()
	_, err := io.CopyN(io.Discard, res.Body, 64<<10)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	requireEnds(t, func() { assert.NoError(t, c.Close()) })
}

func TestFault_huge_ends_with_Close_when_the_client_reads_nothing(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultHuge})
	res := c.open(t)
	defer res.Body.Close()
	requireEnds(t, func() { assert.NoError(t, c.Close()) })
}

func TestFault_gzip_bomb_expands_to_100_MB(t *testing.T) {
	t.Parallel()
	forBothCalls(t, func(t *testing.T, c *client) {
		c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultGzipBomb})
		begin := time.Now()
		res := c.open(t)
		defer res.Body.Close()
		assert.Less(t, time.Since(begin), 10*time.Second, "making it takes no client's timeout, however busy the machine")
		assert.Equal(t, "gzip", res.Header.Get("Content-Encoding"))
		assert.Less(t, res.ContentLength, int64(1<<20))
		z, err := gzip.NewReader(res.Body)
		require.NoError(t, err)
		c.assertHuge(t, z)
	})
}

// assertHuge reads a body that is a good reply but for its size.
func (c *client) assertHuge(t *testing.T, body io.Reader) {
	t.Helper()
	want, wantEnd := c.named(`{"accessToken":"0123456789abcdef`), c.named(`abcdef","expireIn":7200}`)
	head := make([]byte, len(want))
	_, err := io.ReadFull(body, head)
	require.NoError(t, err)
	assert.Contains(t, string(head), want)
	tail := &tailWriter{}
	n, err := io.Copy(tail, body)
	require.NoError(t, err)
	assert.Greater(t, n, int64(hundredMB))
	assert.Equal(t, wantEnd, tail.last(len(wantEnd)))
}

// tailWriter keeps the last writes' end.
type tailWriter struct{ end []byte }

func (w *tailWriter) Write(b []byte) (int, error) {
	w.end = append(w.end, b[max(0, len(b)-64):]...)
	w.end = w.end[max(0, len(w.end)-64):]
	return len(b), nil
}

func (w *tailWriter) last(n int) string { return string(w.end[max(0, len(w.end)-n):]) }

// open asks for the app's token. Reading and closing the body is the test's task.
func (c *client) open(t *testing.T) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+c.tokenPath(),
		strings.NewReader(c.credentials()))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	require.NoError(t, err)
	return res
}

func TestFault_hang_never_answers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultHang})
		ctx, cancel := context.WithTimeout(t.Context(), 1000*time.Hour)
		defer cancel()
		_, err := c.tryAsk(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 1, c.Requests(appKey), "it is counted all the same")
	})
}

func TestFault_hang_ends_with_Close(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultHang})
	failed := c.startAsking(t.Context())
	require.Eventually(t, func() bool { return c.Requests(appKey) == 1 }, 10*time.Second, time.Millisecond)

	requireEnds(t, func() { assert.NoError(t, c.Close()) })
	require.Error(t, <-failed)
}

// requireEnds fails the test if do takes long, and waits for it in any case.
func requireEnds(t *testing.T, do func()) {
	t.Helper()
	begin := time.Now()
	do()
	assert.Less(t, time.Since(begin), 5*time.Second)
}

func TestFault_trickle_sends_one_byte_a_second(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultTrickle})
		begin := time.Now()
		res := c.open(t)
		defer res.Body.Close()
		assert.Zero(t, time.Since(begin), "the headers come at once")
		assert.Equal(t, http.StatusOK, res.StatusCode)

		var body strings.Builder
		for b := make([]byte, 100); ; {
			n, err := res.Body.Read(b)
			body.Write(b[:n])
			if err != nil {
				require.ErrorIs(t, err, io.EOF)
				break
			}
			assert.Equal(t, 1, n)
			assert.Equal(t, time.Duration(body.Len())*time.Second, time.Since(begin))
		}
		assert.Regexp(t, goodReply, body.String(), "it is a good reply to a patient client")
	})
}

func TestFault_trickle_over_the_network_ends_with_the_client(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultTrickle})
	res := c.open(t)
	defer res.Body.Close()
	n, err := res.Body.Read(make([]byte, 100))
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	require.NoError(t, res.Body.Close())
	requireEnds(t, func() { assert.NoError(t, c.Close()) })
}

func TestFault_reset_resets_the_connection(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultReset, Times: 1})
	_, err := c.tryAsk(t.Context())
	require.ErrorIs(t, err, syscall.ECONNRESET)
	c.token(t)
	assert.Equal(t, 2, c.Requests(appKey))
}

func TestFault_reset_ends_a_connection_that_is_no_TCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultReset})
		_, err := c.tryAsk(t.Context())
		require.Error(t, err)
	})
}

func TestFault_delay_holds_back_any_reply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		for _, kind := range []string{"", simulator.FaultThrottledBusy} {
			c.SetFault(appKey, simulator.Fault{Kind: kind, Delay: 7 * time.Second})
			begin := time.Now()
			res := c.ask(t)
			assert.Equal(t, 7*time.Second, time.Since(begin))
			assert.Equal(t, kind == "", res.status == http.StatusOK)
		}
		assert.Equal(
			t,
			2*time.Hour-14*time.Second,
			c.lifeLeft(t, c.LastToken(appKey)),
			"its life counts from the request",
		)
	})
}

func TestFault_delay_ends_with_the_client_and_with_Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, simulator.Options{})
		c.SetFault(appKey, simulator.Fault{Delay: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.tryAsk(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		failed := c.startAsking(t.Context())
		synctest.Wait()
		begin := time.Now()
		require.NoError(t, c.Close())
		require.Error(t, <-failed)
		assert.Zero(t, time.Since(begin))
	})
}

func TestFault_hits_as_many_requests_as_it_says(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, Times: 2})
	c.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultUnavailableEmpty, Times: 1})
	var got []int
	for range 5 {
		got = append(got, c.ask(t).status)
	}
	assert.Equal(t, []int{429, 429, 503, 200, 200}, got)
}

func TestFault_of_an_app_wins_over_that_of_all(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetApp("dingother", "other-secret")
	c.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultBanned})
	c.SetFault(appKey, simulator.Fault{Kind: simulator.FaultThrottledBusy})

	assert.Equal(t, 429, c.ask(t).status)
	assert.Equal(t, 403, c.post(t, credentials("dingother", "other-secret")).status)
	assert.Equal(t, 403, c.post(t, credentials("dingunknown", "x")).status)
	assert.Equal(t, 403, c.post(t, "not JSON").status, "all means also a request that names none")
	assert.Equal(t, 403, c.must(t, http.MethodGet, simulator.TokenPath, "", "").status)

	c.SetFault(appKey, simulator.Fault{})
	assert.Equal(t, 200, c.ask(t).status, "no fault exempts the app")
	c.ClearFault(appKey)
	assert.Equal(t, 403, c.ask(t).status)
	c.ClearFault(simulator.AnyApp)
	assert.Equal(t, 200, c.ask(t).status)
}

func TestFault_that_makes_no_sense_is_refused(t *testing.T) {
	t.Parallel()
	s := simulator.New(simulator.Options{})
	for want, f := range map[string]simulator.Fault{
		`unknown fault kind "hung"`:    {Kind: "hung"},
		"without a kind":               {Status: 500},
		"status 204":                   {Kind: simulator.FaultHTML, Status: 204},
		"status 304":                   {Kind: simulator.FaultHTML, Status: 304},
		"status 199":                   {Kind: simulator.FaultHTML, Status: 199},
		"status 600":                   {Kind: simulator.FaultHTML, Status: 600},
		"delay -1s is negative":        {Delay: -time.Second},
		"interval -1s is negative":     {Kind: simulator.FaultRaw, Interval: -time.Second},
		`unknown part "head"`:          {Kind: simulator.FaultEchoRequest, Part: "head"},
		`unknown encoding "rot13"`:     {Kind: simulator.FaultEchoRequest, Encoding: "hex,rot13"},
		`unknown encoding ""`:          {Kind: simulator.FaultEchoRequest, Encoding: "hex,"},
		"times -1 is negative":         {Kind: simulator.FaultHang, Times: -1},
		`expire_in "soon" is not JSON`: {Kind: simulator.FaultExpireIn, ExpireIn: "soon"},
	} {
		require.ErrorContains(t, f.Validate(), want)
		assert.PanicsWithValue(t, "simulator: SetFault: "+f.Validate().Error(), func() { s.SetFault(appKey, f) })
	}
	for _, kind := range simulator.FaultKinds() {
		require.NoError(t, simulator.Fault{Kind: kind}.Validate())
	}
}

func TestFault_as_JSON_reads_back_the_same(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]simulator.Fault{
		`{}`:              {},
		`{"kind":"hang"}`: {Kind: simulator.FaultHang},
		`{"kind":"expire-in","expire_in":"7200"}`: {Kind: simulator.FaultExpireIn, ExpireIn: `"7200"`},
		`{"kind":"expire-in","expire_in":null}`:   {Kind: simulator.FaultExpireIn, ExpireIn: `null`},
		`{"kind":"error","status":418,"code":"c","message":"m","retry_after":"30",` +
			`"delay":"1.5s","location":"l","times":3,"expire_in":-1}`: {
			Kind: simulator.FaultError, Status: 418, Code: "c", Message: "m", RetryAfter: "30",
			Delay: 1500 * time.Millisecond, Location: "l", Times: 3, ExpireIn: "-1",
		},
		`{"kind":"echo-request","part":"secret","encoding":"hex,json-all"}`: {
			Kind: simulator.FaultEchoRequest, Part: "secret", Encoding: "hex,json-all",
		},
		`{"kind":"token","token":"t","raw":"r","repeat":"e","interval":"1m0s"}`: {
			Kind: simulator.FaultToken, Token: "t", Raw: "r", Repeat: "e", Interval: time.Minute,
		},
	} {
		var f simulator.Fault
		require.NoError(t, json.Unmarshal([]byte(text), &f))
		assert.Equal(t, want, f)
		b, err := json.Marshal(f)
		require.NoError(t, err)
		assert.JSONEq(t, text, string(b))
	}
	require.ErrorContains(t, json.Unmarshal([]byte(`{"delay":"soon"}`), &simulator.Fault{}), `delay "soon"`)
	require.ErrorContains(t, json.Unmarshal([]byte(`{"interval":"soon"}`), &simulator.Fault{}), `interval "soon"`)
}

func TestFault_texts_can_number_the_responses(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.set(t, simulator.AnyApp, simulator.Fault{
		Kind: simulator.FaultThrottledBusy, Code: "code{n}", Message: "message {n}", RetryAfter: "6{n}",
	})
	for i, n := range []string{"1", "2", "3"} {
		res := c.post(t, credentials("app"+n, "any"))
		assert.Contains(t, res.body, `"code":"code`+n+`","message":"message `+n+`"`)
		assert.Equal(t, "6"+n, res.header.Get("Retry-After"), i)
	}
	c.set(t, appKey, simulator.Fault{Kind: simulator.FaultToken, Token: "token{n}"})
	assert.JSONEq(t, `{"accessToken":"token4","expireIn":7200}`, c.ask(t).body)
	assert.JSONEq(t, `{"accessToken":"token5","expireIn":7200}`, c.ask(t).body)
}

func TestFault_token_is_any_text(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	for name, token := range map[string]string{
		"empty": "", "line break": "a\nb", "carriage return": "a\r\nb", "space": "a b",
		"controls":  "\x00\x01\x1b[31m\x7f\u0085",
		"not ASCII": "令牌é\u202e", "JSON": `"\u0041\`, "long": strings.Repeat("x", 10_000),
	} {
		for _, expireIn := range []string{"", "60"} {
			c.set(t, appKey, simulator.Fault{Kind: simulator.FaultToken, Token: token, ExpireIn: expireIn})
			got, seconds := struct{ AccessToken string }{}, `"expireIn":`+cmp.Or(expireIn, "7200")+`}`
			res := c.ask(t)
			require.NoError(t, json.Unmarshal([]byte(res.body), &got), name)
			assert.Equal(t, token, got.AccessToken, name)
			assert.Equal(t, 200, res.status)
			assert.True(t, strings.HasSuffix(res.body, seconds), res.body)
		}
	}
	assert.Regexp(t, rejected, c.post(t, credentials(appKey, "wrong")).body)
	c.ClearFaults()
	assert.Regexp(t, goodReply, c.ask(t).body)
}
