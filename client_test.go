// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests the way to DingTalk: what each response means, what is shown of it, when a call
// is repeated, and what goes wrong on the network. Calls go through pipes, in virtual time; with
// real TLS and a real proxy they are tested in test/e2e.

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
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
	denied := func(limit string) string { return envelope("Forbidden.AccessDenied." + limit) }
	withToken := func(value string) string { return `{"accessToken":` + value + `,"expireIn":7200}` }
	oversize := strings.Repeat(" ", maxResponse)
	type bodies = map[int][]string // by status
	for class, all := range map[errorClass]bodies{
		classRejectedCredentials: {
			400: {envelope("invalidClientIdOrSecret"), envelope("invalid.client"), envelope("unauthorized.client")},
			401: {envelope("unauthorized.client")},
		},
		classForbiddenIP: {403: {denied("IpNotInWhiteList")}},
		classRejectedRequest: {
			400: {envelope("unsupported.grant.type"), envelope("Missingbody"), envelope("invalidParameter")},
			401: {envelope("unauthorized")},
			403: {strings.Replace(denied("AccessTokenPermissionDenied"), `{`, `{"accessdenieddetail":{"a":["b"]},`, 1)},
			404: {envelope("InvalidAction.NotFound")},
		},
		classThrottled: {
			400: {envelope("system.busy"), envelope("systemBusy")},
			403: {
				denied("QpsLimitForApi"), denied("QpsLimitForAppkeyAndApi"), denied("QpmLimitForAppkeyAndApi"),
				denied("QpsLimitForSuitekeyAndOrgAndApi"), denied("QpmLimitForSuitekeyAndOrgAndApi"),
				denied("ApiCountLimitForOrg"),
			},
			429: {envelope("system.busy"), envelope("systemBusy"), envelope("invalidParameter"), `{}`, ""},
		},
		classBanned: {200: {bannedBody}, 400: {bannedBody}, 403: {bannedBody}, 429: {bannedBody}, 503: {bannedBody}},
		classUnavailable: {
			500: {
				envelope("unknownError"), envelope("server.error"), envelope("system.busy"), envelope("systemBusy"),
				htmlBody, goodBody,
			},
			502: {htmlBody, `{}`},
			503: {"", oversize + " "},
			504: {"gateway timeout"},
		},
		classRedirect: {301: {""}, 302: {htmlBody}, 303: {""}, 307: {""}, 308: {""}},
		classMalformed: {
			99:  {envelope("invalidClientIdOrSecret"), bannedBody},
			101: {goodBody},
			200: {
				"", "null", "[]", `"token"`, htmlBody, envelope("invalidClientIdOrSecret"),
				`{"errcode":404,"errmsg":"no such path"}`, goodBody[:len(goodBody)-5], goodBody + "{}",
				goodBody + oversize, `{"expireIn":7200}`, withToken(`""`), withToken(`null`), withToken(`12345`),
				withToken(`["fw8ef8we"]`), withToken(`{"a":"fw8ef8we"}`), withToken(`"fw8ef8we\nPATH=/tmp"`),
				withToken(`"fw8ef8we 8f76"`), withToken(`"fw8ef8we\u0007"`), withToken(`"令牌"`),
				withToken(`"` + strings.Repeat("t", 2049) + `"`),
			},
			201: {goodBody},
			204: {""},
			400: {`{"message":"without a code"}`, goodBody, envelope("invalidClientIdOrSecret") + oversize},
			403: {htmlBody},
			404: {htmlBody, ""},
			429: {htmlBody},
		},
	} {
		rejected := class == classRejectedCredentials || class == classRejectedRequest || class == classForbiddenIP
		for status, ofStatus := range all {
			for _, body := range ofStatus {
				_, err := readResponse(status, http.Header{}, []byte(body), newSensitive(theSecret))
				require.NotNil(t, err)
				require.Equal(t, class, err.class, "%d %.100s: %s", status, body, err)
				require.Equal(t, class == classUnavailable, err.repeatable())
				require.Equal(t, rejected, err.rejected())
				require.Equal(t, map[bool]int{true: 400, false: 502}[rejected], err.status())
			}
		}
	}
}

