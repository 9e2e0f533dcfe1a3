// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is the engine's only way to DingTalk: one call for a token, what its answer means, and what went
// wrong in words for the person on call. It knows nothing of Vault, caches or leases.

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-cleanhttp"
)

const (
	// tokenPath is the token operation of both editions' hosts.
	tokenPath = "/v1.0/oauth2/accessToken"

	// maxAnswer bounds what is read of an answer, after decompression. A real one has some 100 bytes.
	maxAnswer = 64 << 10

	// maxAttempts bounds the calls of one fetch. Only connection errors and 5xx answers are tried again.
	maxAttempts = 3

	// maxShownText bounds each text of DingTalk's that is shown, in bytes.
	maxShownText = 256

	// maxExpireIn is the longest life a token is believed to have. DingTalk's documentation says 7,200 s.
	maxExpireIn = 86400 * time.Second

	// maxRetryAfter bounds how long a Retry-After is honoured.
	maxRetryAfter = 10 * time.Minute
)

// errorClass says what kind of failure a fetch ended with. The values appear in the log.
type errorClass string

const (
	classRejectedCredentials errorClass = "rejected_credentials"
	classForbiddenIP         errorClass = "forbidden_ip"
	classRejectedRequest     errorClass = "rejected_request"
	classThrottled           errorClass = "throttled"
	classBanned              errorClass = "banned"
	classUnavailable         errorClass = "unavailable" // a 5xx answer
	classUnreachable         errorClass = "unreachable" // no answer, or no whole one
	classRedirect            errorClass = "redirect"
	classMalformed           errorClass = "malformed" // an answer that makes no sense
)

// upstreamError is a fetch that DingTalk, or the way to it, made fail. Its texts are clean: they hold no secret, no token and
// no control character.
type upstreamError struct {
	class     errorClass
	code      string // DingTalk's code, message and request id, where the answer had them
	message   string
	requestID string
	cause     string // what happened, in a few words, where DingTalk's own words do not say it

	// retryAfter is how long DingTalk asked to be left alone; 0 where it did not.
	retryAfter time.Duration

	// final says that another attempt within the same fetch cannot help, such as after an untrusted certificate.
	final bool
}

// Error is for code that passes it on as an error; what a person reads is describe's.
func (e *upstreamError) Error() string { return joinNonEmpty(": ", string(e.class), e.said()) }

// rejected tells whether DingTalk understood the request and refused it: trying again changes nothing until somebody acts.
func (e *upstreamError) rejected() bool {
	switch e.class {
	case classRejectedCredentials, classForbiddenIP, classRejectedRequest:
		return true
	default:
		return false
	}
}

// repeatable tells whether another attempt within the same fetch may help.
func (e *upstreamError) repeatable() bool {
	return !e.final && e.retryAfter == 0 && (e.class == classUnavailable || e.class == classUnreachable)
}

// describe tells the person on call what happened to the app, what DingTalk said and what to do next.
func (e *upstreamError) describe(app, baseURL string) string {
	var what, hint string
	switch e.class {
	case classRejectedCredentials:
		what = fmt.Sprintf("DingTalk rejected the credentials of app %q", app)
		hint = fmt.Sprintf("check app_key and app_secret, that base_url (%s) is the app's edition, and that the app's version is published", baseURL)
	case classForbiddenIP:
		what = fmt.Sprintf("DingTalk does not allow Vault's IP address for app %q", app)
		hint = "add Vault's egress IP to the app's allow-list in DingTalk's console"
	case classRejectedRequest:
		what = fmt.Sprintf("DingTalk rejected the request for a token of app %q", app)
		hint = "look the request id up in DingTalk's console"
	case classThrottled:
		what = fmt.Sprintf("DingTalk throttles the requests for a token of app %q", app)
	case classBanned:
		what = fmt.Sprintf("DingTalk has banned Vault's egress IP, which app %q shares with all other apps at %s", app, baseURL)
		hint = "find what makes more than 10,000 calls in 20 seconds from this IP"
	case classUnavailable:
		what = fmt.Sprintf("DingTalk could not serve the request for a token of app %q", app)
	case classUnreachable:
		what = fmt.Sprintf("no token of app %q could be had from %s", app, baseURL)
	case classRedirect:
		what = fmt.Sprintf("%s answered the request for a token of app %q with a redirect, which is never followed", baseURL, app)
		hint = "check base_url and any proxy on the way"
	case classMalformed:
		what = fmt.Sprintf("%s answered the request for a token of app %q with something that is not a token", baseURL, app)
		hint = "check base_url and any proxy on the way"
	}
	return joinNonEmpty("; ", joinNonEmpty(": ", what, e.said()), hint)
}

