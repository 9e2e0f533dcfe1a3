// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is config/<app>, an app's credentials and settings, and config/, the list of apps.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *backend) pathConfig() *framework.Path {
	fields := configSchema()
	configured := map[string]*framework.FieldSchema{
		fieldAppKey:         field(framework.TypeString, true, fields[fieldAppKey].Description),
		fieldCorpID:         field(framework.TypeString, true, fields[fieldCorpID].Description),
		fieldAppSecretSetAt: field(framework.TypeTime, false, "When the stored secret last changed, if known."),
		fieldBaseURL:        field(framework.TypeString, true, fields[fieldBaseURL].Description),
		fieldRefreshBefore:  field(framework.TypeInt64, true, fields[fieldRefreshBefore].Description+" In seconds."),
		fieldRequestTimeout: field(framework.TypeInt64, true, fields[fieldRequestTimeout].Description+" In seconds."),
		fieldLeased:         field(framework.TypeBool, true, fields[fieldLeased].Description),
	}
	p := path(configPrefix, "app", fields)
	p.HelpSynopsis, p.HelpDescription = "Configure an app: its credentials and settings.", configHelp
	p.ExistenceCheck = b.configExists
	write := b.configWrite("configure", "Store an app's credentials, or change its settings.")
	patch := b.configWrite("patch", "Change some fields of an app that exists.")
	patch.Responses[http.StatusNotFound] = []framework.Response{{Description: "The app is not configured"}}
	read := operation(forApp(b.readConfig), "read", "Read how an app is configured, without its secret.",
		responses(configured, map[int]string{
			http.StatusBadRequest: "The app's name is too long",
			http.StatusNotFound:   "The app is not configured",
		}))
	remove := operation(forApp(b.deleteConfig), "delete", "Delete an app, its credentials and its cached token.",
		responses(nil, map[int]string{
			http.StatusNoContent:          "Deleted, or was not there",
			http.StatusBadRequest:         "The app's name is too long",
			http.StatusServiceUnavailable: "The engine was unloaded meanwhile: try again",
		}))
	remove.ForwardPerformanceSecondary = true
	read.DisplayAttrs.OperationSuffix, remove.DisplayAttrs.OperationSuffix = "app-configuration", "app-configuration"
	p.Operations = map[logical.Operation]framework.OperationHandler{
		logical.CreateOperation: write,
		logical.UpdateOperation: write,
		logical.PatchOperation:  patch,
		logical.ReadOperation:   read,
		logical.DeleteOperation: remove,
	}
	return p
}

func configSchema() map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{
		fieldAppKey: parameter(framework.TypeString, "App key", nil,
			`The app's AppKey, called Client ID in DingTalk's console. Required to
create an app. Another value requires app_secret in the same request.`),
		fieldAppSecret: parameter(framework.TypeString, "App secret", nil,
			`The app's AppSecret, called Client Secret in DingTalk's console.
Required to create an app, and to change app_key or base_url. Never
returned. One trailing line break is removed. If the stored base_url is
not one of DingTalk's two hosts, base_url is required too.`),
		fieldCorpID: parameter(framework.TypeString, "Corp ID", nil,
			`The corpId of an organization. Tokens then come from DingTalk's unified
call /v1.0/oauth2/{corpId}/token, for internal and third-party apps.
1 to 64 letters and digits; an empty string removes it. By default none.`),
		fieldBaseURL: parameter(framework.TypeString, "Base URL", defaultBaseURL,
			`The host of DingTalk's API, as https://host[:port]. Apps of the China
edition need https://api.dingtalk.com. A new app gets
https://api.dingtalk.io by default. A change requires app_secret in the
same request.`),
		fieldRefreshBefore: parameter(framework.TypeDurationSecond, "Refresh before", inSeconds(defaultRefreshBefore),
			`A token with this remaining TTL or less is due for a refresh. 0s to 1h,
capped at a quarter of the token's lifetime: 30 minutes of DingTalk's
usual two hours. A new app gets 200s by default.`),
		fieldRequestTimeout: parameter(framework.TypeDurationSecond, "Request timeout", inSeconds(defaultRequestTimeout),
			`How long a fetch of a token may take, retries included. 1s to 30s. A new
app gets 10s by default.`),
		fieldLeased: parameter(framework.TypeBool, "Leased", true,
			`Whether creds/<app> returns a lease. Without leases, a read writes
nothing to Vault's storage. A new app gets true by default.`),
		fieldVerifyConnection: parameter(framework.TypeBool, "Verify connection", nil,
			`Whether to fetch a token with the resulting credentials before anything
is stored. By default true if app_key, app_secret, corp_id or base_url
changes, otherwise false. It applies to this request only.`),
	}
	fields[fieldAppSecret].DisplayAttrs.Sensitive = true
	return fields
}

