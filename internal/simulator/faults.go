// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// This file holds the ways the token API can be made to fail: the documented errors, and what a
// broken network, a proxy or a hostile server might send instead. Only the codes, the rejected
// credentials' message and the ban's body are DingTalk's to the letter; the other messages are
// plausible. What is no HTTP response is in stream.go.

// The kinds of [Fault]. What is said of status, code and message is for a fault that names no
// other. On the unified call, accessToken is access_token, expireIn is expires_in, and
// invalidClientIdOrSecret is invalid.client.
const (
	// FaultError is an error in DingTalk's envelope with the fault's own code and message, and 400.
	FaultError = "error"
	// FaultRejectedCredentials is 400 invalidClientIdOrSecret.
	FaultRejectedCredentials = "rejected-credentials"
	// FaultInvalidClient is 400 invalid.client.
	FaultInvalidClient = "invalid-client"
	// FaultUnauthorizedClient is 401 unauthorized.client. DingTalk also documents it with 400.
	FaultUnauthorizedClient = "unauthorized-client"
	// FaultMissingBody is 400 Missingbody.
	FaultMissingBody = "missing-body"
	// FaultIPNotAllowed is 403 Forbidden.AccessDenied.IpNotInWhiteList.
	FaultIPNotAllowed = "ip-not-allowed"
	// FaultPermissionDenied is 403 Forbidden.AccessDenied.AccessTokenPermissionDenied with its
	// accessdenieddetail.
	FaultPermissionDenied = "permission-denied"
	// FaultThrottledQPS is 403 Forbidden.AccessDenied.QpsLimitForAppkeyAndApi.
	FaultThrottledQPS = "throttled-qps"
	// FaultThrottledBusy is 429 system.busy. DingTalk also sends it with 400, and spells it
	// systemBusy.
	FaultThrottledBusy = "throttled-busy"
	// FaultBanned is the body that a banned IP gets, which has no code, with 403.
	FaultBanned = "banned"
	// FaultHTML is an HTML page with 403.
	FaultHTML = "html"
	// FaultUnavailableUnknown is 500 unknownError.
	FaultUnavailableUnknown = "unavailable-unknown"
	// FaultUnavailableBusy is 500 system.busy. DingTalk also spells it systemBusy.
	FaultUnavailableBusy = "unavailable-busy"
	// FaultUnavailableServer is 500 server.error.
	FaultUnavailableServer = "unavailable-server"
	// FaultUnavailableEmpty is 503 with an empty body.
	FaultUnavailableEmpty = "unavailable-empty"
	// FaultMixedCase is 400 invalidClientIdOrSecret with the fields Code, Message and requestId.
	FaultMixedCase = "mixed-case"
	// FaultEchoSecret is 400 invalidParameter with a message of some kilobytes that repeats the
	// secret sent and the app's last token of the same call and organization, whole and split by
	// control characters: a reader that cuts it first will hardly miss them all.
	FaultEchoSecret = "echo-secret"
	// FaultEchoRequest is 400 with what [Fault.Part] says for code, message and requestid, in the
	// form that [Fault.Encoding] says. The fault's own code and message stand in its place.
	FaultEchoRequest = "echo-request"

	// FaultTruncated is the usual reply cut in half, with a Content-Length to match: whole HTTP,
	// broken JSON.
	FaultTruncated = "truncated"
	// FaultEmptyToken is 200 with an empty accessToken.
	FaultEmptyToken = "empty-token"
	// FaultExpireIn is the usual reply with [Fault.ExpireIn] for expireIn.
	FaultExpireIn = "expire-in"
	// FaultToken is the usual response with [Fault.Token] for accessToken. [Fault.ExpireIn], unless
	// it is empty, stands for expireIn. The simulator itself does not know such a token.
	FaultToken = "token"
	// FaultErrcode is 200 with an errcode and no token, as for a wrong path.
	FaultErrcode = "errcode"
	// FaultHuge is 200 with a body of 100 MiB that would be a good reply.
	FaultHuge = "huge"
	// FaultGzipBomb is the same, compressed to under 1 MB, whether or not the client takes gzip.
	FaultGzipBomb = "gzip-bomb"
	// FaultRedirect is 307 to [Fault.Location].
	FaultRedirect = "redirect"
	// FaultHang is no reply until the client goes, or the server is closed.
	FaultHang = "hang"
	// FaultTrickle is the usual reply with its headers at once and its body at one byte a second.
	FaultTrickle = "trickle"
	// FaultReset is a connection reset in place of a reply.
	FaultReset = "reset"

	// The kinds below take the connection and keep it open until the client closes it, or the
	// server is closed. They are HTTP/1.1, also where the client speaks HTTP/2.

	// FaultRaw is [Fault.Raw], then [Fault.Repeat] without end.
	FaultRaw = "raw"
	// FaultSwitchingProtocols is 101 and then silence.
	FaultSwitchingProtocols = "switching-protocols"
	// FaultInformationalFlood is 103 without end.
	FaultInformationalFlood = "informational-flood"
	// FaultStatus099 is the usual response with the status 099.
	FaultStatus099 = "status-099"
	// FaultSurplus is the usual response, followed by the app's last token and the request's body
	// in clear.
	FaultSurplus = "surplus"
	// FaultEndlessHeaders is 200 with headers without end.
	FaultEndlessHeaders = "endless-headers"
	// FaultEndlessBody is 200 with an accessToken without end.
	FaultEndlessBody = "endless-body"
	// FaultEndlessDrip is 200 with a body of spaces without end, one a second; FaultTrickle has an
	// end.
	FaultEndlessDrip = "endless-drip"
	// FaultEndlessGzip is 200 with gzip members without end, each about 1 KiB that expands to 1 MiB
	// of spaces.
	FaultEndlessGzip = "endless-gzip"
	// FaultEndlessGzipEmpty is 200 with empty gzip members without end.
	FaultEndlessGzipEmpty = "endless-gzip-empty"

	// The kinds below are for clients that speak HTTP/2, see [Server.StartTLS]; others get the
	// usual response.

	// FaultHTTP2GoAway is a GOAWAY that allows the client to send the request again on another
	// connection.
	FaultHTTP2GoAway = "http2-goaway"
	// FaultHTTP2Silent is a connection on which nothing is sent any more, not even the reply to a
	// PING.
	FaultHTTP2Silent = "http2-silent"
	// FaultHTTP2Flood is PING and SETTINGS without end.
	FaultHTTP2Flood = "http2-flood"
)

