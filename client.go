// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is the client of DingTalk's API: one fetch of a token, what the response means, how
// long to wait before the next call, and errors in words for the person on call. It knows nothing
// of Vault, caches or leases.

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-cleanhttp"
	"github.com/hashicorp/go-hclog"
)

const (
	chinaBaseURL = "https://api.dingtalk.com" // defaultBaseURL is the international edition's

	maxResponse    = 64 << 10            // bytes that are read of a response: a real one has about 100
	maxAttempts    = 3                   // calls of one fetch, after connection errors and 5xx responses
	maxTokenLength = 2048                // bytes: DingTalk's tokens have 32
	maxExpireIn    = 86400 * time.Second // the cap on expireIn: DingTalk's documentation says 7,200 s
	maxRetryAfter  = 10 * time.Minute    // the cap on Retry-After
	banDuration    = 5 * time.Minute     // of an egress IP, as DingTalk's documentation says

	// maxCooldowns bounds the cooldowns that are kept for each of DingTalk's hosts, and for all
	// other hosts together: a stranger's host can neither fill memory nor displace DingTalk's.
	maxCooldowns = 1000
)

// errorClass is the kind of failure that a fetch ended with. The values appear in the log.
type errorClass string

const (
	classRejectedCredentials errorClass = "rejected_credentials"
	classForbiddenIP         errorClass = "forbidden_ip"
	classRejectedRequest     errorClass = "rejected_request"
	classThrottled           errorClass = "throttled"
	classBanned              errorClass = "banned"
	classUnavailable         errorClass = "unavailable" // a 5xx response
	classUnreachable         errorClass = "unreachable" // no response, or an incomplete one
	classRedirect            errorClass = "redirect"
	classMalformed           errorClass = "malformed" // a response that makes no sense
	classStorage             errorClass = "storage"   // Vault's, which has the app's secret
	classInternal            errorClass = "internal"  // a panic
)

// fetchError is why a fetch failed. Its texts hold no secret, no token and no control character. It
// does not change once it is returned.
type fetchError struct {
	class     errorClass
	code      string // DingTalk's code, message and request id, if the response had them
	message   string
	requestID string
	cause     string // what happened, in a few words, if DingTalk's own words do not say it
	attempts  int    // the calls that were made; this is the first failure that counts

	// retryAfter is the Retry-After of the response; 0 if there was none.
	retryAfter time.Duration

	// cooldown is when a ban or a Retry-After ends; zero without one.
	cooldown time.Time

	// final is set if another attempt within the same fetch cannot help, such as after an untrusted
	// certificate.
	final bool
}

// Error implements error. People read describe's text instead.
func (f *fetchError) Error() string { return joinNonEmpty(": ", string(f.class), f.said()) }

// rejected reports whether DingTalk understood the request and refused it: trying again changes
// nothing until somebody acts.
func (f *fetchError) rejected() bool {
	switch f.class {
	case classRejectedCredentials, classForbiddenIP, classRejectedRequest:
		return true
	default:
		return false
	}
}

// status returns the HTTP status: 400 if an operator has to act, 500 if Vault or the engine failed,
// otherwise 502.
func (f *fetchError) status() int {
	switch {
	case f.rejected():
		return http.StatusBadRequest
	case f.class == classStorage, f.class == classInternal:
		return http.StatusInternalServerError
	default:
		return http.StatusBadGateway
	}
}

// repeatable reports whether another attempt within the same fetch may help.
func (f *fetchError) repeatable() bool {
	return !f.final && f.retryAfter == 0 && (f.class == classUnavailable || f.class == classUnreachable)
}

