// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is status/<app>, the state of an app's token without any secret, and refresh/<app>,
// which fetches now.

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
		`A token that DingTalk refused. A token is fetched only if this is the
current one; otherwise another caller has been faster, and the response
is the present state.`)
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
		"refreshed by the next reader; expired: it is not served any more.")
	state.AllowedValues = []any{string(stateAbsent), string(stateFresh), string(stateDue), string(stateExpired)}
	return map[string]*framework.FieldSchema{
		"state":             state,
		"expires_at":        field(framework.TypeTime, false, "When DingTalk stops accepting the token, as far as is known."),
		"fetched_at":        field(framework.TypeTime, false, "When the token was fetched."),
		"ttl":               field(framework.TypeInt64, false, "The remaining TTL, in seconds."),
		"upstream_calls":    field(framework.TypeInt64, true, "Calls to DingTalk since the app came into memory."),
		"upstream_failures": field(framework.TypeInt64, true, "How many of these calls failed."),
		"last_error":        field(framework.TypeString, false, "Why the last fetch failed; left out once one works."),
		"last_error_at":     field(framework.TypeTime, false, "When the last fetch failed."),
		"last_error_class": field(framework.TypeString, false, "The kind of failure, as in the log, such as "+
			"unreachable or rejected_credentials."),
		"last_error_code":       field(framework.TypeString, false, "DingTalk's code for it."),
		"last_error_request_id": field(framework.TypeString, false, "DingTalk's request id of it."),
		"failing_since":         field(framework.TypeTime, false, "When the first of these fetches failed."),
		"consecutive_failures":  field(framework.TypeInt64, false, "How many fetches have failed since one worked."),
		"next_attempt_at":       field(framework.TypeTime, false, "Until when no reader's fetch is attempted."),
	}
}

func (b *backend) readStatus(ctx context.Context, req *logical.Request, name string) (*logical.Response, error) {
	a := b.apps.inMemory(name)
	if a == nil {
		var err error
		if a, err = b.apps.load(ctx, req.Storage, name); err != nil { // for this response alone: it is no use of the app
			return nil, err
		}
	}
	return a.status(time.Now()), nil
}

// parseRejectedToken returns the token's digest; "" where none is given.
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
the counters start when the app comes into memory. The state is absent (there is
no token), fresh (it is served), due (it is served, and refreshed by the next
reader) or expired (it is not served any more).
`

const refreshHelp = `
Fetches an app's token now, whatever the cache says, and responds like status/:

    vault write -f dingtalk/refresh/myapp

Use it after you fixed what made fetches fail. It ignores the back-off, but
honors bans, DingTalk's own Retry-After and a minimum interval of 10 seconds.
When it is too soon, the response is the present state with a warning.

A client whose token DingTalk refused passes it as rejected_token, on standard
input:

    vault write dingtalk/refresh/myapp rejected_token=-

A token is then fetched only if the refused one is the current one, so that many
clients that notice one after the other cost one call.

DingTalk gives the same token again while it lives and extends it, so a refresh
does not replace a token that has leaked.
`