// The parts of a request of [Fault.Part].
const (
	// PartBody is the whole body, which has the app key and the app secret.
	PartBody = "body"
	// PartSecret is the app secret.
	PartSecret = "secret"
	// PartToken is the app's last token of the same call and organization, which a host that was
	// taken over knows too.
	PartToken = "token"
)

// DefaultRedirect is where [FaultRedirect] leads without a Location: another loopback host, where
// nothing should listen.
const DefaultRedirect = "http://127.0.0.2:1/"

// hugeBytes is the size of the bodies of FaultHuge and FaultGzipBomb, without a few bytes of JSON
// around it.
const hugeBytes = 100 << 20

const bannedBody = `{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"xxx"}`

const htmlBody = `<!DOCTYPE html>
<html><head><title>Access denied</title></head><body><h1>Access denied</h1></body></html>
`

type errorEnvelope struct {
	status        int
	code, message string
}

var envelopes = map[string]errorEnvelope{
	FaultError:               {status: http.StatusBadRequest},
	FaultRejectedCredentials: {http.StatusBadRequest, "invalidClientIdOrSecret", "无效的clientId或者clientSecret"},
	FaultInvalidClient:       {http.StatusBadRequest, "invalid.client", "无效的clientId或者clientSecret"},
	FaultUnauthorizedClient:  {http.StatusUnauthorized, "unauthorized.client", "应用未被授权"},
	FaultMissingBody:         {http.StatusBadRequest, "Missingbody", "body is mandatory for this action."},
	FaultIPNotAllowed:        {http.StatusForbidden, "Forbidden.AccessDenied.IpNotInWhiteList", "访问ip不在白名单之中"},
	FaultPermissionDenied: {
		http.StatusForbidden,
		"Forbidden.AccessDenied.AccessTokenPermissionDenied",
		"应用尚未开通所需的权限",
	},
	FaultThrottledQPS: {
		http.StatusForbidden,
		"Forbidden.AccessDenied.QpsLimitForAppkeyAndApi",
		"应用调用该接口的频率超过限制",
	},
	FaultThrottledBusy:      {http.StatusTooManyRequests, "system.busy", "系统繁忙"},
	FaultUnavailableUnknown: {http.StatusInternalServerError, "unknownError", "未知错误"},
	FaultUnavailableBusy:    {http.StatusInternalServerError, "system.busy", "系统繁忙"},
	FaultUnavailableServer:  {http.StatusInternalServerError, "server.error", "服务器错误"},
	FaultMixedCase:          {http.StatusBadRequest, "invalidClientIdOrSecret", "无效的clientId或者clientSecret"},
	FaultEchoSecret:         {http.StatusBadRequest, "invalidParameter", ""},
	FaultEchoRequest:        {status: http.StatusBadRequest},
}

