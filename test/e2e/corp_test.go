// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Apps with a corp_id: their tokens are fetched with DingTalk's unified call, from the endpoint of
// each organization.

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// otherCorpID is a second organization of the apps here.
const otherCorpID = "ding99otherCorp"

// newAppsIn makes apps with one app_key in different organizations, all of which it runs in. An
// empty corpId is none.
func newAppsIn(t *testing.T, m *harness.Mount, dt *harness.DingTalk, corpIDs ...string) []*harness.App {
	t.Helper()
	first := m.UnstoredApp(dt)
	none := func(corpID string) bool { return corpID == "" }
	dt.SetApp(first.Key, first.Secret, slices.DeleteFunc(slices.Clone(corpIDs), none)...)
	apps := make([]*harness.App, len(corpIDs))
	for i, corpID := range corpIDs {
		a := *first
		a.Name = "app-" + harness.RandomHex(4)
		body := a.Config()
		body["corp_id"], body["verify_connection"] = corpID, false
		_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), body)
		require.NoError(t, err, "store the app")
		apps[i] = &a
	}
	return apps
}

func TestCorpID_token_comes_from_the_unified_call(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.UnstoredApp(dt)
	body := a.Config()
	body["corp_id"] = simulator.DefaultCorpID
	_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), body)
	require.NoError(t, err)
	require.Equal(t, simulator.DefaultCorpID, m.ReadData(t, a.ConfigPath())["corp_id"])

	secret := a.Read(t)
	harness.RequireSameToken(t, harness.TokenIn(secret), dt.LastTokenIn(a.Key, simulator.DefaultCorpID))
	require.InDelta(
		t, dt.Remaining(harness.TokenIn(secret)).Seconds(), leaseTTL(secret).Seconds(), leaseSlack.Seconds(),
	)
	require.Equal(t, 1, dt.RequestsIn(a.Key, simulator.DefaultCorpID), "of the write, which verifies")
	require.Zero(t, dt.RequestsIn(a.Key, ""), "of the older call")
}

func TestCorpID_apps_with_one_app_key_have_a_token_for_each_organization(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	apps := newAppsIn(t, harness.NewMount(t), dt, simulator.DefaultCorpID, otherCorpID, "")
	for range 2 {
		harness.RequireSameToken(t, apps[0].Token(t), dt.LastTokenIn(apps[0].Key, simulator.DefaultCorpID))
		harness.RequireSameToken(t, apps[1].Token(t), dt.LastTokenIn(apps[0].Key, otherCorpID))
		harness.RequireSameToken(t, apps[2].Token(t), dt.LastTokenIn(apps[0].Key, ""))
	}
	harness.RequireOtherToken(t, apps[0].Token(t), apps[1].Token(t))
	harness.RequireOtherToken(t, apps[0].Token(t), apps[2].Token(t))
	require.Equal(t, 3, apps[0].Calls())
}

func TestCorpID_Retry_After_is_for_the_app_key_in_one_organization(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	apps := newAppsIn(t, harness.NewMount(t), dt, otherCorpID, otherCorpID, simulator.DefaultCorpID, "")
	key := apps[0].Key
	dt.SetFault(key, simulator.Fault{Kind: simulator.FaultThrottledQPS, RetryAfter: "300", Times: 1})

	for _, a := range apps[:2] { // the second one only has another name
		_, err := a.TryRead()
		require.Contains(t, harness.Refused(t, err, http.StatusBadGateway), "throttles")
		require.Equal(t, 1, dt.RequestsIn(key, otherCorpID))
	}
	for _, a := range apps[2:] {
		require.NotEmpty(t, a.Token(t))
	}
}

func TestCorpID_ban_hits_every_organization(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	apps := newAppsIn(t, harness.NewMount(t), dt, otherCorpID, simulator.DefaultCorpID, "")
	dt.SetFault(apps[0].Key, simulator.Fault{Kind: simulator.FaultBanned, Times: 1})
	for _, a := range apps {
		_, err := a.TryRead()
		require.Contains(t, harness.Refused(t, err, http.StatusBadGateway), "banned")
	}
	require.Equal(t, 1, apps[0].Calls())
}

