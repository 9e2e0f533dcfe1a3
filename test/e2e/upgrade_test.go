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

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestUpgrade_in_place_and_back_keeps_apps_tokens_and_leases(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageRaft})
	older, newer := buildFirstRelease(t, v), buildPlugin(t, v, pluginPackage, "v0.2.0")
	registerBuild(t, v, older)
	m := v.EnableVersion(t, older.version)
	dt := harness.StartDingTalk(t, harness.FullLifetime)

	leased := m.NewApp(t, dt, harness.Fields{"refresh_before": "5m"})
	unleased := m.NewApp(t, dt, harness.Fields{"leased": false, "request_timeout": "3s"})
	verified := m.UnstoredApp(dt)
	_, err := v.Root.Logical().Write(verified.ConfigPath(), verified.Config())
	require.NoError(t, err)
	unread := m.NewApp(t, dt, nil)
	apps := []*harness.App{leased, unleased, verified}

	lease := leased.Read(t)
	tokens := map[*harness.App]string{
		leased: harness.TokenIn(lease), unleased: unleased.Token(t), verified: dt.LastToken(verified.Key),
	}
	harness.NoteSecret(tokens[verified], "an access token")
	// What both releases know of an app.
	config := func(a *harness.App) map[string]any {
		t.Helper()
		known := m.ReadData(t, a.ConfigPath())
		delete(known, "app_secret_set_at")
		delete(known, "corp_id")
		return known
	}
	configs := map[*harness.App]map[string]any{}
	for _, a := range append(apps, unread) {
		configs[a] = config(a)
	}
	status := func(a *harness.App) []any {
		t.Helper()
		all := a.Status(t)
		return []any{all["state"], all["fetched_at"], all["expires_at"]}
	}
	statuses := map[*harness.App][]any{}
	for _, a := range apps {
		statuses[a] = status(a)
		require.Equal(t, "fresh", statuses[a][0])
	}
	calls := 3
	require.Equal(t, calls, dt.Requests("*"))

	check := func(running, pinned string) {
		t.Helper()
		mounts, err := v.Root.Sys().ListMounts()
		require.NoError(t, err)
		require.Equal(t, running, mounts[m.Path+"/"].RunningVersion)
		require.Equal(t, pinned, mounts[m.Path+"/"].PluginVersion)
		require.Len(t, m.List(t, m.Path+"/config"), len(configs))
		for a, want := range configs {
			require.Equal(t, want, config(a), "the stored config")
		}
		for _, a := range apps {
			harness.RequireSameToken(t, a.Token(t), tokens[a])
			require.Equal(t, statuses[a], status(a), "the status of the token")
		}
		require.Equal(t, "absent", unread.Status(t)["state"])
		renewal, took := timedRenew(t, leased, lease.LeaseID, 0)
		requireNoWarning(t, renewal, time.Now(), took)
		require.InDelta(
			t, dt.Remaining(tokens[leased]).Seconds(), leaseTTL(renewal).Seconds(), leaseSlack.Seconds(),
		)
		require.Equal(t, calls, dt.Requests("*"), "no call upstream")
	}
	check(older.version, older.version)

	// Readers go on all the while, and must not notice: no error is allowed.
	got := newAccount(nil, func(_, _ time.Time) bool { return false })
	load := got.load(t, patientClients(t, v, 4), 5*time.Millisecond, maps.Clone(tokens))
	move := func(from, to pluginBuild) {
		t.Helper()
		got.waitForCalm(t, 100)
		require.NoError(t, v.Root.Sys().TuneMountAllowNil(m.Path, api.TuneMountConfigInput{PluginVersion: &to.version}))
		check(from.version, to.version)
		m.Reload(t)
		check(to.version, to.version)
		got.waitForCalm(t, 100)
		require.Empty(t, processesRunning(t, from.path), "the version before is no longer running")
	}

	registerBuild(t, v, newer)
	check(older.version, older.version)
	move(older, newer)

	// What the newer version writes, the older one reads.
	added := m.NewApp(t, dt, harness.Fields{"leased": false})
	tokens[added], configs[added] = added.Token(t), config(added)
	unleased.Update(t, harness.Fields{"request_timeout": "4s"})
	configs[unleased]["request_timeout"] = json.Number("4")
	lease = leased.Read(t)
	calls++
	move(newer, older)
	harness.RequireSameToken(t, added.Token(t), tokens[added])

	// A restart starts the version that the mount is pinned to.
	load.end()
	v.Restart(t)
	check(older.version, older.version)
	harness.RequireSameToken(t, added.Token(t), tokens[added])
	require.Equal(t, calls, dt.Requests("*"))
	got.requireClean(t)
}

