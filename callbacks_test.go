// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests what Vault calls besides the paths, in every state of replication.

import (
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

func TestBackend_every_callback_in_every_replication_state(t *testing.T) {
	const standby, secondary = consts.ReplicationPerformanceStandby, consts.ReplicationPerformanceSecondary
	for name, c := range map[string]struct {
		state   consts.ReplicationState
		tainted bool
		renews  bool // or Vault forwards it
		passes  bool // the background works
	}{
		"no replication":         {renews: true, passes: true},
		"tainted mount":          {tainted: true, renews: true},
		"performance standby":    {state: standby},
		"performance secondary":  {state: secondary, renews: true, passes: true},
		"standby of a secondary": {state: standby | secondary},
		"DR secondary":           {state: consts.ReplicationDRSecondary, renews: true},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				got := m.read(theApp)
				require.NoError(t, got.err)
				secret := *got.Secret
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
				require.Equal(t, c.passes, len(m.storage.calls()) > 0, "and sweeps")

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
				require.NoError(t, call(logical.RevokeOperation), "revoking always succeeds")
				_, exists, err := m.engine.HandleExistenceCheck(t.Context(), &logical.Request{
					Operation: logical.UpdateOperation, Path: "config/myapp", Storage: m.storage,
				})
				require.NoError(t, err)
				require.True(t, exists)

				m.engine.InvalidateKey(t.Context(), "config/myapp")
				require.Nil(t, m.engine.apps.inMemory(theApp))
				if !c.renews {
					require.Equal(t, []string{"get config/myapp"}, m.storage.calls(), "a standby writes nothing")
				}
			})
		})
	}
}
