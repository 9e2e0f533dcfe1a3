// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A mount moves from the first release to this one and back, with its apps, tokens and leases.

import (
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"
)

func TestUpgrade_in_place_and_back_keeps_apps_tokens_and_leases(t *testing.T) {
	t.Parallel()
	v := startVault(t, vaultOptions{storage: storageRaft})
	older, newer := v.buildFirstRelease(t), v.build(t, pluginPackage, "v0.2.0")
	v.register(t, older)
	m := v.enableVersion(t, older)
	dt := startDingTalk(t, fullLifetime)

	leased := m.newApp(t, dt, fields{"refresh_before": "5m"})
	unleased := m.newApp(t, dt, fields{"leased": false, "request_timeout": "3s"})
	verified := m.unstoredApp(dt)
	_, err := v.root.Logical().Write(verified.configPath(), verified.config())
	require.NoError(t, err)
	unread := m.newApp(t, dt, nil)
	apps := []*app{leased, unleased, verified}

	lease := leased.read(t)
	tokens := map[*app]string{leased: tokenIn(lease), unleased: unleased.token(t), verified: dt.LastToken(verified.key)}
	noteSecret(tokens[verified], "an access token")
	// What both releases know of an app.
	config := func(a *app) map[string]any {
		t.Helper()
		known := m.readData(t, a.configPath())
		delete(known, "app_secret_set_at")
		delete(known, "corp_id")
		return known
	}
	configs := map[*app]map[string]any{}
	for _, a := range append(apps, unread) {
		configs[a] = config(a)
	}
	status := func(a *app) []any {
		t.Helper()
		all := a.status(t)
		return []any{all["state"], all["fetched_at"], all["expires_at"]}
	}
	statuses := map[*app][]any{}
	for _, a := range apps {
		statuses[a] = status(a)
		require.Equal(t, "fresh", statuses[a][0])
	}
	calls := 3
	require.Equal(t, calls, dt.Requests("*"))

	check := func(running, pinned string) {
		t.Helper()
		mounts, err := v.root.Sys().ListMounts()
		require.NoError(t, err)
		require.Equal(t, running, mounts[m.path+"/"].RunningVersion)
		require.Equal(t, pinned, mounts[m.path+"/"].PluginVersion)
		require.Len(t, m.list(t, m.path+"/config"), len(configs))
		for a, want := range configs {
			require.Equal(t, want, config(a), "the stored config")
		}
		for _, a := range apps {
			requireSameToken(t, a.token(t), tokens[a])
			require.Equal(t, statuses[a], status(a), "the status of the token")
		}
		require.Equal(t, "absent", unread.status(t)["state"])
		renewal, took := leased.timedRenew(t, lease.LeaseID, 0)
		requireNoWarning(t, renewal, time.Now(), took)
		require.InDelta(t, dt.left(tokens[leased]).Seconds(), leaseTTL(renewal).Seconds(), leaseSlack.Seconds())
		require.Equal(t, calls, dt.Requests("*"), "no call upstream")
	}
	check(older.version, older.version)

	// Readers go on all the while, and must not notice: no error is allowed.
	got := newAccount(nil, func(_, _ time.Time) bool { return false })
	load := got.load(t, v.patientClients(t, 4), 5*time.Millisecond, maps.Clone(tokens))
	move := func(from, to pluginBuild) {
		t.Helper()
		got.waitForCalm(t, 100)
		require.NoError(t, v.root.Sys().TuneMountAllowNil(m.path, api.TuneMountConfigInput{PluginVersion: &to.version}))
		check(from.version, to.version)
		m.reload(t)
		check(to.version, to.version)
		got.waitForCalm(t, 100)
		require.Empty(t, processesRunning(t, from.path), "the version before is no longer running")
	}

	v.register(t, newer)
	check(older.version, older.version)
	move(older, newer)

	// What the newer version writes, the older one reads.
	added := m.newApp(t, dt, fields{"leased": false})
	tokens[added], configs[added] = added.token(t), config(added)
	unleased.update(t, fields{"request_timeout": "4s"})
	configs[unleased]["request_timeout"] = json.Number("4")
	lease = leased.read(t)
	calls++
	move(newer, older)
	requireSameToken(t, added.token(t), tokens[added])

	// A restart comes up in the version that the mount is pinned to.
	load.end()
	v.restart(t)
	check(older.version, older.version)
	requireSameToken(t, added.token(t), tokens[added])
	require.Equal(t, calls, dt.Requests("*"))
	got.requireClean(t)
}