// said is the cause and DingTalk's own words, as far as there are any.
func (e *upstreamError) said() string {
	var code, message, requestID string
	if e.code != "" {
		code = "code " + e.code
	}
	if e.message != "" {
		message = fmt.Sprintf("message %q", e.message)
	}
	if e.requestID != "" {
		requestID = "request id " + e.requestID
	}
	return joinNonEmpty(", ", e.cause, code, message, requestID)
}

func joinNonEmpty(separator string, parts ...string) string {
	var given []string
	for _, p := range parts {
		if p != "" {
			given = append(given, p)
		}
	}
	return strings.Join(given, separator)
}

// credentials are what a token is fetched with.
type credentials struct {
	BaseURL   string
	AppKey    string
	AppSecret sensitive
}

// client calls DingTalk's token operation.
//
// It uses the transport itself, not an http.Client, since that is what follows redirects: a 307 would repeat the secret to
// another host.
type client struct {
	transport http.RoundTripper
	userAgent string
}

func newClient(transport http.RoundTripper) *client {
	return &client{transport: transport, userAgent: "vault-plugin-secrets-dingtalk/" + strings.TrimPrefix(Version, "v")}
}

// end closes the connections that are kept for later calls.
func (c *client) end() {
	if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// newTransport returns the transport for the real network: TLS 1.2 and up, certificates verified, the process's proxy
// environment honoured.
func newTransport() *http.Transport {
	t := cleanhttp.DefaultPooledTransport()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	t.MaxResponseHeaderBytes = maxAnswer
	// Without this the error would be whatever text the proxy put in its status line.
	t.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
		if resp.StatusCode != http.StatusOK {
			return proxyError(resp.StatusCode)
		}
		return nil
	}
	return t
}

// proxyError is the HTTP status with which a proxy refused to connect.
type proxyError int

func (p proxyError) Error() string {
	return fmt.Sprintf("the proxy refused to connect with HTTP status %d", int(p))
}

// fetch gets a token. The context bounds it, retries included. It returns how many calls it made, whatever their outcome;
// tokens known to the caller are kept out of the error's texts.
func (c *client) fetch(ctx context.Context, creds credentials, known ...sensitive) (*token, int, *upstreamError) {
	secrets := append([]sensitive{creds.AppSecret}, known...)
	for attempt := 1; ; attempt++ {
		tok, err := c.call(ctx, creds, secrets)
		if err == nil {
			return tok, attempt, nil
		}
		if !err.repeatable() || attempt == maxAttempts || !beforeRepeat(ctx, attempt) {
			return nil, attempt, err
		}
	}
}

// beforeRepeat waits before the next attempt: about 100 ms, then about 300. It tells whether the context still lives.
func beforeRepeat(ctx context.Context, attempt int) bool {
	wait := time.Duration(2*attempt-1) * 100 * time.Millisecond
	timer := time.NewTimer(jitter(wait))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter lengthens d by up to 20 %, so that those who wait do not all come back at once. It never shortens it.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 + 0.2*rand.Float64())) //nolint:gosec // spreads load, guards nothing
}

