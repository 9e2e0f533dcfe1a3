// SPDX-License-Identifier: MPL-2.0

package fidelity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	appKey = "dingfidelityapp"
	// appSecret has characters that are written otherwise in a URL and in JSON.
	appSecret = `made-up+secret/of="an"&<app>%\`
)

// testAPI has all that a run can be given but for a transport.
var testAPI = API{
	BaseURL: "https://api.test", AppKey: appKey, AppSecret: appSecret, CorpID: simulator.DefaultCorpID,
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inProcess is a transport to a handler, without a network: so the pauses take no real time.
type inProcess struct {
	http.Handler
	asked *[]time.Time
}

func (p inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	if p.asked != nil {
		*p.asked = append(*p.asked, time.Now())
	}
	recorder := httptest.NewRecorder()
	p.ServeHTTP(recorder, req)
	return recorder.Result(), nil
}

// rowsOf runs the table against a handler, in the bubble of a synctest.
func rowsOf(t *testing.T, h http.Handler) []Row {
	t.Helper()
	api := testAPI
	api.Transport = inProcess{h, nil}
	rows, err := Run(t.Context(), api)
	require.NoError(t, err)
	require.NotEmpty(t, rows)
	return rows
}

func newSimulator() *simulator.Server {
	return simulator.New(simulator.Options{Apps: map[string]string{appKey: appSecret}})
}

// differing are the checks that do not hold, as "call: check".
func differing(rows []Row) map[string]Row {
	found := map[string]Row{}
	for _, r := range rows {
		if !r.OK() {
			found[r.Call+": "+r.Check] = r
		}
	}
	return found
}

func tableOf(t *testing.T, rows []Row) string {
	t.Helper()
	var text strings.Builder
	require.NoError(t, Fprint(&text, rows))
	return text.String()
}

func TestSimulator_passes_every_check(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSimulator()
		rows := rowsOf(t, s)
		assert.Empty(t, differing(rows), tableOf(t, rows))
		assert.Contains(t, tableOf(t, rows), fmt.Sprintf("%d checks, 0 differ\n", len(rows)))

		names := map[string]bool{}
		for _, r := range rows {
			assert.NotEmpty(t, r.Call)
			assert.NotEmpty(t, r.Check)
			assert.Contains(t, []Source{Documented, Seen, Reported, Assumed}, r.Source)
			assert.NotEmpty(t, r.Want)
			assert.False(t, names[r.Call+r.Check], "%s: %s is there once", r.Call, r.Check)
			names[r.Call+r.Check] = true
		}
	})
}

func TestRun_leaves_the_unified_call_out_where_no_organization_is_given(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := testAPI
		api.CorpID = ""
		api.Transport = inProcess{newSimulator(), nil}
		rows, err := Run(t.Context(), api)
		require.NoError(t, err)
		assert.Empty(t, differing(rows), tableOf(t, rows))
		assert.Less(t, len(rows), len(rowsOf(t, newSimulator())))
		assert.NotContains(t, tableOf(t, rows), "unified")
	})
}

func TestRun_makes_few_calls_and_spaces_them(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked []time.Time
		api := testAPI
		api.BaseURL = "http://127.0.0.1:1"
		api.Transport = inProcess{newSimulator(), &asked}
		_, err := Run(t.Context(), api)
		require.NoError(t, err)
		assert.Len(t, asked, len(table(api)))
		assert.Less(t, len(olderTable()), 20, "what DingTalk allows in one second, and this takes some")
		assert.Less(t, len(asked)-len(olderTable()), 20, "the same for the unified call")
		for i, at := range asked[1:] {
			assert.GreaterOrEqual(t, at.Sub(asked[i]), pace)
		}
		assert.GreaterOrEqual(t, asked[1].Sub(asked[0]), repeatAfter)
	})
}

// spoiled changes the responses of an API that is as it should be.
func spoiled(change func(r *http.Request, a *httptest.ResponseRecorder, fields map[string]any)) http.Handler {
	s := newSimulator()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := httptest.NewRecorder()
		s.ServeHTTP(a, r)
		var fields map[string]any
		if err := json.Unmarshal(a.Body.Bytes(), &fields); err != nil {
			panic(err)
		}
		change(r, a, fields)
		body, err := json.Marshal(fields)
		if err != nil {
			panic(err)
		}
		a.Header().Del("Content-Length")
		maps.Copy(w.Header(), a.Header())
		w.WriteHeader(a.Code)
		_, _ = w.Write(body)
	})
}

func TestTable_tells_how_an_API_differs(t *testing.T) {
	t.Parallel()
	type change = func(r *http.Request, a *httptest.ResponseRecorder, fields map[string]any)
	rename := func(from, to string) change {
		return func(_ *http.Request, _ *httptest.ResponseRecorder, fields map[string]any) {
			if v, ok := fields[from]; ok {
				delete(fields, from)
				fields[to] = v
			}
		}
	}
	set := func(field string, value any) change {
		return func(_ *http.Request, _ *httptest.ResponseRecorder, fields map[string]any) {
			if _, ok := fields[field]; ok {
				fields[field] = value
			}
		}
	}
	count := 0
	for name, c := range map[string]struct {
		change
		differs map[string]string // what, and how it came
	}{
		"the request id spelled as the gateway does": {rename("requestid", "requestId"), map[string]string{
			"a wrong secret: form of requestid": "spelled requestId",
			"a wrong secret: names and types":   "code string, message string, requestId string",
			"a GET: form of requestid":          "spelled requestId",
		}},
		"the request id of another form": {set("requestid", "01a08fe7"), map[string]string{
			"a wrong secret: form of requestid":    "of another form",
			"an unknown AppKey: form of requestid": "of another form",
		}},
		"one request id for all": {set("requestid", "00000000-0000-0000-0000-000000000000"), map[string]string{
			"an unknown AppKey: requestid": "one that was there before",
		}},
		"a new token at each call": {
			func(_ *http.Request, _ *httptest.ResponseRecorder, fields map[string]any) {
				for _, n := range bothNames {
					if _, ok := fields[n.token]; ok {
						count++
						fields[n.token] = fmt.Sprintf("token%d", count)
					}
				}
			},
			map[string]string{
				"the same, 3 s later: accessToken":           "another token",
				"right credentials again: accessToken":       "another token",
				"unified: the same, 3 s later: access_token": "another token",
			},
		},
		"a validity that runs down": {
			func(_ *http.Request, _ *httptest.ResponseRecorder, fields map[string]any) {
				if _, ok := fields["expireIn"]; ok {
					count++
					fields["expireIn"] = 7200 - 3*count
				}
			},
			map[string]string{"the same, 3 s later: expireIn": ", before "},
		},
		"expireIn as a string": {set("expireIn", "7200"), map[string]string{
			"right credentials: expireIn":        `"7200"`,
			"right credentials: names and types": "accessToken string, expireIn string",
		}},
		"another name for expireIn": {rename("expireIn", "expiresIn"), map[string]string{
			"right credentials: expireIn":        "none",
			"right credentials: names and types": "accessToken string, expiresIn number",
			"the same, 3 s later: expireIn":      "none",
		}},
		"the unified call with the names of the older one": {rename("expires_in", "expireIn"), map[string]string{
			"unified: right credentials: expires_in":      "none",
			"unified: right credentials: names and types": "access_token string, expireIn number",
			"unified: the same, 3 s later: expires_in":    "none",
		}},
		"a token next to an error": {
			func(_ *http.Request, _ *httptest.ResponseRecorder, fields map[string]any) {
				if fields["code"] == "unsupported.grant.type" {
					fields["access_token"] = "token"
				}
			},
			map[string]string{"unified: another grant type: token": "there is one"},
		},
		"400 for an unknown organization": {
			func(_ *http.Request, a *httptest.ResponseRecorder, fields map[string]any) {
				if fields["code"] == "unknownError" {
					a.Code = http.StatusBadRequest
				}
			},
			map[string]string{"unified: an unknown organization: status": "400"},
		},
		"a token that is a number": {set("accessToken", 7), map[string]string{
			"right credentials: form of accessToken": "a number",
		}},
		"another message": {set("message", "invalid client"), map[string]string{
			"a wrong secret: message": "invalid client",
		}},
		"401 for a wrong secret": {
			func(_ *http.Request, a *httptest.ResponseRecorder, fields map[string]any) {
				if fields["code"] == rejectedCode {
					a.Code = http.StatusUnauthorized
				}
			},
			map[string]string{"a wrong secret: status": "401", "an unknown AppKey: status": "401"},
		},
		"another code for a form": {
			func(r *http.Request, _ *httptest.ResponseRecorder, fields map[string]any) {
				if r.Header.Get("Content-Type") == formType {
					fields["code"] = "MissingappKey"
				}
			},
			map[string]string{
				"the credentials as a form: code":   "MissingappKey",
				"JSON that says it is a form: code": "MissingappKey",
			},
		},
		"text/plain": {
			func(_ *http.Request, a *httptest.ResponseRecorder, _ map[string]any) {
				a.Header().Set("Content-Type", "text/plain; charset=utf-8")
			},
			map[string]string{"right credentials: Content-Type": "text/plain", "a wrong secret: Content-Type": "text/plain"},
		},
		"404 for a wrong path": {
			func(r *http.Request, a *httptest.ResponseRecorder, _ map[string]any) {
				if r.URL.Path == wrongPath {
					a.Code = http.StatusNotFound
				}
			},
			map[string]string{"a wrong path: status": "404"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				count = 0
				rows := rowsOf(t, spoiled(c.change))
				found := differing(rows)
				for what, came := range c.differs {
					assert.Contains(t, found[what].Got, came, "%s\n%s", what, tableOf(t, rows))
				}
				assert.Contains(t, tableOf(t, rows), "DIFFERS")
			})
		})
	}
}

func TestTable_every_check_can_fail(t *testing.T) {
	t.Parallel()
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(w, "<html></html>")
	})
	generous := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"accessToken":"a token for everybody"}`)
	})
	synctest.Test(t, func(t *testing.T) {
		found := differing(rowsOf(t, page))
		maps.Copy(found, differing(rowsOf(t, generous)))
		for _, r := range rowsOf(t, newSimulator()) {
			assert.Contains(t, found, r.Call+": "+r.Check)
		}
	})
}

