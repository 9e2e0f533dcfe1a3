// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

// An app whose token DingTalk replaces, and how soon a holder must have the new one.

import (
	"testing"
	"time"
)

const (
	// replacedLifetime is the lifetime of a token, and tunedTo the mount's default_lease_ttl.
	replacedLifetime = time.Minute
	tunedTo          = replacedLifetime / 12
)

// NewTunedApp returns an app on a mount with a short default_lease_ttl. DingTalk replaces its token
// at each fetch.
func NewTunedApp(t *testing.T) *App {
	t.Helper()
	m := NewMount(t)
	m.Vault.MustCLI(t, "secrets", "tune", "-default-lease-ttl="+tunedTo.String(), m.Path+"/")
	dt := StartDingTalk(t, replacedLifetime)
	a := m.NewApp(t, dt, nil)
	dt.RotateTokens(a.Key, true)
	return a
}

// RequireHolderFollows replaces the app's token three times. Each time, the holder must have the
// new one within twice the mount's default_lease_ttl.
func (a *App) RequireHolderFollows(t *testing.T, holds func() bool) {
	t.Helper()
	WaitFor(t, 30*time.Second, "the holder has a token", holds)
	for range 3 {
		calls := a.Calls()
		WaitFor(t, 15*time.Second, "the token is replaced", func() bool { // at most once in ten seconds
			a.RefreshNow(t)
			return a.Calls() > calls
		})
		NoteSecret(a.DingTalk.LastToken(a.Key), "an access token")
		replaced := time.Now()
		WaitFor(t, 2*tunedTo, "the holder has the new token", holds)
		t.Logf("the new token after %s", time.Since(replaced).Round(time.Millisecond))
	}
}
