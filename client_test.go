// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests the way to DingTalk: what each answer means, what is shown of it, when a call is repeated, and what goes
// wrong on the network. Where time matters the calls go through pipes, in virtual time; TLS and sockets are real, on loopback.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	goodBody   = `{"accessToken":"fw8ef8we8f76e6f7s8dxxxx","expireIn":7200}`
	goodToken  = "fw8ef8we8f76e6f7s8dxxxx"
	bannedBody = `{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"xxx"}`
	htmlBody   = "<!DOCTYPE html>\n<html><body>Access denied</body></html>\n"
)

// envelope is an error as DingTalk writes it.
func envelope(code string) string {
	return fmt.Sprintf(`{"requestid":"01A08FE7","code":%q,"message":"无效的clientId或者clientSecret"}`, code)
}

func TestClient_tells_every_failure_from_the_others(t *testing.T) {
	denied := "Forbidden.AccessDenied."
	for _, c := range []struct {
		name   string
		status int
		body   string
		want   errorClass
	}{
		{"wrong credentials", 400, envelope("invalidClientIdOrSecret"), classRejectedCredentials},
		{"wrong credentials, unified", 400, envelope("invalid.client"), classRejectedCredentials},
		{"unauthorized client", 401, envelope("unauthorized.client"), classRejectedCredentials},
		{"unauthorized client with 400", 400, envelope("unauthorized.client"), classRejectedCredentials},
		{"server error, unified", 500, envelope("server.error"), classUnavailable},
		{"unsupported grant type", 400, envelope("unsupported.grant.type"), classRejectedRequest},
		{"a form-encoded body", 400, envelope("Missingbody"), classRejectedRequest},
		{"any other 400", 400, envelope("invalidParameter"), classRejectedRequest},
		{"any other 401", 401, envelope("unauthorized"), classRejectedRequest},
		{"any other 404", 404, envelope("InvalidAction.NotFound"), classRejectedRequest},
		{"egress IP", 403, envelope(denied + "IpNotInWhiteList"), classForbiddenIP},
		{"permission", 403, `{"code":"` + denied + `AccessTokenPermissionDenied","message":"m","requestid":"r","accessdenieddetail":{"requiredScopes":["a"]}}`, classRejectedRequest},

		{"limit of the API", 403, envelope(denied + "QpsLimitForApi"), classThrottled},
		{"limit per second of app and API", 403, envelope(denied + "QpsLimitForAppkeyAndApi"), classThrottled},
		{"limit per minute of app and API", 403, envelope(denied + "QpmLimitForAppkeyAndApi"), classThrottled},
		{"limit per second of suite", 403, envelope(denied + "QpsLimitForSuitekeyAndOrgAndApi"), classThrottled},
		{"limit per minute of suite", 403, envelope(denied + "QpmLimitForSuitekeyAndOrgAndApi"), classThrottled},
		{"limit of the organisation", 403, envelope(denied + "ApiCountLimitForOrg"), classThrottled},
		{"busy", 429, envelope("system.busy"), classThrottled},
		{"busy, spelt otherwise", 429, envelope("systemBusy"), classThrottled},
		{"busy with 400", 400, envelope("system.busy"), classThrottled},
		{"busy with 500", 500, envelope("system.busy"), classUnavailable},
		{"busy with 500, spelt otherwise", 500, envelope("systemBusy"), classUnavailable},
		{"429 without a code", 429, `{}`, classThrottled},
		{"429, empty", 429, "", classThrottled},

		{"ban with 200", 200, bannedBody, classBanned},
		{"ban with 400", 400, bannedBody, classBanned},
		{"ban with 403", 403, bannedBody, classBanned},
		{"ban with 429", 429, bannedBody, classBanned},
		{"ban with 503", 503, bannedBody, classBanned},

		{"HTML with 200", 200, htmlBody, classMalformed},
		{"HTML with 403", 403, htmlBody, classMalformed},
		{"HTML with 404", 404, htmlBody, classMalformed},
		{"HTML with 429", 429, htmlBody, classMalformed},
		{"HTML with 500", 500, htmlBody, classUnavailable},
		{"HTML with 502", 502, htmlBody, classUnavailable},

		{"500 unknownError", 500, envelope("unknownError"), classUnavailable},
		{"502", 502, `{}`, classUnavailable},
		{"503, empty", 503, "", classUnavailable},
		{"504", 504, "gateway timeout", classUnavailable},
		{"500 with a grant", 500, goodBody, classUnavailable},
		{"503, oversized", 503, strings.Repeat(" ", maxResponse+1), classUnavailable},

		{"below 200", 101, goodBody, classMalformed},
		{"below 100", 99, envelope("invalidClientIdOrSecret"), classMalformed},

		{"redirect", 307, "", classRedirect},
		{"redirect with HTML", 302, htmlBody, classRedirect},

		{"200 with errcode", 200, `{"errcode":404,"errmsg":"no such path"}`, classMalformed},
		{"200 with a code", 200, envelope("invalidClientIdOrSecret"), classMalformed},
		{"4xx without a code", 400, `{"message":"m"}`, classMalformed},
		{"4xx with a grant", 400, goodBody, classMalformed},
		{"4xx, empty", 404, "", classMalformed},
		{"201 with a grant", 201, goodBody, classMalformed},
		{"204", 204, "", classMalformed},
		{"empty", 200, "", classMalformed},
		{"null", 200, "null", classMalformed},
		{"a list", 200, "[]", classMalformed},
		{"a text", 200, `"token"`, classMalformed},
		{"truncated", 200, goodBody[:len(goodBody)-5], classMalformed},
		{"something after the object", 200, goodBody + "{}", classMalformed},
		{"no token", 200, `{"expireIn":7200}`, classMalformed},
		{"an empty token", 200, `{"accessToken":"","expireIn":7200}`, classMalformed},
		{"a token that is null", 200, `{"accessToken":null,"expireIn":7200}`, classMalformed},
		{"a token that is a number", 200, `{"accessToken":12345,"expireIn":7200}`, classMalformed},
		{"a token that is a list", 200, `{"accessToken":["fw8ef8we"],"expireIn":7200}`, classMalformed},
		{"a token that is an object", 200, `{"accessToken":{"a":"fw8ef8we"},"expireIn":7200}`, classMalformed},
		{"a token with a line break", 200, `{"accessToken":"fw8ef8we\nPATH=/tmp","expireIn":7200}`, classMalformed},
		{"a token with a space", 200, `{"accessToken":"fw8ef8we 8f76","expireIn":7200}`, classMalformed},
		{"a token with a control character", 200, `{"accessToken":"fw8ef8we\u0007","expireIn":7200}`, classMalformed},
		{"a token that is not ASCII", 200, `{"accessToken":"令牌","expireIn":7200}`, classMalformed},
		{"a token of 2,049 characters", 200, `{"accessToken":"` + strings.Repeat("t", 2049) + `","expireIn":7200}`, classMalformed},
		{"oversized", 200, goodBody + strings.Repeat(" ", maxResponse), classMalformed},
		{"oversized 400", 400, envelope("invalidClientIdOrSecret") + strings.Repeat(" ", maxResponse), classMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := readResponse(c.status, http.Header{}, []byte(c.body), newSensitive(theSecret))
			require.NotNil(t, err)
			require.Equal(t, c.want, err.class, err.Error())
			require.Equal(t, c.want == classUnavailable, err.repeatable())
			require.Equal(t, c.want == classRejectedCredentials || c.want == classRejectedRequest || c.want == classForbiddenIP, err.rejected())
		})
	}
}

