// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Vault stays responsive while DingTalk responds to nobody, or a host keeps a connection open and
// sends nothing that would end it. Vault waits for the requests in flight, and none of them takes
// longer than request_timeout.

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestHanging_upstream_calls_do_not_hold_up_Vault(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{simulator.FaultHang, simulator.FaultSwitchingProtocols} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			requireResponsive(t, simulator.Fault{Kind: kind})
		})
	}
}

func requireResponsive(t *testing.T, fault simulator.Fault) {
	t.Helper()
	const (
		requestTimeout = 3 * time.Second
		// bound leaves a busy machine some time, and is below the request_timeout that an app has by
		// default: without a bound a reader would wait for ever.
		bound   = requestTimeout + 4*time.Second
		readers = 10
		// siblingBound is below requestTimeout, and well above what a busy machine takes for a read.
		siblingBound = 2 * time.Second
	)
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	require.NoError(t, v.Root.Sys().Mount("kv", &api.MountInput{Type: "kv"}))
	_, err := v.Root.Logical().Write("kv/hello", map[string]any{"value": "world"})
	require.NoError(t, err)
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	dt.SetFault(simulator.AnyApp, fault)

	// hold makes readers wait for an app that gets no token, and a write for another one's
	// verification, and checks in the end that none waited too long.
	hold := func(t *testing.T, m *harness.Mount) (wait func()) {
		t.Helper()
		a := m.NewApp(t, dt, harness.Fields{"request_timeout": requestTimeout.String()})
		newcomer, client := m.UnstoredApp(dt), v.Client(t)
		var all sync.WaitGroup
		all.Go(func() {
			body := newcomer.Config()
			body["request_timeout"] = requestTimeout.String()
			began := time.Now()
			_, err := client.Logical().Write(newcomer.ConfigPath(), body)
			if took := time.Since(began); err == nil || took > bound {
				t.Errorf("a write that cannot be verified ended after %s with %v", took, err)
			}
		})
		for range readers {
			client := v.Client(t)
			all.Go(func() {
				began := time.Now()
				_, err := client.Logical().Read(a.CredsPath())
				if took := time.Since(began); err == nil || took > bound {
					t.Errorf("a reader that can get no token got a response after %s: %v", took, err)
				}
			})
		}
		harness.WaitFor(t, bound, "both calls upstream hang", func() bool { return a.Calls() > 0 && newcomer.Calls() > 0 })
		return all.Wait
	}

	// sibling reads another mount until it is stopped, some times at least, and reports the longest
	// wait.
	sibling := func(t *testing.T) (stop func() (longest time.Duration)) {
		t.Helper()
		client := v.Client(t)
		quit := make(chan struct{})
		var longest time.Duration
		var count atomic.Int32
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
				count.Add(1)
			}
		})
		return func() time.Duration {
			harness.WaitFor(t, 30*time.Second, "the sibling is read", func() bool { return count.Load() > 10 })
			close(quit)
			loop.Wait()
			return longest
		}
	}

	t.Run("a sibling mount is read as ever", func(t *testing.T) {
		m := v.Enable(t)
		wait := hold(t, m)
		stop := sibling(t)
		wait()
		require.Less(t, stop(), siblingBound)
	})
	t.Run("plugin reload", func(t *testing.T) {
		m := v.Enable(t)
		wait := hold(t, m)
		stop := sibling(t)
		began := time.Now()
		m.Reload(t)
		took := time.Since(began)
		longest := stop()
		wait()
		require.Less(t, took, bound)
		require.Less(t, longest, siblingBound)
	})
	t.Run("secrets disable", func(t *testing.T) {
		m := v.Enable(t)
		wait := hold(t, m)
		stop := sibling(t)
		result := v.CLI(t, "secrets", "disable", m.Path)
		longest := stop()
		wait()
		result.Succeeded(t)
		require.Less(t, result.Took, bound)
		require.Less(t, longest, siblingBound)
		requireNoConnection(t, v.PluginPID(t), dt.URL)
	})
	t.Run("seal", func(t *testing.T) {
		m := v.Enable(t)
		wait := hold(t, m)
		result := v.CLI(t, "operator", "seal")
		wait()
		result.Succeeded(t)
		require.Less(t, result.Took, bound)
		status, err := v.Root.Sys().SealStatus()
		require.NoError(t, err)
		require.True(t, status.Sealed)
		require.NoError(t, v.Unseal(), "and Vault is back")
	})
	t.Run("shutdown", func(t *testing.T) {
		m := v.Enable(t)
		wait := hold(t, m)
		began := time.Now()
		require.NoError(t, v.Stop())
		took := time.Since(began)
		wait()
		require.Less(t, took, bound)
	})
}

// Whatever keeps an app's connection open, its requests end in time with an error, the other apps
// of the mount get their tokens meanwhile, nothing of it is left, and the app works again
// afterwards.
func TestHanging_app_does_not_delay_the_others_and_recovers(t *testing.T) {
	t.Parallel()
	const requestTimeout = 3 * time.Second
	for _, kind := range []string{
		simulator.FaultHang, simulator.FaultSwitchingProtocols, simulator.FaultInformationalFlood,
		simulator.FaultEndlessBody, simulator.FaultEndlessDrip,
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			m := harness.NewMount(t)
			slow := m.NewApp(t, dt, harness.Fields{"request_timeout": requestTimeout.String()})
			dt.SetFault(slow.Key, simulator.Fault{Kind: kind})

			var waiting sync.WaitGroup
			for what, request := range map[string]func(*api.Client) (*api.Secret, error){
				"a read": func(c *api.Client) (*api.Secret, error) { return c.Logical().Read(slow.CredsPath()) },
				"a refresh": func(c *api.Client) (*api.Secret, error) {
					return c.Logical().Write(slow.RefreshPath(), nil)
				},
				"a verifying write": func(c *api.Client) (*api.Secret, error) {
					return c.Logical().Write(slow.ConfigPath(), slow.Rotation(harness.NewSecret()))
				},
			} {
				client := m.Vault.Client(t)
				waiting.Go(func() {
					began := time.Now()
					_, err := request(client)
					var response *api.ResponseError
					if assert.ErrorAs(t, err, &response, what) {
						assert.Equal(t, http.StatusBadGateway, response.StatusCode, "%s: %s", what, err)
					}
					assert.Less(t, time.Since(began), requestTimeout+4*time.Second, what)
				})
			}
			harness.WaitFor(t, 3*time.Second, "the calls upstream hang", func() bool { return slow.Calls() > 1 })
			for range 3 {
				began := time.Now()
				a := m.NewApp(t, dt, nil)
				require.NotEmpty(t, a.Token(t))
				require.NotEmpty(t, a.Token(t))
				require.Less(t, time.Since(began), 2*time.Second) // far from the 3 s of the app that hangs
			}
			waiting.Wait()
			requireNoConnection(t, m.Vault.PluginPID(t), dt.URL)

			dt.ClearFaults()
			fresh := harness.NewSecret()
			dt.SetApp(slow.Key, fresh)
			slow.Update(t, slow.Rotation(fresh)) // which does not wait for the back-off
			harness.RequireSameToken(t, slow.Token(t), dt.LastToken(slow.Key))
		})
	}
}
