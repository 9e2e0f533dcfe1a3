// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file has the fuzz targets: DingTalk's responses, base_url, a write to config/, the app's
// name, and sequences of operations on the simulation's world. `go test` runs their seeds and what
// is below testdata/fuzz; each looks for more with `go test -run '^$' -fuzz '^FuzzX$' .`

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/vault/sdk/helper/jsonutil"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// The secrets that the fuzzed responses may try to bring out: a plain one, one that every encoding
// changes, and a cached token.
const (
	fuzzSecret    = "plain-secret-0123456789"
	fuzzOddSecret = `odd"secret\with/every+kind%of&char<act>er'`
	fuzzToken     = "token-in-hand-9876543210"
)

// fuzzedBody puts the secrets in the place of their names, so that the fuzzer can put them
// anywhere.
func fuzzedBody(body []byte) []byte {
	quoted, _ := json.Marshal(fuzzOddSecret)
	for name, secret := range map[string]string{
		"$PLAIN": fuzzSecret, "$ODD": string(quoted[1 : len(quoted)-1]), "$TOKEN": fuzzToken,
		"$QUERY": url.QueryEscape(fuzzOddSecret), "$PATH": url.PathEscape(fuzzOddSecret),
		"$HUGE": strings.Repeat(" ", maxResponse),
	} {
		body = bytes.ReplaceAll(body, []byte(name), []byte(secret))
	}
	return body
}

// fieldsLike are the values of a JSON object's fields of that name in any spelling, as
// encoding/json would match them.
func fieldsLike(body []byte, name string) (values []any) {
	var object map[string]any
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // 1e999 is a number too
	if decoder.Decode(&object) != nil {
		return nil
	}
	for key, v := range object {
		if strings.EqualFold(key, name) {
			values = append(values, v)
		}
	}
	return values
}

func FuzzReadResponse(f *testing.F) {
	for _, seed := range []struct {
		status                  int
		contentType, retryAfter string
		body                    string
	}{
		{200, "application/json", "", `{"accessToken":"fw8ef8we8f76e6f7s8dxxxx","expireIn":7200}`},
		{200, "application/json", "", `{"AccessToken":"t","EXPIREIN":7.2e3}`},
		{200, "application/json", "", `{"accessToken":"t","expireIn":1e999}`},
		{200, "application/json", "", `{"accessToken":"t","expireIn":0.5}`},
		{200, "application/json", "", `{"accessToken":"t","expireIn":"7200"}`},
		{200, "application/json", "", `{"accessToken":"","expireIn":7200}`},
		{200, "application/json", "", `{"errcode":404,"errmsg":"no such path: $PLAIN"}`},
		{201, "application/json", "", `{"accessToken":"$TOKEN","expireIn":7200}`},
		{400, "application/json", "", `{"requestid":"01A08FE7","code":"invalidClientIdOrSecret","message":"无效的clientId或者clientSecret $ODD"}`},
		{400, "application/json", "", `{"requestId":"$QUERY","Code":"$PATH","Message":"$TOKEN $PLAIN$PLAIN"}`},
		{403, "application/json", "", `{"code":"Forbidden.AccessDenied.IpNotInWhiteList","message":"a\u0000b\u001b[31m\u202e\ufffd"}`},
		{403, "application/json", "30", `{"code":"Forbidden.AccessDenied.QpsLimitForApi","message":"plain-sec\u200bret-0123456789"}`},
		{429, "application/json", "Wed, 21 Oct 2065 07:28:00 GMT", `{"code":"system.busy","message":"系统繁忙"}`},
		{429, "application/json", "18446744073709551616", `{}`},
		{429, "text/html; charset=utf-8", "-1", "<html>"},
		{200, "application/json", "", `{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"xxx"}`},
		{403, "application/json", "", `{"status":"1111","code":"x"}`},
		{500, "application/json", "", `{"code":"unknownError","punish":"deny"}`},
		{503, "", "120", ""},
		{302, "text/html", "", `{"accessToken":"t","expireIn":7200}`},
		{404, "text/html", "", "<!doctype html>"},
		{200, "application/json", "", `null`},
		{200, "application/json", "", `[{"accessToken":"t"}]`},
		{400, "application/json", "", "{\"code\":\"a\",\"message\":\"\xff\xfe" + strings.Repeat("令", 100) + "$PLAIN\"}"},
		{400, "application/json", "", `{"code":"` + strings.Repeat("x", 240) + `$PLAIN","message":{"a":1},"requestid":12.5}`},
		{200, "application/json", "", `{}$HUGE`},
		{400, "application/json", "", `{"code":"x",$HUGE"message":"y"}`},
	} {
		f.Add(seed.status, seed.contentType, seed.retryAfter, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status int, contentType, retry string, body []byte) {
		body = fuzzedBody(body)
		header := http.Header{"Content-Type": {contentType}, "Retry-After": {retry}}
		secrets := []sensitive{newSensitive(fuzzSecret), newSensitive(fuzzOddSecret), newSensitive(fuzzToken)}
		got, failure := readResponse(status, header, body, secrets...)

		if failure == nil {
			value := got.accessToken.reveal()
			switch {
			case status != http.StatusOK:
				t.Fatalf("a token out of a status %d", status)
			case value == "" || !slices.Contains(fieldsLike(body, "accessToken"), any(value)):
				t.Fatalf("the token %q is not in the response", value)
			case got.expireIn < time.Second || got.expireIn > maxExpireIn || got.expireIn%time.Second != 0:
				t.Fatalf("a token that lives %s", got.expireIn)
			case !slices.ContainsFunc(fieldsLike(body, "expireIn"),
				func(v any) bool { n, ok := v.(json.Number); return ok && n[0] != '-' }):
				t.Fatal("expireIn is not a positive number")
			}
			return
		}

		if got.accessToken.reveal() != "" || got.expireIn != 0 {
			t.Fatal("a token next to an error")
		}
		if failure.retryAfter < 0 || failure.retryAfter > maxRetryAfter {
			t.Fatalf("a Retry-After of %s", failure.retryAfter)
		}
		hasCode := slices.ContainsFunc(fieldsLike(body, "code"),
			func(v any) bool { s, ok := v.(string); return ok && s != "" })
		switch failure.class {
		case classBanned:
			// With several spellings of a field the last one counts, which the map does not tell.
			if hasCode && len(fieldsLike(body, "code")) == 1 {
				t.Fatal("a ban with a code")
			}
		case classRejectedCredentials, classForbiddenIP, classRejectedRequest:
			if status < 400 || status >= 500 || !hasCode && len(fieldsLike(body, "code")) == 0 {
				t.Fatalf("%s out of a status %d", failure.class, status)
			}
		case classThrottled:
			if status < 400 {
				t.Fatalf("%s out of a status %d", failure.class, status)
			}
		case classUnavailable:
			if status < 500 {
				t.Fatalf("%s out of a status %d", failure.class, status)
			}
		case classRedirect:
			if status < 300 || status >= 400 {
				t.Fatalf("%s out of a status %d", failure.class, status)
			}
		case classMalformed:
			if status >= 500 {
				t.Fatalf("%s out of a status %d", failure.class, status)
			}
		default:
			t.Fatalf("%q is no class of a response", failure.class)
		}
		for _, text := range []string{failure.code, failure.message, failure.requestID} {
			checkShownText(t, text, maxShownText)
		}
		checkShownText(t, failure.Error(), 5*maxShownText)
		checkShownText(t, failure.describe("app", defaultBaseURL), 6*maxShownText)
	})
}