func TestClient_shows_code_message_and_request_id_however_they_are_spelt(t *testing.T) {
	for name, body := range map[string]string{
		"DingTalk's own":    `{"requestid":"01A08FE7","code":"invalidClientIdOrSecret","message":"无效的clientId"}`,
		"a gateway's":       `{"requestId":"01A08FE7","Code":"invalidClientIdOrSecret","Message":"无效的clientId"}`,
		"all in upper case": `{"REQUESTID":"01A08FE7","CODE":"invalidClientIdOrSecret","MESSAGE":"无效的clientId"}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readResponse(400, http.Header{}, []byte(body))
			require.Equal(t, classRejectedCredentials, err.class)
			require.Equal(t, "invalidClientIdOrSecret", err.code)
			require.Equal(t, "无效的clientId", err.message)
			require.Equal(t, "01A08FE7", err.requestID)
			told := err.describe(theApp, theURL)
			for _, part := range []string{theApp, theURL, "invalidClientIdOrSecret", "无效的clientId", "01A08FE7", "published"} {
				require.Contains(t, told, part)
			}
		})
	}
}

func TestClient_a_field_of_an_unexpected_type_hides_no_other(t *testing.T) {
	_, err := readResponse(400, http.Header{}, []byte(`{"code":"invalidClientIdOrSecret","message":{"a":1},"requestid":17,"accessToken":false,"status":[]}`))
	require.Equal(t, classRejectedCredentials, err.class)
	require.Equal(t, "17", err.requestID)
	require.Empty(t, err.message)
}

func TestClient_shows_the_errcode_of_a_wrong_path(t *testing.T) {
	_, err := readResponse(200, http.Header{}, []byte(`{"errcode":404,"errmsg":"请求的URI地址不存在"}`))
	require.Equal(t, "404", err.code)
	require.Equal(t, "请求的URI地址不存在", err.message)
}

func TestClient_an_HTML_page_is_known_by_header_or_body_and_names_the_ban_as_a_possible_cause(t *testing.T) {
	for name, c := range map[string]struct{ contentType, body string }{
		"header": {"text/html; charset=utf-8", "Access denied"},
		"body":   {"", "\n  " + htmlBody},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readResponse(403, http.Header{"Content-Type": {c.contentType}}, []byte(c.body))
			require.Equal(t, classMalformed, err.class)
			require.Contains(t, err.cause, "ban")
			require.NotContains(t, err.describe(theApp, theURL), "denied", "never a body")
		})
	}
}

func TestClient_a_grant_is_one_whatever_its_content_type(t *testing.T) {
	_, err := readResponse(200, http.Header{"Content-Type": {"text/html"}}, []byte(goodBody))
	require.Nil(t, err)
}

func TestClient_a_token_may_have_2048_visible_ASCII_characters(t *testing.T) {
	value := strings.Repeat("!~aZ09-_", 256)
	got, err := readResponse(200, http.Header{}, fmt.Appendf(nil, `{"accessToken":%q,"expireIn":7200}`, value))
	require.Nil(t, err)
	require.Equal(t, value, got.accessToken.reveal())
}

func TestClient_expireIn(t *testing.T) {
	for given, want := range map[string]time.Duration{
		`7200`:                7200 * time.Second,
		`7200.9`:              7200 * time.Second,
		`1e3`:                 1000 * time.Second,
		`1`:                   time.Second,
		`86400`:               24 * time.Hour,
		`86401`:               24 * time.Hour,
		`9223372036854775807`: 24 * time.Hour,
		`1e400`:               24 * time.Hour,
		`0`:                   0,
		`-1`:                  0,
		`-1e400`:              0,
		`1e-400`:              0,
		`0.5`:                 0,
		`"7200"`:              0,
		`""`:                  0,
		`null`:                0,
		`true`:                0,
		`[7200]`:              0,
		`{"seconds":7200}`:    0,
		``:                    0, // missing
	} {
		t.Run(given, func(t *testing.T) {
			body := fmt.Sprintf(`{"accessToken":%q,"expireIn":%s}`, goodToken, given)
			if given == "" {
				body = fmt.Sprintf(`{"accessToken":%q}`, goodToken)
			}
			got, err := readResponse(200, http.Header{}, []byte(body))
			if want == 0 {
				require.NotNil(t, err)
				require.Equal(t, classMalformed, err.class)
				require.Contains(t, err.cause, "expireIn")
				return
			}
			require.Nil(t, err)
			require.Equal(t, want, got.expireIn)
			require.Equal(t, goodToken, got.accessToken.reveal())
		})
	}
}

func TestClient_Retry_After_is_honoured_up_to_ten_minutes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for given, want := range map[string]time.Duration{
		"":                               0,
		"0":                              0,
		"30":                             30 * time.Second,
		" 30 ":                           30 * time.Second,
		"600":                            10 * time.Minute,
		"601":                            10 * time.Minute,
		"9223372036854775807":            10 * time.Minute,
		"99999999999999999999999999":     10 * time.Minute,
		"-30":                            0,
		"soon":                           0,
		"1.5":                            0,
		"Fri, 02 Jan 2026 03:05:05 GMT":  time.Minute,
		"Friday, 02-Jan-26 03:05:05 GMT": time.Minute,
		"Fri, 02 Jan 2026 03:03:05 GMT":  0,
		"Sat, 02 Jan 2027 03:04:05 GMT":  10 * time.Minute,
		"Fri, 31 Dec 9999 23:59:59 GMT":  10 * time.Minute,
	} {
		t.Run(given, func(t *testing.T) {
			require.Equal(t, want, retryAfter(http.Header{"Retry-After": {given}}, now))
		})
	}
	_, err := readResponse(429, http.Header{"Retry-After": {"30"}}, []byte(envelope("system.busy")))
	require.Equal(t, 30*time.Second, err.retryAfter)
}

// requireTellsNothing wants none of the texts of a failure to hold a secret or a token.
func requireTellsNothing(t *testing.T, err *fetchError) {
	t.Helper()
	for _, told := range []string{err.Error(), err.describe(theApp, theURL), fmt.Sprintf("%+v", *err)} {
		require.NotContains(t, told, theSecret)
		require.NotContains(t, told, goodToken)
	}
}

// clientOf returns a client whose calls are answered by the handler, behind pipes.
func clientOf(t *testing.T, handler http.HandlerFunc) *client {
	t.Helper()
	h, server, served := newHost(nil), &http.Server{Handler: handler}, make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(h)
	}()
	transport := newTransport()
	transport.Proxy, transport.DialContext = nil, (&network{hosts: map[string]*host{"127.0.0.1:80": h}}).dial
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return newClient(transport, hclog.NewNullLogger())
}

var theCredentials = credentials{BaseURL: theURL, AppKey: theKey, AppSecret: newSensitive(theSecret)}

// answeringAlike makes a handler that gives this answer to every call, and counts them.
func answeringAlike(calls *atomic.Int32, status int, header http.Header, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		maps.Copy(w.Header(), header)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestClient_the_call_is_as_documented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		creds := credentials{BaseURL: theURL, AppKey: theKey, AppSecret: newSensitive(`q"uo\te<&>` + theSecret)}
		c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			var sent map[string]string
			if r.Method != http.MethodPost || r.URL.String() != "/v1.0/oauth2/accessToken" ||
				r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Authorization") != "" ||
				json.Unmarshal(body, &sent) != nil || len(sent) != 2 || sent["appKey"] != theKey || sent["appSecret"] != creds.AppSecret.reveal() {
				http.Error(w, "not as documented", http.StatusBadRequest)
				return
			}
			_, _ = io.WriteString(w, goodBody)
		})
		tok, calls, err := c.fetch(t.Context(), creds)
		require.Nil(t, err)
		require.Equal(t, 1, calls)
		require.Equal(t, goodToken, tok.Value.reveal())
	})
}

