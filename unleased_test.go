// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests what creds/<app> answers without a lease, and its min_ttl.

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

func TestCreds_min_ttl_must_be_a_sensible_duration(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		for _, bad := range []any{
			"", "-1s", "500ms", "soon", "3000000h", "36028797018963968", 1e30, true, nil, []any{"1s", "2s"},
		} {
			got := m.do(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": bad})
			require.Equal(t, http.StatusBadRequest, got.status, "%v", bad)
			require.Contains(t, got.err.Error(), "min_ttl")
			require.Contains(t, got.err.Error(), "allowed")
		}
		require.Zero(t, m.calls())
	})
}

func TestUnleased_responses_say_when_to_read_again(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"leased": false})
		fetched := time.Now()
		got := m.read(theApp)
		require.NoError(t, got.err)
		require.Nil(t, got.Secret)
		require.Equal(t, map[string]any{
			"access_token":        m.upstream.LastToken(theKey),
			"expires_at":          timestamp(fetched.Add(2 * time.Hour)),
			"ttl":                 int64(7000),
			"rotation_period":     int64(7000),
			"last_vault_rotation": timestamp(fetched),
		}, got.Data)

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultIPNotAllowed})
		time.Sleep(7100 * time.Second)
		require.EqualValues(t, 60, m.read(theApp).Data["ttl"], "until the next attempt")
		time.Sleep(55 * time.Second)
		require.EqualValues(t, 5, m.read(theApp).Data["ttl"])
		time.Sleep(20 * time.Second)
		require.EqualValues(t, 23, m.read(theApp).Data["ttl"], "25 s less 2, since the next attempt is later")
		time.Sleep(23 * time.Second)
		require.EqualValues(t, 1, m.read(theApp).Data["ttl"], "at least 1")
	})
}

func TestUnleased_ttl_ends_before_the_token_does_where_nothing_is_refreshed_ahead(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"leased": false})
		for before, ttl := range map[int]int64{0: 7198, 1: 7198, 3: 7197} {
			require.NoError(t, m.do(logical.PatchOperation, "config/myapp", map[string]any{"refresh_before": before}).err)
			require.Equal(t, ttl, m.read(theApp).Data["ttl"])
		}
	})
}

func TestUnleased_ttl_ends_with_the_back_off_where_storage_does_not_give_the_secret(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"leased": false})
		m.token(theApp)
		time.Sleep(7001 * time.Second)
		m.storage.on(func(string, string) error { return errStorage })
		got := m.read(theApp)
		require.Len(t, got.Warnings, 1)
		require.InDelta(t, 5, got.Data["ttl"], 1)
		require.Equal(t, 1, m.calls())
	})
}

func TestUnleased_reader_during_a_refresh_is_told_to_come_back_at_once(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"leased": false})
		m.token(theApp)
		time.Sleep(7001 * time.Second)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 5 * time.Second})
		first := make(chan string)
		go func() { first <- m.token(theApp) }()
		synctest.Wait()
		require.EqualValues(t, 1, m.read(theApp).Data["ttl"])
		<-first
	})
}
