// SPDX-License-Identifier: MPL-2.0

// Package dingtalk is a secrets engine for HashiCorp Vault. It stores the credentials of DingTalk
// apps and hands out their access tokens, cached or freshly fetched, as leased secrets.
//
// This file is the wiring: the factory, the paths and the secret type, Vault's other callbacks, and
// the HTTP statuses of errors.
package dingtalk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
)

// Version is what the plugin reports to Vault: v and a semantic version. This is where the
// project's version is written down: the Makefile, the release and the changelog's test take it
// from here. `make build VERSION=…` lets the linker set another.
var Version = "v0.2.0"

// operationPrefix starts every operation's name in OpenAPI.
const operationPrefix = "dingtalk"

const backendHelp = `
The DingTalk secrets engine stores the credentials of DingTalk apps at
config/<app>, and hands out their access tokens at creds/<app>:

    vault write dingtalk/config/myapp app_key=dingxxxxxxxx app_secret=-
    vault read dingtalk/creds/myapp

A token is fetched when it is first needed, refreshed before it expires, and
shared by all readers. The app's secret is never returned. status/<app> reports
the state of the token; refresh/<app> fetches a token now.
`

// backend is the engine of one mount.
type backend struct {
	*framework.Backend
	apps    *registry
	metrics []prometheus.Gatherer
}

// Factory returns the engine of one mount. The context ends with the call.
func Factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	if conf == nil {
		return nil, errors.New("no configuration given to the secrets engine's factory")
	}
	return newBackend(ctx, conf, newTransport())
}

// newBackend returns an engine that reaches DingTalk through the given transport.
func newBackend(ctx context.Context, conf *logical.BackendConfig, transport http.RoundTripper) (*backend, error) {
	logger := cmp.Or[hclog.Logger](conf.Logger, hclog.NewNullLogger())
	b := &backend{apps: newRegistry(newClient(transport, logger), logger)}
	b.metrics = newMetrics(b.apps)
	b.Backend = &framework.Backend{
		BackendType:    logical.TypeLogical,
		RunningVersion: Version,
		Help:           strings.TrimSpace(backendHelp),
		PathsSpecial: &logical.Paths{
			SealWrapStorage: []string{configPrefix, tokenPrefix},
			LocalStorage:    []string{tokenPrefix},
		},
		Paths: []*framework.Path{
			b.pathConfigList(), b.pathConfig(), b.pathCreds(), b.pathStatus(), b.pathRefresh(), b.pathMetrics(),
		},
		Secrets:      []*framework.Secret{b.secretAccessToken()},
		PeriodicFunc: b.periodic,
		Invalidate:   b.invalidate,
		Clean:        b.clean,
	}
	withCache := *conf
	if conf.System != nil {
		withCache.System = &systemView{SystemView: conf.System}
	}
	if err := b.Setup(ctx, &withCache); err != nil {
		return nil, err
	}
	return b, nil
}

// HandleRequest implements logical.Backend. It checks the fields before the framework does, since
// the framework's errors repeat what was given, even a secret. It maps the engine's errors to HTTP
// statuses.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if err := checkFields(req); err != nil {
		return nil, coded(err, req.MountPoint)
	}
	takesNoFields := req.Operation == logical.ReadOperation || req.Operation == logical.DeleteOperation
	if takesNoFields && len(req.Data) > 0 && strings.HasPrefix(req.Path, configPrefix) {
		bare := *req // the framework's errors would repeat the parameters of a query
		bare.Data = nil
		req = &bare
	}
	resp, err := b.Backend.HandleRequest(ctx, req)
	if err != nil {
		return resp, coded(err, req.MountPoint)
	}
	switch {
	case req.Operation == logical.HelpOperation:
		inlineSchemas(resp)
	case resp != nil && resp.Secret == nil && resp.Data == nil && len(resp.Warnings) == 0:
		return nil, nil //nolint:nilnil // Vault makes it a 204
	}
	return resp, nil
}

