// SPDX-License-Identifier: MPL-2.0

// The command noop is a plugin that does nothing: what it costs to read from it is what Vault, gRPC
// and the framework cost by themselves. It answers leased/<app> and unleased/<app> with constants
// that look and weigh like the engine's responses. A mount with the option keep_replication_state
// keeps Vault's replication state for a second, as the engine does.
package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/plugin"

	"vault-plugin-secrets-dingtalk/bench/profiling"
)

const (
	accessToken = "0123456789abcdef0123456789abcdef"
	digest      = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	timestamp   = "2026-01-02T03:04:05Z"

	lifetime = 2 * time.Hour
)

func main() {
	profiling.Serve()
	if err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: factory}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	secret := &framework.Secret{
		Type:   "access_token",
		Fields: map[string]*framework.FieldSchema{"access_token": {Type: framework.TypeString}},
		Renew:  renew,
		Revoke: revoke,
	}
	b := &framework.Backend{
		BackendType: logical.TypeLogical,
		Secrets:     []*framework.Secret{secret},
		Paths: []*framework.Path{
			path(
				"leased/",
				func(_ context.Context, _ *logical.Request, data *framework.FieldData) (*logical.Response, error) {
					resp := secret.Response(
						map[string]any{"access_token": accessToken},
						map[string]any{"app": data.Get("app"), "token_digest": digest},
					)
					resp.Secret.TTL, resp.Secret.MaxTTL = lifetime, lifetime
					return resp, nil
				},
			),
			path("unleased/", func(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
				return &logical.Response{Data: map[string]any{
					"access_token":        accessToken,
					"expires_at":          timestamp,
					"ttl":                 int64(7000),
					"rotation_period":     int64(7000),
					"last_vault_rotation": timestamp,
				}}, nil
			}),
		},
	}
	kept := *conf
	if conf.Config["keep_replication_state"] == "true" {
		kept.System = &systemView{SystemView: conf.System}
	}
	if err := b.Setup(ctx, &kept); err != nil {
		return nil, err
	}
	return b, nil
}

func path(prefix string, read framework.OperationFunc) *framework.Path {
	return &framework.Path{
		Pattern: prefix + framework.GenericNameRegex("app"),
		Fields:  map[string]*framework.FieldSchema{"app": {Type: framework.TypeString, Required: true}},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{Callback: read, ForwardPerformanceStandby: true},
		},
	}
}

func renew(_ context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	return &logical.Response{Secret: req.Secret}, nil
}

func revoke(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
	return nil, nil //nolint:nilnil // to Vault this is success
}

// systemView keeps the replication state in the same way as the engine's does.
type systemView struct {
	logical.SystemView
	kept atomic.Pointer[keptState]
}

type keptState struct {
	state consts.ReplicationState
	until time.Time
}

// ReplicationState implements logical.SystemView.
func (v *systemView) ReplicationState() consts.ReplicationState {
	now := time.Now()
	if k := v.kept.Load(); k != nil && now.Before(k.until) {
		return k.state
	}
	state := v.SystemView.ReplicationState()
	v.kept.Store(&keptState{state: state, until: now.Add(time.Second)})
	return state
}