func TestClient_a_tokens_life_begins_when_the_call_is_sent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(3 * time.Second)
			_, _ = io.WriteString(w, goodBody)
		})
		sent := time.Now()
		tok, _, err := c.fetch(t.Context(), theCredentials)
		require.Nil(t, err)
		require.Equal(t, sent, tok.fetchedAt)
		require.Equal(t, sent.Add(7200*time.Second), tok.expiresAt)
		require.Equal(t, 7200*time.Second, tok.lifetime)
	})
}

func TestClient_a_token_that_expired_on_the_way_is_a_malformed_answer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(3 * time.Second)
			_, _ = fmt.Fprintf(w, `{"accessToken":%q,"expireIn":4}`, goodToken)
		})
		_, calls, err := c.fetch(t.Context(), theCredentials)
		require.NotNil(t, err)
		require.Equal(t, classMalformed, err.class)
		require.Contains(t, err.cause, "expireIn 4")
		require.Equal(t, 1, calls)
		requireTellsNothing(t, err)
	})
}

func TestClient_5xx_is_tried_three_times(t *testing.T) {
	for _, status := range []int{500, 502, 503, 504} {
		synctest.Test(t, func(t *testing.T) {
			var got atomic.Int32
			c := clientOf(t, answeringAlike(&got, status, nil, ""))
			began := time.Now()
			_, calls, err := c.fetch(t.Context(), theCredentials)
			require.NotNil(t, err)
			require.Equal(t, classUnavailable, err.class)
			require.Contains(t, err.cause, fmt.Sprint(status))
			require.Equal(t, 3, calls)
			require.EqualValues(t, 3, got.Load())
			require.Less(t, time.Since(began), time.Second)
		})
	}
}