// FaultKinds lists every kind, in the order of the constants.
func FaultKinds() []string {
	return []string{
		FaultError, FaultRejectedCredentials, FaultInvalidClient, FaultUnauthorizedClient, FaultMissingBody,
		FaultIPNotAllowed, FaultPermissionDenied, FaultThrottledQPS, FaultThrottledBusy, FaultBanned, FaultHTML,
		FaultUnavailableUnknown, FaultUnavailableBusy, FaultUnavailableServer, FaultUnavailableEmpty,
		FaultMixedCase, FaultEchoSecret, FaultEchoRequest,
		FaultTruncated, FaultEmptyToken, FaultExpireIn, FaultToken, FaultErrcode, FaultHuge, FaultGzipBomb,
		FaultRedirect, FaultHang, FaultTrickle, FaultReset,
		FaultRaw, FaultSwitchingProtocols, FaultInformationalFlood, FaultStatus099, FaultSurplus,
		FaultEndlessHeaders, FaultEndlessBody, FaultEndlessDrip, FaultEndlessGzip, FaultEndlessGzipEmpty,
		FaultHTTP2GoAway, FaultHTTP2Silent, FaultHTTP2Flood,
	}
}

// Fault is a way in which token requests fail. What does not apply to its kind is ignored. As JSON
// its fields are those of the control API, in the package's documentation.
//
// In Code, Message, RetryAfter and Token, {n} stands for how many requests there were so far, so
// that no two responses are alike.
type Fault struct {
	// Kind is one of the constants; empty is no fault, which still may have a Delay or a
	// RetryAfter.
	Kind string
	// Status is the HTTP status in place of the kind's own, 200 to 599. The kinds that spoil a
	// usual reply or give none ignore it.
	Status int
	// Code and Message stand in the envelope in place of the kind's own.
	Code, Message string
	// RetryAfter is a Retry-After header as it is, for any kind that answers with a whole response.
	RetryAfter string
	// Delay is a wait before the reply. A token's life counts from the request, not from the
	// reply.
	Delay time.Duration
	// Location is where FaultRedirect leads; empty means DefaultRedirect.
	Location string
	// Times is how many requests are hit; 0 is all until the fault is cleared.
	Times int
	// ExpireIn is the JSON that FaultExpireIn puts there; empty leaves the field out. FaultToken
	// has it too.
	ExpireIn string
	// Token is the accessToken of FaultToken, any text.
	Token string
	// Part is what FaultEchoRequest repeats: PartBody, PartSecret or PartToken; empty means
	// PartBody.
	Part string
	// Encoding is the form in which it does, one of [Encodings] or several with commas between
	// them, the first applied first; empty means EncodingPlain.
	Encoding string
	// Raw is what FaultRaw sends at once, and Repeat what it then sends without end; if that is
	// empty, it is silent. As JSON they have to be UTF-8.
	Raw, Repeat string
	// Interval is the pause before each byte of Repeat; 0 sends it as fast as the client reads.
	Interval time.Duration
}

