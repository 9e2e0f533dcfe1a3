// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file has the fuzz targets: DingTalk's responses, what is shown of them, base_url, a write
// to config/, and sequences of operations on the simulation's world. `go test` runs their seeds and
// what is below testdata/fuzz; each looks for more with `go test -run '^$' -fuzz '^FuzzX$' .`

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
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

// The secrets that the fuzzed texts may try to bring out: a plain one, one that every encoding
// changes, and a cached token.
const (
	fuzzSecret    = "plain-secret-0123456789"
	fuzzOddSecret = `odd"secret\with/every+kind%of&char<act>er'`
	fuzzToken     = "token-in-hand-9876543210"
)

// inFuzzedBody puts what the fuzzer would never find in the place of its name.
var inFuzzedBody = strings.NewReplacer(
	"$PLAIN", fuzzSecret, "$TOKEN", fuzzToken, "$HUGE", strings.Repeat(" ", maxResponse))

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

// statusesOf are the lowest and the highest status of the responses of a class.
var statusesOf = map[errorClass][2]int{
	classBanned: {200, math.MaxInt}, classRedirect: {300, 399}, classRejectedCredentials: {400, 499},
	classForbiddenIP: {400, 499}, classRejectedRequest: {400, 499}, classThrottled: {400, 499},
	classUnavailable: {500, math.MaxInt}, classMalformed: {math.MinInt, 499},
}

func FuzzReadResponse(f *testing.F) {
	for _, seed := range []struct {
		status                  int
		contentType, retryAfter string
		body                    string
	}{
		{200, "application/json", "", `{"accessToken":"fw8ef8we8f76e6f7s8dxxxx","expireIn":7200}`},
		{200, "application/json", "", `{"AccessToken":"t","EXPIREIN":7.2e3}`},
		{200, "application/json", "", `{"access_token":"t","expires_in":7200}`},
		{200, "application/json", "", `{"accessToken":"","access_token":"$TOKEN","expires_in":7200}`},
		{400, "application/json", "", `{"code":"invalid.client","message":"$PLAIN","requestid":"$TOKEN"}`},
		{200, "application/json", "", `{"accessToken":"t","expireIn":1e999}`},
		{200, "application/json", "", `{"accessToken":"t","expireIn":"7200"}`},
		{200, "application/json", "", `{"errcode":404,"errmsg":"no such path: $PLAIN"}`},
		{201, "application/json", "", `{"accessToken":"$TOKEN","expireIn":7200}`},
		{400, "application/json", "", `{"requestId":"$PLAIN","Code":"$PLAIN","Message":"$TOKEN $PLAIN$PLAIN"}`},
		{403, "application/json", "", `{"code":"Forbidden.AccessDenied.IpNotInWhiteList","message":"\u001b[31m\u202e\ufffd"}`},
		{403, "application/json", "30", `{"code":"Forbidden.AccessDenied.QpsLimitForApi","message":"plain-sec\u200bret-0123456789"}`},
		{429, "application/json", "Wed, 21 Oct 2065 07:28:00 GMT", `{"code":"system.busy","message":"系统繁忙"}`},
		{429, "text/html; charset=utf-8", "18446744073709551616", "<html>"},
		{200, "application/json", "-1", `{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"xxx"}`},
		{403, "application/json", "", `{"status":"1111","code":"x"}`},
		{500, "application/json", "", `{"code":"unknownError","punish":"deny"}`},
		{302, "text/html", "", `{"accessToken":"t","expireIn":7200}`},
		{200, "application/json", "", `[{"accessToken":"t"}]`},
		{400, "application/json", "", "{\"code\":\"a\",\"message\":\"\xff\xfe" + strings.Repeat("令", 100) + "$PLAIN\"}"},
		{400, "application/json", "", `{"code":"` + strings.Repeat("x", 240) + `$PLAIN","message":{"a":1},"requestid":12.5}`},
		{200, "application/json", "", `{}$HUGE`},
	} {
		f.Add(seed.status, seed.contentType, seed.retryAfter, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status int, contentType, retry string, body []byte) {
		body = []byte(inFuzzedBody.Replace(string(body)))
		header := http.Header{"Content-Type": {contentType}, "Retry-After": {retry}}
		got, failure := readResponse(status, header, body, newSensitive(fuzzSecret), newSensitive(fuzzToken))

		value := got.accessToken.reveal()
		if failure == nil {
			switch {
			case status != http.StatusOK:
				t.Fatalf("a token out of a status %d", status)
			case value == "" || !slices.Contains(fieldsLike(body, "accessToken"), any(value)) &&
				!slices.Contains(fieldsLike(body, "access_token"), any(value)):
				t.Fatalf("the token %q is not in the response", value)
			case got.expireIn < time.Second || got.expireIn > maxExpireIn || got.expireIn%time.Second != 0:
				t.Fatalf("a token that lives %s", got.expireIn)
			case !slices.ContainsFunc(slices.Concat(fieldsLike(body, "expireIn"), fieldsLike(body, "expires_in")),
				func(v any) bool { n, ok := v.(json.Number); return ok && n[0] != '-' }):
				t.Fatal("expireIn is not a positive number")
			}
			return
		}
		statuses, known := statusesOf[failure.class]
		codes := fieldsLike(body, "code")
		switch {
		case !known || status < statuses[0] || status > statuses[1]:
			t.Fatalf("%q out of a status %d", failure.class, status)
		case value != "" || got.expireIn != 0:
			t.Fatal("a token next to an error")
		case failure.retryAfter < 0 || failure.retryAfter > maxRetryAfter:
			t.Fatalf("a Retry-After of %s", failure.retryAfter)
		case failure.rejected() && len(codes) == 0:
			t.Fatalf("%s without a code", failure.class)
		case failure.class == classBanned && len(codes) == 1: // of several spellings the last one counts
			if code, isString := codes[0].(string); isString && code != "" {
				t.Fatalf("a ban with the code %q", code)
			}
		}
		for _, text := range []string{failure.code, failure.message, failure.requestID} {
			checkShownText(t, text, maxShownText, fuzzSecret, fuzzToken)
		}
		checkShownText(t, failure.Error(), 5*maxShownText, fuzzSecret, fuzzToken)
		checkShownText(t, failure.describe("app", &appConfig{BaseURL: defaultBaseURL}), 6*maxShownText, fuzzSecret, fuzzToken)
	})
}