// configWrite is what create, update and patch have in common.
func (b *backend) configWrite(verb, summary string) *framework.PathOperation {
	op := operation(forApp(b.writeConfig), verb, summary, responses(nil, map[int]string{
		http.StatusOK:                 "Stored, with warnings",
		http.StatusNoContent:          "Stored",
		http.StatusBadRequest:         "A field is not valid, or DingTalk rejects the credentials; nothing is changed",
		http.StatusBadGateway:         "DingTalk could not verify the credentials; nothing is changed",
		http.StatusServiceUnavailable: "The engine was unloaded during the verification; nothing is changed",
	}))
	op.Description = "Only the given fields change. New credentials are verified before they are stored."
	op.ForwardPerformanceSecondary = true
	return op
}

// inSeconds returns a duration as the schema's default, which is a string.
func inSeconds(d time.Duration) string { return fmt.Sprintf("%.0fs", d.Seconds()) }

func (b *backend) pathConfigList() *framework.Path {
	const summary = "List the names of the configured apps."
	list := operation(b.listConfig, "list", summary, responses(map[string]*framework.FieldSchema{
		"keys": field(framework.TypeStringSlice, true, "The names of the apps."),
	}, map[int]string{
		http.StatusBadRequest: "A parameter is not valid",
		http.StatusNotFound:   "No app is configured",
	}))
	return &framework.Path{
		Pattern:         configPrefix + "?$",
		DisplayAttrs:    &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationSuffix: "apps"},
		Operations:      map[logical.Operation]framework.OperationHandler{logical.ListOperation: list},
		HelpSynopsis:    summary,
		HelpDescription: "In alphabetical order:\n\n    vault list dingtalk/config",
	}
}

// configExists reports whether the app exists: Vault then checks the policy for an update,
// otherwise for a create. It takes no lock, since Vault calls it before it checks policies: a
// caller without rights must not make others wait.
func (b *backend) configExists(ctx context.Context, req *logical.Request, d *framework.FieldData) (bool, error) {
	name, err := appName(d)
	if err != nil {
		return false, nil //nolint:nilerr // the write itself reports what is wrong with the name
	}
	config, err := readConfig(ctx, req.Storage, name)
	return config != nil, err
}

