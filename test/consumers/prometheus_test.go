// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package consumers

// A real Prometheus scrapes a real Vault with the policies, the configuration and the alerts of the
// examples, while DingTalk fails in several ways. The dashboard is evaluated with what Prometheus
// has scraped.

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestPrometheus_the_rules_do_what_their_tests_say(t *testing.T) {
	t.Parallel()
	harness.Promtool(t, prometheusDir, "", "check", "rules", "alerts.yaml", "secret-age.yaml")
	harness.Promtool(t, prometheusDir, "", "test", "rules", "alerts.test.yaml", "secret-age.test.yaml")
}

func TestPrometheus_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(t *testing.T) {
	t.Parallel()
	alerts := regexp.MustCompile(`- alert: (\w+)`)
	for _, name := range []string{"alerts", "secret-age"} {
		tests := harness.FileText(t, filepath.Join(prometheusDir, name+".test.yaml"))
		found := alerts.FindAllStringSubmatch(harness.FileText(t, filepath.Join(prometheusDir, name+".yaml")), -1)
		require.NotEmpty(t, found, name)
		for _, alert := range found {
			assert.Regexp(t, `alertname: `+alert[1]+`\n +exp_alerts:\n`, tests, "a test in which %s fires", alert[1])
			assert.Regexp(t, `alertname: `+alert[1]+`\n +exp_alerts: \[\]`, tests, "a test in which %s is silent", alert[1])
		}
	}
}

// watched is a Vault with two mounts that a Prometheus scrapes.
type watched struct {
	v      *harness.VaultServer
	token  string // of Prometheus
	mounts map[string]*harness.Mount
	apps   map[string]*harness.App
	p      *prometheus
}

const (
	firstMount  = "dingtalk"
	secondMount = "team/dingtalk"
)

// telemetry is the stanza that docs/operations.md shows.
const telemetry = `
telemetry {
  disable_hostname          = true
  prometheus_retention_time = "24h"
}
`

func watch(t *testing.T) *watched {
	t.Helper()
	w := &watched{
		v:      harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem, Audit: true, Config: telemetry}),
		mounts: map[string]*harness.Mount{}, apps: map[string]*harness.App{},
	}
	monitor := harness.FileText(t, filepath.Join(harness.ExamplesDir, "policies", "monitor.hcl"))
	policies := map[string]string{
		"monitor":      monitor,
		"team-monitor": strings.ReplaceAll(monitor, `"dingtalk/`, `"team/dingtalk/`),
		"prometheus":   harness.FileText(t, filepath.Join(prometheusDir, "policy.hcl")),
	}
	for name, policy := range policies {
		require.NoError(t, w.v.Root.Sys().PutPolicy(name, policy))
	}
	for _, path := range []string{firstMount, secondMount} {
		require.NoError(t, w.v.Root.Sys().Mount(path, &api.MountInput{Type: harness.PluginName}))
		w.mounts[path] = &harness.Mount{Vault: w.v, Path: path}
	}
	secret, err := w.v.Root.Auth().Token().Create(&api.TokenCreateRequest{
		Policies: []string{"monitor", "team-monitor", "prometheus"},
	})
	require.NoError(t, err)
	w.token = secret.Auth.ClientToken
	harness.NoteSecret(w.token, "Prometheus' Vault token")

	const entry = `      - targets: ["vault.example.com:8200"]
        labels:
          __metrics_path__: /v1/dingtalk/metrics
          mount: dingtalk
`
	here := strings.NewReplacer("vault.example.com:8200", strings.TrimPrefix(w.v.Addr, "http://"))
	dir := prometheusFiles(t, w.token, map[string]string{
		entry:                        here.Replace(entry + strings.NewReplacer("dingtalk", "team/dingtalk").Replace(entry)),
		`["vault.example.com:8200"]`: here.Replace(`["vault.example.com:8200"]`),
		"scheme: https":              "scheme: http",
		"scrape_interval: 30s":       "scrape_interval: 2s",
		"evaluation_interval: 30s":   "evaluation_interval: 1s",
		"# - secret-age.yaml":        "- secret-age.yaml",
	})
	harness.Promtool(t, dir, "", "check", "config", "prometheus.yaml")
	w.p = startPrometheus(t, dir)
	return w
}

// store makes an app that DingTalk knows too.
func (w *watched) store(t *testing.T, mountPath, name string, dt *harness.DingTalk) *harness.App {
	t.Helper()
	a := w.mounts[mountPath].UnstoredApp(dt)
	a.Name = name
	config := a.Config()
	config["verify_connection"] = false
	_, err := w.v.Root.Logical().Write(a.ConfigPath(), config)
	require.NoError(t, err)
	w.apps[name] = a
	return a
}

// keepReading wants the token of every app again and again, and does with the lease of one what can
// be done with a lease, until the test ends.
func (w *watched) keepReading(t *testing.T, one *harness.App) {
	t.Helper()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
			}
			for _, a := range w.apps {
				_, _ = a.TryRead() // some fail, as is meant
			}
			_, _ = w.v.Root.Logical().Write(one.ConfigPath(), harness.Fields{"request_timeout": "5s"})
			if secret, err := one.TryRead(); err == nil {
				_, _ = w.v.Root.Sys().Renew(secret.LeaseID, 0)
				_ = w.v.Root.Sys().Revoke(secret.LeaseID)
			}
		}
	})
	t.Cleanup(func() { close(stop); readers.Wait() })
}