// descriptions has for each class what happened to {app} at {host}, and what to do next.
var descriptions = map[errorClass]struct{ what, hint string }{
	classRejectedCredentials: {"DingTalk rejected the credentials of app {app}", "check app_key and app_secret, that " +
		"the app's version is published{authorized}, and that base_url ({host}) is the host of the app's edition{edition}"},
	classForbiddenIP: {"DingTalk does not allow Vault's IP address for app {app}", "add Vault's egress IP to the app's " +
		"allow-list in DingTalk's console, and those of the clients: DingTalk checks the list where the token is used"},
	classRejectedRequest: {"DingTalk rejected the token request for app {app}", "look up the request id " +
		"in DingTalk's console"},
	classThrottled: {"DingTalk throttles the token requests for app {app}", "check whether another program " +
		"fetches tokens with the same app_key"},
	classBanned: {"DingTalk has banned Vault's egress IP, which app {app} shares with all other apps at {host}", "find " +
		"what makes more than 10,000 calls in 20 seconds from this IP"},
	classUnavailable: {"DingTalk could not serve the token request for app {app}", "if it lasts, check " +
		"{corp_id}DingTalk's service status and any proxy on the way"},
	classUnreachable: {"could not get a token for app {app} from {host}", "check DNS, firewall and proxy " +
		"from Vault's active node"},
	classRedirect: {"{host} answered the token request for app {app} with a redirect, which is never " +
		"followed", wrongHost},
	classMalformed: {"{host} answered the token request for app {app} with something that is not " +
		"a token", wrongHost},
	classStorage: {"could not get a token for app {app}, since Vault's storage failed", "check Vault's storage"},
	classInternal: {"internal error while fetching a token for app {app}", "please report this " +
		"with the stack in Vault's log"},
}

const wrongHost = "check base_url and any proxy on the way"

// describe tells the person on call what happened to the app, what DingTalk said and what to do
// next.
func (f *fetchError) describe(app string, c *appConfig) string {
	edition, corpID, authorized := "", "", ""
	switch c.BaseURL {
	case defaultBaseURL:
		edition = "; for an app of the China edition set base_url=" + chinaBaseURL
	case chinaBaseURL:
		edition = "; for an app of the international edition set base_url=" + defaultBaseURL
	}
	if c.CorpID != "" { // DingTalk returns a 500 for one that does not exist
		corpID, authorized = "corp_id, ", ", that the organization of corp_id has authorized the app"
	}
	names := strings.NewReplacer("{app}", strconv.Quote(app), "{host}", c.BaseURL, "{edition}", edition,
		"{corp_id}", corpID, "{authorized}", authorized)
	d := descriptions[f.class]
	return joinNonEmpty("; ", joinNonEmpty(": ", names.Replace(d.what), f.said()), names.Replace(d.hint))
}

// said returns the cause and DingTalk's own words, as far as there are any.
func (f *fetchError) said() string {
	labelled := func(label, text string) string {
		if text == "" {
			return ""
		}
		return label + " " + text
	}
	attempts, message := "", f.message
	if f.attempts > 1 {
		attempts = fmt.Sprintf("%d attempts", f.attempts)
	}
	if message != "" && message != withheld {
		message = strconv.Quote(message)
	}
	return joinNonEmpty(", ", f.cause, attempts, labelled("code", f.code), labelled("message", message),
		labelled("request id", f.requestID))
}

func joinNonEmpty(separator string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), separator)
}

// credentials are what a token is fetched with.
type credentials struct {
	BaseURL   string
	AppKey    string
	CorpID    string // of the organization; "" selects the call for internal apps
	AppSecret sensitive
}

// request returns the path and the body of the call for a token. DingTalk has one for internal
// apps, and a unified one that names the organization.
func (c credentials) request() (path string, body map[string]string) {
	secret := c.AppSecret.reveal()
	if c.CorpID == "" {
		return "/v1.0/oauth2/accessToken", map[string]string{"appKey": c.AppKey, "appSecret": secret}
	}
	return "/v1.0/oauth2/" + c.CorpID + "/token", map[string]string{
		"client_id": c.AppKey, "client_secret": secret, "grant_type": "client_credentials",
	}
}