func TestClient_shows_code_message_and_request_id_however_they_are_spelt(t *testing.T) {
	const code, message, id = "invalid.client", "无效的clientId", "01A08FE7"
	for _, c := range []struct {
		status            int
		body              string
		code, message, id string
	}{
		{400, `{"requestid":"01A08FE7","code":"invalid.client","message":"无效的clientId"}`, code, message, id},
		{400, `{"requestId":"01A08FE7","Code":"invalid.client","Message":"无效的clientId"}`, code, message, id},
		{400, `{"REQUESTID":"01A08FE7","CODE":"invalid.client","MESSAGE":"无效的clientId"}`, code, message, id},
		// A field of an unexpected type hides no other.
		{400, `{"requestid":17,"code":"invalid.client","message":{"a":1},"accessToken":false,"status":[]}`, code, "", "17"},
		// A wrong path is answered so.
		{200, `{"errcode":404,"errmsg":"请求的URI地址不存在"}`, "404", "请求的URI地址不存在", ""},
	} {
		_, err := readResponse(c.status, http.Header{}, []byte(c.body))
		require.Equal(t, []string{c.code, c.message, c.id}, []string{err.code, err.message, err.requestID}, c.body)
		for _, part := range []string{theApp, theURL, c.code, c.message, c.id} {
			require.Contains(t, err.describe(theApp, theConfig), part)
		}
	}
}

func TestClient_an_HTML_page_is_known_by_header_or_body_and_names_the_ban_as_a_possible_cause(t *testing.T) {
	for contentType, body := range map[string]string{
		"text/html; charset=utf-8": "Access denied",
		"":                         "\n  " + htmlBody,
	} {
		_, err := readResponse(403, http.Header{"Content-Type": {contentType}}, []byte(body))
		require.Equal(t, classMalformed, err.class)
		require.Contains(t, err.cause, "ban")
		require.NotContains(t, err.describe(theApp, theConfig), "denied", "never a body")
	}
}

func TestClient_a_good_response_may_have_64_KiB_2048_characters_of_token_and_any_content_type(t *testing.T) {
	value := strings.Repeat("!~aZ09-_", 256)
	body := fmt.Appendf(nil, `{"accessToken":%q,"expireIn":7200}`, value)
	body = append(body, bytes.Repeat([]byte(" "), maxResponse-len(body))...)
	got, err := readResponse(200, http.Header{"Content-Type": {"text/html"}}, body)
	require.Nil(t, err)
	require.Equal(t, value, got.accessToken.reveal())
}

func TestClient_takes_expireIn_as_a_positive_number_and_for_a_day_at_most(t *testing.T) {
	const day = 24 * time.Hour
	for given, want := range map[string]time.Duration{
		`7200`: 7200 * time.Second, `7200.9`: 7200 * time.Second, `1e3`: 1000 * time.Second, `1`: time.Second,
		`86400`: day, `86401`: day, `9223372036854775807`: day, `1e400`: day,
		`0`: 0, `-1`: 0, `-1e400`: 0, `1e-400`: 0, `0.5`: 0, `"7200"`: 0, `""`: 0, `null`: 0, `true`: 0, `[7200]`: 0,
		`{"seconds":7200}`: 0, `missing`: 0,
	} {
		body := strings.Replace(goodBody, `7200`, given, 1)
		if given == `missing` {
			body = strings.Replace(goodBody, `,"expireIn":7200`, ``, 1)
		}
		got, err := readResponse(200, http.Header{}, []byte(body))
		if want == 0 {
			require.NotNil(t, err, given)
			require.Equal(t, classMalformed, err.class, given)
			require.Contains(t, err.cause, "expireIn")
			continue
		}
		require.Nil(t, err, given)
		require.Equal(t, grant{newSensitive(goodToken), want}, got, given)
	}
}

func TestClient_Retry_After_is_honored_up_to_ten_minutes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for want, all := range map[time.Duration][]string{
		0:                {"", "0", "-30", "soon", "1.5", "Fri, 02 Jan 2026 03:03:05 GMT"},
		30 * time.Second: {"30", " 30 "},
		time.Minute:      {"Fri, 02 Jan 2026 03:05:05 GMT", "Friday, 02-Jan-26 03:05:05 GMT"},
		10 * time.Minute: {
			"600", "601", "9223372036854775807", "99999999999999999999999999",
			"Sat, 02 Jan 2027 03:04:05 GMT", "Fri, 31 Dec 9999 23:59:59 GMT",
		},
	} {
		for _, given := range all {
			require.Equal(t, want, retryAfter(http.Header{"Retry-After": {given}}, now), given)
		}
	}
	_, err := readResponse(429, http.Header{"Retry-After": {"30"}}, []byte(envelope("system.busy")))
	require.Equal(t, 30*time.Second, err.retryAfter)
}