// refreshUntilItWorks ignores the back-off, as an operator does who has fixed the cause.
func refreshUntilItWorks(t *testing.T, a *harness.App) {
	t.Helper()
	harness.WaitFor(t, time.Minute, "the token of "+a.Name+" is refreshed", func() bool {
		_, err := a.Mount.Vault.Root.Logical().Write(a.RefreshPath(), nil)
		return err == nil && a.Status(t)["last_error"] == nil
	})
}

func TestPrometheus_scrapes_a_real_Vault_and_the_alerts_fire_and_clear(t *testing.T) {
	t.Parallel()
	w := watch(t)
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	short := harness.StartDingTalk(t, 14*time.Minute) // within the quarter of an hour of an alert
	banning := harness.StartDingTalk(t, harness.FullLifetime)

	healthy := w.store(t, firstMount, "healthy", dt)
	w.store(t, secondMount, "elsewhere", dt)
	ending := w.store(t, firstMount, "ending", short)
	ending.Token(t)
	short.SetFault(ending.Key, simulator.Fault{Kind: simulator.FaultReset})
	for name, kind := range map[string]string{
		"down": simulator.FaultUnavailableUnknown, "rejected": simulator.FaultRejectedCredentials,
		"outside": simulator.FaultIPNotAllowed, "busy": simulator.FaultThrottledQPS,
	} {
		dt.SetFault(w.store(t, firstMount, name, dt).Key, simulator.Fault{Kind: kind})
	}
	banned := w.store(t, firstMount, "banned", banning)
	banning.SetFault(banned.Key, simulator.Fault{Kind: simulator.FaultBanned})
	w.keepReading(t, healthy)
	_, err := w.v.Root.Logical().Write(ending.RefreshPath(), nil)
	harness.Refused(t, err, http.StatusBadGateway)

	w.p.requireFires(t,
		"DingtalkAppWithoutToken dingtalk/down", "DingtalkAppWithoutToken dingtalk/rejected",
		"DingtalkAppWithoutToken dingtalk/outside", "DingtalkAppWithoutToken dingtalk/busy",
		"DingtalkAppWithoutToken dingtalk/banned",
		"DingtalkFetchesFailing dingtalk/down", "DingtalkFetchesFailing dingtalk/rejected",
		"DingtalkFetchesFailing dingtalk/outside", "DingtalkFetchesFailing dingtalk/busy",
		"DingtalkFetchesFailing dingtalk/banned", "DingtalkFetchesFailing dingtalk/ending",
		"DingtalkTokenEndsSoon dingtalk/ending",
		"DingtalkCredentialsRejected dingtalk/rejected",
		"DingtalkRequestRefused dingtalk/outside",
		"DingtalkThrottled dingtalk/busy",
		"DingtalkEgressIPBanned dingtalk/",
	)
	w.requireRulesWork(t)
	w.requireEachMountIsScraped(t)
	w.requireNoSecretIsScraped(t)
	w.requireDashboardShowsEverything(t)

	// DingTalk works again, but the ban lasts.
	for _, d := range []*harness.DingTalk{dt, short, banning} {
		d.ClearFaults()
	}
	for _, name := range []string{"down", "rejected", "outside", "busy", "ending"} {
		refreshUntilItWorks(t, w.apps[name])
	}
	w.p.requireFires(t, "DingtalkAppWithoutToken dingtalk/banned", "DingtalkFetchesFailing dingtalk/banned",
		"DingtalkEgressIPBanned dingtalk/")

	// An old secret is changed. To the rules, one is old after 20 seconds.
	const old = secretOld + "team/dingtalk/elsewhere"
	harness.WaitFor(t, 2*time.Minute, "the secret is old", func() bool { return slices.Contains(w.p.firing(t), old) })
	elsewhere := w.apps["elsewhere"]
	elsewhere.Secret = harness.NewSecret()
	dt.SetApp(elsewhere.Key, elsewhere.Secret)
	elsewhere.Update(t, elsewhere.Rotation(elsewhere.Secret))
	harness.WaitFor(t, time.Minute, "the secret is new", func() bool { return !slices.Contains(w.p.firing(t), old) })

	// The plugin's process is killed, which also makes it forget the ban.
	harness.WaitFor(t, 2*time.Minute, "the plugin restarts too often", func() bool {
		started := w.started(t)
		w.v.KillPlugin(t)
		harness.WaitFor(t, time.Minute, "the new process is scraped", func() bool {
			now := w.started(t)
			return now != "" && now != started
		})
		return slices.Contains(w.p.firing(t), "DingtalkPluginRestarts dingtalk/")
	})
	w.p.requireFires(t, "DingtalkPluginRestarts dingtalk/", "DingtalkPluginRestarts team/dingtalk/")

	// Prometheus may not read one mount's metrics any more, and then may again.
	monitor, err := w.v.Root.Sys().GetPolicy("monitor")
	require.NoError(t, err)
	require.NoError(t, w.v.Root.Sys().DeletePolicy("monitor"))
	const blind = "DingtalkNotScraped dingtalk/"
	harness.WaitFor(t, time.Minute, "the mount is not scraped", func() bool {
		return slices.Contains(w.p.firing(t), blind)
	})
	require.NotContains(t, w.p.firing(t), "DingtalkNotScraped team/dingtalk/")
	require.NoError(t, w.v.Root.Sys().PutPolicy("monitor", monitor))
	w.p.requireFires(t)
}