// client calls DingTalk's token operation.
//
// It uses the transport itself, since an http.Client follows redirects: a 307 would repeat the
// secret to another host.
type client struct {
	transport http.RoundTripper
	log       hclog.Logger
	userAgent string
	cooldowns cooldowns

	// fetched, if not nil, gets the duration of each fetch that made a call.
	fetched func(baseURL string, took time.Duration)
}

func newClient(transport http.RoundTripper, log hclog.Logger) *client {
	return &client{
		transport: transport,
		log:       log,
		userAgent: "vault-plugin-secrets-dingtalk/" + strings.TrimPrefix(Version, "v"),
	}
}

// newTransport returns the transport for the real network: TLS 1.2 and up, certificates verified,
// the process's proxy environment honored. A few calls a day need no more than HTTP/1.1 and a
// connection for each, and what is not there can't be turned against the engine: HTTP/2's hidden
// retries, connections that are kept, decompression.
func newTransport() *http.Transport {
	t := cleanhttp.DefaultTransport() // which keeps no connections
	t.Protocols = &http.Protocols{}
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2 = false
	t.DisableCompression = true
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	t.MaxResponseHeaderBytes = maxResponse
	// Otherwise the error would be whatever text the proxy put in its status line.
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

// fetch gets a token. The context bounds it, retries included, whatever the transport does. It
// returns how many calls it made, whatever their outcome; tokens known to the caller are kept out
// of the error's texts.
func (c *client) fetch(
	ctx context.Context, creds credentials, known ...*token,
) (t *token, calls int, failure *fetchError) {
	secrets := []sensitive{creds.AppSecret}
	for _, k := range known {
		if k != nil {
			secrets = append(secrets, k.Value)
		}
	}
	began := time.Now()
	defer func() {
		if calls > 0 && c.fetched != nil {
			c.fetched(creds.BaseURL, time.Since(began))
		}
	}()
	for {
		if cooldown := c.cooldowns.inForce(creds, time.Now()); cooldown != nil {
			return nil, calls, cooldown
		}
		calls++
		tok, err := c.call(ctx, creds, secrets)
		if err == nil {
			return tok, calls, nil
		}
		if failure == nil || !err.repeatable() {
			failure = err // the first cause, not what cut the last attempt short
		}
		pause := jitter(time.Duration(2*calls-1) * 100 * time.Millisecond) // about 100 ms, then about 300
		if !err.repeatable() || calls == maxAttempts || sleep(ctx, pause) != nil {
			failure.attempts = calls
			c.cooldowns.start(creds, failure, time.Now())
			return nil, calls, failure
		}
	}
}

// sleep waits for d, or until the context ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// jitter lengthens d by up to 20 %, so that waiting apps do not all retry at once. It never
// shortens it.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 + 0.2*rand.Float64())) //nolint:gosec // spreads load, guards nothing
}

// exchanged is how one HTTP exchange ended.
type exchanged struct {
	status   int
	header   http.Header
	body     []byte
	err      error
	panicked bool
}

// call makes one call. It returns when the context ends, even if the transport ignores the context:
// the exchange has a goroutine of its own.
func (c *client) call(ctx context.Context, creds credentials, secrets []sensitive) (*token, *fetchError) {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // a secret is sent in as few spellings as possible
	path, fields := creds.request()
	_ = encoder.Encode(fields)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, creds.BaseURL+path, &body)
	if err != nil {
		return nil, &fetchError{class: classUnreachable, cause: "base_url is not usable"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.userAgent)

	sent := time.Now()
	ended := make(chan exchanged, 1)
	go func() { ended <- c.exchange(req) }()
	var e exchanged
	select {
	case e = <-ended:
	case <-ctx.Done():
		e.err = ctx.Err()
	}
	switch {
	case e.panicked:
		return nil, &fetchError{class: classInternal}
	case e.err != nil:
		return nil, transportFailure(ctx, e.err, time.Since(sent), secrets)
	}
	grant, failure := readResponse(e.status, e.header, e.body, secrets...)
	if failure != nil {
		return nil, failure
	}
	tok := newToken(grant.accessToken, sent, grant.expireIn)
	if !tok.servable(time.Now()) {
		cause := fmt.Sprintf("the token had expired when it arrived (expireIn %.0f)", grant.expireIn.Seconds())
		return nil, &fetchError{class: classMalformed, cause: cause}
	}
	return tok, nil
}