func TestClient_a_connection_error_is_tried_three_times_with_the_whole_body_each_time(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got atomic.Int32
		c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if got.Add(1) == 3 && strings.Contains(string(body), theSecret) {
				_, _ = io.WriteString(w, goodBody)
				return
			}
			panic(http.ErrAbortHandler)
		})
		tok, calls, err := c.fetch(t.Context(), theCredentials)
		require.Nil(t, err)
		require.Equal(t, 3, calls)
		require.Equal(t, goodToken, tok.Value.reveal())
	})
}

func TestClient_what_another_attempt_cannot_mend_is_tried_once(t *testing.T) {
	later := http.Header{"Retry-After": {"1"}}
	for _, c := range []struct {
		name   string
		status int
		header http.Header
		body   string
	}{
		{"rejected credentials", 400, nil, envelope("invalidClientIdOrSecret")},
		{"a rejected request", 400, nil, envelope("Missingbody")},
		{"forbidden IP", 403, nil, envelope("Forbidden.AccessDenied.IpNotInWhiteList")},
		{"throttled with 403", 403, nil, envelope("Forbidden.AccessDenied.QpsLimitForApi")},
		{"throttled with 429", 429, nil, envelope("system.busy")},
		{"banned", 403, nil, bannedBody},
		{"banned with 503", 503, nil, bannedBody},
		{"malformed", 200, nil, "{"},
		{"HTML", 404, nil, htmlBody},
		{"a redirect", 307, http.Header{"Location": {"/elsewhere"}}, ""},
		{"503 with Retry-After", 503, later, ""},
		{"500 with Retry-After", 500, later, envelope("unknownError")},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got atomic.Int32
				_, calls, err := clientOf(t, answeringAlike(&got, c.status, c.header, c.body)).fetch(t.Context(), theCredentials)
				require.NotNil(t, err)
				require.Equal(t, 1, calls)
				require.EqualValues(t, 1, got.Load())
			})
		})
	}
}