// Validate tells what is wrong with the fault, if anything.
func (f Fault) Validate() error {
	switch {
	case f.Kind != "" && !slices.Contains(FaultKinds(), f.Kind):
		return fmt.Errorf("unknown fault kind %q; the kinds are %s", f.Kind, strings.Join(FaultKinds(), ", "))
	case f.Kind == "" && f != Fault{RetryAfter: f.RetryAfter, Delay: f.Delay, Times: f.Times}:
		return errors.New("without a kind, a fault can only have delay, retry_after and times")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599 ||
		f.Status == http.StatusNoContent || f.Status == http.StatusNotModified):
		return fmt.Errorf("status %d is not one from 200 to 599 that can have a body", f.Status)
	case f.Delay < 0:
		return fmt.Errorf("delay %s is negative", f.Delay)
	case f.Times < 0:
		return fmt.Errorf("times %d is negative", f.Times)
	case f.ExpireIn != "" && !json.Valid([]byte(f.ExpireIn)):
		return fmt.Errorf("expire_in %q is not JSON", f.ExpireIn)
	case f.Interval < 0:
		return fmt.Errorf("interval %s is negative", f.Interval)
	case !slices.Contains([]string{"", PartBody, PartSecret, PartToken}, f.Part):
		return fmt.Errorf("unknown part %q; the parts are %s, %s, %s", f.Part, PartBody, PartSecret, PartToken)
	}
	return checkEncoding(f.Encoding)
}

func isHTTP2Fault(kind string) bool {
	return kind == FaultHTTP2GoAway || kind == FaultHTTP2Silent || kind == FaultHTTP2Flood
}

// numbered is the fault as it hits the request of that number.
func (f Fault) numbered(n int) Fault {
	for _, text := range []*string{&f.Code, &f.Message, &f.RetryAfter, &f.Token} {
		*text = strings.ReplaceAll(*text, "{n}", strconv.Itoa(n))
	}
	return f
}

type faultJSON struct {
	Kind       string          `json:"kind,omitempty"`
	Status     int             `json:"status,omitempty"`
	Code       string          `json:"code,omitempty"`
	Message    string          `json:"message,omitempty"`
	RetryAfter string          `json:"retry_after,omitempty"`
	Delay      string          `json:"delay,omitempty"`
	Location   string          `json:"location,omitempty"`
	Times      int             `json:"times,omitempty"`
	ExpireIn   json.RawMessage `json:"expire_in,omitempty"`
	Token      string          `json:"token,omitempty"`
	Part       string          `json:"part,omitempty"`
	Encoding   string          `json:"encoding,omitempty"`
	Raw        string          `json:"raw,omitempty"`
	Repeat     string          `json:"repeat,omitempty"`
	Interval   string          `json:"interval,omitempty"`
}

// MarshalJSON writes the fault as the control API takes it.
func (f Fault) MarshalJSON() ([]byte, error) {
	return json.Marshal(faultJSON{
		Kind: f.Kind, Status: f.Status, Code: f.Code, Message: f.Message, RetryAfter: f.RetryAfter,
		Delay: durationText(f.Delay), Location: f.Location, Times: f.Times, ExpireIn: json.RawMessage(f.ExpireIn),
		Token: f.Token, Part: f.Part, Encoding: f.Encoding,
		Raw: f.Raw, Repeat: f.Repeat, Interval: durationText(f.Interval),
	})
}

func durationText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

// UnmarshalJSON reads a fault as the control API takes it. It fails on an unknown field, and on a
// Delay or an Interval that is no duration.
func (f *Fault) UnmarshalJSON(b []byte) error {
	var j faultJSON
	if err := decodeStrict(bytes.NewReader(b), &j); err != nil {
		return err
	}
	*f = Fault{
		Kind: j.Kind, Status: j.Status, Code: j.Code, Message: j.Message, RetryAfter: j.RetryAfter,
		Location: j.Location, Times: j.Times, ExpireIn: string(j.ExpireIn),
		Token: j.Token, Part: j.Part, Encoding: j.Encoding, Raw: j.Raw, Repeat: j.Repeat,
	}
	for _, field := range []struct {
		name, text string
		value      *time.Duration
	}{{"delay", j.Delay, &f.Delay}, {"interval", j.Interval, &f.Interval}} {
		if field.text == "" {
			continue
		}
		d, err := time.ParseDuration(field.text)
		if err != nil {
			return fmt.Errorf(`%s %q is not a duration such as "1.5s"`, field.name, field.text)
		}
		*field.value = d
	}
	return nil
}

