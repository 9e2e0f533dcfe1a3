// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is creds/<app>, the access token, and its lease. A lease stands for one token: renewing
// it extends the token itself, revoking it does nothing, since the token is shared and DingTalk
// cannot revoke it.

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

	// secretAccessTokenType is what Vault knows the leases by. It must not change.
	secretAccessTokenType = "access_token"

	internalApp    = "app"          // what a lease remembers of its token
	internalDigest = "token_digest" // likewise

	// endedLease is the TTL of a lease whose token is no longer the app's. An error would make
	// LifetimeWatcher and Proxy keep the old token to its end; this makes them read again at once.
	endedLease = time.Second

	endedLeaseSlack = 10 * time.Second // what Vault may take from the engine's response to its own sum
)

func (b *backend) pathCreds() *framework.Path {
	p := path(credsPrefix, "credentials", map[string]*framework.FieldSchema{
		fieldMinTTL: parameter(framework.TypeDurationSecond, "Minimum TTL", inSeconds(0),
			`The least remaining TTL that the token must have: one with less is
refreshed first. More than three quarters of the token's lifetime counts
as three quarters, with a warning. By default 0s.`),
	})
	p.Fields[fieldMinTTL].Query = true
	p.HelpSynopsis, p.HelpDescription = "Get the access token of an app.", credsHelp
	read := operation(forApp(b.readCreds), "read", "Get the app's access token.",
		responses(map[string]*framework.FieldSchema{
			"access_token": accessTokenField(),
			"expires_at": field(framework.TypeTime, false,
				"Without a lease only: when DingTalk stops accepting the token, as far as is known."),
			"ttl": field(framework.TypeInt64, false, "Without a lease only: when to read again, in seconds."),
			"rotation_period": field(framework.TypeInt64, false,
				"Without a lease only: how long after fetching the token becomes due for a refresh, in seconds."),
			"last_vault_rotation": field(framework.TypeTime, false, "Without a lease only: when the token was fetched."),
		}, fetchFailures))
	read.Description = "With a lease, the response holds access_token alone: its life is the lease's."
	p.Operations = map[logical.Operation]framework.OperationHandler{logical.ReadOperation: read}
	return p
}

// fetchFailures are the responses of the operations that may have to fetch a token.
var fetchFailures = map[int]string{
	http.StatusBadRequest: "The app is not configured, a parameter is not valid, or DingTalk rejects the app's " +
		"credentials, the request or Vault's IP address",
	http.StatusBadGateway:         "DingTalk cannot be reached, throttles, or responds with something else than a token",
	http.StatusServiceUnavailable: "The engine was unloaded meanwhile, or the token ran out: try again",
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

// parseMinTTL returns 0 where min_ttl is not given.
func parseMinTTL(raw map[string]any) (time.Duration, error) {
	p := &parser{raw: raw}
	return valueOr(p.duration(fieldMinTTL, 0, longestDuration), 0), p.err
}

// maxMinTTL is what a min_ttl counts as at most: otherwise a reader could make the engine call
// DingTalk for ever.
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

// warn tells a caller what of the token is not as it asked.
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

// readAgainIn is when a reader without a lease has something to gain from reading again: when the
// token becomes due, or, where it is, when the next attempt to refresh it is made; but always
// before it has expired.
func (a *app) readAgainIn(t *token, now time.Time) time.Duration {
	config := a.config.Load()
	remaining := t.remaining(now)
	if t.state(now, config.RefreshBefore) == stateFresh {
		return max(time.Second, remaining-max(t.window(config.RefreshBefore), minServed))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.nextAttempt(now).Sub(now) // at once, unless something stands against it
	return max(time.Second, min(next, remaining-minServed))
}

// renew keeps the lease's token alive, and lets a lease whose token is no longer the
// app's end. It returns req.Secret itself, which holds what revocation needs, and repeats no token.
func (b *backend) renew(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	if b.System().ReplicationState().HasState(consts.ReplicationPerformanceStandby) {
		return nil, logical.ErrReadOnly // Vault then forwards it; the framework guards paths alone
	}
	name, _ := req.Secret.InternalData[internalApp].(string)
	digest, _ := req.Secret.InternalData[internalDigest].(string)

	a, err := b.apps.app(ctx, req.Storage, name)
	var t *token
	var warning error
	if err == nil {
		t = a.token.Load()
	}
	if err == nil && (!t.servable(time.Now()) || t.digest == digest) { // another's token is no reason for a fetch
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
	// Vault does its sum a moment later. If the clock's second has turned by then, MaxTTL leaves
	// nothing, which Vault answers with an error. More of it makes no lease longer, unless the
	// client asked for an increment.
	if req.Secret.Increment == 0 {
		resp.Secret.MaxTTL += endedLeaseSlack
	}
	resp.AddWarning(fmt.Sprintf("This lease ends now: %s. Read %s%s%s again.", why, req.MountPoint, credsPrefix, name))
	return resp
}

// leaseTTL is what a lease gets of a token's remaining TTL: as the mount's default_lease_ttl says
// how soon holders come back, they learn of a replaced token within that time.
func (b *backend) leaseTTL(remaining time.Duration) time.Duration {
	if most := b.System().DefaultLeaseTTL(); most > 0 {
		return min(remaining, most)
	}
	return remaining
}

// renewed gives the lease so much time from now, and at most. Vault takes a client's increment over the TTL,
// bounded by MaxTTL from the time of issue, and reckons in whole seconds of the clock: so does
// this, otherwise half of the renewals would warn of a cut TTL.
func renewed(secret *logical.Secret, ttl, most time.Duration, now time.Time) *logical.Response {
	secret.TTL, secret.MaxTTL = ttl, most
	if !secret.IssueTime.IsZero() {
		secret.MaxTTL += now.Truncate(time.Second).Sub(secret.IssueTime.Truncate(time.Second))
	}
	return &logical.Response{Secret: secret}
}

// awaitSecond waits for the clock's next whole second where that is a moment away, so that Vault,
// which does its sum a moment later, does it in the same second: otherwise it would warn that it
// cut the TTL by one.
func awaitSecond(ctx context.Context) error {
	const nearlyOver = 20 * time.Millisecond
	now := time.Now()
	if rest := now.Truncate(time.Second).Add(time.Second).Sub(now); rest <= nearlyOver {
		return sleep(ctx, rest)
	}
	return nil
}

// revoke does nothing and always succeeds, also when the app is gone: the token is
// shared by every reader, DingTalk has no way to revoke it, and a lease that cannot be revoked
// would block unmounting.
func revoke(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
	return nil, nil //nolint:nilnil // to Vault this is success
}

const credsHelp = `
Returns the app's access token, for the header x-acs-dingtalk-access-token of
DingTalk's APIs:

    vault read -field=access_token dingtalk/creds/myapp
    vault read dingtalk/creds/myapp min_ttl=30m

The token is shared by all readers. It is fetched when there is none, and
refreshed before it expires; if that fails, the current token is served with a
warning for as long as it lives.

By default the response has a lease that ends with the token. Renewing the lease
extends the token itself. Revoking it does not end the token: DingTalk offers no
way to do that. With leased=false the response has no lease; it tells itself
when the token ends (expires_at) and in how many seconds to read again (ttl).
`