// checkShownText checks that a text can be shown, has no more bytes than that, and holds none of
// the others.
func checkShownText(t *testing.T, text string, most int, hidden ...string) {
	t.Helper()
	if !utf8.ValidString(text) || len(text) > most || strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError
	}) {
		t.Fatalf("%q has %d bytes, or what cannot be shown", text, len(text))
	}
	for _, h := range hidden {
		if h != "" && strings.Contains(text, h) {
			t.Fatalf("%q holds %q", text, h)
		}
	}
}

// isVisible reports whether a text has nothing but visible ASCII characters.
func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
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
		all := []string{showText(given, secrets), showIdentifier(given, secrets)}
		all = slices.DeleteFunc(all, func(shown string) bool { return shown == withheld || shown == "" })
		if len(all) == 0 {
			return
		}
		var hidden []string
		for _, s := range []string{secret, tok} {
			if !isVisible(s) {
				continue // neither a secret nor a token
			}
			hidden = append(hidden, s)
			for at := 0; at+8 <= len(s); at++ {
				for _, spell := range spellings {
					hidden = append(hidden, spell(s[at:at+8]))
				}
			}
		}
		for _, shown := range all {
			checkShownText(t, shown, maxShownText, hidden...)
		}
	})
}

func FuzzBaseURL(f *testing.F) {
	for _, seed := range []string{
		"https://api.dingtalk.io", "HTTPS://API.DingTalk.IO:443", "https://api.dingtalk.io:", "https://a.b:65536",
		"http://LocalHost:8080/", "http://127.255.255.254", "http://[::1]:9", "http://[::ffff:127.0.0.1]", "http://127.1",
		"http://0x7f.1", "http://localhost.", "http://127.0.0.1.nip.io", "http://0.0.0.0", "http://10.0.0.1",
		"http://[fe80::1%25lo]", "https://[2001:db8::1]", "https://2001:db8::1", "https://[1.2.3.4]", "http://[localhost]",
		"https://u:p@host", "https://host//", "https://host?q", "https://host#f", `https://host\@evil`, "https://host%2eevil",
		"https:host", "https:///", "//host", "ftp://host", "https://host:80:90", "https://host;x", "https://ho st", "",
		"https://h\u00f6st", " https://host", "https://host\n", "https://..", "https://-", "https://host:00443",
		"https://host:+1", "https://" + strings.Repeat("a", 254),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, given string) {
		stored, err := parseBaseURL(given)
		if err != nil {
			if stored != "" || !strings.Contains(err.Error(), fieldBaseURL) || !strings.Contains(err.Error(), "allowed") {
				t.Fatalf("%q gives %q and %q", given, stored, err)
			}
			if !utf8.ValidString(err.Error()) || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Fatalf("the error %q repeats what cannot be shown", err)
			}
			const password = "correct-horse-battery"
			_, err := parseBaseURL(strings.Replace(given, "@", password+"@", 1))
			if err != nil && strings.Contains(err.Error(), password) {
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
		case err != nil || meaning(u) != meaning(asked):
			t.Fatalf("%q is stored as %q, which is another host: %v", given, stored, err)
		case *u != url.URL{Scheme: u.Scheme, Host: u.Host} || u.Scheme+"://"+u.Host != stored:
			t.Fatalf("%q is stored as %q, which is more than a scheme and a host", given, stored)
		case u.Hostname() == "" || strings.Contains(u.Hostname(), "%"):
			t.Fatalf("%q is stored as %q, which has no host", given, stored)
		}
		ip, notIP := netip.ParseAddr(u.Hostname())
		loopback := notIP == nil && ip.Zone() == "" && (ip.Is4() && ip.IsLoopback() || ip == netip.IPv6Loopback())
		switch {
		case notIP == nil && ip.Is6() != strings.HasPrefix(u.Host, "["):
			t.Fatalf("%q is stored as %q, whose port others take for a part of the address", given, stored)
		case u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost" && !loopback):
			t.Fatalf("%q is stored as %q, where the secret would go in clear", given, stored)
		}
	})
}

