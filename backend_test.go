// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests what the engine is to Vault: its special paths, what it forwards, and its end.

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

func TestFactory_gives_a_secrets_engine_with_its_version(t *testing.T) {
	b, err := Factory(t.Context(), &logical.BackendConfig{System: &logical.StaticSystemView{}})
	require.NoError(t, err)
	defer b.Cleanup(t.Context())
	require.Equal(t, logical.TypeLogical, b.Type())
	require.Equal(t, Version, b.(logical.PluginVersioner).PluginVersion().Version)
}

func TestFactory_takes_nothing_from_its_context(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		ctx, cancel := context.WithCancel(t.Context())
		b, err := newBackend(ctx, &logical.BackendConfig{System: m.system}, m.transport)
		require.NoError(t, err)
		cancel()
		defer b.Cleanup(t.Context())
		m.engine.Cleanup(t.Context())
		m.engine = b
		m.configure(theApp, nil)
		require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
	})
}

func TestBackend_keeps_config_and_token_sealed_and_the_token_local(t *testing.T) {
	m := newMount(t)
	special := m.engine.SpecialPaths()
	require.ElementsMatch(t, []string{"config/", "token/"}, special.SealWrapStorage)
	require.Equal(t, []string{"token/"}, special.LocalStorage)
	require.Empty(t, special.Unauthenticated)
	require.Empty(t, special.Root)
}

func TestBackend_a_standby_forwards_every_operation_and_a_secondary_config_writes_alone(t *testing.T) {
	for state, standby := range map[consts.ReplicationState]bool{
		consts.ReplicationPerformanceStandby:   true,
		consts.ReplicationPerformanceSecondary: false,
	} {
		m := newMount(t)
		m.system.ReplicationStateVal = state
		for _, path := range []string{"config/", "config/myapp", "creds/myapp", "status/myapp", "refresh/myapp", "metrics"} {
			for op := range m.engine.Route(path).Operations {
				_, err := m.engine.HandleRequest(t.Context(), &logical.Request{Operation: op, Path: path, Storage: m.storage})
				forwarded := standby && path != "metrics" || path == "config/myapp" && op != logical.ReadOperation
				require.Equal(t, forwarded, errors.Is(err, logical.ErrReadOnly), "%s %s", op, path)
			}
		}
		require.Zero(t, m.upstream.Requests("*"))
	}
}

func TestBackend_asks_for_the_replication_state_and_the_default_lease_TTL_once_a_second(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		list := func() error {
			req := &logical.Request{Operation: logical.ListOperation, Path: "config/", Storage: m.storage}
			_, err := m.engine.HandleRequest(t.Context(), req)
			return err
		}
		require.NoError(t, list())
		m.system.ReplicationStateVal = consts.ReplicationPerformanceStandby
		time.Sleep(time.Second - time.Millisecond)
		require.NoError(t, list(), "as it was")
		time.Sleep(time.Millisecond)
		require.ErrorIs(t, list(), logical.ErrReadOnly)

		require.Equal(t, 24*time.Hour, m.engine.System().DefaultLeaseTTL())
		m.system.DefaultLeaseTTLVal = time.Hour
		time.Sleep(time.Second - time.Millisecond)
		require.Equal(t, 24*time.Hour, m.engine.System().DefaultLeaseTTL())
		time.Sleep(time.Millisecond)
		require.Equal(t, time.Hour, m.engine.System().DefaultLeaseTTL())
	})
}

func TestBackend_errors_name_paths_with_the_mount(t *testing.T) {
	m := newMount(t)
	for path, op := range map[string]logical.Operation{
		"creds/nope": logical.ReadOperation, "status/nope": logical.ReadOperation, "refresh/nope": logical.UpdateOperation,
	} {
		m.send(t.Context(), &logical.Request{Operation: op, Path: path, MountPoint: "team/dingtalk/"}).
			gets(t, http.StatusBadRequest, " team/dingtalk/config/nope ")
	}
}

func TestBackend_every_callback_in_every_replication_state(t *testing.T) {
	const standby, secondary = consts.ReplicationPerformanceStandby, consts.ReplicationPerformanceSecondary
	type test struct {
		state   consts.ReplicationState
		tainted bool
		renews  bool // or Vault forwards it
		passes  bool // the background works
	}
	forEach(t, map[string]test{
		"no replication":         {renews: true, passes: true},
		"tainted mount":          {tainted: true, renews: true},
		"performance standby":    {state: standby},
		"performance secondary":  {state: secondary, renews: true, passes: true},
		"standby of a secondary": {state: standby | secondary},
		"DR secondary":           {state: consts.ReplicationDRSecondary, renews: true},
	}, func(t *testing.T, m *mount, c test) {
		m.configure(theApp, nil)
		secret := *m.read(theApp).works(t).Secret
		secret.IssueTime = time.Now()
		m.system.ReplicationStateVal, m.system.TaintedVal = c.state, c.tainted
		time.Sleep(6890 * time.Second)
		call := func(op logical.Operation) error {
			_, err := m.engine.HandleRequest(t.Context(), &logical.Request{
				Operation: op, Path: "creds/myapp", Storage: m.storage, Secret: &secret,
			})
			return err
		}

		m.storage.fail(nil)
		m.tick()
		require.Equal(t, c.passes, m.calls() == 2, "the background refreshes ahead")
		require.Equal(t, c.passes, slices.Contains(m.storage.calls(), "list token/"), "and sweeps")
		if c.passes {
			require.Equal(t, m.upstream.LastToken(theKey), m.stored("token/myapp")["access_token"])
		} else {
			require.Empty(t, m.storage.calls())
		}

		secondHalf := map[bool]time.Duration{true: 4000 * time.Second, false: 100 * time.Second}
		time.Sleep(secondHalf[c.passes])
		calls := m.calls()
		if err := call(logical.RenewOperation); c.renews {
			require.NoError(t, err)
			require.Equal(t, calls+1, m.calls())
			require.Equal(t, 2*time.Hour, secret.TTL, "it extends the token")
		} else {
			require.Equal(t, logical.ErrReadOnly, err, "so that Vault forwards it: not wrapped, not coded")
			require.Equal(t, calls, m.calls())
		}
		_, exists, err := m.engine.HandleExistenceCheck(t.Context(), &logical.Request{
			Operation: logical.UpdateOperation, Path: "config/myapp", Storage: m.storage,
		})
		require.NoError(t, err)
		require.True(t, exists)

		m.engine.InvalidateKey(t.Context(), "config/myapp")
		require.Nil(t, m.engine.apps.inMemory(theApp))
		require.NoError(t, m.upstream.Close())
		require.NoError(t, call(logical.RevokeOperation), "revoking always succeeds")
		if !c.renews {
			require.Equal(t, []string{"get config/myapp"}, m.storage.calls(), "a standby writes nothing")
		}
	})
}