// reply decides what a token request gets: the fault's reply, or the usual one, perhaps spoiled.
func (s *Server) reply(r *http.Request, req tokenRequest, f Fault, requestID string) reply {
	if _, ok := endless(r, req.call, f); ok {
		return reply{}
	}
	if e, ok := req.call.envelopeFor(f.Kind); ok {
		return s.envelopeReply(req, f, cmp.Or(f.Status, e.status), envelope{
			RequestID: requestID,
			Code:      cmp.Or(f.Code, e.code),
			Message:   cmp.Or(f.Message, e.message),
		})
	}
	switch f.Kind {
	case FaultBanned:
		return reply{cmp.Or(f.Status, http.StatusForbidden), contentTypeJSON, []byte(bannedBody)}
	case FaultHTML:
		return reply{cmp.Or(f.Status, http.StatusForbidden), contentTypeHTML, []byte(htmlBody)}
	case FaultUnavailableEmpty:
		return reply{status: cmp.Or(f.Status, http.StatusServiceUnavailable)}
	case FaultErrcode:
		return reply{cmp.Or(f.Status, http.StatusOK), contentTypeJSON, []byte(errcodeBody)}
	case FaultEmptyToken:
		return req.call.goodReply("", "7200")
	case FaultRedirect:
		return reply{status: cmp.Or(f.Status, http.StatusTemporaryRedirect)}
	case FaultHuge, FaultGzipBomb:
		return reply{status: http.StatusOK, contentType: contentTypeJSON}
	case FaultHang, FaultReset:
		return reply{}
	}

	a := s.usualReply(r.Method, req, f, requestID)
	if f.Kind == FaultTruncated {
		a.body = a.body[:len(a.body)/2]
	}
	return a
}

func (s *Server) envelopeReply(req tokenRequest, f Fault, status int, e envelope) reply {
	switch f.Kind {
	case FaultMixedCase:
		return jsonReply(status, struct {
			Code      string
			Message   string
			RequestID string `json:"requestId"`
		}{e.Code, e.Message, e.RequestID})
	case FaultPermissionDenied:
		e.AccessDeniedDetail = &accessDeniedDetail{RequiredScopes: []string{"Contact.User.Read"}}
	case FaultEchoRequest:
		return s.echoReply(req, f, status)
	case FaultEchoSecret:
		e.Message += echo(req.appSecret, s.LastTokenIn(req.appKey, req.corpID))
	}
	return jsonReply(status, e)
}

// echoReply writes its JSON itself, since encoding/json has escapes of its own.
func (s *Server) echoReply(req tokenRequest, f Fault, status int) reply {
	text := req.body
	switch f.Part {
	case PartSecret:
		text = req.appSecret
	case PartToken:
		text = s.LastTokenIn(req.appKey, req.corpID)
	}
	echoed := jsonString(text, f.Encoding)
	code, message := echoed, echoed
	if f.Code != "" {
		code = jsonString(f.Code, EncodingJSON)
	}
	if f.Message != "" {
		message = jsonString(f.Message, EncodingJSON)
	}
	body := fmt.Sprintf(`{"requestid":%s,"code":%s,"message":%s}`, echoed, code, message)
	return reply{status, contentTypeJSON, []byte(body)}
}

// echo is some kilobytes of text that repeat the secrets. One that is cut before the secrets are
// replaced, or replaced before the control characters are gone, shows some of them.
func echo(secrets ...string) string {
	var b strings.Builder
	b.WriteString("bad request\x00\x1b[31m\r\n:")
	for b.Len() < 4096 {
		for _, secret := range secrets {
			b.WriteString(" 收到 " + secret + "\t")
			for i := range len(secret) {
				b.WriteString(secret[i:i+1] + "\x07")
			}
		}
		b.WriteString("\u202e\u0085完")
	}
	return b.String()
}