// meaning is the scheme, the host and the port that a URL stands for.
func meaning(u *url.URL) [3]string {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	if n, err := strconv.Atoi(port); err == nil {
		port = strconv.Itoa(n)
	} else {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return [...]string{u.Scheme, host, port}
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

var corpIDPattern = regexp.MustCompile(`^[0-9A-Za-z]{0,64}$`)

// modelConfig is what config/ responds after a write, and whether that may be taken. Nothing was
// there before if before is nil.
func modelConfig(before, data map[string]any) (after map[string]any, ok bool) {
	after = map[string]any{
		fieldBaseURL: defaultBaseURL, fieldRefreshBefore: int64(200), fieldRequestTimeout: int64(10), fieldLeased: true,
		fieldCorpID: "",
	}
	maps.Copy(after, before)
	for field, v := range data {
		text, ok := v.(string)
		seconds, isDuration := modelDuration(v)
		flag, notBool := strconv.ParseBool(strings.TrimSpace(fmt.Sprint(v)))
		switch field {
		case fieldAppKey:
			after[field] = text
		case fieldBaseURL:
			u, err := url.Parse(text)
			if ok = ok && err == nil; ok {
				after[field] = u.Scheme + "://" + strings.TrimSuffix(strings.ToLower(u.Host), ":")
			}
		case fieldCorpID:
			after[field] = text
			ok = ok && corpIDPattern.MatchString(text)
		case fieldRefreshBefore:
			after[field], ok = seconds, isDuration && seconds >= 0 && seconds <= 3600
		case fieldRequestTimeout:
			after[field], ok = seconds, isDuration && seconds >= 1 && seconds <= 30
		case fieldLeased:
			after[field], ok = flag, notBool == nil
		case fieldVerifyConnection:
			ok = notBool == nil
		case fieldAppSecret:
		default:
			ok = true // it is no field, and not looked at
		}
		if !ok {
			return nil, false
		}
	}
	key, _ := after[fieldAppKey].(string)
	moved := after[fieldAppKey] != before[fieldAppKey] || after[fieldBaseURL] != before[fieldBaseURL]
	_, withSecret := data[fieldAppSecret]
	return after, key != "" && len(key) <= maxCredentialLength && isVisible(key) && (withSecret || !moved)
}

func FuzzConfigWrite(f *testing.F) {
	for _, body := range []string{
		`{"app_key":"k","app_secret":"correct-horse-battery"}`,
		`{"app_key":"k","app_secret":"correct-horse-battery\n","base_url":"https://API.dingtalk.com/"` +
			`,"refresh_before":"5m","request_timeout":30,"leased":"false","verify_connection":false}`,
		`{"app_key":"k","app_secret":["correct-horse-battery","correct-horse-staple"]}`,
		`{"app_key":"k","app_secret":{"correct-horse-battery":"correct-horse-staple"}}`,
		`{"app_key":"k","app_secret":null}`, `{"app_key":"k","app_secret":"correct-horse-b\u00e4ttery"}`,
		`{"app_key":"","app_secret":""}`, `{"app_secret":"another-secret-1234"}`, `{"app_key":"k2"}`,
		`{"app_key":["dingtestkey"]}`, `{"base_url":"https://evil.example.com"}`, `{"base_url":"https://api.dingtalk.io/"}`,
		`{"refresh_before":"500ms"}`, `{"refresh_before":"-0.5s"}`, `{"refresh_before":""}`, `{"refresh_before":3601}`,
		`{"refresh_before":"1h"}`, `{"refresh_before":1e2}`, `{"refresh_before":"0d"}`, `{"refresh_before":" 10 "}`,
		`{"refresh_before":"0x10"}`, `{"refresh_before":["1s"]}`, `{"request_timeout":"0"}`, `{"request_timeout":31}`,
		`{"corp_id":"dingCorp0123456789"}`, `{"corp_id":""}`, `{"corp_id":"a/b"}`, `{"app_key":"k","corp_id":null}`,
		`{"leased":null}`, `{"leased":"maybe"}`, `{"leased":1}`, `{"verify_connection":{}}`, `{"verify_connection":true}`,
		`{"app":"elsewhere","leased":false}`, `{"unknown":"x","app_secret":"correct-horse-battery"}`, `{}`,
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
		op := []logical.Operation{logical.UpdateOperation, logical.PatchOperation}[how/2%2]
		synctest.Test(t, func(t *testing.T) { fuzzConfigWrite(t, how%2 == 1, op, data) })
	})
}

func fuzzConfigWrite(t *testing.T, exists bool, op logical.Operation, data map[string]any) {
	t.Helper()
	m := mountOver(t, &logical.InmemStorage{}, benchUpstream) // which takes any credentials: a failure is the engine's own
	var before map[string]any
	if exists {
		m.configure(theApp, map[string]any{"base_url": defaultBaseURL})
		m.token(theApp)
		before = m.do(logical.ReadOperation, "config/myapp", nil).Data
		time.Sleep(time.Second)
	}
	setAt := before[fieldAppSecretSetAt]
	delete(before, fieldAppSecretSetAt)
	config, tok := m.stored("config/myapp"), m.stored("token/myapp")
	want, ok := modelConfig(before, data)
	ok = ok && (exists || op == logical.UpdateOperation)
	got := m.do(op, "config/myapp", maps.Clone(data))

	const hidden = "correct-horse"
	shown, others := m.log.String()+got.String(), maps.Clone(data)
	delete(others, fieldAppSecret)
	if strings.Contains(shown, hidden) && !strings.Contains(fmt.Sprint(others), hidden) {
		t.Fatalf("the secret is shown: %s", shown)
	}
	stored := m.stored("config/myapp")
	switch got.status {
	case http.StatusNoContent, http.StatusOK:
		read := m.do(logical.ReadOperation, "config/myapp", nil)
		if another := stored["app_secret"] != config["app_secret"]; another != (read.Data[fieldAppSecretSetAt] != setAt) {
			t.Fatalf("another secret: %t, set at %v after %v", another, read.Data[fieldAppSecretSetAt], setAt)
		}
		delete(read.Data, fieldAppSecretSetAt)
		if !ok || !reflect.DeepEqual(read.Data, want) {
			t.Fatalf("after %v config/ holds %v; valid: %t, %v", data, read.Data, ok, want)
		}
		secret, given := data[fieldAppSecret].(string)
		if given && stored["app_secret"] != strings.TrimSuffix(strings.TrimSuffix(secret, "\n"), "\r") {
			t.Fatalf("the secret is stored as %q", stored["app_secret"])
		}
		changed := stored["app_key"] != config["app_key"] || stored["app_secret"] != config["app_secret"] ||
			stored["base_url"] != config["base_url"] || stored["corp_id"] != config["corp_id"]
		if changed != (stored["generation"] != config["generation"]) {
			t.Fatalf("new credentials: %t, but %v after %v", changed, stored["generation"], config["generation"])
		}
		if m.token(theApp) != benchToken {
			t.Fatal("another token")
		}
	case http.StatusBadRequest, http.StatusNotFound:
		if !reflect.DeepEqual(stored, config) || !reflect.DeepEqual(m.stored("token/myapp"), tok) {
			t.Fatalf("%v was refused with %v, and changed what is stored", data, got.err)
		}
		if got.status == http.StatusNotFound && (exists || op != logical.PatchOperation) {
			t.Fatalf("%v got a 404", data)
		}
	default:
		t.Fatalf("%v got %d: %v", data, got.status, got.err)
	}
}

// responder is an upstream that responds to every call at once.
type responder func(*http.Request) (status int, body string)

// RoundTrip implements http.RoundTripper.
func (f responder) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := f(r)
	return &http.Response{
		StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

// operationNames are what the first of two bytes of a script stands for. The second is its argument:
// the app's number and three times what else there is to choose.
var operationNames = []string{
	"read-beside", "configure", "patch", "tune", "rotate-in-Vault", "move", "rotate-at-DingTalk", "delete", "min_ttl",
	"renew", "revoke", "refresh", "status", "sleep", "sleep-long", "mood", "storage", "restart", "invalidate", "periodic",
	"speed", "write-elsewhere", "delete-elsewhere", "read", "read", "read", "read", "read", "read",
	"corp_id", "reject", "default_lease_ttl",
}

// moods are what DingTalk does with all calls at a time; that of "mood" is a good one half of the
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

// The calls to storage of which "storage" makes all, or some, go wrong.
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
		for n := range 2 * 2 * 2 * 3 {
			a.corp = organizations[n/12]
			o.credentials(a, bothHosts[n/6%2], o.keys(a)[n/3%2], n%3).accepted = n%3 == 0
		}
	}
	for i := 0; i+1 < len(script) && i < 2*150 && !o.t.Failed(); i += 2 {
		name := operationNames[int(script[i])%len(operationNames)]
		arg, a := int(script[i+1])/len(o.apps), o.apps[int(script[i+1])%len(o.apps)]
		o.mu.Lock()
		o.note("%s with %d on %s", name, arg, a.name)
		o.mu.Unlock()
		o.operate(name, arg, a)
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
func (o *operations) chosen(a *simulatedApp, host, corp, key, number int) *generation {
	return o.generations[login{bothHosts[host], o.keys(a)[key], organizations[corp], a.secret(number)}]
}

func (o *operations) operate(name string, arg int, a *simulatedApp) {
	i, inForce, data := o.active.Load(), o.moment(a).inForce, map[string]any{}
	switch name {
	case "read-beside":
		o.actors.Go(func() { o.read(a, nil) })
		synctest.Wait()
	case "configure":
		if arg/12%3 > 0 {
			data[fieldVerifyConnection] = arg/12%3 == 1
		}
		o.write(a, logical.UpdateOperation, o.chosen(a, arg/6%2, arg/36%2, arg%2, arg/2%3), data)
	case "patch":
		o.write(a, logical.PatchOperation, nil, map[string]any{fieldLeased: arg%2 == 0, fieldRefreshBefore: arg * 40})
	case "tune":
		data[fieldRequestTimeout], data[fieldVerifyConnection] = 1+arg%30, arg%4 == 0
		o.write(a, logical.UpdateOperation, nil, data)
	case "corp_id": // without the secret
		data[fieldCorpID], data[fieldVerifyConnection] = organizations[arg%2], arg/2%2 == 1
		o.write(a, logical.PatchOperation, nil, data)
	case "default_lease_ttl":
		o.tuneLeases([...]time.Duration{untuned, 10 * time.Second, time.Minute, 90 * time.Minute}[arg%4])
		o.sleep(time.Second) // for which the engine keeps the one before
	case "rotate-in-Vault":
		g := o.chosen(a, 0, 0, 0, arg%3)
		if inForce != nil {
			g = o.generations[login{inForce.host, inForce.key, inForce.corp, g.secret}]
		}
		if arg/3%2 == 1 {
			data[fieldVerifyConnection] = false
		}
		o.write(a, logical.UpdateOperation, g, data)
	case "move": // without the secret
		data[fieldVerifyConnection] = false
		if arg/2%2 == 0 {
			data[fieldBaseURL] = bothHosts[arg%2]
		} else {
			data[fieldAppKey] = o.keys(a)[arg%2]
		}
		o.write(a, logical.PatchOperation, nil, data)
	case "rotate-at-DingTalk":
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, g := range o.generations {
			if g.key == o.keys(a)[arg%2] {
				g.accepted = g.number == arg/2%3 || g.number == arg/6%3
			}
		}
	case "delete":
		o.delete(a)
	case "min_ttl":
		o.read(a, map[string]any{fieldMinTTL: (arg + 1) * 90})
	case "renew":
		if n := len(o.leases); n > 0 {
			l := o.leases[arg%n]
			l.increment = time.Duration(arg/n%2) * 24 * time.Hour
			_, _ = o.renew(l)
		}
	case "revoke":
		if n := len(o.leases); n > 0 {
			o.revoke(o.leases[arg%n])
		}
	case "refresh":
		o.refresh(a)
	case "reject": // the app's token, or a lease's, dead or alive
		if inForce == nil {
			return
		}
		token := o.hosts[inForce.host].LastTokenIn(inForce.key, inForce.corp)
		if arg%2 == 1 {
			o.endTokens(inForce.key)
		}
		if n := len(o.leases); n > 0 && arg/2%2 == 1 {
			token = o.leases[arg/4%n].token
		}
		if token != "" {
			o.reject(a, token)
		}
	case "status":
		o.statusAndConfig(a)
	case "sleep":
		o.sleep(time.Duration(arg) * 213 * time.Millisecond)
	case "sleep-long":
		o.sleep(time.Duration(arg+1) * 97 * time.Second)
	case "mood":
		delay := o.mood.Delay
		o.mood = []simulator.Fault{moods[arg%len(moods)], {}}[arg/len(moods)%2]
		o.mood.Delay = delay
		o.setMood()
	case "storage":
		o.failStorage(arg%4, faultyCalls[arg/4%len(faultyCalls)])
	case "restart":
		i.clean()
		o.active.Store(o.newInstance(0))
	case "invalidate":
		o.invalidate(i, a, []string{configPrefix, tokenPrefix}[arg%2])
	case "periodic":
		i.tickAsVault()
		o.sleep(settled)
		o.checkAhead(i)
	case "speed":
		o.mood.Delay = time.Duration(arg%6*arg) * 50 * time.Millisecond
		o.setMood()
		for host, server := range o.hosts {
			for _, g := range o.generations {
				server.RotateTokens(g.key, arg%2 == 1)
			}
			lifetimes := [...]time.Duration{lifetimeAt(host), 20 * time.Second, 5 * time.Minute, 3 * time.Second}
			server.SetTokenLifetime(lifetimes[arg/6%len(lifetimes)])
		}
	case "write-elsewhere":
		data[fieldLeased], data[fieldVerifyConnection] = arg/6%2 == 0, false
		o.elsewhere(a, func() { o.write(a, logical.UpdateOperation, o.chosen(a, 0, 0, arg%2, arg/2%3), data) })
	case "delete-elsewhere":
		o.elsewhere(a, func() { o.delete(a) })
	case "read":
		if l := o.issue(a); l != nil && arg%4 == 0 {
			o.leases = append(o.leases, l)
		}
	default:
		o.t.Fatalf("there is no operation %q", name)
	}
}

// checkAhead checks that the background refreshed what it should have.
func (o *operations) checkAhead(i *instance) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.apps {
		u, current := i.upkeepOf(a), i.current(a.inForce, i.ticked)
		if u.loaded && u.served && !u.vague && len(current) == 1 && current[0].remaining(i.ticked) >= leastLife &&
			current[0].remaining(i.ticked) <= current[0].ahead(a.tuning) && u.began.Before(i.ticked) &&
			i.calling[a.inForce] == 0 && i.ticked.Sub(u.ended) > longestBackOff && !i.cools(a.inForce, i.ticked) &&
			i.ticked.Sub(a.faulted) > longestBackOff {
			o.violate(a, "refreshed ahead", "%s are left, and it was not", current[0].remaining(i.ticked))
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

// statusAndConfig reads the app's status and configuration.
func (o *operations) statusAndConfig(a *simulatedApp) {
	o.status(a)
	got := o.active.Load().do(logical.ReadOperation, configPrefix+a.name, nil)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.checkResponse(a, logical.ReadOperation, configPrefix+a.name, got)
	want := a.config()
	if want != nil {
		want[fieldAppSecretSetAt] = a.secretAt
	}
	switch {
	case want == nil && got.status == http.StatusNotFound, got.err != nil && time.Since(a.faulted) < settled:
	case want == nil, got.err != nil, !reflect.DeepEqual(got.Data, want):
		o.violate(a, "true configuration", "%v, not %v", got, want)
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

// recover fixes everything, waits until nothing can stand against a fetch, and reads: before a
// restart and after it, where what is stored must do.
func (o *operations) recover() {
	o.mood = simulator.Fault{}
	o.setMood()
	for host, server := range o.hosts {
		server.SetTokenLifetime(lifetimeAt(host))
	}
	o.failStorage(0, nil)
	o.tuneLeases(untuned)
	o.sleep(longestRetryAfter + 30*time.Second + longestBackOff)
	o.actors.Wait()
	for range 2 {
		for _, a := range o.apps {
			o.statusAndConfig(a)
			o.read(a, nil)
			o.sleep(settled)
		}
		o.active.Load().requireNoLock()
		o.operate("restart", 0, o.apps[0])
	}
	o.active.Load().clean()
}

// The words for arguments in the scripts below, which are added up: the app's number, and the rest.
var argumentWords = map[string]byte{
	"second": 1, "third": 2,
	"unverified": 3 * 24, "other-host": 3 * 6, "secret-1": 3 * 2, "in-corp": 3 * 36, // a write's, or a rotation's
	"in-corp-now": 3 * 1, "old": 3 * 2, "ended": 3 * 1, // of "corp_id" and of "reject"
	"to-secret-1": 3 * 1, "at-once": 3 * 3, // of "rotate-in-Vault"; at once is without a verification
	"unavailable": 3 * 1, "hanging": 3 * 3, "throttling": 3 * 4, "banning": 3 * 5, // of "mood"
	// Of "storage": what fails without effect or with it, and what of that.
	"before": 3 * 1, "after": 3 * 2, "tokens": 3 * 4 * 1, "writes": 3 * 4 * 3, "a-third": 3 * 4 * 4,
}

// compile makes bytes of a script in words.
func compile(tb testing.TB, script string) (code []byte) {
	tb.Helper()
	for step := range strings.SplitSeq(script, ", ") {
		words := strings.Fields(step)
		op := slices.Index(operationNames, words[0])
		arg, known := byte(0), op >= 0
		for _, word := range words[1:] {
			n, isWord := argumentWords[word]
			number, err := strconv.ParseUint(word, 10, 8)
			arg, known = arg+n+byte(number), known && (isWord || err == nil)
		}
		if !known {
			tb.Fatalf("the script has %q", step)
		}
		code = append(code, byte(op), arg)
	}
	return code
}

func FuzzOperations(f *testing.F) {
	for _, script := range []string{
		// The response arrives while the app is deleted, and is not stored.
		"configure unverified, speed 3, read-beside, delete, configure unverified, read",
		// A secret is rotated, the old one good for a while.
		"configure, read, rotate-at-DingTalk secret-1, rotate-in-Vault to-secret-1, read, restart, read",
		// A lease whose app is deleted.
		"configure, read, renew, sleep-long 120, renew 3, delete, renew, revoke",
		// Storage fails across a restart.
		"configure, read, storage before, sleep-long 220, read, restart, read, storage, read",
		// A write takes effect and fails.
		"configure, read, rotate-at-DingTalk secret-1, storage after writes, rotate-in-Vault to-secret-1 at-once, read, " +
			"storage, read, restart, read",
		// The token of the generation before stays in storage.
		"configure, read, rotate-at-DingTalk secret-1, storage before tokens, rotate-in-Vault to-secret-1 at-once, " +
			"storage, restart, read",
		// Reads beside a new generation.
		"configure unverified, speed 15, read-beside, read-beside, configure other-host unverified, sleep 60, read, sleep 60",
		// A ban.
		"configure unverified, configure unverified second, mood banning, read, mood, sleep 30, read second, " +
			"refresh second, refresh, sleep-long 9, read second",
		// A Retry-After for the key of two apps.
		"configure unverified, configure unverified second, mood throttling, read, mood, read second, refresh second, " +
			"sleep-long 3, read second, refresh",
		// Tokens that hardly live.
		"configure, speed 60, read, sleep 90, read, periodic, sleep-long 3, periodic, read, speed 9",
		// Three apps, one made again, one that may not move.
		"configure, configure second, configure third, read, read second, invalidate, delete second, read second, " +
			"configure second, read second, move third 3, move third 9, read third",
		// Another node writes, under a reader that waits and under none.
		"configure unverified, rotate-at-DingTalk secret-1, speed 15, read-beside, write-elsewhere secret-1, read, " +
			"write-elsewhere, read, delete-elsewhere, read",
		// A restart under readers that wait.
		"configure unverified, mood hanging, read-beside, read-beside, sleep 10, restart, mood, read",
		// Refreshed ahead: at half of the token's life with leases, at three quarters without, and not before.
		"configure, read, sleep-long 102, periodic, sleep-long 9, periodic",
		"configure, patch 3, read, sleep-long 114, periodic, sleep-long 54, periodic",
		// A lease that would begin short, a reader who has to wait for longer than two seconds, and one beside.
		"configure, read, sleep-long 120, read",
		"configure, read, speed 84, sleep-long 120, read-beside, read, sleep 120, read",
		// Failures of two classes, and an hour of one.
		"configure unverified, mood unavailable, read, sleep-long 3, mood throttling, read, status, mood, sleep-long 9, read",
		"configure, read, sleep-long 120, mood unavailable, read, sleep-long 48, read, sleep-long 63, read, status, read",
		// Two organizations: tokens and a Retry-After are apart, a ban is not.
		"configure unverified, configure in-corp unverified second, read second, mood throttling, refresh second, " +
			"mood, read, refresh second, sleep-long 20, mood banning, refresh second, mood, refresh, read, corp_id in-corp-now, read",
		// A dead token is rejected by two, and one that is no longer the app's.
		"configure, read, reject ended, reject ended, speed 3, sleep 180, refresh, reject old, speed 9, reject old",
		// Leases no longer than default_lease_ttl, issued before and after.
		"configure, read, default_lease_ttl 6, read, renew, default_lease_ttl 3, renew, renew 3, default_lease_ttl, renew",
		// A status is no use of an app.
		"configure, read, sleep-long 240, status, periodic, status, restart, status, read",
		// Storage fails from the start.
		"storage before, configure, storage after a-third, configure, storage, read, patch 3, read, tune, status, delete, status",
	} {
		f.Add(compile(f, script))
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same at every run
	for range 250 {
		script := compile(f, "configure, configure second, configure third")
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