// requireTellsNothing wants none of the texts of a failure to hold a secret or a token.
func requireTellsNothing(t *testing.T, err *fetchError) {
	t.Helper()
	require.NotNil(t, err)
	for _, told := range []string{err.Error(), err.describe(theApp, theConfig), fmt.Sprintf("%+v", *err)} {
		require.NotContains(t, told, theSecret)
		require.NotContains(t, told, goodToken)
	}
}

var (
	theConfig      = &appConfig{BaseURL: theURL, AppKey: theKey, AppSecret: newSensitive(theSecret)}
	theCredentials = theConfig.credentials()
)

// fetch fetches within the usual request_timeout, and wants each call to be one request on a
// connection of its own, of which none is left.
func (m *mount) fetch(creds credentials) (*token, int, *fetchError) {
	m.t.Helper()
	requests, conns := m.calls(), m.network.conns.Load()
	ctx, cancel := context.WithTimeout(m.t.Context(), defaultRequestTimeout)
	defer cancel()
	client := newClient(m.transport, hclog.NewNullLogger())
	tok, calls, err := client.fetch(ctx, creds, &token{Value: newSensitive(m.upstream.LastToken(theKey))})
	if err != nil {
		requireTellsNothing(m.t, err)
		require.Equal(m.t, calls, err.attempts)
	}
	synctest.Wait()
	require.Equal(m.t, requests+calls, m.calls())
	require.Equal(m.t, conns+int64(calls), m.network.conns.Load())
	require.Zero(m.t, m.network.open.Load(), "no connection is kept")
	return tok, calls, err
}

func TestClient_the_call_is_as_documented(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		var r *http.Request
		var body []byte
		handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r = req
			body, _ = io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			m.upstream.ServeHTTP(w, r)
		})
		m.network.serve(t, "127.0.0.3:80", &http.Server{Handler: handler})
		const corp = simulator.DefaultCorpID
		for _, c := range []struct{ secret, corpID, path, body string }{
			{theSecret, "", "accessToken", `{"appKey":"dingtestkey","appSecret":"` + theSecret + `"}`},
			{`q"uo\te<&>`, "", "accessToken", `{"appKey":"dingtestkey","appSecret":"q\"uo\\te<&>"}`},
			{
				theSecret, corp, corp + "/token",
				`{"client_id":"dingtestkey","client_secret":"` + theSecret + `","grant_type":"client_credentials"}`,
			},
		} {
			m.upstream.SetApp(theKey, c.secret)
			tok, calls, err := m.fetch(credentials{"http://127.0.0.3", theKey, c.corpID, newSensitive(c.secret)})
			require.Nil(t, err)
			require.Equal(t, 1, calls)
			require.Equal(t, m.upstream.LastTokenIn(theKey, c.corpID), tok.Value.reveal())
			require.Equal(t, 2*time.Hour, tok.lifetime)

			require.Equal(t, "POST /v1.0/oauth2/"+c.path+" HTTP/1.1", r.Method+" "+r.URL.String()+" "+r.Proto)
			require.True(t, r.Close, "Connection: close")
			r.Header.Del("Connection") // which the server may have taken out
			r.Header.Del("Content-Length")
			require.Equal(t, http.Header{
				"Content-Type": {"application/json"}, "Accept": {"application/json"},
				"User-Agent": {"vault-plugin-secrets-dingtalk/" + strings.TrimPrefix(Version, "v")},
			}, r.Header, "no Authorization, and no Accept-Encoding")
			require.Equal(t, c.body, strings.TrimSpace(string(body)))
		}
	})
}