func checkShownText(t *testing.T, text string, most int) {
	t.Helper()
	checkPrintable(t, text, most)
	quoted := strconv.Quote(fuzzOddSecret)
	for _, secret := range []string{
		fuzzSecret, fuzzOddSecret, fuzzToken, url.QueryEscape(fuzzOddSecret),
		url.PathEscape(fuzzOddSecret), quoted[1 : len(quoted)-1],
	} {
		if strings.Contains(text, secret) {
			t.Fatalf("%q holds a secret", text)
		}
	}
}

// FuzzShownText: whatever the secret, the token and the text, what is shown keeps its bound and
// holds no run of eight characters of them in any spelling.
func FuzzShownText(f *testing.F) {
	for name, spell := range spellings {
		f.Add(fuzzOddSecret, fuzzToken, "the secret "+spell(fuzzOddSecret)+" is wrong")
		f.Add(fuzzSecret, fuzzToken, name+": "+spell(fuzzToken[4:12])+spell(fuzzSecret[2:10]))
	}
	f.Add("e", "[", strings.Repeat("e[", 100))
	f.Add("redacted", "withheld", "withheld: it repeats the request")
	f.Fuzz(func(t *testing.T, secret, tok, given string) {
		secrets := []sensitive{newSensitive(secret), newSensitive(tok)}
		for _, shown := range []string{showText(given, secrets), showIdentifier(given, secrets)} {
			checkPrintable(t, shown, maxShownText)
			if shown == withheld || shown == "" {
				continue
			}
			for _, hidden := range []string{secret, tok} {
				if strings.ContainsFunc(hidden, func(r rune) bool { return r <= ' ' || r > '~' }) {
					continue // neither a secret nor a token
				}
				for at := 0; at+8 <= len(hidden); at++ {
					for name, spell := range spellings {
						if strings.Contains(shown, spell(hidden[at:at+8])) {
							t.Fatalf("%q holds %q, %s", shown, hidden[at:at+8], name)
						}
					}
				}
				if hidden != "" && strings.Contains(shown, hidden) {
					t.Fatalf("%q holds %q", shown, hidden)
				}
			}
		}
	})
}

func checkPrintable(t *testing.T, text string, most int) {
	t.Helper()
	switch {
	case !utf8.ValidString(text):
		t.Fatalf("%q is not UTF-8", text)
	case len(text) > most:
		t.Fatalf("%q has %d bytes", text, len(text))
	case strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError
	}):
		t.Fatalf("%q has control characters", text)
	}
}