// inlineSchemas replaces the references of the OpenAPI document by the schemas themselves. When
// Vault merges an external plugin's document with those of the other mounts, it loses what they
// refer to (hashicorp/vault issue 30714).
func inlineSchemas(resp *logical.Response) {
	document, ok := resp.Data["openapi"].(*framework.OASDocument)
	if !ok {
		return
	}
	inline := func(content framework.OASContent) {
		for _, media := range content {
			if name, ok := strings.CutPrefix(media.Schema.Ref, "#/components/schemas/"); ok {
				media.Schema = document.Components.Schemas[name]
			}
		}
	}
	for _, path := range document.Paths {
		for _, op := range []*framework.OASOperation{path.Get, path.Post, path.Patch, path.Delete} {
			if op == nil {
				continue
			}
			if op.RequestBody != nil {
				inline(op.RequestBody.Content)
			}
			for _, response := range op.Responses {
				inline(response.Content)
			}
		}
	}
}

// HandleExistenceCheck implements logical.Backend. Whether an app exists does not depend on the
// request's fields, so they are kept from the framework. HandleRequest reports what is wrong with
// them.
func (b *backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (found, exists bool, err error) {
	if err := checkSecrets(req.Data); err != nil {
		return false, false, errutil.UserError{Err: err.Error()} // the only error that becomes a 400 here
	}
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

// checkFields checks the fields of a request, if it has any.
func checkFields(req *logical.Request) error {
	if len(req.Data) == 0 {
		return nil
	}
	switch req.Operation {
	case logical.CreateOperation, logical.UpdateOperation, logical.PatchOperation:
		if strings.HasPrefix(req.Path, configPrefix) {
			_, err := parseChange(req.Data)
			return err
		}
	case logical.ReadOperation:
		if strings.HasPrefix(req.Path, credsPrefix) {
			_, err := parseMinTTL(req.Data)
			return err
		}
	default:
	}
	return checkSecrets(req.Data)
}

// checkSecrets refuses a secret that is not a string, on every path. A path that takes no secret
// ignores one, but must not repeat it in an error either.
func checkSecrets(raw map[string]any) error {
	p := &parser{raw: raw}
	_, _ = p.string(fieldAppSecret), p.string(fieldRejectedToken)
	return p.err
}

// coded returns an error with its HTTP status. A coded error must not be wrapped: Vault would make
// it a 500.
func coded(err error, mountPoint string) error {
	var (
		input   *inputError
		unknown *unknownAppError
		fetch   *tokenError
	)
	switch {
	case errors.As(err, &input):
		return logical.CodedError(http.StatusBadRequest, err.Error())
	case errors.As(err, &unknown):
		return logical.CodedError(http.StatusBadRequest, fmt.Sprintf("%s: write its app_key and app_secret to %s%s%s first",
			unknown, mountPoint, configPrefix, unknown.app))
	case errors.As(err, &fetch):
		return logical.CodedError(fetch.status(), err.Error())
	case errors.Is(err, errShuttingDown), errors.Is(err, errExpired):
		return logical.CodedError(http.StatusServiceUnavailable, err.Error())
	default:
		return err
	}
}

// periodic is called by Vault about once a minute, under its state lock. It does nothing if this
// node may not write, or if the mount is being removed.
func (b *backend) periodic(_ context.Context, req *logical.Request) error {
	const mayNotWrite = consts.ReplicationPerformanceStandby | consts.ReplicationDRSecondary
	if !b.System().ReplicationState().HasState(mayNotWrite) && !b.System().Tainted() {
		b.apps.tick(req.Storage)
	}
	return nil
}

// invalidate is called by Vault when another node has changed a key.
func (b *backend) invalidate(_ context.Context, key string) {
	for _, prefix := range []string{configPrefix, tokenPrefix} {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			b.apps.invalidate(name)
		}
	}
}

// clean is called by Vault when the mount is unloaded, under locks that other mounts wait for. It
// may be called twice.
func (b *backend) clean(context.Context) { b.apps.life.close() }

// systemView caches for a second what every request asks of Vault. Over gRPC, such a call is a
// fifth of the cost of a cached read.
type systemView struct {
	logical.SystemView
	replicationState cached[consts.ReplicationState]
	defaultLeaseTTL  cached[time.Duration]
}

// ReplicationState implements logical.SystemView.
func (v *systemView) ReplicationState() consts.ReplicationState {
	return v.replicationState.get(v.SystemView.ReplicationState)
}

// DefaultLeaseTTL implements logical.SystemView.
func (v *systemView) DefaultLeaseTTL() time.Duration {
	return v.defaultLeaseTTL.get(v.SystemView.DefaultLeaseTTL)
}

// cached is a value that is valid for a second.
type cached[T any] struct {
	last atomic.Pointer[cachedValue[T]]
}

type cachedValue[T any] struct {
	value T
	until time.Time
}

func (c *cached[T]) get(ask func() T) T {
	now := time.Now()
	if last := c.last.Load(); last != nil && now.Before(last.until) {
		return last.value
	}
	value := ask()
	c.last.Store(&cachedValue[T]{value: value, until: now.Add(time.Second)})
	return value
}

// appField is the path parameter of every path but the list.
func appField() *framework.FieldSchema {
	return field(framework.TypeString, true, `Name of the app: letters, digits and underscores and, except at its
ends, hyphens and single dots; at most 128 characters.`)
}

// path returns the path of one app below a prefix.
func path(prefix, suffix string, fields map[string]*framework.FieldSchema) *framework.Path {
	fields["app"] = appField()
	return &framework.Path{
		Pattern:      prefix + framework.GenericNameRegex("app"),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationSuffix: suffix},
		Fields:       fields,
	}
}

