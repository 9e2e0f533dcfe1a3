// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is status/<app>, the state of an app's token without any secret, and refresh/<app>, which fetches now.

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	statusPrefix  = "status/"
	refreshPrefix = "refresh/"
)

func (b *backend) pathStatus() *framework.Path {
	return &framework.Path{
		Pattern: statusPrefix + framework.GenericNameRegex("app"),
		DisplayAttrs: &framework.DisplayAttributes{
			OperationPrefix: operationPrefix,
			OperationSuffix: "status",
		},
		Fields: map[string]*framework.FieldSchema{"app": appField()},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback:                  b.readStatus,
				Summary:                   "Read the state of an app's token, without the token.",
				DisplayAttrs:              &framework.DisplayAttributes{OperationVerb: "read"},
				ForwardPerformanceStandby: true,
				Responses:                 statusResponses(nil),
			},
		},
		HelpSynopsis:    "Read the state of an app's token, without the token.",
		HelpDescription: statusHelp,
	}
}

func (b *backend) pathRefresh() *framework.Path {
	return &framework.Path{
		Pattern: refreshPrefix + framework.GenericNameRegex("app"),
		DisplayAttrs: &framework.DisplayAttributes{
			OperationPrefix: operationPrefix,
			OperationSuffix: "token",
		},
		Fields: map[string]*framework.FieldSchema{"app": appField()},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback:                  b.updateRefresh,
				Summary:                   "Fetch an app's token now, whatever the cache says.",
				Description:               "Answers like status/. When the last refresh was less than 10 seconds ago, nothing is fetched and a warning says so.",
				DisplayAttrs:              &framework.DisplayAttributes{OperationVerb: "refresh"},
				ForwardPerformanceStandby: true,
				Responses: statusResponses(map[int][]framework.Response{
					http.StatusBadRequest:         {{Description: "The app is not configured, or DingTalk rejects its credentials, the request or Vault's IP address"}},
					http.StatusBadGateway:         {{Description: "DingTalk cannot be reached, throttles, or answers with something else than a token"}},
					http.StatusServiceUnavailable: {{Description: "The engine was unloaded meanwhile: try again"}},
				}),
			},
		},
		HelpSynopsis:    "Fetch an app's token now.",
		HelpDescription: refreshHelp,
	}
}

func statusResponses(more map[int][]framework.Response) map[int][]framework.Response {
	responses := map[int][]framework.Response{
		http.StatusOK: {{Description: "OK", Fields: map[string]*framework.FieldSchema{
			"state":             {Type: framework.TypeString, Required: true, AllowedValues: []any{string(stateAbsent), string(stateFresh), string(stateDue), string(stateExpired)}, Description: "absent: there is no token; fresh: it is served; due: it is served, and refreshed by the next reader; expired: it is not served any more."},
			"expires_at":        {Type: framework.TypeTime, Description: "When DingTalk stops accepting the token, as far as is known."},
			"fetched_at":        {Type: framework.TypeTime, Description: "When the token was fetched."},
			"ttl":               {Type: framework.TypeInt64, Description: "The life left, in seconds."},
			"upstream_calls":    {Type: framework.TypeInt64, Required: true, Description: "Calls to DingTalk for this app, retries included, since it came into memory."},
			"upstream_failures": {Type: framework.TypeInt64, Required: true, Description: "How many of these calls failed."},
			"last_error":        {Type: framework.TypeString, Description: "Why the last fetch failed; left out once one works."},
			"last_error_at":     {Type: framework.TypeTime, Description: "When the last fetch failed."},
			"next_attempt_at":   {Type: framework.TypeTime, Description: "Until when no reader's fetch is attempted, after a failure."},
		}}},
		http.StatusBadRequest: {{Description: "The app is not configured"}},
	}
	maps.Copy(responses, more)
	return responses
}

func (b *backend) readStatus(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	name, err := appName(data)
	if err != nil {
		return nil, err
	}
	a, err := b.apps.app(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	a.touch(now, false)
	return a.status(now), nil
}

func (b *backend) updateRefresh(
	ctx context.Context, req *logical.Request, data *framework.FieldData,
) (*logical.Response, error) {
	name, err := appName(data)
	if err != nil {
		return nil, err
	}
	a, _, warning, err := b.apps.get(ctx, req.Storage, name, want{force: true})
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
	t := a.token.Load()
	data := map[string]any{"state": string(t.state(now, a.settings.Load().refreshBefore))}
	if t != nil {
		data["expires_at"] = timestamp(t.expiresAt)
		data["fetched_at"] = timestamp(t.fetchedAt)
		data["ttl"] = int64(t.remaining(now) / time.Second)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	data["upstream_calls"] = a.calls
	data["upstream_failures"] = a.failures
	next := a.nextAttempt(now)
	if last := a.lastFailure; last != nil {
		data["last_error"] = a.tokenError(last.err, next).Error()
		data["last_error_at"] = timestamp(last.at)
	}
	if !next.IsZero() {
		data["next_attempt_at"] = timestamp(next)
	}
	return &logical.Response{Data: data}
}

const statusHelp = `
Tells how an app's token stands, for monitoring. No field holds a secret, and
what does not apply is left out:

    state              absent: there is no token. fresh: it is served. due: it
                       is served, and refreshed by the next reader. expired: it
                       is not served any more
    fetched_at         when the token was fetched
    expires_at         when DingTalk stops accepting it, as far as is known
    ttl                the life left, in seconds
    upstream_calls     calls to DingTalk, since the app came into memory
    upstream_failures  how many of these calls failed
    last_error         why the last fetch failed; gone once one works
    last_error_at      when it failed
    next_attempt_at    until then, no reader's fetch is attempted
`

const refreshHelp = `
Fetches an app's token now, whatever the cache says, and answers like status/:

    vault write -f dingtalk/refresh/myapp

Use it after mending what made fetches fail: it does not wait for the back-off,
but for a ban, for DingTalk's own Retry-After, and for 10 seconds since the last
time. When it is too soon, the answer is the present state with a warning.

DingTalk gives the same token again while it lives and extends it, so a refresh
does not replace a token that has leaked.
`