func TestTable_without_responses_says_so_in_every_row(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		api := testAPI
		api.Transport = deadEnd{}
		rows, err := Run(t.Context(), api)
		require.NoError(t, err)
		assert.Len(t, differing(rows), len(rows))
		for _, r := range rows {
			assert.Equal(t, "no response: nobody there, <app secret>", r.Got)
		}
	})
}

type deadEnd struct{}

func (deadEnd) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("nobody there, %s", appSecret)
}

func TestRows_hold_no_secret_and_no_token_whatever_comes(t *testing.T) {
	t.Parallel()
	const token = "a-token/that+the=API=gives"
	text := fmt.Sprintf(
		"%s %s \x1b[31m %s %s %s %s\n",
		appSecret,
		token,
		url.QueryEscape(appSecret),
		url.PathEscape(token),
		base64.StdEncoding.EncodeToString([]byte(appSecret)),
		base64.StdEncoding.EncodeToString([]byte(token)),
	)
	hostile := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/"+token+"; "+appSecret)
		fields := map[string]any{"accessToken": token, "expireIn": text, "extra": text, appSecret: 1, token: 2}
		fields["access_token"], fields["expires_in"] = token, text
		for _, name := range []string{"code", "message", "requestid", "errcode", "errmsg"} {
			fields[name] = text
		}
		_ = json.NewEncoder(w).Encode(fields)
	})
	synctest.Test(t, func(t *testing.T) {
		out := tableOf(t, rowsOf(t, hostile))
		assert.Contains(t, out, "<app secret>")
		assert.Contains(t, out, "<token>")
		assert.NotContains(t, out, "\x1b")
		for _, secret := range []string{appSecret, token} {
			inJSON, err := json.Marshal(secret)
			require.NoError(t, err)
			for _, form := range []string{
				secret, url.QueryEscape(secret), url.PathEscape(secret), strings.Trim(string(inJSON), `"`),
				base64.StdEncoding.EncodeToString([]byte(secret)), secret[:12],
			} {
				assert.NotContains(t, out, form)
			}
		}
	})
}

