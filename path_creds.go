// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is creds/<app>, the access token, and its lease. A lease stands for one token. Renewing
// the lease extends the token itself. Revoking it does nothing, since the token is shared and
// DingTalk cannot revoke it.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/helper/wrapping"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	credsPrefix = "creds/"
	fieldMinTTL = "min_ttl"

	// secretAccessTokenType is in every lease that Vault has stored. It must not change.
	secretAccessTokenType = "access_token"

	internalApp    = "app"          // in a lease's internal data: whose token it is
	internalDigest = "token_digest" // likewise: which token it is

	// endedLease is the TTL of a lease whose token is no longer the app's. It makes LifetimeWatcher
	// and Proxy read again at once. On an error they would keep the old token until it expires.
	endedLease = time.Second

	endedLeaseSlack = 10 * time.Second // for the time from the engine's response to Vault's own calculation
)

func (b *backend) pathCreds() *framework.Path {
	p := path(credsPrefix, "credentials", map[string]*framework.FieldSchema{
		fieldMinTTL: parameter(framework.TypeDurationSecond, "Minimum TTL", inSeconds(0),
			`The least remaining TTL of the token. A token with less is refreshed
first. The value is capped at three quarters of the token's lifetime,
with a warning. By default 0s.`),
	})
	p.Fields[fieldMinTTL].Query = true
	p.HelpSynopsis, p.HelpDescription = "Get the access token of an app.", credsHelp
	read := operation(forApp(b.readCreds), "read", "Get the app's access token.",
		responses(map[string]*framework.FieldSchema{
			"access_token": accessTokenField(),
			"expires_at": field(framework.TypeTime, false,
				"Without a lease only: when the token expires, as far as is known."),
			"ttl": field(framework.TypeInt64, false, "Without a lease only: when to read again, in seconds."),
			"rotation_period": field(framework.TypeInt64, false,
				"Without a lease only: how long after fetching the token becomes due for a refresh, in seconds."),
			"last_vault_rotation": field(framework.TypeTime, false, "Without a lease only: when the token was fetched."),
		}, fetchFailures))
	read.Description = "With a lease, the data is access_token alone; lease_duration is its remaining TTL."
	p.Operations = map[logical.Operation]framework.OperationHandler{logical.ReadOperation: read}
	return p
}

// fetchFailures are the failures of the operations that may have to fetch a token.
var fetchFailures = map[int]string{
	http.StatusBadRequest: "The app is not configured, a parameter is not valid, or DingTalk rejects the app's " +
		"credentials, the request or Vault's IP address",
	http.StatusBadGateway:         "DingTalk cannot be reached, throttles, or responds with something that is not a token",
	http.StatusServiceUnavailable: "The engine was unloaded meanwhile, or the token expired: try again",
}

func accessTokenField() *framework.FieldSchema {
	f := field(framework.TypeString, true, "The access token, for the header x-acs-dingtalk-access-token.")
	f.DisplayAttrs = &framework.DisplayAttributes{Sensitive: true}
	return f
}

func (b *backend) secretAccessToken() *framework.Secret {
	return &framework.Secret{
		Type:   secretAccessTokenType,
		Fields: map[string]*framework.FieldSchema{"access_token": accessTokenField()},
		Renew:  b.renew,
		Revoke: revoke,
	}
}

// parseMinTTL returns min_ttl, or 0 if it is not given.
func parseMinTTL(raw map[string]any) (time.Duration, error) {
	p := &parser{raw: raw}
	return valueOr(p.duration(fieldMinTTL, 0, longestDuration), 0), p.err
}

// maxMinTTL returns the cap on min_ttl. Without it, a reader could make the engine call DingTalk at
// every read.
func maxMinTTL(t *token) time.Duration { return want{remaining: forever, quarters: 3}.atLeast(t) }