func FuzzBaseURL(f *testing.F) {
	for _, seed := range []string{
		"https://api.dingtalk.io", "https://api.dingtalk.com/", "HTTPS://API.DingTalk.IO:443", "https://api.dingtalk.io:",
		"https://a.b:65536", "https://a.b:0",
		"http://localhost", "http://LocalHost:8080/", "http://127.0.0.1:80", "http://127.255.255.254", "http://[::1]:9",
		"http://[::ffff:127.0.0.1]",
		"http://127.1", "http://0x7f.1", "http://0177.0.0.1", "http://localhost.", "http://localhost.example.com",
		"http://127.0.0.1.nip.io", "http://[::]", "http://0.0.0.0",
		"http://10.0.0.1", "http://[fe80::1%25lo]", "https://[2001:db8::1]", "https://2001:db8::1", "http://::1:80",
		"https://[1.2.3.4]", "http://[127.0.0.1]", "http://[localhost]",
		"https://u:p@host", "https://host/path", "https://host//", "https://host?q", "https://host#f", `https://host\@evil`,
		"https://host%2eevil", "https:host", "https:///", "//host", "ftp://host",
		"https://host:80:90", "https://host;x", "https://ho st", "https://h\u00f6st", "", " https://host", "https://host\n",
		"https://..", "https://a..b", "https://.a", "https://-", "https://_",
		"https://host:00443", "https://host:+1", "https://" + strings.Repeat("a", 254),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, given string) {
		stored, err := parseBaseURL(given)
		if err != nil {
			text := err.Error()
			if stored != "" || !strings.Contains(text, fieldBaseURL) || !strings.Contains(text, "allowed") {
				t.Fatalf("%q gives %q and %q", given, stored, text)
			}
			if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
				t.Fatalf("the error %q repeats what cannot be shown", text)
			}
			const password = "correct-horse-battery"
			if _, err := parseBaseURL(strings.Replace(given, "@", password+"@", 1)); err != nil &&
				strings.Contains(err.Error(), password) {
				t.Fatalf("the error %q repeats a password", err)
			}
			return
		}

		if again, err := parseBaseURL(stored); err != nil || again != stored {
			t.Fatalf("%q is stored as %q, that as %q: %v", given, stored, again, err)
		}
		asked, err := url.Parse(given)
		if err != nil {
			t.Fatalf("%q is no URL and was taken: %v", given, err)
		}
		u, err := url.Parse(stored)
		switch {
		case err != nil:
			t.Fatalf("%q is stored as %q: %v", given, stored, err)
		case !sameHost(u, asked) || u.Scheme != asked.Scheme:
			t.Fatalf("%q is stored as %q, which is another host", given, stored)
		case *u != url.URL{Scheme: u.Scheme, Host: u.Host} || u.Scheme+"://"+u.Host != stored:
			t.Fatalf("%q is stored as %q, which is more than a scheme and a host", given, stored)
		case u.Hostname() == "" || strings.Contains(u.Hostname(), "%"):
			t.Fatalf("%q is stored as %q, which has no host", given, stored)
		}
		// The URL must mean to every reader what it means here: an address with colons stands in
		// brackets.
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.Is6() != strings.HasPrefix(u.Host, "[") {
			t.Fatalf("%q is stored as %q, whose port others take for a part of the address", given, stored)
		}
		if u.Scheme == "https" {
			return
		}
		ip, err := netip.ParseAddr(u.Hostname())
		isLiteral := err == nil && ip.Zone() == "" && (ip.Is4() && ip.IsLoopback() || ip == netip.IPv6Loopback())
		if u.Scheme != "http" || u.Hostname() != "localhost" && !isLiteral {
			t.Fatalf("%q is stored as %q, where the secret would go in clear", given, stored)
		}
	})
}

// sameHost reports whether two URLs of one scheme reach the same port of the same host.
func sameHost(a, b *url.URL) bool {
	meant := func(u *url.URL) (host string, port int) {
		host = strings.ToLower(u.Hostname())
		if ip, err := netip.ParseAddr(host); err == nil {
			host = ip.Unmap().String()
		}
		port, err := strconv.Atoi(u.Port())
		if err != nil {
			port = map[string]int{"https": 443, "http": 80}[u.Scheme]
		}
		return host, port
	}
	hostA, portA := meant(a)
	hostB, portB := meant(b)
	return hostA == hostB && portA == portB
}

// modelDuration is what a duration field means: whole seconds, as a number or in Go's notation,
// which Vault extends by days.
func modelDuration(v any) (seconds int64, ok bool) {
	s := strings.TrimSpace(fmt.Sprint(v))
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, true
	}
	if days, found := strings.CutSuffix(s, "d"); found {
		n, err := strconv.ParseInt(days, 10, 64)
		return n * 86400, err == nil
	}
	d, err := time.ParseDuration(s)
	return int64(d / time.Second), err == nil && d%time.Second == 0
}

// modelConfig is what config/ responds after a write that was taken. It says why the write must not
// have been.
func modelConfig(before, data map[string]any) (after map[string]any, wrong string) {
	after = map[string]any{
		fieldBaseURL: defaultBaseURL, fieldRefreshBefore: int64(200), fieldRequestTimeout: int64(10),
		fieldLeased: true,
	}
	maps.Copy(after, before)
	for field, v := range data {
		switch field {
		case fieldAppKey, fieldBaseURL:
			s, isString := v.(string)
			if !isString {
				return nil, field + " is not a string"
			}
			if field == fieldBaseURL {
				u, err := url.Parse(s)
				if err != nil {
					return nil, field + " is not a URL"
				}
				s = u.Scheme + "://" + strings.TrimSuffix(strings.ToLower(u.Host), ":")
			}
			after[field] = s
		case fieldAppSecret:
			if _, isString := v.(string); !isString {
				return nil, field + " is not a string"
			}
		case fieldRefreshBefore, fieldRequestTimeout:
			n, ok := modelDuration(v)
			least, most := int64(0), int64(3600)
			if field == fieldRequestTimeout {
				least, most = 1, 30
			}
			if !ok || n < least || n > most {
				return nil, fmt.Sprintf("%s is %v", field, v)
			}
			after[field] = n
		case fieldLeased, fieldVerifyConnection:
			b, err := strconv.ParseBool(strings.TrimSpace(fmt.Sprint(v)))
			if err != nil {
				return nil, fmt.Sprintf("%s is %v", field, v)
			}
			if field == fieldLeased {
				after[field] = b
			}
		}
	}
	for _, field := range []string{fieldAppKey, fieldAppSecret} {
		if _, given := data[field]; before == nil && !given {
			return nil, field + " is missing"
		}
	}
	if _, given := data[fieldAppSecret]; before != nil && !given &&
		(after[fieldAppKey] != before[fieldAppKey] || after[fieldBaseURL] != before[fieldBaseURL]) {
		return nil, "the app moved without its secret"
	}
	key := after[fieldAppKey].(string)
	if key == "" || len(key) > maxCredentialLength || strings.ContainsFunc(key,
		func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, "the key is not printable"
	}
	return after, ""
}

