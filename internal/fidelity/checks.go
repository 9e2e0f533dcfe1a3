// SPDX-License-Identifier: MPL-2.0

package fidelity

// This file is the table: what is sent, what is looked at in the response, what is expected, and how
// that is known.

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Source says how far an expectation can be relied on.
type Source string

// The sources, the firmest first.
const (
	// Documented is in DingTalk's own documentation.
	Documented Source = "documented"
	// Seen is in responses of the live API that others have published.
	Seen Source = "seen"
	// Reported is one user's report.
	Reported Source = "reported"
	// Assumed is what the simulator does where nothing is known.
	Assumed Source = "assumed"
)

const (
	tokenPath = "/v1.0/oauth2/accessToken"
	wrongPath = "/v1.0/oauth2/noSuchOperation"

	jsonType = "application/json"
	formType = "application/x-www-form-urlencoded"

	// wrongSecret looks like one and is nobody's.
	wrongSecret = "no-app-has-this-secret-0000000000000000000000000000000000000000"
	// unknownKey looks like an AppKey and is nobody's.
	unknownKey = "dingnoappxhasthiskey"
	// unknownCorpID looks like a corpId and is nobody's.
	unknownCorpID = "dingnoorganizationhasthisid"

	onlyGrantType = "client_credentials"

	// repeatAfter is the pause before the repeat. It is long enough for an expireIn that counts
	// down to show it.
	repeatAfter = 3 * time.Second

	rejectedCode    = "invalidClientIdOrSecret"
	rejectedMessage = "无效的clientId或者clientSecret"
)

// call is one request, and the checks of its response. Without a method it is a POST, without a path
// the token operation's.
type call struct {
	name        string
	method      string
	path        string
	contentType string
	body        func(API) string
	after       time.Duration // the pause before it, where that is to be longer than usual
	checks      []check
}

// check looks at one thing of a response. It passes where what it got is what it wants, word for
// word.
type check struct {
	name   string
	source Source
	want   string
	look   func(*run, *response) (got, detail string)
}

// table has the unified call only where there is an organization to name.
func table(api API) []call {
	if api.CorpID == "" {
		return olderTable()
	}
	return append(olderTable(), unifiedTable(api.CorpID)...)
}

func olderTable() []call {
	good := func(api API) string { return object("appKey", api.AppKey, "appSecret", api.AppSecret) }
	return []call{
		{
			name: "right credentials", contentType: jsonType, body: good,
			checks: append(tokenChecks(olderNames),
				check{"expireIn", Documented, "7200", lifetime(olderNames)},
				check{"names and types", Documented, "accessToken string, expireIn number", namesAndTypes},
			),
		},
		{
			name: "the same, 3 s later", contentType: jsonType, body: good, after: repeatAfter,
			checks: append(tokenChecks(olderNames),
				check{"accessToken", Documented, "the same token", sameToken(olderNames)},
				check{"expireIn", Documented, "as before: the validity is extended", extended(olderNames)},
			),
		},
		{
			name:        "a wrong secret",
			contentType: jsonType,
			body:        func(api API) string { return object("appKey", api.AppKey, "appSecret", wrongSecret) },
			checks: append(
				rejectedChecks(),
				check{"names and types", Seen, "code string, message string, requestid string", namesAndTypes},
			),
		},
		{
			name: "right credentials again", contentType: jsonType, body: good,
			checks: []check{{"accessToken", Documented, "the same token", sameToken(olderNames)}},
		},
		{
			name: "an unknown AppKey", contentType: jsonType,
			body:   func(API) string { return object("appKey", unknownKey, "appSecret", wrongSecret) },
			checks: append(rejectedChecks(), check{"requestid", Documented, "another than before", otherRequestID}),
		},
		{
			name: "the credentials as a form", contentType: formType,
			body: func(api API) string {
				return url.Values{"appKey": {api.AppKey}, "appSecret": {api.AppSecret}}.Encode()
			},
			checks: errorChecks(Reported, 400, "Missingbody"),
		},
		{
			name: "JSON that says it is a form", contentType: formType, body: good,
			checks: errorChecks(Assumed, 400, "Missingbody"),
		},
		{
			name: "JSON without a Content-Type", body: good,
			checks: errorChecks(Assumed, 400, "Missingbody"),
		},
		{
			name: "JSON with a charset", contentType: jsonType + "; charset=utf-8", body: good,
			checks: []check{
				{"status", Assumed, "200", status},
				{"accessToken", Documented, "the same token", sameToken(olderNames)},
			},
		},
		{
			name: "an additional unknown field", contentType: jsonType,
			body: func(api API) string {
				return object("appKey", api.AppKey, "appSecret", api.AppSecret, "grantType", "client_credentials")
			},
			checks: []check{
				{"status", Assumed, "200", status},
				{"accessToken", Documented, "the same token", sameToken(olderNames)},
			},
		},
		{
			name: "no body", contentType: jsonType, body: func(API) string { return "" },
			checks: errorChecks(Assumed, 400, "Missingbody"),
		},
		{
			name: "no appSecret", contentType: jsonType,
			body:   func(api API) string { return object("appKey", api.AppKey) },
			checks: errorChecks(Assumed, 400, "MissingappSecret"),
		},
		{
			name: "names in lower case", contentType: jsonType,
			body:   func(api API) string { return object("appkey", api.AppKey, "appsecret", api.AppSecret) },
			checks: errorChecks(Assumed, 400, "MissingappKey"),
		},
		{
			name: "a GET", method: http.MethodGet, body: func(API) string { return "" },
			checks: errorChecks(Assumed, 404, "InvalidAction.NotFound"),
		},
		{
			name: "a wrong path", path: wrongPath, contentType: jsonType,
			body: func(API) string { return object("appKey", unknownKey, "appSecret", wrongSecret) },
			checks: []check{
				{"status", Seen, "200", status},
				{"names and types", Seen, "errcode number, errmsg string", namesAndTypes},
				{"errcode", Seen, "404", field("errcode")},
				{"errmsg", Seen, "请求的URI地址不存在", field("errmsg")},
			},
		},
	}
}