func (b *backend) readCreds(ctx context.Context, req *logical.Request, name string) (*logical.Response, error) {
	minTTL, err := parseMinTTL(req.Data)
	if err != nil {
		return nil, err
	}
	a, t, warning, err := b.apps.get(ctx, req.Storage, name, want{remaining: minTTL, quarters: 3})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if !t.servable(now) {
		return nil, cmp.Or(warning, errExpired)
	}
	a.touch(now, true)

	config, remaining := a.config.Load(), t.remaining(now)
	var resp *logical.Response
	if config.Leased {
		resp = b.Secret(secretAccessTokenType).Response(
			map[string]any{"access_token": t.Value.reveal()},
			map[string]any{internalApp: name, internalDigest: t.digest},
		)
		resp.Secret.TTL, resp.Secret.MaxTTL = b.leaseTTL(remaining), remaining
	} else {
		resp = &logical.Response{Data: map[string]any{
			"access_token":        t.Value.reveal(),
			"expires_at":          timestamp(t.expiresAt),
			"ttl":                 int64(a.readAgainIn(t, now) / time.Second),
			"rotation_period":     int64((t.lifetime - t.window(config.RefreshBefore)) / time.Second),
			"last_vault_rotation": timestamp(t.fetchedAt),
		}}
	}
	warn(resp, t, now, warning, minTTL)
	if req.WrapInfo != nil && req.WrapInfo.TTL > remaining {
		resp.WrapInfo = &wrapping.ResponseWrapInfo{TTL: remaining}
	}
	return resp, nil
}

// warn adds the warnings for a token that is not as the caller wanted.
func warn(resp *logical.Response, t *token, now time.Time, warning error, minTTL time.Duration) {
	if warning == nil && minTTL == 0 {
		return
	}
	var tooSoon *tooSoonError
	most := maxMinTTL(t)
	if warning != nil && !errors.As(warning, &tooSoon) {
		resp.AddWarning(fmt.Sprintf("The token could not be refreshed and is good until %s: %s",
			timestamp(t.expiresAt), warning))
	}
	if minTTL > most {
		resp.AddWarning(fmt.Sprintf("min_ttl of %s is more than three quarters of the token's lifetime of %s, "+
			"and counts as %s.", short(minTTL), short(t.lifetime), short(most.Truncate(time.Second))))
	}
	if tooSoon != nil && t.remaining(now) < min(minTTL, most) {
		resp.AddWarning(fmt.Sprintf("The token has a shorter remaining TTL than min_ttl, but the last refresh was less than "+
			"%s ago.", short(forceInterval)))
	}
}