// stringsIn are all strings in a JSON value that are long enough to be recognised.
func stringsIn(v any) (found []string) {
	switch v := v.(type) {
	case string:
		if len(v) >= 8 {
			found = append(found, v)
		}
	case []any:
		for _, e := range v {
			found = append(found, stringsIn(e)...)
		}
	case map[string]any:
		for k, e := range v {
			found = append(append(found, stringsIn(k)...), stringsIn(e)...)
		}
	}
	return found
}

func FuzzConfigWrite(f *testing.F) {
	for _, body := range []string{
		`{"app_key":"k","app_secret":"correct-horse-battery"}`,
		`{"app_key":"k","app_secret":"correct-horse-battery\n","base_url":"https://API.dingtalk.com/"` +
			`,"refresh_before":"5m","request_timeout":30,"leased":"false","verify_connection":false}`,
		`{"app_key":"k","app_secret":["correct-horse-battery","correct-horse-staple"]}`,
		`{"app_key":"k","app_secret":{"correct-horse-battery":"correct-horse-staple"}}`,
		`{"app_key":"k","app_secret":123456789012}`, `{"app_key":"k","app_secret":null}`, `{"app_key":"k","app_secret":true}`,
		`{"app_key":"k","app_secret":"correct horse battery"}`, `{"app_key":"k","app_secret":"correct-horse-b\u00e4ttery"}`,
		`{"app_key":"","app_secret":""}`,
		`{"app_secret":"another-secret-1234"}`, `{"app_key":"k2"}`, `{"base_url":"https://evil.example.com"}`,
		`{"base_url":"https://api.dingtalk.io/"}`,
		`{"app_key":"dingtestkey","base_url":"https://API.DINGTALK.IO"}`,
		`{"refresh_before":"500ms"}`, `{"refresh_before":"-0.5s"}`, `{"refresh_before":""}`, `{"refresh_before":3601}`,
		`{"refresh_before":"1h"}`, `{"refresh_before":1e2}`, `{"refresh_before":100.0}`,
		`{"refresh_before":"0d"}`, `{"refresh_before":" 10 "}`, `{"refresh_before":"0x10"}`, `{"refresh_before":"1_0"}`,
		`{"refresh_before":["1s"]}`, `{"request_timeout":"0"}`, `{"request_timeout":"30s"}`, `{"request_timeout":31}`,
		`{"leased":null}`, `{"leased":"maybe"}`, `{"leased":1}`, `{"leased":"T"}`, `{"leased":2}`,
		`{"verify_connection":true}`, `{"verify_connection":{}}`,
		`{"app":"elsewhere","leased":false}`, `{"unknown":"x","app_secret":"correct-horse-battery"}`, `{}`,
		`{"app_key":["dingtestkey"]}`,
	} {
		for how := range uint8(4) {
			f.Add(how, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, how uint8, body []byte) {
		var data map[string]any
		if jsonutil.DecodeJSON(body, &data) != nil || data == nil {
			return // Vault answers that itself
		}
		exists, op := how&1 != 0, logical.Operation(logical.UpdateOperation)
		if how&2 != 0 {
			op = logical.PatchOperation
		}
		synctest.Test(t, func(t *testing.T) { fuzzConfigWrite(t, exists, op, data) })
	})
}

func fuzzConfigWrite(t *testing.T, exists bool, op logical.Operation, data map[string]any) {
	t.Helper()
	// Here DingTalk takes whatever it is given: a failure is the engine's own.
	storage := &logical.InmemStorage{}
	m := mountOver(t, storage, answers(func(*http.Request) (int, string) {
		return http.StatusOK, `{"accessToken":"the-token-of-this-run","expireIn":7200}`
	}))
	var before map[string]any
	if exists {
		m.configure(theApp, map[string]any{"base_url": defaultBaseURL})
		m.token(theApp)
		before = m.do(logical.ReadOperation, "config/myapp", nil).Data
	}
	config, tok := m.stored("config/myapp"), m.stored("token/myapp")
	const common = theSecret + theKey + "config/myapp the configuration" // which a short secret may happen to be part of
	secrets := stringsIn(data[fieldAppSecret])
	var others strings.Builder
	for field, v := range data {
		if field != fieldAppSecret {
			fmt.Fprintf(&others, "%s %v", field, v)
		}
	}

	want, wrong := modelConfig(before, data)
	if op == logical.PatchOperation && !exists && wrong == "" {
		wrong = "there is nothing to patch"
	}
	got := m.do(op, "config/myapp", maps.Clone(data))

	shown := m.log.String() + fmt.Sprint(got.err)
	if got.Response != nil {
		shown += fmt.Sprint(got.Data, got.Warnings)
	}
	for _, secret := range secrets {
		if strings.Contains(shown, secret) && !strings.Contains(others.String(), secret) &&
			!strings.Contains(common, secret) {
			t.Fatalf("the secret %q is shown: %s", secret, shown)
		}
	}
	switch got.status {
	case http.StatusNoContent, http.StatusOK:
		if wrong != "" {
			t.Fatalf("%v was taken though %s", data, wrong)
		}
		read := m.do(logical.ReadOperation, "config/myapp", nil)
		if !reflect.DeepEqual(read.Data, want) {
			t.Fatalf("after %v config/ holds %v, not %v", data, read.Data, want)
		}
		stored := m.stored("config/myapp")
		if secret, given := data[fieldAppSecret].(string); given &&
			stored["app_secret"] != strings.TrimSuffix(strings.TrimSuffix(secret, "\n"), "\r") {
			t.Fatalf("the secret is stored as %q", stored["app_secret"])
		}
		newGeneration := config == nil || stored["app_key"] != config["app_key"] ||
			stored["app_secret"] != config["app_secret"] || stored["base_url"] != config["base_url"]
		if exists && newGeneration != (stored["generation"] != config["generation"]) {
			t.Fatalf("new credentials: %t, but generation %v after %v", newGeneration, stored["generation"],
				config["generation"])
		}
		if m.token(theApp) != "the-token-of-this-run" {
			t.Fatal("another token")
		}
	case http.StatusBadRequest, http.StatusNotFound:
		if !reflect.DeepEqual(m.stored("config/myapp"), config) || !reflect.DeepEqual(m.stored("token/myapp"), tok) {
			t.Fatalf("%v was refused with %v, and changed what is stored", data, got.err)
		}
		if got.status == http.StatusNotFound && (exists || op != logical.PatchOperation) {
			t.Fatalf("%v got a 404", data)
		}
	default:
		t.Fatalf("%v got %d: %v", data, got.status, got.err)
	}
}

// answers is an upstream that responds to every call at once.
type answers func(*http.Request) (status int, body string)

// RoundTrip implements http.RoundTripper.
func (f answers) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := f(r)
	return &http.Response{
		StatusCode: status, Header: http.Header{}, Body: readCloser{strings.NewReader(body)},
		Request: r,
	}, nil
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

// contractName is what an app may be called, written as the contract says it.
var contractName = regexp.MustCompile(`\A[0-9A-Za-z_]([0-9A-Za-z_.-]*[0-9A-Za-z_])?\z`)

func FuzzAppName(f *testing.F) {
	for _, name := range []string{
		"myapp", "a", "_", "a.b-c_d", "A1", "", "/", "a/b", "a/", "/a", "..", "../token/a", "a..b", ".a", "a.", "-a", "a-",
		"a b", "a\n", "a\x00", "a%2fb", "ä", "token/a", "config",
		strings.Repeat("a", 128), strings.Repeat("a", 129), strings.Repeat("a", 5000), "a?list=true", "a\u2028", "a/../b",
		`a\b`,
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		synctest.Test(t, func(t *testing.T) { fuzzAppName(t, name) })
	})
}