func TestClient_a_tokens_life_begins_when_the_call_is_sent(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		sent := time.Now()
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 3 * time.Second})
		tok, _, err := m.fetch(theCredentials)
		require.Nil(t, err)
		require.Equal(t, sent, tok.fetchedAt)
		require.Equal(t, sent.Add(7200*time.Second), tok.expiresAt)
		require.Equal(t, 7200*time.Second, tok.lifetime)

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: "4", Delay: 3 * time.Second})
		_, _, err = m.fetch(theCredentials)
		require.Equal(t, classMalformed, err.class, "it had expired when it arrived")
		require.Contains(t, err.cause, "expireIn 4")
		require.Equal(t, 1, err.attempts)
	})
}

func TestClient_a_bad_host_gets_three_attempts_at_most_little_memory_and_no_more_time_than_there_is(t *testing.T) {
	var logged safeBuffer // by net/http, which has a logger of its own nowhere
	defer log.SetOutput(log.Writer())
	log.SetOutput(&logged)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = io.WriteString(w, goodBody)
	require.NoError(t, w.Close())
	const budget, little = defaultRequestTimeout, 2*maxResponse + 8<<10 // of head and body, and what is read ahead
	const tooLong = "longer than 65536 bytes"
	type fault = simulator.Fault
	raw := func(response string) fault { return fault{Kind: simulator.FaultRaw, Raw: response} }
	type test struct {
		fault    fault
		class    errorClass // empty is a good response
		says     string
		took     time.Duration
		attempts int
	}
	forEach(t, map[string]test{
		"503":                  {fault{Kind: simulator.FaultUnavailableEmpty}, classUnavailable, "503", time.Second, 3},
		"reset":                {fault{Kind: simulator.FaultReset}, classUnreachable, "connection", time.Second, 3},
		"reset twice":          {fault{Kind: simulator.FaultReset, Times: 2}, "", "", time.Second, 3},
		"rejected credentials": {fault{Kind: simulator.FaultRejectedCredentials}, classRejectedCredentials, "invalid", 0, 1},
		"throttled":            {fault{Kind: simulator.FaultThrottledBusy}, classThrottled, "system.busy", 0, 1},
		"banned with 503":      {fault{Kind: simulator.FaultBanned, Status: 503}, classBanned, "banned", 0, 1},
		"malformed":            {fault{Kind: simulator.FaultTruncated}, classMalformed, "not a JSON object", 0, 1},
		"503 with Retry-After": {
			fault{Kind: simulator.FaultUnavailableEmpty, RetryAfter: "1"}, classUnavailable, "503", 0, 1,
		},
		"500 with Retry-After": {
			fault{Kind: simulator.FaultUnavailableUnknown, RetryAfter: "1"}, classUnavailable, "unknownError", 0, 1,
		},
		"slow 503s": { // the first cause, not what cuts the last attempt short
			fault{Kind: simulator.FaultUnavailableEmpty, Delay: 6 * time.Second},
			classUnavailable, "HTTP status 503, 2 attempts", budget, 2,
		},
		"huge":             {fault{Kind: simulator.FaultHuge}, classMalformed, tooLong, 0, 1},
		"gzip bomb":        {fault{Kind: simulator.FaultGzipBomb}, classMalformed, tooLong, 0, 1},
		"endless body":     {fault{Kind: simulator.FaultEndlessBody}, classMalformed, tooLong, 0, 1},
		"endless gzip":     {fault{Kind: simulator.FaultEndlessGzip}, classMalformed, tooLong, 0, 1},
		"endless headers":  {fault{Kind: simulator.FaultEndlessHeaders}, classUnreachable, "exchange failed", time.Second, 3},
		"flood of 103s":    {fault{Kind: simulator.FaultInformationalFlood}, classUnreachable, "exchange failed", time.Second, 3},
		"endless drip":     {fault{Kind: simulator.FaultEndlessDrip}, classUnreachable, "within 10s", budget, 1},
		"hang":             {fault{Kind: simulator.FaultHang}, classUnreachable, "within 10s", budget, 1},
		"redirect":         {fault{Kind: simulator.FaultRedirect, Location: theURL}, classRedirect, "never followed", 0, 1},
		"another protocol": {fault{Kind: simulator.FaultSwitchingProtocols}, classMalformed, "HTTP status 101", 0, 1},
		"status 99":        {fault{Kind: simulator.FaultStatus099}, classMalformed, "HTTP status 99", 0, 1},
		"two words": {
			fault{Kind: simulator.FaultToken, Token: "two words", ExpireIn: "7200"}, classMalformed, "visible", 0, 1,
		},
		"echo": {fault{Kind: simulator.FaultEchoSecret}, classRejectedRequest, "message withheld: it repeats", 0, 1},
		"encoded echo": {
			fault{Kind: simulator.FaultEchoRequest, Part: simulator.PartSecret, Encoding: "json-all,json"},
			classRejectedRequest, "message withheld: it repeats the request", 0, 1,
		},
		"what is compressed is not decompressed": {
			raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", packed.Len(), &packed)),
			classMalformed, "not a JSON object", 0, 1,
		},
		"a line that the library repeats in its error": {
			raw("+" + goodToken + " " + theSecret + "\r\n\r\n"), classUnreachable, "exchange failed", time.Second, 3,
		},
		"surplus": {fault{Kind: simulator.FaultSurplus}, "", "", 0, 1},
	}, func(t *testing.T, m *mount, c test) {
		m.upstream.SetFault(theKey, c.fault)
		began := time.Now()
		tok, attempts, err := m.fetch(theCredentials)
		require.LessOrEqual(t, time.Since(began), c.took)
		require.LessOrEqual(t, int(m.network.read.Load()), little*c.attempts)
		require.Equal(t, c.attempts, attempts)
		if c.class == "" {
			require.Nil(t, err)
			require.Equal(t, m.upstream.LastToken(theKey), tok.Value.reveal())
			return
		}
		require.NotNil(t, err)
		require.Equal(t, c.class, err.class, err)
		require.Contains(t, err.describe(theApp, theConfig), c.says)
	})
	require.Empty(t, logged.String())
}