func TestRun_refuses_what_it_cannot_ask(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*API){
		"not given: BaseURL":                    func(a *API) { a.BaseURL = "" },
		"not given: AppKey, AppSecret":          func(a *API) { a.AppKey, a.AppSecret = "", "" },
		"is not https://host":                   func(a *API) { a.BaseURL = "https://user:" + appSecret + "@api.test" },
		"is not https://host[:port]":            func(a *API) { a.BaseURL = "https://api.test" + tokenPath },
		"the base URL is not https":             func(a *API) { a.BaseURL = "api.test" },
		"the secret is not sent in clear text":  func(a *API) { a.BaseURL = "http://api.test" },
		"the CorpID is not letters and digits":  func(a *API) { a.CorpID = "../accessToken?" },
		"the secret is not sent in clear text ": func(a *API) { a.BaseURL = "http://192.0.2.1:80" },
	} {
		api := testAPI
		api.Transport = inProcess{
			http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") }),
			nil,
		}
		change(&api)
		rows, err := Run(t.Context(), api)
		require.ErrorContains(t, err, strings.TrimSpace(want))
		assert.NotContains(t, err.Error(), appSecret)
		assert.Empty(t, rows)
	}
}

func TestRun_ends_with_its_context(t *testing.T) {
	t.Parallel()
	calls := 0
	api := testAPI
	api.Transport = inProcess{http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }), nil}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := timeoutAfterTwoCalls(t)
		defer cancel()
		rows, err := Run(ctx, api)
		require.Error(t, err)
		assert.Equal(t, 2, calls)
		assert.NotEmpty(t, rows)
		assert.True(t, slices.ContainsFunc(rows, func(r Row) bool { return !r.OK() }))
	})
}

func timeoutAfterTwoCalls(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), repeatAfter+pace/2)
}