func fuzzAppName(t *testing.T, name string) {
	t.Helper()
	m := mountOver(t, &logical.InmemStorage{}, answers(func(*http.Request) (int, string) {
		return http.StatusOK,
			`{"accessToken":"t","expireIn":7200}`
	}))
	good := contractName.MatchString(name) && len(name) <= maxNameLength && !strings.Contains(name, "..")
	check := func(op logical.Operation, path string, data map[string]any) {
		t.Helper()
		m.storage.fail(nil)
		got := m.do(op, path, data)
		for _, call := range m.storage.calls() {
			op, key, _ := strings.Cut(call, " ")
			if op == "list" && (key == configPrefix || key == tokenPrefix) {
				continue
			}
			kind, app, found := strings.Cut(key, "/")
			if !found || kind != "config" && kind != "token" || app != name || !good {
				t.Fatalf("%s %q reaches storage: %s %q", op, path, op, key)
			}
		}
		switch {
		case good && got.err != nil:
			t.Fatalf("%s %q: %v", op, path, got.err)
		case !good && name != "" && got.err == nil:
			t.Fatalf("%s %q worked: %v", op, path, got)
		case !good && len(contractName.FindString(name)) > maxNameLength &&
			(got.status != http.StatusBadRequest || len(got.err.Error()) > 400):
			t.Fatalf("%s of a name of %d bytes got %d: %v", op, len(name), got.status, got.err)
		}
	}
	check(logical.UpdateOperation, "config/"+name, map[string]any{"app_key": "k", "app_secret": "s"})
	check(logical.PatchOperation, "config/"+name, map[string]any{"leased": false})
	check(logical.ReadOperation, "config/"+name, nil)
	check(logical.ReadOperation, "creds/"+name, nil)
	check(logical.ReadOperation, "status/"+name, nil)
	check(logical.UpdateOperation, "refresh/"+name, nil)
	m.transport = answers(func(*http.Request) (int, string) { return http.StatusServiceUnavailable, "" })
	m.start()
	check(logical.ReadOperation, "creds/"+name, nil) // the stored token is found again
	m.engine.InvalidateKey(t.Context(), "config/"+name)
	m.engine.InvalidateKey(t.Context(), name)
	if names := m.do(logical.ListOperation, "config/", nil); good != reflect.DeepEqual(names.Data["keys"],
		[]string{name}) {
		t.Fatalf("the list has %v", names.Data)
	}
	check(logical.DeleteOperation, "config/"+name, nil)
	for _, prefix := range []string{configPrefix, tokenPrefix} {
		if left, err := m.storage.Storage.List(t.Context(), prefix); err != nil || len(left) > 0 {
			t.Fatalf("%s has %v left: %v", prefix, left, err)
		}
	}
}

// The operations, each followed by an argument: the app's number and three times what else there is
// to choose.
const (
	opReadBeside byte = iota
	opConfigure
	opPatch
	opTune
	opRotateInVault
	opMove
	opRotateAtDingTalk
	opDelete
	opMinTTL
	opRenew
	opRevoke
	opRefresh
	opStatus
	opSleep
	opSleepLong
	opMood
	opStorage
	opRestart
	opInvalidate
	opPeriodic
	opSpeed
	opWriteElsewhere
	opDeleteElsewhere
	opRead // and all above, which makes it one in four
	ops    = 32
)

