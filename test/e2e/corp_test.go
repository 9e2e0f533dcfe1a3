// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Apps with a corp_id: their tokens come from DingTalk's unified call, each organization's from its
// own.

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// otherCorpID is a second organization of the apps here.
const otherCorpID = "ding99otherCorp"

// newAppsIn makes apps with one app_key in different organizations, all of which it runs in. An empty
// corpId is none.
func (m *mount) newAppsIn(t *testing.T, dt *dingtalk, corpIDs ...string) []*app {
	t.Helper()
	first := m.unstoredApp(dt)
	none := func(corpID string) bool { return corpID == "" }
	dt.SetApp(first.key, first.secret, slices.DeleteFunc(slices.Clone(corpIDs), none)...)
	apps := make([]*app, len(corpIDs))
	for i, corpID := range corpIDs {
		a := *first
		a.name = "app-" + randomHex(4)
		body := a.config()
		body["corp_id"], body["verify_connection"] = corpID, false
		_, err := m.v.root.Logical().Write(a.configPath(), body)
		require.NoError(t, err, "store the app")
		apps[i] = &a
	}
	return apps
}

func TestCorpID_token_comes_from_the_unified_call(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.unstoredApp(dt)
	body := a.config()
	body["corp_id"] = simulator.DefaultCorpID
	_, err := m.v.root.Logical().Write(a.configPath(), body)
	require.NoError(t, err)
	require.Equal(t, simulator.DefaultCorpID, m.readData(t, a.configPath())["corp_id"])

	secret := a.read(t)
	requireSameToken(t, tokenIn(secret), dt.LastTokenIn(a.key, simulator.DefaultCorpID))
	require.InDelta(t, dt.left(tokenIn(secret)).Seconds(), leaseTTL(secret).Seconds(), leaseSlack.Seconds())
	require.Equal(t, 1, dt.RequestsIn(a.key, simulator.DefaultCorpID), "of the write, which verifies")
	require.Zero(t, dt.RequestsIn(a.key, ""), "of the older call")
}

func TestCorpID_apps_with_one_app_key_have_a_token_for_each_organization(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	apps := newMount(t).newAppsIn(t, dt, simulator.DefaultCorpID, otherCorpID, "")
	for range 2 {
		requireSameToken(t, apps[0].token(t), dt.LastTokenIn(apps[0].key, simulator.DefaultCorpID))
		requireSameToken(t, apps[1].token(t), dt.LastTokenIn(apps[0].key, otherCorpID))
		requireSameToken(t, apps[2].token(t), dt.LastTokenIn(apps[0].key, ""))
	}
	requireOtherToken(t, apps[0].token(t), apps[1].token(t))
	requireOtherToken(t, apps[0].token(t), apps[2].token(t))
	require.Equal(t, 3, apps[0].calls())
}

func TestCorpID_Retry_After_is_for_the_app_key_in_one_organization(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	apps := newMount(t).newAppsIn(t, dt, otherCorpID, otherCorpID, simulator.DefaultCorpID, "")
	key := apps[0].key
	dt.SetFault(key, simulator.Fault{Kind: simulator.FaultThrottledQPS, RetryAfter: "300", Times: 1})

	for _, a := range apps[:2] { // the second one has another name alone
		_, err := a.tryRead()
		require.Contains(t, refused(t, err, http.StatusBadGateway), "throttles")
		require.Equal(t, 1, dt.RequestsIn(key, otherCorpID))
	}
	for _, a := range apps[2:] {
		require.NotEmpty(t, a.token(t))
	}
}

func TestCorpID_ban_hits_every_organization(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	apps := newMount(t).newAppsIn(t, dt, otherCorpID, simulator.DefaultCorpID, "")
	dt.SetFault(apps[0].key, simulator.Fault{Kind: simulator.FaultBanned, Times: 1})
	for _, a := range apps {
		_, err := a.tryRead()
		require.Contains(t, refused(t, err, http.StatusBadGateway), "banned")
	}
	require.Equal(t, 1, apps[0].calls())
}

func TestCorpID_empty_one_takes_it_away(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newAppsIn(t, dt, otherCorpID)[0]
	token := a.token(t)

	require.Nil(t, a.update(t, fields{"corp_id": ""}))
	require.Empty(t, m.readData(t, a.configPath())["corp_id"])
	require.Equal(t, 1, dt.RequestsIn(a.key, ""), "the older call is verified")
	requireSameToken(t, a.token(t), dt.LastTokenIn(a.key, ""))
	requireOtherToken(t, a.token(t), token)
	require.Equal(t, 2, a.calls())
}