func TestClient_the_attempts_share_one_budget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got atomic.Int32
		c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
			got.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-time.After(6 * time.Second):
			case <-r.Context().Done():
			}
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		_, calls, err := c.fetch(ctx, theCredentials)
		require.NotNil(t, err)
		require.Equal(t, 10*time.Second, time.Since(began))
		require.Equal(t, 2, calls)
		require.EqualValues(t, 2, got.Load())
		require.Equal(t, classUnavailable, err.class, "the first cause, not what cut the last attempt short")
		require.Contains(t, err.describe(theApp, theURL), "HTTP status 503, 2 attempts")
	})
}

func TestClient_the_budget_covers_the_body(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := simulator.New(simulator.Options{Apps: map[string]string{theKey: theSecret}})
		defer upstream.Close()
		upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultTrickle})
		c := clientOf(t, upstream.ServeHTTP)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		_, calls, err := c.fetch(ctx, theCredentials)
		require.NotNil(t, err)
		require.Equal(t, 10*time.Second, time.Since(began))
		require.Equal(t, 1, calls)
		require.Equal(t, classUnreachable, err.class)
		require.Contains(t, err.cause, "within 10s")
	})
}

func TestClient_never_follows_a_redirect(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			var reached atomic.Int32
			second := httptest.NewServer(answeringAlike(&reached, 200, nil, goodBody))
			defer second.Close()
			var asked atomic.Int32
			first := httptest.NewServer(answeringAlike(&asked, status, http.Header{"Location": {second.URL + tokenPath + "?s=" + theSecret}}, ""))
			defer first.Close()
			_, calls, err := fetchFrom(t, newTransport(), first.URL)
			require.Equal(t, classRedirect, err.class)
			require.Equal(t, 1, calls)
			require.EqualValues(t, 1, asked.Load())
			require.Zero(t, reached.Load())
			requireTellsNothing(t, err)
		})
	}
}