// moods are what DingTalk does with all calls at a time; that of opMood is a good one half of the
// time.
var moods = []simulator.Fault{
	{},
	{Kind: simulator.FaultUnavailableEmpty},
	{Kind: simulator.FaultReset},
	{Kind: simulator.FaultHang},
	{Kind: simulator.FaultThrottledBusy, RetryAfter: "120"},
	{Kind: simulator.FaultBanned},
	{Kind: simulator.FaultErrcode},
}

// The calls to storage of which opStorage makes all, or some, go wrong.
var faultyCalls = []func(n int, op, key string) bool{
	func(int, string, string) bool { return true },
	func(_ int, _, key string) bool { return strings.HasPrefix(key, tokenPrefix) },
	func(_ int, _, key string) bool { return strings.HasPrefix(key, configPrefix) },
	func(_ int, op, _ string) bool { return op == "put" || op == "delete" },
	func(n int, _, _ string) bool { return n%3 == 2 },
}

// operations drives a small world of the simulation's: three apps, of which the first two share an
// app key, each with two keys and three secrets at either host.
type operations struct {
	*world
	mood   simulator.Fault
	leases []*leaseHeld
}

var bothHosts = [...]string{mainHost, otherHost}

// run carries out a script and then sees to it that all is well again as soon as nothing is wrong.
func (o *operations) run(script []byte) {
	o.small, o.ends = true, o.ends.AddDate(1, 0, 0)
	for _, a := range o.apps {
		for n := range 2 * 2 * 3 {
			o.credentials(a, bothHosts[n/6], o.keys(a)[n/3%2], n%3).accepted = n%3 == 0
		}
	}
	for i := 0; i+1 < len(script) && i < 2*150 && !o.t.Failed(); i += 2 {
		arg := int(script[i+1])
		a := o.apps[arg%len(o.apps)]
		o.operate(script[i]%ops, arg/len(o.apps), a)
		o.sleep(settled)
	}
	o.recover()
	if o.t.Failed() {
		o.t.Fatalf("after:\n  %s", strings.Join(o.history, "\n  "))
	}
}

func (o *operations) keys(a *simulatedApp) [2]string {
	if a == o.apps[1] {
		return [...]string{o.keys(o.apps[0])[0], "key-1-of-" + a.name}
	}
	return [...]string{"key-0-of-" + a.name, "key-1-of-" + a.name}
}

// chosen are the app's credentials of these numbers.
func (o *operations) chosen(a *simulatedApp, host, key, number int) *generation {
	secret := fmt.Sprintf("secret-%d-of-%s", number, a.name)
	return o.generations[bothHosts[host]+" "+o.keys(a)[key]+" "+secret]
}

func (o *operations) operate(op byte, arg int, a *simulatedApp) {
	o.mu.Lock()
	o.note("operation %d with %d on %s", op, arg, a.name)
	o.mu.Unlock()
	i, inForce, data := o.active.Load(), o.moment(a).inForce, map[string]any{}
	switch op {
	case opReadBeside:
		o.actors.Go(func() { o.read(a, nil) })
		synctest.Wait()
	case opConfigure:
		if arg/12%3 > 0 {
			data[fieldVerifyConnection] = arg/12%3 == 1
		}
		o.write(a, logical.UpdateOperation, o.chosen(a, arg/6%2, arg%2, arg/2%3), data)
	case opPatch:
		o.write(a, logical.PatchOperation, nil, map[string]any{fieldLeased: arg%2 == 0, fieldRefreshBefore: arg * 40})
	case opTune:
		data[fieldRequestTimeout], data[fieldVerifyConnection] = 1+arg%30, arg%4 == 0
		o.write(a, logical.UpdateOperation, nil, data)
	case opRotateInVault:
		g := o.chosen(a, 0, 0, arg%3)
		if inForce != nil {
			g = o.generations[inForce.host+" "+inForce.key+" "+g.secret]
		}
		if arg/3%2 == 1 {
			data[fieldVerifyConnection] = false
		}
		o.write(a, logical.UpdateOperation, g, data)
	case opMove: // without the secret
		data[fieldBaseURL], data[fieldVerifyConnection] = bothHosts[arg%2], false
		if arg/2%2 == 1 {
			delete(data, fieldBaseURL)
			data[fieldAppKey] = o.keys(a)[arg%2]
		}
		o.write(a, logical.PatchOperation, nil, data)
	case opRotateAtDingTalk:
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, g := range o.generations {
			if g.key == o.keys(a)[arg%2] {
				g.accepted = g.number == arg/2%3 || g.number == arg/6%3
			}
		}
	case opDelete:
		o.delete(a)
	case opMinTTL:
		o.read(a, map[string]any{fieldMinTTL: (arg + 1) * 90})
	case opRenew:
		if n := len(o.leases); n > 0 {
			l := o.leases[arg%n]
			l.increment = time.Duration(arg/n%2) * 24 * time.Hour
			_, _ = o.renew(l)
		}
	case opRevoke:
		if n := len(o.leases); n > 0 {
			o.revoke(o.leases[arg%n])
		}
	case opRefresh:
		o.refresh(a)
	case opStatus:
		o.status(a)
	case opSleep:
		o.sleep(time.Duration(arg) * 213 * time.Millisecond)
	case opSleepLong:
		o.sleep(time.Duration(arg+1) * 97 * time.Second)
	case opMood:
		delay := o.mood.Delay
		o.mood = []simulator.Fault{moods[arg%len(moods)], {}}[arg/len(moods)%2]
		o.mood.Delay = delay
		o.setMood()
	case opStorage:
		o.failStorage(arg%4, faultyCalls[arg/4%len(faultyCalls)])
	case opRestart:
		i.clean()
		o.active.Store(o.newInstance(0))
	case opInvalidate:
		o.invalidate(i, a, []string{configPrefix, tokenPrefix}[arg%2])
	case opPeriodic:
		i.tickAsVault()
	case opSpeed:
		o.mood.Delay = time.Duration(arg%6*arg) * 50 * time.Millisecond
		o.setMood()
		for host, server := range o.hosts {
			for _, g := range o.generations {
				server.RotateTokens(g.key, arg%2 == 1)
			}
			server.SetTokenLifetime([]time.Duration{
				lifetimeAt(host), 20 * time.Second, 5 * time.Minute,
				3 * time.Second,
			}[arg/6%4])
		}
	case opWriteElsewhere:
		data[fieldLeased], data[fieldVerifyConnection] = arg/6%2 == 0, false
		o.elsewhere(a, func() { o.write(a, logical.UpdateOperation, o.chosen(a, 0, arg%2, arg/2%3), data) })
	case opDeleteElsewhere:
		o.elsewhere(a, func() { o.delete(a) })
	default:
		if l := o.issue(a); l != nil && arg%4 == 0 {
			o.leases = append(o.leases, l)
		}
	}
}