func TestCorpID_another_one_is_verified_and_needs_no_app_secret(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newAppsIn(t, dt, "")[0]
	dt.SetApp(a.key, a.secret, simulator.DefaultCorpID, otherCorpID)
	lease := a.read(t)

	for i, corpID := range []string{simulator.DefaultCorpID, otherCorpID} {
		require.Nil(t, a.update(t, fields{"corp_id": corpID}))
		require.Equal(t, 1, dt.RequestsIn(a.key, corpID), "verified")
		requireSameToken(t, a.token(t), dt.LastTokenIn(a.key, corpID)) // the verification's
		require.Equal(t, i+2, a.calls())
	}
	a.requireEnds(t, a.renew(t, lease.LeaseID, 0)) // its token is the generation's of before
	require.Nil(t, a.update(t, fields{"corp_id": otherCorpID}), "the same one again")
	require.Equal(t, 3, a.calls(), "keeps the token")
}

func TestCorpID_another_one_ends_the_back_off(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newAppsIn(t, dt, otherCorpID)[0]
	dt.SetApp(a.key, a.secret, simulator.DefaultCorpID, otherCorpID)
	dt.SetFault(a.key, simulator.Fault{Kind: simulator.FaultRejectedCredentials, Times: 1})
	_, err := a.tryRead()
	refused(t, err, http.StatusBadRequest)

	a.update(t, fields{"corp_id": simulator.DefaultCorpID, "verify_connection": false})
	requireSameToken(t, a.token(t), dt.LastTokenIn(a.key, simulator.DefaultCorpID))
	require.Equal(t, json.Number("0"), a.status(t)["upstream_failures"], "a new generation's")
}

// DingTalk answers a corpId that does not exist with a server error, which says nothing of it.
func TestCorpID_unknown_one_is_among_what_the_error_says_to_check(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newAppsIn(t, dt, simulator.DefaultCorpID)[0]
	token := a.token(t)

	_, err := m.v.root.Logical().Write(a.configPath(), fields{"corp_id": "dingNobody"})
	require.Regexp(t, `check.* corp_id`, refused(t, err, http.StatusBadGateway))
	require.Equal(t, simulator.DefaultCorpID, m.readData(t, a.configPath())["corp_id"], "nothing was stored")
	requireSameToken(t, a.token(t), token)

	a.update(t, fields{"corp_id": "dingNobody", "verify_connection": false})
	_, err = a.tryRead()
	require.Regexp(t, `check.* corp_id`, refused(t, err, http.StatusBadGateway))
	require.Regexp(t, `check.* corp_id`, a.status(t)["last_error"])

	other := m.newAppsIn(t, dt, "")[0]
	dt.SetFault(other.key, simulator.Fault{Kind: simulator.FaultUnavailableServer})
	_, err = other.tryRead()
	require.NotContains(t, refused(t, err, http.StatusBadGateway), "corp_id", "of an app that has none")
}

func TestCorpID_of_64_letters_and_digits_is_taken_as_it_is(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	corpID := strings.Repeat("Ding7", 12) + "Corp"
	a := newMount(t).newAppsIn(t, dt, corpID)[0]
	requireSameToken(t, a.token(t), dt.LastTokenIn(a.key, corpID))
}

// The unified call's token lives as the older one's does: it is extended, and outlives the plugin.
func TestCorpID_token_is_extended_and_kept_like_any_other(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := startDingTalk(t, lifetime)
	m := startVault(t, vaultOptions{storage: storageInmem}).enable(t)
	a := m.newAppsIn(t, dt, otherCorpID)[0]
	secret := a.read(t)

	calls := a.waitForSecondHalf(t, tokenIn(secret), lifetime)
	require.Greater(t, leaseTTL(a.renew(t, secret.LeaseID, 0)), lifetime/2)
	require.Equal(t, calls+1, dt.RequestsIn(a.key, otherCorpID))
	m.reload(t)
	requireSameToken(t, a.token(t), tokenIn(secret))
	require.Equal(t, calls+1, a.calls())
}