// The way back to the first release and forward again: each reads what the other one has written.
func TestUpgrade_back_to_the_first_release_and_forward_reads_what_each_wrote(t *testing.T) {
	t.Parallel()
	v := startVault(t, vaultOptions{storage: storageInmem})
	older, newer := v.buildFirstRelease(t), v.build(t, pluginPackage, "v0.2.0")
	v.register(t, older)
	v.register(t, newer)
	m := v.enableVersion(t, newer)
	move := func(to pluginBuild) {
		t.Helper()
		require.NoError(t, v.root.Sys().TuneMountAllowNil(m.path, api.TuneMountConfigInput{PluginVersion: &to.version}))
		m.reload(t)
		mounts, err := v.root.Sys().ListMounts()
		require.NoError(t, err)
		require.Equal(t, to.version, mounts[m.path+"/"].RunningVersion)
	}
	dt := startDingTalk(t, fullLifetime)

	// Of each kind of app one that the older release rewrites, and one that it leaves alone.
	plain, plainAlone := m.newApp(t, dt, fields{"refresh_before": "5m"}), m.newApp(t, dt, nil)
	ofCorp, ofCorpAlone := m.newAppsIn(t, dt, otherCorpID)[0], m.newAppsIn(t, dt, otherCorpID)[0]
	apps := []*app{plain, plainAlone, ofCorp, ofCorpAlone}
	configs, leases := map[*app]map[string]any{}, map[*app]*api.Secret{}
	for _, a := range apps {
		configs[a], leases[a] = m.readData(t, a.configPath()), a.read(t)
		require.NotEmpty(t, configs[a]["app_secret_set_at"])
	}
	requireServed := func() {
		t.Helper()
		for _, a := range apps {
			requireSameToken(t, a.token(t), tokenIn(leases[a]))
			a.renew(t, leases[a].LeaseID, 0)
		}
		require.Equal(t, len(apps), dt.Requests("*"), "no call upstream")
	}

	move(older)
	requireServed()
	for _, a := range apps {
		want := maps.Clone(configs[a])
		delete(want, "app_secret_set_at")
		delete(want, "corp_id")
		require.Equal(t, want, m.readData(t, a.configPath()), "what the older release knows of it")
	}
	for _, a := range []*app{plain, ofCorp} {
		a.update(t, fields{"request_timeout": "7s"})
		configs[a]["request_timeout"], configs[a]["corp_id"] = json.Number("7"), ""
		delete(configs[a], "app_secret_set_at")
	}
	added := m.newApp(t, dt, fields{"leased": false})

	move(newer)
	requireServed()
	for _, a := range apps {
		require.Equal(t, configs[a], m.readData(t, a.configPath()))
	}
	require.NotContains(t, m.readData(t, added.configPath()), "app_secret_set_at", "it is not known")
	requireSameToken(t, added.token(t), dt.LastToken(added.key))

	// What the older release dropped is given again.
	ofCorp.update(t, fields{"corp_id": otherCorpID})
	requireSameToken(t, ofCorp.token(t), dt.LastTokenIn(ofCorp.key, otherCorpID))
	plain.update(t, plain.rotation(plain.secret))
	require.NotContains(t, m.readData(t, plain.configPath()), "app_secret_set_at", "the secret is the same")
	dt.SetApp(plain.key, "another-"+plain.secret)
	plain.update(t, plain.rotation("another-"+plain.secret))
	require.Contains(t, m.readData(t, plain.configPath()), "app_secret_set_at")
}