func (o *operations) setMood() {
	for _, server := range o.hosts {
		server.SetFault(simulator.AnyApp, o.mood)
	}
}

// failStorage lets calls to storage fail, before their effect or after it.
func (o *operations) failStorage(mode int, meets func(n int, op, key string) bool) {
	o.mu.Lock()
	o.fails = func(n int, op, key string) storageFault {
		if mode%3 == 0 || !meets(n, op, key) {
			return storageFault{}
		}
		return storageFault{err: errStorage, after: mode == 2}
	}
	o.mu.Unlock()
	o.active.Load().storage.fail(o.storageFault) // which counts anew
}

// status reads the app's status and configuration.
func (o *operations) status(a *simulatedApp) {
	o.look(a, &logical.Request{Operation: logical.ReadOperation, Path: statusPrefix + a.name})
	got := o.active.Load().do(logical.ReadOperation, configPrefix+a.name, nil)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.checkResponse(a, logical.ReadOperation, configPrefix+a.name, got)
	switch c := a.tuning; {
	case a.inForce == nil && got.status == http.StatusNotFound, got.err != nil && time.Since(a.faulted) < settled:
	case a.inForce == nil, got.err != nil, got.Data[fieldAppKey] != a.inForce.key,
		got.Data[fieldBaseURL] != a.inForce.host,
		got.Data[fieldLeased] != c.leased, got.Data[fieldRefreshBefore] != int64(c.refreshBefore/time.Second),
		got.Data[fieldRequestTimeout] != int64(c.timeout/time.Second):
		o.violateLocked(a, "true configuration", "%v, %v", got, c)
	}
}

// invalidate tells an instance that another node changed what is stored of an app.
func (o *operations) invalidate(i *instance, a *simulatedApp, key string) {
	i.engine.InvalidateKey(o.t.Context(), key+a.name)
	o.mu.Lock()
	defer o.mu.Unlock()
	i.forget(a)
}