// exchange sends a request and reads the response. It keeps no connection. A panic fails this fetch
// alone.
func (c *client) exchange(req *http.Request) (e exchanged) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("panic in the HTTP exchange: please report this", "stack", string(debug.Stack()))
			e = exchanged{panicked: true}
		}
	}()
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return exchanged{err: err}
	}
	defer resp.Body.Close()
	stop := context.AfterFunc(req.Context(), func() { _ = resp.Body.Close() })
	defer stop()
	e = exchanged{status: resp.StatusCode, header: resp.Header}
	if e.status < http.StatusOK {
		return e // after a 101 the body is the bare connection
	}
	e.body, err = io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	if len(e.body) <= maxResponse {
		e.err = err
	}
	return e
}

// grant is what a successful response holds.
type grant struct {
	accessToken sensitive
	expireIn    time.Duration
}

// wireResponse has the fields that the engine reads. encoding/json ignores the case of names, which
// covers the gateway's (Code, requestId). The fields are raw, since one of an unexpected type must
// not hide the others.
type wireResponse struct {
	AccessToken   json.RawMessage `json:"accessToken"`
	ExpireIn      json.RawMessage `json:"expireIn"`
	UnifiedToken  json.RawMessage `json:"access_token"`
	UnifiedExpiry json.RawMessage `json:"expires_in"`
	Code          json.RawMessage `json:"code"`
	Message       json.RawMessage `json:"message"`
	RequestID     json.RawMessage `json:"requestid"`
	ErrCode       json.RawMessage `json:"errcode"`
	ErrMsg        json.RawMessage `json:"errmsg"`
	Status        json.RawMessage `json:"status"`
	Punish        json.RawMessage `json:"punish"`
}