// countedBody counts what is read of an answer.
type countedBody struct {
	io.ReadCloser
	read *int
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	*b.read += n
	return n, err
}

type countingTransport struct {
	http.RoundTripper
	read *int
}

func (c countingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = countedBody{resp.Body, c.read}
	}
	return resp, err
}

func TestClient_reads_no_more_than_64_KiB_after_decompression(t *testing.T) {
	for _, kind := range []string{simulator.FaultHuge, simulator.FaultGzipBomb} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				upstream := simulator.New(simulator.Options{Apps: map[string]string{theKey: theSecret}})
				defer upstream.Close()
				upstream.SetFault(theKey, simulator.Fault{Kind: kind})
				c := clientOf(t, upstream.ServeHTTP)
				read := 0
				c.transport = countingTransport{c.transport, &read}
				_, calls, err := c.fetch(t.Context(), theCredentials)
				require.NotNil(t, err)
				require.Equal(t, classMalformed, err.class)
				require.Contains(t, err.cause, "longer than")
				require.Equal(t, 1, calls)
				require.Equal(t, maxResponse+1, read)
			})
		})
	}
}

func TestClient_an_answer_of_exactly_64_KiB_is_read(t *testing.T) {
	got, err := readResponse(200, http.Header{}, []byte(goodBody+strings.Repeat(" ", maxResponse-len(goodBody))))
	require.Nil(t, err)
	require.Equal(t, goodToken, got.accessToken.reveal())
}

func TestClient_an_upstream_that_repeats_secrets_cannot_have_them_shown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := simulator.New(simulator.Options{Apps: map[string]string{theKey: theSecret}})
		defer upstream.Close()
		c := clientOf(t, upstream.ServeHTTP)
		tok, _, err := c.fetch(t.Context(), theCredentials)
		require.Nil(t, err)
		upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultEchoSecret})
		_, _, err = c.fetch(t.Context(), theCredentials, tok.Value)
		require.NotNil(t, err)
		requireTellsNothing(t, err)
		told := err.describe(theApp, theURL)
		require.NotContains(t, told, tok.Value.reveal())
		require.Contains(t, told, "message withheld: it repeats the request")
	})
}

// fetchFrom fetches through the transport, from a real address.
func fetchFrom(t *testing.T, transport *http.Transport, baseURL string) (*token, int, *fetchError) {
	t.Helper()
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	creds := theCredentials
	creds.BaseURL = baseURL
	return newClient(transport, hclog.NewNullLogger()).fetch(ctx, creds)
}

// newTLSServer serves a good answer over TLS with the certificate of httptest: for 127.0.0.1 and example.com, by an
// authority of its own.
func newTLSServer(t *testing.T, conf *tls.Config) (server *httptest.Server, trusted *x509.CertPool, calls *atomic.Int32) {
	t.Helper()
	calls = &atomic.Int32{}
	server = httptest.NewUnstartedServer(answeringAlike(calls, 200, nil, goodBody))
	server.TLS = conf
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	server.StartTLS()
	t.Cleanup(server.Close)
	trusted = x509.NewCertPool()
	trusted.AddCert(server.Certificate())
	return server, trusted, calls
}