// started is when the plugin's process started, as Prometheus has it; "" while it does not know.
func (w *watched) started(t *testing.T) string {
	t.Helper()
	samples := w.p.query(t, `process_start_time_seconds{job="dingtalk", mount="dingtalk"}`)
	if len(samples) != 1 {
		return ""
	}
	return samples[0].Value[1].(string)
}

func (w *watched) requireRulesWork(t *testing.T) {
	t.Helper()
	var got struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	w.p.api(t, "rules", nil, &got)
	count := 0
	for _, group := range got.Groups {
		for _, rule := range group.Rules {
			require.Equal(t, "ok", rule.Health, "%s: %s", rule.Name, rule.LastError)
			count++
		}
	}
	require.Equal(t, 10, count)
}

func (w *watched) requireEachMountIsScraped(t *testing.T) {
	t.Helper()
	apps := map[string]string{}
	for _, sample := range w.p.query(t, `dingtalk_apps`) {
		apps[sample.Metric["mount"]] = sample.Value[1].(string)
	}
	require.Equal(t, map[string]string{firstMount: "7", secondMount: "1"}, apps)
	require.Len(t, w.p.query(t, `up{job="vault"} == 1`), 1)
}

// requireNoSecretIsScraped looks at what is scraped, with Prometheus' own token, and at what
// Prometheus makes of it. Without a token, Vault returns nothing.
func (w *watched) requireNoSecretIsScraped(t *testing.T) {
	t.Helper()
	as := *w.v
	for _, path := range []string{"dingtalk/metrics", "team/dingtalk/metrics", "sys/metrics?format=prometheus"} {
		as.RootToken = w.token
		reply := as.HTTP(t, http.MethodGet, path, "", "")
		require.Equal(t, http.StatusOK, reply.Status, path)
		harness.AssertNoSecret(t, path, reply.Body)
		as.RootToken = ""
		require.Equal(t, http.StatusForbidden, as.HTTP(t, http.MethodGet, path, "", "").Status, path)
	}
	var series json.RawMessage
	w.p.api(t, "series", map[string][]string{"match[]": {`{__name__=~".+"}`}}, &series)
	require.Contains(t, string(series), "dingtalk_fetch_failing")
	harness.AssertNoSecret(t, "the series", string(series))
}

// dashboard is what matters here of examples/grafana/dashboard.json.
type dashboard struct {
	Templating struct {
		List []struct {
			Name, Type, Definition, Regex string
		}
	}
	Panels []struct {
		ID      int
		Title   string
		Targets []struct{ Expr string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	content, err := os.ReadFile(harness.ExamplesDir + "/grafana/dashboard.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(content, &d))
	require.NotEmpty(t, d.Panels)
	return d
}

// requireDashboardShowsEverything evaluates every variable and every expression of every panel as
// Grafana does.
func (w *watched) requireDashboardShowsEverything(t *testing.T) {
	t.Helper()
	d := readDashboard(t)
	values := map[string][]string{}
	allMounts := fmt.Sprintf("(%s|%s)", firstMount, secondMount)
	for _, variable := range d.Templating.List {
		if variable.Type != "query" {
			continue
		}
		call := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`).FindStringSubmatch(variable.Definition)
		require.NotNil(t, call, variable.Definition)
		found := w.p.labelValues(t, strings.ReplaceAll(call[1], "$mount", allMounts), call[2])
		if variable.Regex != "" {
			pattern := regexp.MustCompile(strings.Trim(variable.Regex, "/"))
			for i, value := range found {
				match := pattern.FindStringSubmatch(value)
				require.NotNil(t, match, value)
				found[i] = match[1]
			}
		}
		values[variable.Name] = found
	}
	require.Equal(t, []string{firstMount, secondMount}, values["mount"])
	require.Len(t, values["app"], len(w.apps))
	require.Subset(t, values["route"], []string{"dingtalk", "team_dingtalk"})

	chosen := strings.NewReplacer("$mount", allMounts, "$app", ".+", "${route}", "dingtalk", "$__rate_interval", "1m")
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			expression := chosen.Replace(target.Expr)
			require.NotContains(t, expression, "$", panel.Title)
			what := fmt.Sprintf("the panel %q shows something of %s", panel.Title, expression)
			harness.WaitFor(t, 2*time.Minute, what, func() bool {
				return len(w.p.query(t, expression)) > 0
			})
		}
	}
}