// unifiedTable is the unified call. What its documentation does not say is whether a repeat returns
// the same token, and what an error's body has apart from the code.
func unifiedTable(corpID string) []call {
	path, elsewhere := unifiedPath(corpID), unifiedPath(unknownCorpID)
	body := func(grantType string) func(API) string {
		return func(api API) string {
			return object("client_id", api.AppKey, "client_secret", api.AppSecret, "grant_type", grantType)
		}
	}
	wrong := func(key func(API) string) func(API) string {
		return func(api API) string {
			return object("client_id", key(api), "client_secret", wrongSecret, "grant_type", onlyGrantType)
		}
	}
	return []call{
		{
			name: "unified: right credentials", path: path, contentType: jsonType, body: body(onlyGrantType),
			checks: append(tokenChecks(unifiedNames),
				check{"expires_in", Documented, "7200", lifetime(unifiedNames)},
				check{"names and types", Documented, "access_token string, expires_in number", namesAndTypes},
			),
		},
		{
			name: "unified: the same, 3 s later", path: path, contentType: jsonType, body: body(onlyGrantType),
			after: repeatAfter,
			checks: append(tokenChecks(unifiedNames),
				check{"access_token", Assumed, "the same token", sameToken(unifiedNames)},
				check{"expires_in", Assumed, "as before: the validity is extended", extended(unifiedNames)},
			),
		},
		{
			name: "unified: a wrong secret", path: path, contentType: jsonType,
			body:   wrong(func(api API) string { return api.AppKey }),
			checks: errorChecks(Documented, 400, "invalid.client"),
		},
		{
			name: "unified: an unknown client id", path: path, contentType: jsonType,
			body:   wrong(func(API) string { return unknownKey }),
			checks: errorChecks(Documented, 400, "invalid.client"),
		},
		{
			name: "unified: another grant type", path: path, contentType: jsonType, body: body("authorization_code"),
			checks: errorChecks(Documented, 400, "unsupported.grant.type"),
		},
		{
			name: "unified: an unknown organization", path: elsewhere, contentType: jsonType, body: body(onlyGrantType),
			checks: errorChecks(Seen, 500, "unknownError"),
		},
	}
}

func unifiedPath(corpID string) string { return "/v1.0/oauth2/" + corpID + "/token" }

// tokenChecks are those of every good response.
func tokenChecks(n names) []check {
	return []check{
		{"status", Documented, "200", status},
		{"Content-Type", Documented, jsonType, contentType},
		{"form of " + n.token, Documented, "printable ASCII without spaces", tokenShape(n)},
	}
}

// errorChecks are those of every error in DingTalk's envelope.
func errorChecks(source Source, httpStatus int, code string) []check {
	envelope := Assumed // of the others, the status and the code alone are known
	if code == rejectedCode {
		envelope = Seen
	}
	return []check{
		{"status", source, strconv.Itoa(httpStatus), status},
		{"code", source, code, field("code")},
		{"Content-Type", Assumed, jsonType, contentType},
		{"form of requestid", envelope, "a UUID in capitals", requestID},
		{"token", Assumed, "none", noToken},
	}
}