// writeConfig changes what the request names. It holds no lock during the verification, which can
// take a while. If the configuration changed meanwhile, it stores nothing.
func (b *backend) writeConfig(ctx context.Context, req *logical.Request, name string) (*logical.Response, error) {
	change, err := parseChange(req.Data)
	if err != nil {
		return nil, err
	}
	present, err := readConfig(ctx, req.Storage, name)
	if err != nil {
		return nil, err
	}
	if present == nil && req.Operation == logical.PatchOperation {
		return nil, logical.CodedError(http.StatusNotFound, fmt.Sprintf("app %q is not configured: nothing to patch", name))
	}
	next, newGeneration, err := change.apply(name, present)
	if err != nil {
		return nil, err
	}

	var (
		verified *token
		calls    int
		warning  string
	)
	switch verify := valueOr(change.verify, newGeneration); {
	case verify && newGeneration:
		verified, calls, err = b.apps.verify(ctx, name, next)
	case verify:
		warning, err = b.verifyPresent(ctx, req, name, next)
	}
	if err != nil {
		return nil, fmt.Errorf("nothing was stored: %w", err)
	}

	stored, err := b.apps.commit(ctx, name, func(toTheEnd context.Context) (warning string, err error) {
		now, err := readConfig(ctx, req.Storage, name)
		switch {
		case err != nil:
			return "", err
		case !now.equal(present):
			return "", badInput("nothing was stored: the configuration of app %q changed while this request was under way; "+
				"read it and try again", name)
		case next.equal(present):
			b.apps.agree(name, present)
			return "", nil
		}
		return b.apps.configure(toTheEnd, req.Storage, name, next, newGeneration, verified, calls)
	})
	if err != nil {
		return nil, err
	}
	none := func(text string) bool { return text == "" }
	return &logical.Response{Warnings: slices.DeleteFunc([]string{warning, stored}, none)}, nil
}

func valueOr[T any](given *T, otherwise T) T {
	if given != nil {
		return *given
	}
	return otherwise
}

// verifyPresent verifies unchanged credentials: it refreshes the app's token, within the
// request_timeout that is to be stored.
func (b *backend) verifyPresent(
	ctx context.Context, req *logical.Request, name string, next *appConfig,
) (warning string, err error) {
	_, t, notFetched, err := b.apps.get(ctx, req.Storage, name, want{force: true, timeout: next.RequestTimeout})
	var failed *tokenError
	switch {
	case err != nil || notFetched == nil:
		return "", err
	case errors.As(notFetched, &failed):
		return "", failed
	case !t.servable(time.Now()):
		return "", badInput("app %q was tried a moment ago, without success: %s", name, notFetched)
	}
	return "The credentials were not verified again, since a token was fetched with them less than 10 seconds ago.", nil
}

func (b *backend) readConfig(ctx context.Context, req *logical.Request, name string) (*logical.Response, error) {
	config, err := readConfig(ctx, req.Storage, name)
	if err != nil || config == nil {
		return nil, err // Vault makes it a 404 if both are nil
	}
	data := map[string]any{
		fieldAppKey:         config.AppKey,
		fieldCorpID:         config.CorpID,
		fieldBaseURL:        config.BaseURL,
		fieldRefreshBefore:  int64(config.RefreshBefore / time.Second),
		fieldRequestTimeout: int64(config.RequestTimeout / time.Second),
		fieldLeased:         config.Leased,
	}
	if config.AppSecretSetAt != "" {
		data[fieldAppSecretSetAt] = config.AppSecretSetAt
	}
	return &logical.Response{Data: data}, nil
}

func (b *backend) deleteConfig(ctx context.Context, req *logical.Request, name string) (*logical.Response, error) {
	_, err := b.apps.commit(ctx, name, func(toTheEnd context.Context) (warning string, err error) {
		return "", b.apps.remove(toTheEnd, req.Storage, name)
	})
	return nil, err
}

func (b *backend) listConfig(
	ctx context.Context, req *logical.Request, _ *framework.FieldData,
) (*logical.Response, error) {
	names, err := req.Storage.List(ctx, configPrefix)
	if err != nil {
		return nil, fmt.Errorf("listing the apps in storage: %w", err)
	}
	return logical.ListResponse(names), nil
}

const configHelp = `
Stores the credentials of one DingTalk app. A write or a patch of an app that
exists changes only the fields that it names. A duration is a string such as 90s
or 10m, or a number of seconds. Pass the secret on standard input:

    vault write dingtalk/config/myapp app_key=dingxxxxxxxx app_secret=-

New credentials are verified first: the engine fetches a token with them. If
that fails, nothing is stored and the old credentials stay in force.

A read returns every field but app_secret and verify_connection, with durations
in seconds. A delete removes the credentials and the cached token. DingTalk
accepts the token until it expires.
`
