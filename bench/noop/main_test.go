// SPDX-License-Identifier: MPL-2.0

package main

import (
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	dingtalk "vault-plugin-secrets-dingtalk"
	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// shape is the fields of a response with the length of those that are text.
func shape(data map[string]any) map[string]int {
	lengths := map[string]int{}
	for name, value := range data {
		lengths[name] = 0
		if text, ok := value.(string); ok {
			lengths[name] = len(text)
		}
	}
	return lengths
}

func mount(t *testing.T, factory logical.Factory, options map[string]string) (logical.Backend, logical.Storage) {
	t.Helper()
	storage := &logical.InmemStorage{}
	b, err := factory(
		t.Context(),
		&logical.BackendConfig{StorageView: storage, System: &logical.StaticSystemView{}, Config: options},
	)
	require.NoError(t, err)
	t.Cleanup(func() { b.Cleanup(t.Context()) })
	return b, storage
}

func read(t *testing.T, b logical.Backend, storage logical.Storage, path string) *logical.Response {
	t.Helper()
	resp, err := b.HandleRequest(
		t.Context(),
		&logical.Request{Operation: logical.ReadOperation, Path: path, Storage: storage},
	)
	require.NoError(t, err)
	require.NotNil(t, resp)
	return resp
}

func TestNoop_responses_look_and_weigh_like_the_engines(t *testing.T) {
	dt := simulator.New(simulator.Options{Apps: map[string]string{"key": "secret"}})
	base, err := dt.Start("127.0.0.1:0")
	require.NoError(t, err)
	defer dt.Close()

	engine, storage := mount(t, dingtalk.Factory, nil)
	for _, options := range []map[string]string{nil, {"keep_replication_state": "true"}} {
		noop, nothing := mount(t, factory, options)
		for kind, leased := range map[string]bool{"leased": true, "unleased": false} {
			_, err := engine.HandleRequest(t.Context(), &logical.Request{
				Operation: logical.CreateOperation, Path: "config/" + kind, Storage: storage,
				Data: map[string]any{"app_key": "key", "app_secret": "secret", "base_url": base, "leased": leased},
			})
			require.NoError(t, err)
			want, got := read(t, engine, storage, "creds/"+kind), read(t, noop, nothing, kind+"/"+kind)
			require.Equal(t, shape(want.Data), shape(got.Data))
			require.Equal(t, leased, got.Secret != nil)
			if !leased {
				continue
			}
			require.Equal(t, shape(want.Secret.InternalData), shape(got.Secret.InternalData))
			require.Equal(t, want.Secret.Renewable, got.Secret.Renewable)
			require.InDelta(t, want.Secret.TTL.Seconds(), got.Secret.TTL.Seconds(), 5)
			require.InDelta(t, want.Secret.MaxTTL.Seconds(), got.Secret.MaxTTL.Seconds(), 5)
		}
	}
}