// transportFunc is an http.RoundTripper.
type transportFunc func(r *http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestClient_says_in_a_few_words_what_the_network_did_and_tries_what_may_pass_again(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	cert := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	proxy := func(status int) error {
		words := http.Header{"Words": {goodToken}}
		return newTransport().OnProxyConnectResponse(t.Context(), nil, nil, &http.Response{
			StatusCode: status, Status: goodToken, Header: words,
		})
	}
	require.NoError(t, proxy(200))
	dns := &net.DNSError{Err: "no such host", Name: "api.invalid", Server: "192.0.2.53:53", IsNotFound: true}
	const untrusted = "its certificate is not trusted: "
	for _, c := range []struct {
		err   error
		cause string
		calls int
	}{
		{dial(dns), `the name "api.invalid" cannot be resolved`, 3},
		{dial(&net.DNSError{Name: theSecret + ".invalid"}), "the name \"" + withheld + "\" cannot be resolved", 3},
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "connection refused", 3},
		{dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), "no route to host", 3},
		{dial(os.ErrDeadlineExceeded), "timed out", 3},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, "connection reset by peer", 3},
		{&net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}, "broken pipe", 3},
		{io.EOF, "the connection ended before the response did", 3},
		{io.ErrUnexpectedEOF, "the connection ended before the response did", 3},
		{dial(fmt.Errorf("with %s inside", theSecret)), "the HTTP exchange failed, or the response is not HTTP", 3},
		{cert(x509.UnknownAuthorityError{}), untrusted + "x509: certificate signed by unknown authority", 1},
		{cert(fmt.Errorf("x509: valid for %s.example", theSecret)), untrusted + withheld, 1},
		{tls.RecordHeaderError{Msg: goodToken}, "it does not speak TLS", 1},
		{http.ErrSchemeMismatch, "it does not speak TLS", 1},
		{
			&net.OpError{Op: "remote error", Err: tls.AlertError(70)},
			"the TLS handshake failed: tls: protocol version not supported", 1,
		},
		{proxy(403), "the proxy refused to connect with HTTP status 403", 3},
		{proxy(502), "the proxy refused to connect with HTTP status 502", 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, calls, err := newClient(transportFunc(func(*http.Request) (*http.Response, error) {
				return nil, c.err
			}), hclog.NewNullLogger()).fetch(t.Context(), theCredentials)
			requireTellsNothing(t, err)
			require.Equal(t, classUnreachable, err.class)
			require.Equal(t, c.cause, err.cause)
			require.Equal(t, c.calls, calls)
		})
	}
}