// call makes one call.
func (c *client) call(ctx context.Context, creds credentials, secrets []sensitive) (*token, *upstreamError) {
	body, err := json.Marshal(map[string]string{"appKey": creds.AppKey, "appSecret": creds.AppSecret.reveal()})
	if err != nil {
		return nil, &upstreamError{class: classUnreachable, cause: "the request cannot be encoded"}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, creds.BaseURL+tokenPath, bytes.NewReader(body))
	if err != nil {
		return nil, &upstreamError{class: classUnreachable, cause: "base_url is not usable"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.userAgent)

	sent := time.Now()
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, transportError(ctx, err, time.Since(sent))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil && len(answer) <= maxAnswer {
		return nil, transportError(ctx, err, time.Since(sent))
	}

	grant, uerr := readAnswer(resp.StatusCode, resp.Header, answer, secrets...)
	if uerr != nil {
		return nil, uerr
	}
	tok := newToken(grant.accessToken, sent, grant.expireIn)
	if !tok.servable(time.Now()) {
		return nil, &upstreamError{class: classMalformed, cause: fmt.Sprintf("the token had expired when it arrived (expireIn %d)", int64(grant.expireIn.Seconds()))}
	}
	return tok, nil
}

// grant is a good answer.
type grant struct {
	accessToken sensitive
	expireIn    time.Duration
}

// wireAnswer is every field of an answer that the engine looks at. encoding/json matches names without regard to case, which
// covers the gateway's spelling (Code, Message, requestId). Raw, since a field of an unexpected type must not hide the others.
type wireAnswer struct {
	AccessToken json.RawMessage `json:"accessToken"`
	ExpireIn    json.RawMessage `json:"expireIn"`
	Code        json.RawMessage `json:"code"`
	Message     json.RawMessage `json:"message"`
	RequestID   json.RawMessage `json:"requestid"`
	ErrCode     json.RawMessage `json:"errcode"`
	ErrMsg      json.RawMessage `json:"errmsg"`
	Status      json.RawMessage `json:"status"`
	Punish      json.RawMessage `json:"punish"`
}

// readAnswer tells a grant from every kind of failure. A 403 means three different things, so the code decides wherever
// there is a known one, then the status.
func readAnswer(status int, header http.Header, body []byte, secrets ...sensitive) (grant, *upstreamError) {
	var wire wireAnswer
	isJSON := len(body) <= maxAnswer && json.Unmarshal(body, &wire) == nil
	var accessToken string
	if json.Unmarshal(wire.AccessToken, &accessToken) != nil {
		accessToken = ""
	}

	secrets = append(secrets, newSensitive(accessToken))
	code := text(wire.Code)
	failure := &upstreamError{
		code:       clean(code, secrets),
		message:    cleanMessage(text(wire.Message), secrets),
		requestID:  clean(text(wire.RequestID), secrets),
		retryAfter: retryAfter(header, time.Now()),
	}
	fail := func(class errorClass, cause string) (grant, *upstreamError) {
		failure.class, failure.cause = class, cause
		return grant{}, failure
	}

	httpStatus := fmt.Sprintf("HTTP status %d", status)
	switch {
	case code == "" && accessToken == "" && (text(wire.Punish) == "deny" || text(wire.Status) == "1111"):
		return fail(classBanned, "")
	case status >= 400 && throttling(status, code):
		return fail(classThrottled, "")
	case status >= 500:
		return fail(classUnavailable, httpStatus)
	case status >= 400 && code == "invalidClientIdOrSecret":
		return fail(classRejectedCredentials, "")
	case status >= 400 && code == "Forbidden.AccessDenied.IpNotInWhiteList":
		return fail(classForbiddenIP, "")
	case status >= 400 && code != "":
		return fail(classRejectedRequest, "")
	case status >= 300 && status < 400:
		return fail(classRedirect, httpStatus)
	case len(body) > maxAnswer:
		return fail(classMalformed, fmt.Sprintf("%s, the answer is longer than %d bytes", httpStatus, maxAnswer))
	case status == http.StatusTooManyRequests && (isJSON || len(bytes.TrimSpace(body)) == 0):
		return fail(classThrottled, httpStatus)
	case !isJSON && isHTML(header, body):
		return fail(classMalformed, httpStatus+", the answer is an HTML page, as a proxy or a ban of Vault's egress IP sends")
	case !isJSON:
		return fail(classMalformed, httpStatus+", the answer is not a JSON object")
	case accessToken == "":
		if failure.code == "" {
			failure.code, failure.message = clean(text(wire.ErrCode), secrets), cleanMessage(text(wire.ErrMsg), secrets)
		}
		return fail(classMalformed, httpStatus+", the answer has no accessToken")
	case status != http.StatusOK:
		return fail(classMalformed, httpStatus)
	}
	expireIn, ok := seconds(wire.ExpireIn)
	if !ok {
		return fail(classMalformed, httpStatus+", expireIn is missing, not a number or not positive")
	}
	return grant{accessToken: newSensitive(accessToken), expireIn: expireIn}, nil
}

// throttling knows the codes of DingTalk's limits: QpsLimitForApi and its kin on a 403, system.busy on a 429.
func throttling(status int, code string) bool {
	if status == http.StatusTooManyRequests && code != "" {
		return true
	}
	limit, denied := strings.CutPrefix(code, "Forbidden.AccessDenied.")
	return code == "system.busy" || code == "systemBusy" ||
		denied && (strings.HasPrefix(limit, "QpsLimit") || strings.HasPrefix(limit, "QpmLimit") || strings.HasPrefix(limit, "ApiCountLimit"))
}

func isHTML(header http.Header, body []byte) bool {
	mediaType, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	return err == nil && mediaType == "text/html" || bytes.HasPrefix(bytes.TrimSpace(body), []byte("<"))
}

// text is a JSON string's content, or a number as it stands; anything else is "".
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var n json.Number
	if json.Unmarshal(raw, &n) == nil {
		return n.String()
	}
	return ""
}

