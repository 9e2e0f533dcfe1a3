// SPDX-License-Identifier: MPL-2.0

// Package examples checks the examples for Kubernetes and Terraform, which cannot run here: there
// is no cluster. Every field in them is held against lists of the fields that their programs know,
// and every request that they make to the engine is made to the real engine. What was run by hand,
// and in which version, is in docs/compatibility.md.
package examples

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	dingtalk "vault-plugin-secrets-dingtalk"
	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// This file is the engine as the other tests use it: the real one, over storage in memory, with the
// simulator as DingTalk.

const (
	examplesDir = "../../examples/"

	theMount  = "dingtalk/"
	theApp    = "myapp" // in every example
	theKey    = "dingexamplekey"
	theSecret = "example-app-secret"
)

type engine struct {
	t        *testing.T
	backend  logical.Backend
	storage  logical.Storage
	system   *logical.StaticSystemView
	upstream *simulator.Server
	url      string
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	e := &engine{
		t:       t,
		storage: &logical.InmemStorage{},
		system: &logical.StaticSystemView{
			DefaultLeaseTTLVal: 24 * time.Hour,
			MaxLeaseTTLVal:     768 * time.Hour,
			PluginEnvironment:  &logical.PluginEnvironment{}, // which the OpenAPI document asks for
		},
		upstream: simulator.New(simulator.Options{Apps: map[string]string{theKey: theSecret}}),
	}
	t.Cleanup(func() { _ = e.upstream.Close() })
	var err error
	e.url, err = e.upstream.Start("127.0.0.1:0")
	require.NoError(t, err)
	e.start()
	t.Cleanup(func() { e.backend.Cleanup(context.Background()) })
	return e
}

// start mounts the engine over the storage, as after a restart.
func (e *engine) start() {
	e.t.Helper()
	if e.backend != nil {
		e.backend.Cleanup(e.t.Context())
	}
	var err error
	e.backend, err = dingtalk.Factory(e.t.Context(), &logical.BackendConfig{
		System:      e.system,
		StorageView: e.storage,
	})
	require.NoError(e.t, err)
}

// do makes a request that must succeed.
func (e *engine) do(req *logical.Request) *logical.Response {
	e.t.Helper()
	req.Storage = e.storage
	resp, err := e.backend.HandleRequest(e.t.Context(), req)
	require.NoError(e.t, err)
	if resp != nil {
		require.NoError(e.t, resp.Error())
	}
	return resp
}

// configure stores the app, with the simulator's credentials and the given fields.
func (e *engine) configure(fields map[string]any) {
	e.t.Helper()
	data := map[string]any{"app_key": theKey, "app_secret": theSecret, "base_url": e.url}
	maps.Copy(data, fields)
	e.do(&logical.Request{Operation: logical.UpdateOperation, Path: "config/" + theApp, Data: data})
}

// read reads the app's token, and returns the response as a client of Vault's gets it: through JSON.
func (e *engine) read() *api.Secret {
	e.t.Helper()
	resp := e.do(&logical.Request{Operation: logical.ReadOperation, Path: "creds/" + theApp})
	body, err := json.Marshal(map[string]any{"data": resp.Data, "warnings": resp.Warnings})
	require.NoError(e.t, err)
	response, err := api.ParseSecret(bytes.NewReader(body))
	require.NoError(e.t, err)
	return response
}

// lease is a lease as Vault keeps it.
type lease struct {
	e        *engine
	secret   logical.Secret
	duration time.Duration // as answered last
}

// issue reads the app's token with a lease.
func (e *engine) issue() *lease {
	e.t.Helper()
	resp := e.do(&logical.Request{Operation: logical.ReadOperation, Path: "creds/" + theApp})
	require.NotNil(e.t, resp.Secret)
	l := &lease{e: e, secret: *resp.Secret}
	l.secret.IssueTime = time.Now()
	l.duration = l.sum(resp.Secret, 0, time.Time{})
	return l
}

// sum is what Vault makes of the engine's response: the function is Vault's own.
func (l *lease) sum(answered *logical.Secret, increment time.Duration, issued time.Time) time.Duration {
	l.e.t.Helper()
	ttl, _, err := framework.CalculateTTL(l.e.system, increment, answered.TTL, 0, answered.MaxTTL, 0, issued)
	require.NoError(l.e.t, err)
	return ttl
}

// renew asks for another time of that length, as an operator does, and returns how long the lease
// lasts from now.
func (l *lease) renew(increment time.Duration) time.Duration {
	l.e.t.Helper()
	secret := l.secret
	secret.Increment = increment
	resp := l.e.do(&logical.Request{Operation: logical.RenewOperation, Path: "creds/" + theApp, Secret: &secret})
	return l.sum(resp.Secret, increment, l.secret.IssueTime)
}

// age lets the lease and its token be older by d.
func (l *lease) age(d time.Duration) {
	l.e.t.Helper()
	l.secret.IssueTime = l.secret.IssueTime.Add(-d)
	l.e.age(d)
}

// age lets the stored token, and so the app's, be older by d.
func (e *engine) age(d time.Duration) {
	e.t.Helper()
	entry, err := e.storage.Get(e.t.Context(), "token/"+theApp)
	require.NoError(e.t, err)
	require.NotNil(e.t, entry)
	var token map[string]any
	require.NoError(e.t, json.Unmarshal(entry.Value, &token))
	for _, field := range []string{"fetched_at", "expires_at"} {
		at, err := time.Parse(time.RFC3339Nano, token[field].(string))
		require.NoError(e.t, err)
		token[field] = at.Add(-d).Format(time.RFC3339Nano)
	}
	entry.Value, err = json.Marshal(token)
	require.NoError(e.t, err)
	require.NoError(e.t, e.storage.Put(e.t.Context(), entry))
	e.start()
}
