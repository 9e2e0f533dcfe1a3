// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// This file is what DingTalk's unified call has of its own: a path that names an organization, the
// names in its bodies, and its errors. The rest is the same as in token.go.
//
// What is known of it. Path, names, and the codes invalid.client, unsupported.grant.type,
// unauthorized.client and server.error with their status are in DingTalk's documentation, path and
// names also in its SDK. The response to a corpId that does not exist was seen.
//
// What is assumed. That a repeat returns the same token and extends it, that the errors have the
// envelope of the older call, the order of the checks, and that an app which an organization has
// not authorized is an unauthorized.client.

// DefaultCorpID is the organization in which an app runs that was given none.
const DefaultCorpID = "dingcorp0123456789abcdef"

// UnifiedPath is the path of the unified call, which issues an app's token in one organization.
func UnifiedPath(corpID string) string { return unifiedPrefix + corpID + unifiedSuffix }

const (
	unifiedPrefix = "/v1.0/oauth2/"
	unifiedSuffix = "/token"

	onlyGrantType = "client_credentials"
)

// corpIDOf is the organization in the path of the unified call; empty for another path.
func corpIDOf(path string) string {
	corpID, ok := strings.CutPrefix(path, unifiedPrefix)
	if !ok {
		return ""
	}
	if corpID, ok = strings.CutSuffix(corpID, unifiedSuffix); !ok || strings.Contains(corpID, "/") {
		return ""
	}
	return corpID
}

var corpIDForm = regexp.MustCompile(`^[0-9A-Za-z]{1,64}$`)

// CheckCorpIDs reports what is wrong with the organizations of an app, if anything.
func CheckCorpIDs(corpIDs []string) error {
	if slices.ContainsFunc(corpIDs, func(corpID string) bool { return !corpIDForm.MatchString(corpID) }) {
		return errors.New("a corpId is 1 to 64 letters and digits")
	}
	return nil
}

// tokenCall is how one of the two calls names the fields of its bodies.
type tokenCall struct {
	request         []string // the app key, the app secret and, on the unified call, the grant type
	token, lifetime string   // of the response
}

var (
	olderCall   = &tokenCall{[]string{"appKey", "appSecret"}, "accessToken", "expireIn"}
	unifiedCall = &tokenCall{[]string{"client_id", "client_secret", "grant_type"}, "access_token", "expires_in"}
)

// callFor is the call that names this organization, or none.
func callFor(corpID string) *tokenCall {
	if corpID == "" {
		return olderCall
	}
	return unifiedCall
}

// envelopeFor is the error of this kind of fault on the call. The kinds that the documentation has
// for one call alone can be set on both.
func (c *tokenCall) envelopeFor(kind string) (e errorEnvelope, ok bool) {
	if c == unifiedCall && (kind == FaultRejectedCredentials || kind == FaultMixedCase) {
		kind = FaultInvalidClient
	}
	e, ok = envelopes[kind]
	return e, ok
}

func unsupportedGrantType(requestID string) reply {
	return jsonReply(http.StatusBadRequest, envelope{
		RequestID: requestID,
		Code:      "unsupported.grant.type",
		Message:   "不支持的grant_type",
	})
}