func TestCorpID_empty_one_takes_it_away(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := newAppsIn(t, m, dt, otherCorpID)[0]
	token := a.Token(t)

	require.Nil(t, a.Update(t, harness.Fields{"corp_id": ""}))
	require.Empty(t, m.ReadData(t, a.ConfigPath())["corp_id"])
	require.Equal(t, 1, dt.RequestsIn(a.Key, ""), "the older call is verified")
	harness.RequireSameToken(t, a.Token(t), dt.LastTokenIn(a.Key, ""))
	harness.RequireOtherToken(t, a.Token(t), token)
	require.Equal(t, 2, a.Calls())
}

func TestCorpID_another_one_is_verified_and_needs_no_app_secret(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := newAppsIn(t, m, dt, "")[0]
	dt.SetApp(a.Key, a.Secret, simulator.DefaultCorpID, otherCorpID)
	lease := a.Read(t)

	for i, corpID := range []string{simulator.DefaultCorpID, otherCorpID} {
		require.Nil(t, a.Update(t, harness.Fields{"corp_id": corpID}))
		require.Equal(t, 1, dt.RequestsIn(a.Key, corpID), "verified")
		harness.RequireSameToken(t, a.Token(t), dt.LastTokenIn(a.Key, corpID)) // the verification's
		require.Equal(t, i+2, a.Calls())
	}
	requireLeaseEnds(t, a, renewLease(t, a, lease.LeaseID, 0)) // its token is the generation's of before
	require.Nil(t, a.Update(t, harness.Fields{"corp_id": otherCorpID}), "the same one again")
	require.Equal(t, 3, a.Calls(), "keeps the token")
}

func TestCorpID_another_one_ends_the_back_off(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := newAppsIn(t, m, dt, otherCorpID)[0]
	dt.SetApp(a.Key, a.Secret, simulator.DefaultCorpID, otherCorpID)
	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultRejectedCredentials, Times: 1})
	_, err := a.TryRead()
	harness.Refused(t, err, http.StatusBadRequest)

	a.Update(t, harness.Fields{"corp_id": simulator.DefaultCorpID, "verify_connection": false})
	harness.RequireSameToken(t, a.Token(t), dt.LastTokenIn(a.Key, simulator.DefaultCorpID))
	require.Equal(t, json.Number("0"), a.Status(t)["upstream_failures"], "a new generation's")
}

// DingTalk responds to a corpId that does not exist with a server error that does not mention it.
func TestCorpID_unknown_one_is_among_what_the_error_says_to_check(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := newAppsIn(t, m, dt, simulator.DefaultCorpID)[0]
	token := a.Token(t)

	_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), harness.Fields{"corp_id": "dingNobody"})
	require.Regexp(t, `check.* corp_id`, harness.Refused(t, err, http.StatusBadGateway))
	require.Equal(t, simulator.DefaultCorpID, m.ReadData(t, a.ConfigPath())["corp_id"], "nothing was stored")
	harness.RequireSameToken(t, a.Token(t), token)

	a.Update(t, harness.Fields{"corp_id": "dingNobody", "verify_connection": false})
	_, err = a.TryRead()
	require.Regexp(t, `check.* corp_id`, harness.Refused(t, err, http.StatusBadGateway))
	require.Regexp(t, `check.* corp_id`, a.Status(t)["last_error"])

	other := newAppsIn(t, m, dt, "")[0]
	dt.SetFault(other.Key, simulator.Fault{Kind: simulator.FaultUnavailableServer})
	_, err = other.TryRead()
	require.NotContains(t, harness.Refused(t, err, http.StatusBadGateway), "corp_id", "of an app that has none")
}

func TestCorpID_of_64_letters_and_digits_is_taken_as_it_is(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	corpID := strings.Repeat("Ding7", 12) + "Corp"
	a := newAppsIn(t, harness.NewMount(t), dt, corpID)[0]
	harness.RequireSameToken(t, a.Token(t), dt.LastTokenIn(a.Key, corpID))
}

// The unified call's token lives as the older one's does: it is extended, and outlives the plugin.
func TestCorpID_token_is_extended_and_kept_like_any_other(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	m := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem}).Enable(t)
	a := newAppsIn(t, m, dt, otherCorpID)[0]
	secret := a.Read(t)

	calls := waitForSecondHalf(t, a, harness.TokenIn(secret), lifetime)
	require.Greater(t, leaseTTL(renewLease(t, a, secret.LeaseID, 0)), lifetime/2)
	require.Equal(t, calls+1, dt.RequestsIn(a.Key, otherCorpID))
	m.Reload(t)
	harness.RequireSameToken(t, a.Token(t), harness.TokenIn(secret))
	require.Equal(t, calls+1, a.Calls())
}