func TestClient_speaks_HTTP_1_1_over_TLS_1_2_and_up_through_the_proxy_of_the_environment(t *testing.T) {
	transport := newTransport()
	require.EqualValues(t, tls.VersionTLS12, transport.TLSClientConfig.MinVersion)
	require.False(t, transport.TLSClientConfig.InsecureSkipVerify)
	require.Equal(t, "{HTTP1}", transport.Protocols.String())
	require.NotNil(t, transport.Proxy)
}

func TestClient_every_class_says_whose_app_it_is_and_what_to_do(t *testing.T) {
	for class, hint := range map[errorClass]string{
		classRejectedCredentials: "check app_key and app_secret", classForbiddenIP: "where the token is used",
		classRejectedRequest: "look up the request id", classThrottled: "another program fetches tokens",
		classBanned: "10,000 calls", classUnavailable: "any proxy on the way",
		classUnreachable: "check DNS, firewall and proxy from Vault's active node",
		classRedirect:    "check base_url", classMalformed: "check base_url",
		classStorage: "check Vault's storage", classInternal: "report this",
	} {
		told := (&fetchError{class: class}).describe(theApp, theConfig)
		require.Contains(t, told, hint)
		require.Contains(t, told, `"myapp"`)
	}
	for _, c := range []struct {
		class     errorClass
		config    appConfig
		says, not string
	}{
		{classRejectedCredentials, appConfig{BaseURL: defaultBaseURL}, "set base_url=" + chinaBaseURL, ""},
		{classRejectedCredentials, appConfig{BaseURL: chinaBaseURL}, "set base_url=" + defaultBaseURL, ""},
		{classRejectedCredentials, appConfig{BaseURL: theURL}, "(" + theURL + ") is the host of the app's", "set base_url"},
		{classRejectedCredentials, appConfig{BaseURL: theURL, CorpID: "corp"}, "organization of corp_id has authorized", ""},
		{classUnavailable, appConfig{BaseURL: theURL, CorpID: "corp"}, "check corp_id, DingTalk's service status", ""},
		{classUnavailable, appConfig{BaseURL: theURL}, "check DingTalk's service status", "corp_id"},
	} {
		told := (&fetchError{class: c.class}).describe(theApp, &c.config)
		require.Contains(t, told, c.says)
		if c.not != "" {
			require.NotContains(t, told, c.not)
		}
	}
}

func TestBan_pauses_every_app_of_the_host_for_five_minutes(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		m.upstream.SetApp("otherkey", "othersecret")
		m.network.host(t, "localhost:80").SetApp("otherkey", "othersecret")
		other := func(baseURL string) map[string]any {
			return map[string]any{"app_key": "otherkey", "app_secret": "othersecret", "base_url": baseURL}
		}
		m.configure("other", other(theURL))
		m.configure("elsewhere", other("http://localhost"))
		m.configure("spelt", other("HTTP://127.0.0.1:080/"))
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultBanned, Status: http.StatusServiceUnavailable})
		end := timestamp(time.Now().Add(5 * time.Minute))

		for _, app := range []string{theApp, "other", "spelt"} {
			m.read(app).gets(t, http.StatusBadGateway, "banned", end)
			require.Equal(t, 1, m.upstream.Requests(simulator.AnyApp), "a ban is not tried again")
			m.refresh(app).warns(t)
			require.Equal(t, end, m.state(app)["next_attempt_at"])
			m.upstream.ClearFaults()
		}
		m.write("new", other(theURL)).gets(t, http.StatusBadGateway, end)
		m.write("other", verified).gets(t, http.StatusBadGateway, end)
		m.write(theApp, theFields(anotherSecret)).gets(t, http.StatusBadGateway, end)
		require.Zero(t, m.upstream.Requests("otherkey"))
		m.token("elsewhere")

		time.Sleep(5 * time.Minute)
		m.token("other")
		m.token(theApp)
	})
}

