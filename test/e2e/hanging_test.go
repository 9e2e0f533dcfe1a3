// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Vault stays responsive while DingTalk answers nobody: it waits for the readers in flight, and these never wait longer
// than request_timeout.

import (
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

//nolint:tparallel // the subtests end what the others need
func TestHanging_upstream_calls_do_not_hold_up_Vault(t *testing.T) {
	t.Parallel()
	const (
		requestTimeout = 3 * time.Second
		// bound leaves a busy machine some time, and is below the request_timeout that an app has by default: without a bound a
		// reader would wait for ever.
		bound   = requestTimeout + 4*time.Second
		readers = 10
		// siblingBound is below requestTimeout, and well above what a busy machine takes for a read.
		siblingBound = 2 * time.Second
	)
	v := startVault(t, vaultOptions{storage: storageInmem})
	require.NoError(t, v.root.Sys().Mount("kv", &api.MountInput{Type: "kv"}))
	_, err := v.root.Logical().Write("kv/hello", map[string]any{"value": "world"})
	require.NoError(t, err)
	dt := startDingTalk(t, fullLifetime)
	dt.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultHang})

	// hold has readers wait for an app that gets no answer, and checks in the end that none waited too long.
	hold := func(t *testing.T, m *mount) (wait func()) {
		t.Helper()
		a := m.newApp(t, dt, fields{"request_timeout": requestTimeout.String()})
		var all sync.WaitGroup
		for range readers {
			client := v.client(t)
			all.Go(func() {
				began := time.Now()
				_, err := client.Logical().Read(a.credsPath())
				if took := time.Since(began); err == nil || took > bound {
					t.Errorf("a reader without a token to be had was answered after %s with %v", took, err)
				}
			})
		}
		waitFor(t, bound, "the call upstream hangs", func() bool { return a.calls() > 0 })
		return all.Wait
	}

	// sibling reads another mount until it is stopped, and reports the longest wait and how many reads there were.
	sibling := func(t *testing.T) (stop func() (longest time.Duration, count int)) {
		t.Helper()
		client := v.client(t)
		quit := make(chan struct{})
		var longest time.Duration
		var count int
		var loop sync.WaitGroup
		loop.Go(func() {
			for {
				select {
				case <-quit:
					return
				case <-time.After(20 * time.Millisecond):
				}
				began := time.Now()
				_, err := client.Logical().Read("kv/hello")
				if err != nil {
					t.Errorf("a sibling's read: %v", err)
				}
				longest = max(longest, time.Since(began))
				count++
			}
		})
		return func() (time.Duration, int) {
			close(quit)
			loop.Wait()
			return longest, count
		}
	}

	t.Run("a sibling mount is read as ever", func(t *testing.T) {
		m := v.enable(t)
		wait := hold(t, m)
		stop := sibling(t)
		wait()
		longest, count := stop()
		require.Less(t, longest, siblingBound)
		require.Greater(t, count, 10)
	})
	t.Run("plugin reload", func(t *testing.T) {
		m := v.enable(t)
		wait := hold(t, m)
		stop := sibling(t)
		began := time.Now()
		m.reload(t)
		took := time.Since(began)
		longest, _ := stop()
		wait()
		require.Less(t, took, bound)
		require.Less(t, longest, siblingBound)
	})
	t.Run("secrets disable", func(t *testing.T) {
		m := v.enable(t)
		wait := hold(t, m)
		stop := sibling(t)
		result := v.cli(t, "secrets", "disable", m.path)
		longest, _ := stop()
		wait()
		result.succeeded(t)
		require.Less(t, result.took, bound)
		require.Less(t, longest, siblingBound)
	})
	t.Run("seal", func(t *testing.T) {
		m := v.enable(t)
		wait := hold(t, m)
		result := v.cli(t, "operator", "seal")
		wait()
		result.succeeded(t)
		require.Less(t, result.took, bound)
		status, err := v.root.Sys().SealStatus()
		require.NoError(t, err)
		require.True(t, status.Sealed)
		require.NoError(t, v.unseal(), "and Vault comes back")
	})
	t.Run("shutdown", func(t *testing.T) {
		m := v.enable(t)
		wait := hold(t, m)
		began := time.Now()
		require.NoError(t, v.stop())
		took := time.Since(began)
		wait()
		require.Less(t, took, bound)
	})
}

func TestHanging_app_does_not_delay_the_others(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	slow := m.newApp(t, dt, fields{"request_timeout": "3s"})
	dt.SetFault(slow.key, simulator.Fault{Kind: simulator.FaultHang})

	var waiting sync.WaitGroup
	waiting.Go(func() {
		if _, err := slow.tryRead(); err == nil {
			t.Error("a token without an answer from DingTalk")
		}
	})
	waitFor(t, 3*time.Second, "the call upstream hangs", func() bool { return slow.calls() > 0 })
	for range 3 {
		began := time.Now()
		a := m.newApp(t, dt, nil)
		require.NotEmpty(t, a.token(t))
		require.NotEmpty(t, a.token(t))
		require.Less(t, time.Since(began), 2*time.Second) // far from the 3 s of the app that hangs
	}
	waiting.Wait()
}