// readResponse returns the token of a response, or the kind of failure. A 403 means three different
// things, so a known code decides first, then the status.
func readResponse(status int, header http.Header, body []byte, secrets ...sensitive) (grant, *fetchError) {
	var wire wireResponse
	isJSON := len(body) <= maxResponse && json.Unmarshal(body, &wire) == nil
	if wire.AccessToken == nil && wire.ExpireIn == nil { // the unified call has other names
		wire.AccessToken, wire.ExpireIn = wire.UnifiedToken, wire.UnifiedExpiry
	}
	var accessToken string
	if json.Unmarshal(wire.AccessToken, &accessToken) != nil {
		accessToken = ""
	}

	code := text(wire.Code)
	fail := func(class errorClass, cause string) (grant, *fetchError) {
		secrets = append(secrets, newSensitive(accessToken))
		f := &fetchError{
			class: class, cause: cause,
			code:       showIdentifier(code, secrets),
			message:    showText(text(wire.Message), secrets),
			requestID:  showIdentifier(text(wire.RequestID), secrets),
			retryAfter: retryAfter(header, time.Now()),
		}
		switch {
		case class == classMalformed && code == "": // DingTalk's response to a wrong path
			f.code, f.message = showIdentifier(text(wire.ErrCode), secrets), showText(text(wire.ErrMsg), secrets)
		case cause == "" && f.code == "":
			f.cause = fmt.Sprintf("HTTP status %d", status)
		}
		return grant{}, f
	}

	httpStatus := fmt.Sprintf("HTTP status %d", status)
	switch {
	case status < http.StatusOK:
		return fail(classMalformed, httpStatus)
	case code == "" && accessToken == "" && (text(wire.Punish) == "deny" || text(wire.Status) == "1111"):
		return fail(classBanned, "")
	case status >= 500:
		return fail(classUnavailable, httpStatus)
	case status >= 400 && throttling(status, code):
		return fail(classThrottled, "")
	case status >= 400 && rejectsCredentials(code):
		return fail(classRejectedCredentials, "")
	case status >= 400 && code == "Forbidden.AccessDenied.IpNotInWhiteList":
		return fail(classForbiddenIP, "")
	case status >= 400 && code != "":
		return fail(classRejectedRequest, "")
	case status >= 300 && status < 400:
		return fail(classRedirect, httpStatus)
	case len(body) > maxResponse:
		return fail(classMalformed, fmt.Sprintf("%s, the response is longer than %d bytes", httpStatus, maxResponse))
	case status == http.StatusTooManyRequests && (isJSON || len(bytes.TrimSpace(body)) == 0):
		return fail(classThrottled, httpStatus)
	case !isJSON && isHTML(header, body):
		return fail(classMalformed,
			httpStatus+", the response is an HTML page, as a proxy or a ban of Vault's egress IP sends")
	case !isJSON:
		return fail(classMalformed, httpStatus+", the response is not a JSON object")
	case accessToken == "":
		return fail(classMalformed, httpStatus+", the response has no accessToken")
	case status != http.StatusOK:
		return fail(classMalformed, httpStatus)
	case !isToken(accessToken):
		return fail(classMalformed, fmt.Sprintf("%s, accessToken is not 1 to %d visible ASCII characters",
			httpStatus, maxTokenLength))
	}
	expireIn, ok := seconds(wire.ExpireIn)
	if !ok {
		return fail(classMalformed, httpStatus+", expireIn is missing, not a number or not positive")
	}
	return grant{accessToken: newSensitive(accessToken), expireIn: expireIn}, nil
}

// isToken reports whether a token may be handed out. Tokens are rendered into environment files,
// where a line break would begin another variable.
func isToken(s string) bool {
	return s != "" && len(s) <= maxTokenLength &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// rejectsCredentials reports whether a code of either token call means wrong credentials.
func rejectsCredentials(code string) bool {
	return code == "invalidClientIdOrSecret" || code == "invalid.client" || code == "unauthorized.client"
}

// throttling reports whether a code is of one of DingTalk's limits: QpsLimitForApi and similar ones
// on a 403, system.busy on a 429 or a 400.
func throttling(status int, code string) bool {
	if status == http.StatusTooManyRequests && code != "" {
		return true
	}
	limit, denied := strings.CutPrefix(code, "Forbidden.AccessDenied.")
	return code == "system.busy" || code == "systemBusy" ||
		denied && (strings.HasPrefix(limit, "QpsLimit") || strings.HasPrefix(limit, "QpmLimit") ||
			strings.HasPrefix(limit, "ApiCountLimit"))
}

func isHTML(header http.Header, body []byte) bool {
	mediaType, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	return err == nil && mediaType == "text/html" || bytes.HasPrefix(bytes.TrimSpace(body), []byte("<"))
}

// text returns a JSON string's content, or a number as it stands, otherwise "".
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

// seconds reads expireIn, a positive JSON number of seconds. It is capped at a day.
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

// retryAfter reads the header of the same name, as seconds or as a date. It returns 0 if there is
// none.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if value == "" {
		return 0
	}
	wait := time.Duration(0)
	if n, err := strconv.ParseUint(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) { // n is the largest
		wait = time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		wait = date.Sub(now)
	}
	return max(0, min(wait, maxRetryAfter))
}

