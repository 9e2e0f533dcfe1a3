// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"time"
)

// This file is the token API as it answers when no fault is set, and the way a request takes: read,
// counted, answered in memory, logged, and only then sent, so that a slow or broken sending changes
// none of the rest.

// TokenPath is where DingTalk issues access tokens. [UnifiedPath] is its successor.
const TokenPath = "/v1.0/oauth2/accessToken"

const (
	contentTypeJSON = "application/json"
	contentTypeHTML = "text/html; charset=utf-8"
	maxRequestBytes = 64 << 10

	errcodeBody = `{"errcode":404,"errmsg":"请求的URI地址不存在"}`
)

// envelope is the body of an error. DingTalk spells the request id in lower case.
type envelope struct {
	RequestID          string              `json:"requestid"`
	Code               string              `json:"code,omitempty"`
	Message            string              `json:"message,omitempty"`
	AccessDeniedDetail *accessDeniedDetail `json:"accessdenieddetail,omitempty"`
}

type accessDeniedDetail struct {
	RequiredScopes []string `json:"requiredScopes"`
}

// reply is what is sent. A status of 0 is no HTTP reply at all.
type reply struct {
	status      int
	contentType string
	body        []byte
}

// serveToken serves the unified call where it is given an organization, otherwise the older one.
func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, corpID string) {
	req := readTokenRequest(r, corpID)
	fault := s.receive(req.account)
	defer s.end(req.appKey)
	requestID := newRequestID()
	a := s.reply(r, req, fault, requestID)

	attrs := []slog.Attr{slog.String("app", s.logName(req.appKey))}
	if corpID != "" {
		attrs = append(attrs, slog.String("corp_id", s.logCorpID(corpID)))
	}
	s.logger.LogAttrs(r.Context(), slog.LevelInfo, "token request", append(attrs, slog.Int("status", a.status),
		slog.String("request_id", requestID), slog.String("fault", cmp.Or(fault.Kind, "none")))...)

	if !s.wait(r.Context(), fault.Delay) {
		panic(http.ErrAbortHandler)
	}
	s.deliver(w, r, req, fault, a)
}

// logName is the app key if it is an app's. Anything else may be a secret in the wrong field.
func (s *Server) logName(appKey string) string {
	if !s.isApp(appKey) {
		return "unknown"
	}
	return appKey
}

// logCorpID is the organization if it is one, for the same reason.
func (s *Server) logCorpID(corpID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isOrganization(corpID) {
		return "unknown"
	}
	return corpID
}

type tokenRequest struct {
	account

	call      *tokenCall
	appSecret string
	grantType string // of the unified call
	body      string // as it was sent
	missing   string // what the gateway would ask for first: body, or a field
}

// readTokenRequest takes a JSON object of type application/json, as documented. It reads the names
// to the letter, unlike a decoding into a struct, so that a client which spells one otherwise is
// found out. DingTalk answers a form with Missingbody; that it treats all else that is no JSON
// object the same is assumed here.
func readTokenRequest(r *http.Request, corpID string) tokenRequest {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequestBytes+1))
	req := tokenRequest{account: account{corpID: corpID}, call: callFor(corpID), body: string(body)}
	var fields map[string]any
	if err != nil || len(body) > maxRequestBytes || json.Unmarshal(body, &fields) != nil {
		req.missing = "body"
		return req
	}
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if mediaType != contentTypeJSON || fields == nil {
		req.missing = "body"
	}
	values := []*string{&req.appKey, &req.appSecret, &req.grantType}
	for i, name := range req.call.request {
		value, ok := fields[name].(string)
		if !ok {
			req.missing = cmp.Or(req.missing, name)
		}
		*values[i] = value
	}
	return req
}

// usualReply is the reply without a fault, but for the token and the expireIn that one may put
// there.
func (s *Server) usualReply(method string, req tokenRequest, f Fault, requestID string) reply {
	switch {
	case method != http.MethodPost:
		return wrongMethod(requestID)
	case req.missing != "":
		// Missingbody was seen; the codes for the fields follow its pattern.
		return jsonReply(http.StatusBadRequest, envelope{
			RequestID: requestID,
			Code:      "Missing" + req.missing,
			Message:   req.missing + " is mandatory for this action.",
		})
	case req.call == unifiedCall && req.grantType != onlyGrantType:
		return unsupportedGrantType(requestID)
	}
	token, lifetime, refusal := s.issue(req.account, req.appSecret)
	if refusal != "" {
		e, _ := req.call.envelopeFor(refusal)
		return jsonReply(e.status, envelope{RequestID: requestID, Code: e.code, Message: e.message})
	}
	expireIn := strconv.FormatInt(int64(lifetime/time.Second), 10)
	switch f.Kind {
	case FaultExpireIn:
		expireIn = f.ExpireIn
	case FaultToken:
		token, expireIn = f.Token, cmp.Or(f.ExpireIn, expireIn)
	}
	return req.call.goodReply(token, expireIn)
}

// wrongMethod is not documented. It is what other APIs behind the same gateway return.
func wrongMethod(requestID string) reply {
	return jsonReply(http.StatusNotFound, envelope{
		RequestID: requestID,
		Code:      "InvalidAction.NotFound",
		Message:   "Specified api is not found, please check your url and method.",
	})
}

// goodReply takes expireIn as JSON; empty leaves the field out.
func (c *tokenCall) goodReply(token, expireIn string) reply {
	body := `{"` + c.token + `":` + jsonString(token, EncodingJSON)
	if expireIn != "" {
		body += `,"` + c.lifetime + `":` + expireIn
	}
	body += "}"
	return reply{status: http.StatusOK, contentType: contentTypeJSON, body: []byte(body)}
}

func jsonReply(status int, v any) reply {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // what is passed here always marshals
	}
	return reply{status: status, contentType: contentTypeJSON, body: body}
}

func send(w http.ResponseWriter, a reply) {
	if a.contentType != "" {
		w.Header().Set("Content-Type", a.contentType)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // a client that has gone needs no reply
}

// wait lasts d, and returns false if the client goes or the server ends before.
func (s *Server) wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	case <-s.closing:
		return false
	}
}