// parameter describes a parameter of a request, with its title in Vault's UI.
func parameter(kind framework.FieldType, title string, byDefault any, description string) *framework.FieldSchema {
	return &framework.FieldSchema{
		Type: kind, Default: byDefault, Description: description,
		DisplayAttrs: &framework.DisplayAttributes{Name: title},
	}
}

// operation returns an operation that the active node performs.
func operation(
	callback framework.OperationFunc, verb, summary string, responses map[int][]framework.Response,
) *framework.PathOperation {
	return &framework.PathOperation{
		Callback: callback, Summary: summary, Responses: responses,
		DisplayAttrs:              &framework.DisplayAttributes{OperationVerb: verb},
		ForwardPerformanceStandby: true,
	}
}

// field describes a field of a response.
func field(kind framework.FieldType, required bool, description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: kind, Required: required, Description: description}
}

// responses describes the responses of an operation, a 200 with its fields.
func responses(fields map[string]*framework.FieldSchema, texts map[int]string) map[int][]framework.Response {
	all := map[int][]framework.Response{}
	for status, text := range texts {
		all[status] = []framework.Response{{Description: text}}
	}
	if fields != nil {
		all[http.StatusOK] = []framework.Response{{Description: "OK", Fields: fields}}
	}
	return all
}

// forApp returns the callback of an operation on one app.
func forApp(
	operation func(ctx context.Context, req *logical.Request, name string) (*logical.Response, error),
) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		name, err := appName(d)
		if err != nil {
			return nil, err
		}
		return operation(ctx, req, name)
	}
}

// appName returns the app that a request is about.
func appName(data *framework.FieldData) (string, error) {
	name := data.Get("app").(string)
	switch {
	case len(name) > maxNameLength:
		return "", badInput("app: the name has %d characters; allowed are at most %d", len(name), maxNameLength)
	case strings.Contains(name, ".."):
		return "", badInput("app: the name %q has two dots in a row, which Vault's storage refuses; "+
			"single dots are allowed", name)
	}
	return name, nil
}