// The way back to the first release and forward again: each reads what the other one has written.
func TestUpgrade_back_to_the_first_release_and_forward_reads_what_each_wrote(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	older, newer := buildFirstRelease(t, v), buildPlugin(t, v, pluginPackage, "v0.2.0")
	registerBuild(t, v, older)
	registerBuild(t, v, newer)
	m := v.EnableVersion(t, newer.version)
	move := func(to pluginBuild) {
		t.Helper()
		require.NoError(t, v.Root.Sys().TuneMountAllowNil(m.Path, api.TuneMountConfigInput{PluginVersion: &to.version}))
		m.Reload(t)
		mounts, err := v.Root.Sys().ListMounts()
		require.NoError(t, err)
		require.Equal(t, to.version, mounts[m.Path+"/"].RunningVersion)
	}
	dt := harness.StartDingTalk(t, harness.FullLifetime)

	// Of each kind of app one that the older release rewrites, and one that it leaves alone.
	plain, plainAlone := m.NewApp(t, dt, harness.Fields{"refresh_before": "5m"}), m.NewApp(t, dt, nil)
	ofCorp, ofCorpAlone := newAppsIn(t, m, dt, otherCorpID)[0], newAppsIn(t, m, dt, otherCorpID)[0]
	apps := []*harness.App{plain, plainAlone, ofCorp, ofCorpAlone}
	configs, leases := map[*harness.App]map[string]any{}, map[*harness.App]*api.Secret{}
	for _, a := range apps {
		configs[a], leases[a] = m.ReadData(t, a.ConfigPath()), a.Read(t)
		require.NotEmpty(t, configs[a]["app_secret_set_at"])
	}
	requireServed := func() {
		t.Helper()
		for _, a := range apps {
			harness.RequireSameToken(t, a.Token(t), harness.TokenIn(leases[a]))
			renewLease(t, a, leases[a].LeaseID, 0)
		}
		require.Equal(t, len(apps), dt.Requests("*"), "no call upstream")
	}

	move(older)
	requireServed()
	for _, a := range apps {
		want := maps.Clone(configs[a])
		delete(want, "app_secret_set_at")
		delete(want, "corp_id")
		require.Equal(t, want, m.ReadData(t, a.ConfigPath()), "what the older release knows of it")
	}
	for _, a := range []*harness.App{plain, ofCorp} {
		a.Update(t, harness.Fields{"request_timeout": "7s"})
		configs[a]["request_timeout"], configs[a]["corp_id"] = json.Number("7"), ""
		delete(configs[a], "app_secret_set_at")
	}
	added := m.NewApp(t, dt, harness.Fields{"leased": false})

	move(newer)
	requireServed()
	for _, a := range apps {
		require.Equal(t, configs[a], m.ReadData(t, a.ConfigPath()))
	}
	require.NotContains(t, m.ReadData(t, added.ConfigPath()), "app_secret_set_at", "it is not known")
	harness.RequireSameToken(t, added.Token(t), dt.LastToken(added.Key))

	// What the older release dropped is set again.
	ofCorp.Update(t, harness.Fields{"corp_id": otherCorpID})
	harness.RequireSameToken(t, ofCorp.Token(t), dt.LastTokenIn(ofCorp.Key, otherCorpID))
	plain.Update(t, plain.Rotation(plain.Secret))
	require.NotContains(t, m.ReadData(t, plain.ConfigPath()), "app_secret_set_at", "the secret is the same")
	dt.SetApp(plain.Key, "another-"+plain.Secret)
	plain.Update(t, plain.Rotation("another-"+plain.Secret))
	require.Contains(t, m.ReadData(t, plain.ConfigPath()), "app_secret_set_at")
}