// seconds reads expireIn: a positive JSON number of seconds, of which more than a day counts as a day.
func seconds(raw json.RawMessage) (time.Duration, bool) {
	if len(raw) == 0 || raw[0] == '"' {
		return 0, false
	}
	n, err := strconv.ParseFloat(string(raw), 64)
	if err != nil && !math.IsInf(n, 1) || n < 1 {
		return 0, false
	}
	return time.Duration(min(n, maxExpireIn.Seconds())) * time.Second, true
}

// retryAfter reads the header of the same name, as seconds or as a date; 0 where there is none to honour.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if value == "" {
		return 0
	}
	wait := time.Duration(0)
	if n, err := strconv.ParseUint(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) { // then n is the largest
		wait = time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		wait = date.Sub(now)
	}
	return max(0, min(wait, maxRetryAfter))
}

// clean makes a text of DingTalk's fit to be shown: no control or invisible characters, no secret, at most maxShownText bytes.
// The order matters: a secret must not hide behind a stripped character, nor survive in halves at the cut.
func clean(s string, secrets []sensitive) string {
	return cut(redacted(visible(s), secrets))
}

// cleanMessage is clean for a text in which DingTalk says whatever it likes: it may repeat a token that never arrived here, and
// so is not known.
func cleanMessage(s string, secrets []sensitive) string {
	return cut(longWord.ReplaceAllStringFunc(redacted(visible(s), secrets), func(word string) string {
		if strings.ContainsAny(word, "0123456789") && strings.ContainsFunc(word, unicode.IsLetter) {
			return "[redacted]"
		}
		return word
	}))
}

// longWord is what a token looks like, of letters and digits. A request id has hyphens.
var longWord = regexp.MustCompile(`[0-9A-Za-z]{32,}`)

// redacted replaces what is known to be secret.
func redacted(s string, secrets []sensitive) string {
	if s == "" {
		return "" // as in every good answer
	}
	for _, secret := range secrets {
		s = secret.redact(s)
	}
	return s
}

// cut shortens a text to maxShownText bytes, at a rune.
func cut(s string) string {
	if len(s) > maxShownText {
		end := maxShownText
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	return strings.TrimSpace(s)
}

// visible strips control and invisible characters.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return -1
		case unicode.Is(unicode.Zs, r):
			return ' '
		case unicode.IsPrint(r):
			return r
		default:
			return -1
		}
	}, s)
}

// transportError puts a failed exchange in a few words. The library's own texts can quote what the other side sent, so they
// are not repeated.
func transportError(ctx context.Context, err error, took time.Duration) *upstreamError {
	e := &upstreamError{class: classUnreachable}
	var (
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		refusal proxyError
		op      *net.OpError
		errno   syscall.Errno
		timeout net.Error
	)
	switch {
	case ctx.Err() != nil:
		e.cause = fmt.Sprintf("no whole answer within %s", took.Round(10*time.Millisecond))
	case errors.As(err, &refusal):
		e.cause = refusal.Error()
	case errors.As(err, &cert):
		e.cause, e.final = "its certificate is not trusted: "+clean(cert.Err.Error(), nil), true
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		e.cause, e.final = "it does not speak TLS", true
	case strings.HasPrefix(innermost(err).Error(), "tls: "): // crypto/tls words its errors itself
		e.cause, e.final = "the TLS handshake failed: "+clean(innermost(err).Error(), nil), true
	case errors.As(err, &dns):
		e.cause = fmt.Sprintf("the name %q cannot be resolved", clean(dns.Name, nil))
	case errors.Is(err, syscall.ECONNREFUSED):
		e.cause = "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		e.cause = "connection reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.cause = "the connection ended before the answer did"
	case errors.As(err, &op) && errors.As(err, &errno):
		e.cause = fmt.Sprintf("%s: %s", op.Op, errno.Error())
	case errors.As(err, &timeout) && timeout.Timeout():
		e.cause = "timed out"
	default:
		e.cause = "the HTTP exchange failed, or what came is not HTTP"
	}
	return e
}

func innermost(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