// deliver sends the reply in the way the fault asks for.
func (s *Server) deliver(w http.ResponseWriter, r *http.Request, req tokenRequest, f Fault, a reply) {
	if st, ok := s.streamFor(r, req, f, a); ok {
		s.sendStream(w, r, st)
		return
	}
	switch f.Kind {
	case FaultHang:
		select {
		case <-r.Context().Done():
		case <-s.closing:
		}
		panic(http.ErrAbortHandler)
	case FaultReset:
		reset(w)
		return
	}
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	switch f.Kind {
	case FaultHuge:
		w.Header().Set("Content-Type", a.contentType)
		w.WriteHeader(a.status)
		_ = writeHuge(w, req.call) // ends early when the client goes, or Close breaks the connection
	case FaultTrickle:
		s.trickle(w, r, a)
	case FaultGzipBomb:
		w.Header().Set("Content-Encoding", "gzip")
		a.body = gzipBombs[req.call]()
		send(w, a)
	case FaultRedirect:
		w.Header().Set("Location", cmp.Or(f.Location, DefaultRedirect))
		send(w, a)
	default:
		send(w, a)
	}
}

// reset breaks the connection so that the client sees a reset rather than an end, where it is TCP.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2 under somebody else's server
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // closing then sends RST
	}
	_ = conn.Close()
}

func (s *Server) trickle(w http.ResponseWriter, r *http.Request, a reply) {
	w.Header().Set("Content-Type", a.contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	flusher := http.NewResponseController(w)
	for i := range a.body {
		if err := flusher.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			panic(http.ErrAbortHandler)
		}
		if !s.wait(r.Context(), time.Second) {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(a.body[i : i+1])
	}
}

// hugeHead, a number of hugeChunk and hugeTail are what a client without a limit would take for a
// good reply.
func (c *tokenCall) hugeHead() string { return `{"` + c.token + `":"` }

func (c *tokenCall) hugeTail() string { return `","` + c.lifetime + `":7200}` }

func hugeChunk() []byte { return bytes.Repeat([]byte("0123456789abcdef"), 1<<16) }

func writeHuge(w io.Writer, c *tokenCall) error {
	if _, err := io.WriteString(w, c.hugeHead()); err != nil {
		return err
	}
	chunk := hugeChunk()
	for range hugeBytes / len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, c.hugeTail())
	return err
}

var gzipBombs = map[*tokenCall]func() []byte{
	olderCall:   sync.OnceValue(func() []byte { return gzipBomb(olderCall) }),
	unifiedCall: sync.OnceValue(func() []byte { return gzipBomb(unifiedCall) }),
}

// gzipBomb is put together from parts, since compressing the whole takes the race detector two
// seconds, and the client a timeout that this fault does not mean. A flushed deflate block ends at
// a byte and refers at most 32 KiB back. Each chunk but the first follows a chunk, so one
// compressed chunk serves for all of them.
func gzipBomb(c *tokenCall) []byte {
	head, tail, chunk := []byte(c.hugeHead()), []byte(c.hugeTail()), hugeChunk()
	chunks := hugeBytes / len(chunk)
	var deflated bytes.Buffer
	w, err := flate.NewWriter(&deflated, flate.BestSpeed)
	if err != nil {
		panic(err) // the level is a valid one
	}
	part := func(end func() error, data ...[]byte) []byte {
		deflated.Reset()
		for _, d := range data {
			_, _ = w.Write(d) // a buffer takes everything
		}
		_ = end()
		return bytes.Clone(deflated.Bytes())
	}
	first := part(w.Flush, head, chunk)
	next := part(w.Flush, chunk)
	last := part(w.Close, tail)

	sum := crc32.ChecksumIEEE(head)
	for range chunks {
		sum = crc32.Update(sum, crc32.IEEETable, chunk)
	}
	sum = crc32.Update(sum, crc32.IEEETable, tail)

	bomb := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255} // RFC 1952: deflate, no name, no time, unknown system
	bomb = slices.Concat(bomb, first, bytes.Repeat(next, chunks-1), last)
	bomb = binary.LittleEndian.AppendUint32(bomb, sum)
	size := len(head) + chunks*len(chunk) + len(tail)
	return binary.LittleEndian.AppendUint32(bomb, uint32(size)) //nolint:gosec // about hugeBytes
}