// elsewhere lets another node change an app.
func (o *operations) elsewhere(a *simulatedApp, change func()) {
	here := o.active.Load()
	there := o.newInstance(0)
	o.mu.Lock()
	here.deposed = false
	o.mu.Unlock()
	o.active.Store(there)
	change()
	there.clean()
	o.active.Store(here)
	for _, key := range []string{configPrefix, tokenPrefix} {
		o.invalidate(here, a, key)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for g := range here.known {
		if g.app == a {
			here.known[g] = nil
		}
	}
	if a.stored != nil {
		here.known[a.stored.of] = []*delivery{a.stored}
	}
}

// recover mends everything, waits until nothing can stand against a fetch, and reads: before a
// restart and after it, where what is stored must do.
func (o *operations) recover() {
	o.mood = simulator.Fault{}
	o.setMood()
	for host, server := range o.hosts {
		server.SetTokenLifetime(lifetimeAt(host))
	}
	o.failStorage(0, nil)
	o.sleep(longestRetryAfter + 30*time.Second + longestBackOff)
	o.actors.Wait()
	for range 2 {
		for _, a := range o.apps {
			o.status(a)
			o.read(a, nil)
			o.sleep(settled)
		}
		o.active.Load().requireNoLock()
		o.operate(opRestart, 0, o.apps[0])
	}
	o.active.Load().clean()
}

func FuzzOperations(f *testing.F) {
	f.Add([]byte{})
	const (
		// Arguments: the app, and what the operation does with it.
		first, second, third = 0, 1, 2
		unverified           = 3 * 24 // of opConfigure
		secret1              = 3 * 2  // of opConfigure and opRotateAtDingTalk; both secrets are good there
		otherHost            = 3 * 6
		rotated              = 3 * 1       // of opRotateInVault, verified
		rotatedUnverified    = 3 * (1 + 3) // and not

		// Arguments of opMood.
		unavailable, hanging, throttling, banning = 3 * 1, 3 * 3, 3 * 4, 3 * 5

		// Arguments of opStorage: what fails without effect or with it, and what of that.
		before, after                   = 3 * 1, 3 * 2
		tokens, configs, writes, aThird = 3 * 4 * 1, 3 * 4 * 2, 3 * 4 * 3, 3 * 4 * 4
	)
	for _, script := range [][]byte{
		// A token through its life, with the background and without.
		{opConfigure, first, opRead, first, opSleepLong, 210, opRead, first, opPeriodic, 0, opSleepLong, 9, opRead, first},
		// DingTalk fails, the token does not at once.
		{
			opConfigure, first, opRead, first, opMood, unavailable, opSleepLong, 216, opRead, first, opRead, first,
			opSleepLong, 9, opRead, first,
		},
		// Back-off grows: ten seconds after the second failure.
		{
			opConfigure, unverified, opMood, unavailable, opRead, first, opSleep, 90, opRead, first, opSleep, 100, opRead,
			first,
		},
		// The response arrives while the app is deleted, and is not stored.
		{opConfigure, unverified, opSpeed, 3, opReadBeside, first, opDelete, first, opConfigure, unverified, opRead, first},
		// A secret is rotated, the old one good for a while.
		{
			opConfigure, first, opRead, first, opRotateAtDingTalk, secret1, opRotateInVault, rotated, opRead, first, opRestart,
			0, opRead, first,
		},
		// A lease whose app is deleted.
		{
			opConfigure, first, opRead, first, opRenew, 0, opSleepLong, 120, opRenew, 3, opDelete, first, opRenew, 0, opRevoke,
			0,
		},
		// Storage fails across a restart.
		{
			opConfigure, first, opRead, first, opStorage, before, opSleepLong, 220, opRead, first, opRestart, 0, opRead, first,
			opStorage, 0, opRead, first,
		},
		// A write takes effect and fails.
		{
			opConfigure, first, opRead, first, opRotateAtDingTalk, secret1, opStorage, after + writes, opRotateInVault,
			rotatedUnverified, opRead, first, opStorage, 0, opRead, first, opRestart, 0, opRead, first,
		},
		// The token of the generation before stays in storage.
		{
			opConfigure, first, opRead, first, opRotateAtDingTalk, secret1, opStorage, before + tokens, opRotateInVault,
			rotatedUnverified, opStorage, 0, opRestart, 0, opRead, first,
		},
		// Reads beside a new generation.
		{
			opConfigure, unverified, opSpeed, 15, opReadBeside, first, opReadBeside, first, opConfigure,
			otherHost + unverified, opSleep, 60, opRead, first, opSleep, 60,
		},
		// A ban.
		{
			opConfigure, unverified, opConfigure, unverified + second, opMood, banning, opRead, first, opMood, 0, opSleep, 30,
			opRead, second, opRefresh, second, opRefresh, first, opSleepLong, 9, opRead, second,
		},
		// A Retry-After.
		{
			opConfigure, unverified, opMood, throttling, opRead, first, opMood, 0, opRefresh, first, opSleepLong, 0, opRead,
			first, opRefresh, first, opSleepLong, 3, opRead, first,
		},
		// A Retry-After for the key of two apps.
		{
			opConfigure, unverified, opConfigure, unverified + second, opMood, throttling, opRead, first,
			opMood, 0, opRead, second, opRefresh, second, opSleepLong, 3, opRead, second,
		},
		// A token with a second left.
		{opSpeed, 54, opConfigure, first, opRead, first, opSleep, 18, opRead, first},
		// Forced refreshes.
		{
			opConfigure, first, opSpeed, 3, opRead, first, opMinTTL, 255, opSleep, 50, opMinTTL, 255, opSleep, 50, opRefresh,
			first, opSleep, 20, opRefresh, first, opInvalidate, 0, opRefresh, first,
		},
		// Tokens that hardly live.
		{
			opConfigure, first, opSpeed, 60, opRead, first, opSleep, 90, opRead, first, opPeriodic, 0, opSleepLong, 3,
			opPeriodic, 0, opRead, first, opSpeed, 9,
		},
		// Three apps, one made again, one that may not move.
		{
			opConfigure, first, opConfigure, second, opConfigure, third, opRead, first, opRead, second, opInvalidate, first,
			opDelete, second, opRead, second, opConfigure, second, opRead, second, opMove, third + 3, opMove, third + 9,
			opRead, third,
		},
		// Another node writes, under a reader that waits and under none.
		{
			opConfigure, unverified, opRotateAtDingTalk, secret1, opSpeed, 15, opReadBeside, first, opWriteElsewhere, secret1,
			opRead, first, opWriteElsewhere, first, opRead, first, opDeleteElsewhere, first, opRead, first,
		},
		// A secret that DingTalk comes to know later.
		{
			opConfigure, unverified + 2*secret1, opRead, first, opRead, first, opRotateAtDingTalk, 2 * secret1, opRead, first,
			opSleepLong, 0, opRead, first,
		},
		// A token that nobody has read since it was fetched.
		{opConfigure, first, opRead, first, opRefresh, first, opSleepLong, 210, opPeriodic, 0},
		// A restart under readers that wait.
		{
			opConfigure, unverified, opMood, hanging, opReadBeside, first, opReadBeside, first, opSleep, 10, opRestart, 0,
			opMood, 0, opRead, first,
		},
		// Storage fails from the start.
		{
			opStorage, before, opConfigure, first, opStorage, after + aThird, opConfigure, first, opStorage, 0, opRead, first,
			opPatch, 3, opRead, first, opTune, 0, opStatus, first, opDelete, first, opStatus, first,
		},
	} {
		f.Add(script)
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same at every run
	for range 60 {
		script := []byte{opConfigure, 0, opConfigure, 1, opConfigure, 2}
		for range 20 + random.IntN(200) {
			script = append(script, byte(random.Uint32()))
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) {
			(&operations{world: newWorld(t, []*crowd{{name: "fuzzed", apps: 3}})}).run(script)
		})
	})
}