func TestRetry_After_of_up_to_ten_minutes_stops_every_call_with_its_key_whatever_app_or_generation(t *testing.T) {
	refresh := func(name string) func(m *mount) response {
		return func(m *mount) response { return m.refresh(name) }
	}
	write := func(name string) func(m *mount) response { // with a verification
		return func(m *mount) response {
			before, got := m.snapshot(), m.write(name, theFields(anotherSecret))
			require.True(m.t, got.err == nil || maps.Equal(before, m.snapshot()), "one that fails stores nothing")
			return got
		}
	}
	cases := map[string]func(m *mount) response{
		"a read":                func(m *mount) response { return m.read(theApp) },
		"a refresh":             refresh(theApp),
		"a write":               write(theApp),
		"a verification alone":  func(m *mount) response { return m.write(theApp, verified) },
		"another app's read":    func(m *mount) response { return m.read("twin") },
		"another app's refresh": refresh("twin"),
		"another app's write":   write("twin"),
		"a new app":             write("third"),
		"the app's next generation": func(m *mount) response {
			m.configure(theApp, anotherSecret)
			return m.read(theApp)
		},
		"the app, after an invalidation": func(m *mount) response {
			m.engine.InvalidateKey(m.t.Context(), "config/myapp")
			return m.read(theApp)
		},
	}
	for name, first := range map[string]func(m *mount) response{"read": cases["a read"], "write": write("third")} {
		t.Run("after a "+name, func(t *testing.T) {
			forEach(t, cases, func(t *testing.T, m *mount, again func(m *mount) response) {
				const until = "2000-01-01T00:10:00Z"
				m.configure(theApp, nil)
				m.configure("twin", unleased)
				m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "90000"})
				first(m).gets(t, http.StatusBadGateway, until)
				m.upstream.ClearFault(theKey)

				time.Sleep(599 * time.Second)
				if got := again(m); got.err == nil { // a refresh
					require.Equal(t, "absent", got.warns(t, until).Data["state"])
				} else {
					got.gets(t, http.StatusBadGateway, until)
				}
				require.Equal(t, 1, m.calls())
				time.Sleep(time.Second)
				again(m)
				require.Greater(t, m.calls(), 1)
			})
		})
	}
}

func TestCooldown_that_is_shorter_does_not_replace_a_longer_one(t *testing.T) {
	var all cooldowns
	now := time.Now()
	start := func(class errorClass, retryAfter time.Duration) {
		all.start(theCredentials, &fetchError{class: class, retryAfter: retryAfter}, now)
	}
	until := func() time.Duration { return all.inForce(theCredentials, now).cooldown.Sub(now) }
	require.Nil(t, all.inForce(theCredentials, now))
	start(classThrottled, 600*time.Second)
	start(classThrottled, 5*time.Second)
	require.Equal(t, 600*time.Second, until())
	start(classBanned, 0)
	require.Equal(t, 600*time.Second, until(), "a ban of five minutes ends before")
	for _, alike := range []credentials{
		{BaseURL: theURL, AppKey: "another"}, {BaseURL: theURL, AppKey: theKey, CorpID: "corp"},
	} {
		require.Equal(t, 300*time.Second, all.inForce(alike, now).cooldown.Sub(now), "the ban is everybody's")
	}
	require.Nil(t, all.inForce(credentials{BaseURL: chinaBaseURL, AppKey: theKey}, now))
}

func TestCooldowns_of_other_hosts_take_bounded_memory_and_none_of_DingTalks_place(t *testing.T) {
	var all cooldowns
	now := time.Now()
	busy := func() *fetchError { return &fetchError{class: classThrottled, retryAfter: time.Minute} }
	for i := range 3 * maxCooldowns {
		host, key := fmt.Sprintf("https://host%d.example", i%7), fmt.Sprintf("key%d", i%8)
		all.start(credentials{BaseURL: host, AppKey: key, CorpID: fmt.Sprint(i)}, busy(), now)
	}
	require.LessOrEqual(t, len(all.all), maxCooldowns)
	for _, host := range []string{defaultBaseURL, chinaBaseURL} {
		all.start(credentials{BaseURL: host, AppKey: theKey}, busy(), now)
		all.start(credentials{BaseURL: host}, &fetchError{class: classBanned}, now)
		require.NotNil(t, all.inForce(credentials{BaseURL: host, AppKey: theKey}, now))
		require.NotNil(t, all.inForce(credentials{BaseURL: host, AppKey: "another"}, now))
	}
	all.start(credentials{BaseURL: "https://host.example"}, busy(), now.Add(2*time.Minute))
	require.LessOrEqual(t, len(all.all), 3, "what is over is removed")
}