func rejectedChecks() []check {
	return append(errorChecks(Seen, 400, rejectedCode), check{"message", Seen, rejectedMessage, field("message")})
}

func object(pairs ...string) string {
	fields := make(map[string]string)
	for pair := range slices.Chunk(pairs, 2) {
		fields[pair[0]] = pair[1]
	}
	body, err := json.Marshal(fields)
	if err != nil {
		panic(err) // strings always marshal
	}
	return string(body)
}

func status(_ *run, a *response) (got, detail string) {
	got = strconv.Itoa(a.status)
	if a.fields == nil {
		detail = fmt.Sprintf("%d bytes that are not a JSON object", a.size)
	}
	return got, detail
}

func contentType(_ *run, a *response) (got, detail string) {
	given := a.header.Get("Content-Type")
	mediaType, _, err := mime.ParseMediaType(given)
	switch {
	case given == "":
		return "none", ""
	case err != nil || mediaType == given:
		return given, ""
	default:
		return mediaType, given
	}
}

// namesAndTypes shows what the object consists of, and none of its values.
func namesAndTypes(_ *run, a *response) (got, detail string) {
	if a.fields == nil {
		return "not a JSON object", ""
	}
	var fields []string
	for name, raw := range a.fields {
		fields = append(fields, name+" "+typeOf(raw))
	}
	slices.Sort(fields)
	return strings.Join(fields, ", "), ""
}

func typeOf(raw json.RawMessage) string {
	switch raw[0] {
	case '"':
		return "string"
	case '{':
		return "object"
	case '[':
		return "list"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	default:
		return "number"
	}
}

func tokenShape(n names) func(*run, *response) (got, detail string) {
	return func(_ *run, a *response) (got, detail string) {
		raw := a.fields[n.token]
		var token string
		switch {
		case raw == nil:
			return "none", ""
		case json.Unmarshal(raw, &token) != nil:
			return "a " + typeOf(raw), ""
		case token == "":
			return "empty", ""
		case strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }):
			return "other characters", fmt.Sprintf("%d bytes", len(token))
		}
		return "printable ASCII without spaces", fmt.Sprintf("%d bytes", len(token))
	}
}

func noToken(_ *run, a *response) (got, detail string) {
	for _, n := range bothNames {
		if _, given := a.fields[n.token]; given {
			return "there is one", ""
		}
	}
	return "none", ""
}

// lifetime is shown as it is written, so that 7200.0 or "7200" is seen.
func lifetime(n names) func(*run, *response) (got, detail string) {
	return func(_ *run, a *response) (got, detail string) {
		if raw := a.fields[n.lifetime]; raw != nil {
			return string(raw), ""
		}
		return "none", ""
	}
}

func sameToken(n names) func(*run, *response) (got, detail string) {
	return func(r *run, a *response) (got, detail string) {
		switch token, first := a.text(n.token), r.first[n].token; {
		case token == "":
			return "none", ""
		case first == "":
			return "the first token", ""
		case token != first:
			return "another token", ""
		}
		return "the same token", ""
	}
}

func extended(n names) func(*run, *response) (got, detail string) {
	return func(r *run, a *response) (got, detail string) {
		now, first := string(a.fields[n.lifetime]), r.first[n].lifetime
		if now == "" || first == "" {
			return "none", ""
		}
		if now != first {
			return fmt.Sprintf("%s, before %s", now, first), ""
		}
		return "as before: the validity is extended", now
	}
}

var uuidInCapitals = regexp.MustCompile(`^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$`)

func requestID(_ *run, a *response) (got, detail string) {
	id := a.text("requestid")
	switch {
	case id == "":
		for name := range a.fields {
			if strings.EqualFold(name, "requestid") {
				return "spelled " + name, a.text(name)
			}
		}
		return "none", ""
	case !uuidInCapitals.MatchString(id):
		return "of another form", id
	}
	return "a UUID in capitals", id
}

func otherRequestID(r *run, a *response) (got, detail string) {
	switch id := a.text("requestid"); {
	case id == "":
		return "none", ""
	case slices.Contains(r.requestID, id):
		return "one that was there before", ""
	}
	return "another than before", ""
}

func field(name string) func(*run, *response) (got, detail string) {
	return func(_ *run, a *response) (got, detail string) {
		if text := a.text(name); text != "" {
			return text, ""
		}
		return "none", ""
	}
}
