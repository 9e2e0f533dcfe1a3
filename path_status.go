// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is status/<app>, the state of an app's token without any secret, and refresh/<app>,
// which fetches a token now.

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	statusPrefix  = "status/"
	refreshPrefix = "refresh/"

	fieldRejectedToken = "rejected_token"
)

func (b *backend) pathStatus() *framework.Path {
	p := path(statusPrefix, "status", map[string]*framework.FieldSchema{})
	p.HelpSynopsis, p.HelpDescription = "Read the state of an app's token, without the token.", statusHelp
	p.Operations = map[logical.Operation]framework.OperationHandler{
		logical.ReadOperation: operation(forApp(b.readStatus), "read", p.HelpSynopsis,
			responses(statusSchema(), map[int]string{http.StatusBadRequest: "The app is not configured"})),
	}
	return p
}

func (b *backend) pathRefresh() *framework.Path {
	rejected := parameter(framework.TypeString, "Rejected token", nil,
		`A token that DingTalk refused. A new one is fetched only if this is the
current token. Otherwise another client was faster, and the response is
the present state.`)
	rejected.DisplayAttrs.Sensitive = true
	p := path(refreshPrefix, "token", map[string]*framework.FieldSchema{fieldRejectedToken: rejected})
	p.HelpSynopsis, p.HelpDescription = "Fetch an app's token now.", refreshHelp
	refresh := operation(forApp(b.updateRefresh), "refresh", "Fetch an app's token now, whatever the cache says.",
		responses(statusSchema(), fetchFailures))
	refresh.Description = "Responds like status/. Less than 10 seconds after the last refresh, it only warns."
	p.Operations = map[logical.Operation]framework.OperationHandler{logical.UpdateOperation: refresh}
	return p
}

func statusSchema() map[string]*framework.FieldSchema {
	state := field(framework.TypeString, true, "absent: there is no token; fresh: it is served; due: it is served, and "+
		"the next read refreshes it; expired: it is no longer served.")
	state.AllowedValues = []any{string(stateAbsent), string(stateFresh), string(stateDue), string(stateExpired)}
	return map[string]*framework.FieldSchema{
		"state":             state,
		"expires_at":        field(framework.TypeTime, false, "When the token expires, as far as is known."),
		"fetched_at":        field(framework.TypeTime, false, "When the token was fetched."),
		"ttl":               field(framework.TypeInt64, false, "The remaining TTL, in seconds."),
		"upstream_calls":    field(framework.TypeInt64, true, "Calls to DingTalk since the app was loaded into memory."),
		"upstream_failures": field(framework.TypeInt64, true, "How many of these calls failed."),
		"last_error":        field(framework.TypeString, false, "Why the last fetch failed; left out after a success."),
		"last_error_at":     field(framework.TypeTime, false, "When the last fetch failed."),
		"last_error_class": field(framework.TypeString, false, "The error class, as in the log, such as "+
			"unreachable or rejected_credentials."),
		"last_error_code":       field(framework.TypeString, false, "DingTalk's error code."),
		"last_error_request_id": field(framework.TypeString, false, "DingTalk's request id."),
		"failing_since":         field(framework.TypeTime, false, "Since when fetches have been failing."),
		"consecutive_failures":  field(framework.TypeInt64, false, "How many fetches have failed since the last success."),
		"next_attempt_at":       field(framework.TypeTime, false, "When a read may next fetch a token."),
	}
}

func (b *backend) readStatus(ctx context.Context, req *logical.Request, name string) (*logical.Response, error) {
	a := b.apps.inMemory(name)
	if a == nil {
		var err error
		if a, err = b.apps.load(ctx, req.Storage, name); err != nil { // for this response alone
			return nil, err
		}
	}
	return a.status(time.Now()), nil
}

// parseRejectedToken returns the digest of the rejected token, or "" if none is given.
func parseRejectedToken(raw map[string]any) (digest string, err error) {
	p := &parser{raw: raw}
	given := p.credential(fieldRejectedToken, maxTokenLength, "\n", "\r")
	if given == nil {
		return "", p.err
	}
	return digestOf(sensitive{text: given}), p.err
}

func (b *backend) updateRefresh(ctx context.Context, req *logical.Request, name string) (*logical.Response, error) {
	rejected, err := parseRejectedToken(req.Data)
	if err != nil {
		return nil, err
	}
	a, _, warning, err := b.apps.get(ctx, req.Storage, name, want{force: true, rejected: rejected})
	if err != nil {
		return nil, err
	}
	resp := a.status(time.Now())
	if warning != nil {
		resp.AddWarning(fmt.Sprintf("Nothing was fetched: %s.", warning))
	}
	return resp, nil
}

// status is the response of status/ and refresh/. What does not apply is left out.
func (a *app) status(now time.Time) *logical.Response {
	s := a.snapshot(now)
	data := map[string]any{
		"state":             string(s.token.state(now, s.config.RefreshBefore)),
		"upstream_calls":    s.calls,
		"upstream_failures": s.failures,
	}
	if t := s.token; t != nil {
		data["expires_at"] = timestamp(t.expiresAt)
		data["fetched_at"] = timestamp(t.fetchedAt)
		data["ttl"] = int64(t.remaining(now) / time.Second)
	}
	if last := s.last; last != nil {
		data["last_error"] = a.tokenError(last.err, s.nextAttempt).Error()
		data["last_error_at"] = timestamp(last.at)
		data["last_error_class"] = string(last.err.class)
		data["failing_since"] = timestamp(last.since)
		data["consecutive_failures"] = int64(last.inARow)
		for field, text := range map[string]string{
			"last_error_code": last.err.code, "last_error_request_id": last.err.requestID,
		} {
			if text != "" {
				data[field] = text
			}
		}
	}
	if !s.nextAttempt.IsZero() {
		data["next_attempt_at"] = timestamp(s.nextAttempt)
	}
	return &logical.Response{Data: data}
}

const statusHelp = `
Reports the state of an app's token, for monitoring. No field holds a secret,
and what does not apply is left out. Times are in UTC, ttl is in seconds, and
the counters start when the app is loaded into memory. The state is absent
(there is no token), fresh (it is served), due (it is served, and the next read
refreshes it) or expired (it is no longer served).
`

const refreshHelp = `
Fetches an app's token now, whatever the cache says, and responds like status/:

    vault write -f dingtalk/refresh/myapp

Use it after you have fixed the cause of failing fetches. It ignores the
back-off, but honors bans, Retry-After and a minimum interval of 10 seconds. If
it is too soon, the response is the present state with a warning.

A client whose token DingTalk refused passes that token as rejected_token, on
standard input:

    vault write dingtalk/refresh/myapp rejected_token=-

A token is then fetched only if the refused one is the current one. So any
number of clients cost one call, even if they notice one after another.

While a token is valid, DingTalk returns the same token again and extends it. So
a refresh does not replace a leaked token.
`