// transportFailure describes a failed exchange in a few words. The library's own texts can quote
// what the other side sent, so they are left out or redacted.
func transportFailure(ctx context.Context, err error, took time.Duration, secrets []sensitive) *fetchError {
	f := &fetchError{class: classUnreachable}
	var (
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		refusal proxyError
		errno   syscall.Errno
		timeout net.Error
	)
	switch {
	case ctx.Err() != nil:
		f.cause = fmt.Sprintf("no whole response within %s", took.Round(10*time.Millisecond))
	case errors.As(err, &refusal):
		f.cause = refusal.Error()
	case errors.As(err, &cert):
		f.cause, f.final = "its certificate is not trusted: "+showText(cert.Err.Error(), secrets), true
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		f.cause, f.final = "it does not speak TLS", true
	case strings.HasPrefix(innermost(err).Error(), "tls: "): // crypto/tls words its errors itself
		f.cause, f.final = "the TLS handshake failed: "+showText(innermost(err).Error(), secrets), true
	case errors.As(err, &dns):
		f.cause = fmt.Sprintf("the name %q cannot be resolved", showText(dns.Name, secrets))
	case errors.As(err, &errno): // such as "connection refused"
		f.cause = errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		f.cause = "the connection ended before the response did"
	case errors.As(err, &timeout) && timeout.Timeout():
		f.cause = "timed out"
	default:
		f.cause = "the HTTP exchange failed, or the response is not HTTP"
	}
	return f
}

func innermost(err error) error {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return err
}

// cooldowns are the times during which DingTalk is not called. They outlast an app's generation: a
// ban of Vault's egress IP covers every app of the host, a Retry-After every app with that key and
// organization there.
type cooldowns struct {
	mu  sync.Mutex
	all map[cooldownKey]*fetchError
}

// cooldownKey has no appKey if it covers all apps of the host.
type cooldownKey struct{ baseURL, appKey, corpID string }

// start records the ban or the Retry-After of a failure, if there is one, and sets f.cooldown. A
// shorter cooldown never replaces a longer one. Those that are over are removed.
func (c *cooldowns) start(creds credentials, f *fetchError, now time.Time) {
	key := cooldownKey{baseURL: creds.BaseURL}
	switch {
	case f.class == classBanned:
		f.cooldown = now.Add(banDuration)
	case f.retryAfter > 0:
		f.cooldown = now.Add(f.retryAfter)
		key.appKey, key.corpID = creds.AppKey, creds.CorpID
	default:
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.all, func(_ cooldownKey, old *fetchError) bool { return !old.cooldown.After(now) })
	old := c.all[key]
	if old != nil && old.cooldown.After(f.cooldown) || old == nil && c.full(key.baseURL) {
		return
	}
	if c.all == nil {
		c.all = map[cooldownKey]*fetchError{}
	}
	c.all[key] = f
}

// full reports whether there is no room for a host's cooldown. It is called with c.mu held.
func (c *cooldowns) full(baseURL string) bool {
	alike := 0
	for key := range c.all {
		if key.baseURL == baseURL || !isDingTalk(key.baseURL) && !isDingTalk(baseURL) {
			alike++
		}
	}
	return alike >= maxCooldowns
}

// count returns how many cooldowns are in force, by base URL.
func (c *cooldowns) count(now time.Time) map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	byHost := map[string]int{}
	for key, f := range c.all {
		if f.cooldown.After(now) {
			byHost[key.baseURL]++
		}
	}
	return byHost
}

// isDingTalk reports whether a base_url is one of DingTalk's two.
func isDingTalk(baseURL string) bool { return baseURL == defaultBaseURL || baseURL == chinaBaseURL }

// inForce returns the cooldown that forbids a call with these credentials longest, or nil if a call
// may be made now. The client asks it before every call.
func (c *cooldowns) inForce(creds credentials, now time.Time) *fetchError {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last *fetchError
	for _, key := range [...]cooldownKey{{baseURL: creds.BaseURL}, {creds.BaseURL, creds.AppKey, creds.CorpID}} {
		f := c.all[key]
		if f != nil && f.cooldown.After(now) && (last == nil || f.cooldown.After(last.cooldown)) {
			last = f
		}
	}
	return last
}