func TestClient_TLS(t *testing.T) {
	t.Run("a trusted certificate is taken", func(t *testing.T) {
		t.Parallel()
		server, trusted, _ := newTLSServer(t, nil)
		transport := newTransport()
		transport.TLSClientConfig.RootCAs = trusted
		tok, _, err := fetchFrom(t, transport, server.URL)
		require.Nil(t, err)
		require.Equal(t, goodToken, tok.Value.reveal())
	})
	for _, c := range []struct {
		name, cause string
		spoil       func(transport *http.Transport, trusted *x509.CertPool, baseURL *string)
	}{
		{"of an unknown authority", "unknown authority", func(*http.Transport, *x509.CertPool, *string) {}},
		{"for another name", "localhost", func(transport *http.Transport, trusted *x509.CertPool, baseURL *string) {
			transport.TLSClientConfig.RootCAs = trusted
			*baseURL = strings.Replace(*baseURL, "127.0.0.1", "localhost", 1)
		}},
		{"that has expired", "expired", func(transport *http.Transport, trusted *x509.CertPool, _ *string) {
			transport.TLSClientConfig.RootCAs = trusted
			transport.TLSClientConfig.Time = func() time.Time { return time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) }
		}},
	} {
		t.Run("a certificate "+c.name+" is refused at once", func(t *testing.T) {
			t.Parallel()
			server, trusted, got := newTLSServer(t, nil)
			transport, baseURL := newTransport(), server.URL
			c.spoil(transport, trusted, &baseURL)
			_, calls, err := fetchFrom(t, transport, baseURL)
			require.NotNil(t, err)
			require.Equal(t, classUnreachable, err.class)
			require.Contains(t, err.cause, "certificate is not trusted")
			require.Contains(t, err.cause, c.cause)
			require.Equal(t, 1, calls)
			require.Zero(t, got.Load(), "no request was sent")
			requireTellsNothing(t, err)
		})
	}
	t.Run("below 1.2 is refused", func(t *testing.T) {
		t.Parallel()
		server, trusted, got := newTLSServer(t, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		transport := newTransport()
		transport.TLSClientConfig.RootCAs = trusted
		_, _, err := fetchFrom(t, transport, server.URL)
		require.NotNil(t, err)
		require.Equal(t, classUnreachable, err.class)
		require.Zero(t, got.Load(), "no request was sent")
		require.Contains(t, err.cause, "TLS", "the cause is in words")
	})
	t.Run("is said to be missing where the other side speaks plain HTTP", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		_, calls, err := fetchFrom(t, newTransport(), strings.Replace(server.URL, "http://", "https://", 1))
		require.NotNil(t, err)
		require.Equal(t, classUnreachable, err.class)
		require.Contains(t, err.cause, "does not speak TLS")
		require.Equal(t, 1, calls)
	})
}