// readAgainIn returns when a reader without a lease should read again: when the token becomes due
// or, if it is, when the next refresh may be attempted, but always before it expires.
func (a *app) readAgainIn(t *token, now time.Time) time.Duration {
	config := a.config.Load()
	remaining := t.remaining(now)
	if t.state(now, config.RefreshBefore) == stateFresh {
		return max(time.Second, remaining-max(t.window(config.RefreshBefore), minServed))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.nextAttempt(now).Sub(now) // negative if a fetch may be made now
	return max(time.Second, min(next, remaining-minServed))
}

// renew extends the lease's token and the lease with it. It ends a lease whose token is no longer
// the app's. It returns req.Secret itself, which holds what revocation needs, and no token.
func (b *backend) renew(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	if b.System().ReplicationState().HasState(consts.ReplicationPerformanceStandby) {
		return nil, logical.ErrReadOnly // Vault then forwards it; the framework forwards paths only
	}
	name, _ := req.Secret.InternalData[internalApp].(string)
	digest, _ := req.Secret.InternalData[internalDigest].(string)

	a, err := b.apps.app(ctx, req.Storage, name)
	var t *token
	var warning error
	if err == nil {
		t = a.token.Load()
	}
	if err == nil && (!t.servable(time.Now()) || t.digest == digest) { // a lease of another token causes no fetch
		a, t, warning, err = b.apps.get(ctx, req.Storage, name, want{remaining: forever, quarters: 2})
	}
	if err := awaitSecond(ctx); err != nil {
		return nil, err
	}
	now := time.Now()
	var unknown *unknownAppError
	switch {
	case errors.As(err, &unknown):
		return ended(req, name, fmt.Sprintf("app %q is no longer configured", name), now), nil
	case err != nil:
		return nil, err
	case !t.servable(now):
		return nil, cmp.Or(warning, errExpired)
	case t.digest != digest:
		return ended(req, name, fmt.Sprintf("app %q has another token", name), now), nil
	}
	a.touch(now, true)
	resp := renewed(req.Secret, b.leaseTTL(t.remaining(now)), t.remaining(now), now)
	warn(resp, t, now, warning, 0)
	return resp, nil
}

// ended ends a lease, and tells its holder to read again.
func ended(req *logical.Request, name, why string, now time.Time) *logical.Response {
	resp := renewed(req.Secret, endedLease, endedLease, now)
	// Vault calculates a moment later. If a second has passed by then, MaxTTL leaves no time, and
	// Vault returns an error. A longer MaxTTL does not extend the lease, unless the client asked
	// for an increment.
	if req.Secret.Increment == 0 {
		resp.Secret.MaxTTL += endedLeaseSlack
	}
	resp.AddWarning(fmt.Sprintf("This lease ends now: %s. Read %s%s%s again.", why, req.MountPoint, credsPrefix, name))
	return resp
}

// leaseTTL returns the TTL of a lease: the token's remaining TTL, but at most the mount's
// default_lease_ttl. Within that time, holders come back and learn of a replaced token.
func (b *backend) leaseTTL(remaining time.Duration) time.Duration {
	if most := b.System().DefaultLeaseTTL(); most > 0 {
		return min(remaining, most)
	}
	return remaining
}

// renewed sets the lease's TTL and MaxTTL from now on. Vault takes a client's increment instead of
// the TTL, bounds it by MaxTTL from the time of issue, and calculates in whole seconds of the
// clock. So does renewed: otherwise half of the renewals would warn of a capped TTL.
func renewed(secret *logical.Secret, ttl, most time.Duration, now time.Time) *logical.Response {
	secret.TTL, secret.MaxTTL = ttl, most
	if !secret.IssueTime.IsZero() {
		secret.MaxTTL += now.Truncate(time.Second).Sub(secret.IssueTime.Truncate(time.Second))
	}
	return &logical.Response{Secret: secret}
}

// awaitSecond waits for the clock's next whole second if that is less than 20 ms away. Vault, which
// calculates a moment later, then does so in the same second. Otherwise it would warn that it
// capped the TTL.
func awaitSecond(ctx context.Context) error {
	const nearlyOver = 20 * time.Millisecond
	now := time.Now()
	if rest := now.Truncate(time.Second).Add(time.Second).Sub(now); rest <= nearlyOver {
		return sleep(ctx, rest)
	}
	return nil
}

// revoke does nothing and always succeeds, also if the app is deleted. The token is shared by all
// readers, DingTalk has no way to revoke it, and a lease that cannot be revoked would block
// unmounting.
func revoke(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
	return nil, nil //nolint:nilnil // success
}

const credsHelp = `
Returns the app's access token, for the header x-acs-dingtalk-access-token of
DingTalk's APIs:

    vault read -field=access_token dingtalk/creds/myapp
    vault read dingtalk/creds/myapp min_ttl=30m

The token is shared by all readers. It is fetched when there is none, and
refreshed before it expires. If a refresh fails, the current token is served
with a warning until it expires.

By default the response has a lease that ends with the token. Renewing the lease
extends the token itself. Revoking the lease does not end the token: DingTalk
has no way to revoke one. With leased=false the response has no lease; its data
says when the token expires (expires_at) and in how many seconds to read again
(ttl).
`