// listen gives every connection to the function, once the head of a request was read from it.
func listen(t *testing.T, serve func(c *net.TCPConn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			serve(c.(*net.TCPConn))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

func TestClient_says_in_a_few_words_what_the_network_did(t *testing.T) {
	for _, c := range []struct {
		name, cause string
		serve       func(c *net.TCPConn)
	}{
		{"reset", "connection reset", func(c *net.TCPConn) { _ = c.SetLinger(0) }},
		{"no response", "the connection ended before the response did", func(*net.TCPConn) {}},
		{"half an answer", "the connection ended before the response did", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"+goodBody)
		}},
		{"not HTTP", "exchange failed", func(c *net.TCPConn) { _, _ = io.WriteString(c, "+"+goodToken+" "+theSecret+"\r\n") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, calls, err := fetchFrom(t, newTransport(), "http://"+listen(t, c.serve))
			require.NotNil(t, err)
			require.Equal(t, classUnreachable, err.class)
			require.Contains(t, err.cause, c.cause)
			require.Equal(t, 3, calls)
			requireTellsNothing(t, err)
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, l.Close())
		_, _, uerr := fetchFrom(t, newTransport(), "http://"+l.Addr().String())
		require.Equal(t, "connection refused", uerr.cause)
	})
}

func TestClient_says_in_a_few_words_why_no_connection_came_about(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, c := range []struct {
		name, cause string
		err         error
	}{
		{"unknown name", `the name "api.invalid" cannot be resolved`, dial(&net.DNSError{Err: "no such host", Name: "api.invalid", Server: "192.0.2.53:53", IsNotFound: true})},
		{"refused", "connection refused", dial(os.NewSyscallError("connect", syscall.ECONNREFUSED))},
		{"no route", "dial: no route to host", dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH))},
		{"timeout", "timed out", dial(os.ErrDeadlineExceeded)},
		{"something else", "exchange failed", dial(fmt.Errorf("with %s inside", theSecret))},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := newTransport()
				transport.Proxy = nil
				transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, c.err }
				_, calls, err := fetchFrom(t, transport, "https://api.invalid")
				require.NotNil(t, err)
				require.Equal(t, classUnreachable, err.class)
				require.Contains(t, err.cause, c.cause)
				require.Equal(t, 3, calls)
				requireTellsNothing(t, err)
			})
		})
	}
}

func TestClient_a_proxy_that_refuses_is_named_by_its_status_alone(t *testing.T) {
	for _, status := range []int{403, 407, 502} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			address := listen(t, func(c *net.TCPConn) {
				_, _ = fmt.Fprintf(c, "HTTP/1.1 %d Words of the proxy\r\nContent-Length: 0\r\n\r\n", status)
			})
			transport := newTransport()
			transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: address, User: url.UserPassword("proxyuser", "proxypassword")})
			_, _, err := fetchFrom(t, transport, "https://api.made-up.invalid")
			require.NotNil(t, err)
			require.Equal(t, classUnreachable, err.class)
			require.Equal(t, fmt.Sprintf("the proxy refused to connect with HTTP status %d", status), err.cause)
			requireTellsNothing(t, err)
		})
	}
}

func TestClient_goes_through_a_proxy_without_showing_it_the_secret(t *testing.T) {
	server, trusted, _ := newTLSServer(t, nil)
	seen := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Method + " " + r.Host
		up, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", server.Listener.Addr().String())
		if err != nil {
			http.Error(w, "", http.StatusBadGateway)
			return
		}
		defer up.Close()
		down, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer down.Close()
		_, _ = io.WriteString(down, "HTTP/1.1 200 Connection established\r\n\r\n")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = io.Copy(down, up)
		}()
		_, _ = io.Copy(up, down)
		_ = up.Close()
		<-ended
	}))
	defer proxy.Close()
	transport := newTransport()
	require.NotNil(t, transport.Proxy, "the environment's")
	transport.TLSClientConfig.RootCAs = trusted
	at, err := url.Parse(proxy.URL)
	require.NoError(t, err)
	transport.Proxy = http.ProxyURL(at)
	tok, calls, uerr := fetchFrom(t, transport, "https://example.com")
	require.Nil(t, uerr)
	require.Equal(t, 1, calls)
	require.Equal(t, goodToken, tok.Value.reveal())
	require.Equal(t, "CONNECT example.com:443", <-seen)
}

func TestClient_every_class_says_whose_app_it_is_and_what_to_do(t *testing.T) {
	for class, hint := range map[errorClass]string{
		classRejectedCredentials: "check app_key and app_secret",
		classForbiddenIP:         "allow-list",
		classRejectedRequest:     "request id",
		classThrottled:           "throttles",
		classBanned:              "banned",
		classUnavailable:         "could not serve",
		classUnreachable:         "could not get a token",
		classRedirect:            "never followed",
		classMalformed:           "not a token",
		classStorage:             "Vault's storage failed",
		classInternal:            "report this",
	} {
		told := (&fetchError{class: class}).describe(theApp, theURL)
		require.Contains(t, told, hint)
		require.Contains(t, told, `"myapp"`)
	}
}
