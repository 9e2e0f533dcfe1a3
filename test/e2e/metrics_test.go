// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Reading metrics: what a scrape holds, and that it agrees with status/<app>.

import (
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// scrape reads the mount's metrics. They hold no secret, and promtool finds nothing wrong with
// them.
func scrape(t *testing.T, m *harness.Mount) map[string]*dto.MetricFamily {
	t.Helper()
	reply := m.Vault.HTTP(t, http.MethodGet, m.Path+"/metrics", "", "")
	require.Equal(t, http.StatusOK, reply.Status, harness.Mask(reply.Body))
	harness.AssertNoSecret(t, "metrics", reply.Body)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(reply.Body))
	require.NoError(t, err)
	require.Empty(t, harness.Promtool(t, t.TempDir(), reply.Body, "check", "metrics"))
	return families
}

// ofApp are the values that the metrics have of an app, each under the name of its metric, without
// what all names begin with, and of a further label.
func ofApp(families map[string]*dto.MetricFamily, app string) map[string]float64 {
	values := map[string]float64{}
	for name, family := range families {
		for _, metric := range family.GetMetric() {
			key, its := strings.TrimPrefix(name, "dingtalk_"), false
			for _, label := range metric.GetLabel() {
				if label.GetName() == "app" {
					its = label.GetValue() == app
				} else {
					key += " " + label.GetValue()
				}
			}
			if its {
				values[key] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
			}
		}
	}
	return values
}

// asMetrics are the values that follow from a status, but for the counters by result, and the time
// when the secret was set.
func asMetrics(t *testing.T, status map[string]any) map[string]float64 {
	t.Helper()
	number := func(field string) float64 {
		value, err := status[field].(json.Number).Float64()
		require.NoError(t, err)
		return value
	}
	values := map[string]float64{
		"upstream_calls_total": number("upstream_calls"), "upstream_failures_total": number("upstream_failures"),
		"fetch_failing": 0,
	}
	if class, fails := status["last_error_class"]; fails {
		values["fetch_failing"], values["fetch_consecutive_failures"] = 1, number("consecutive_failures")
		values["fetch_failure_info "+class.(string)] = 1
	}
	for field, metric := range map[string]string{
		"expires_at": "token_expiry_timestamp_seconds", "failing_since": "fetch_failing_since_timestamp_seconds",
		"next_attempt_at": "fetch_next_attempt_timestamp_seconds",
	} {
		if text, is := status[field]; is {
			at, err := time.Parse(time.RFC3339, text.(string))
			require.NoError(t, err)
			values[metric] = float64(at.Unix())
		}
	}
	return values
}

func TestMetrics_say_what_the_status_says(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	apps := map[string]*harness.App{}
	for _, name := range []string{"unread", "works", "bridged", "rejected", "down", "throttled"} {
		apps[name] = m.NewApp(t, dt, harness.Fields{"request_timeout": "2s"})
	}
	apps["works"].Token(t)
	apps["bridged"].Token(t)
	dt.SetFault(apps["bridged"].Key, simulator.Fault{Kind: simulator.FaultReset})
	_, err := m.Vault.Root.Logical().Write(apps["bridged"].RefreshPath(), nil)
	harness.Refused(t, err, http.StatusBadGateway)
	for name, fault := range map[string]simulator.Fault{
		"rejected":  {Kind: simulator.FaultRejectedCredentials},
		"down":      {Kind: simulator.FaultUnavailableServer},
		"throttled": {Kind: simulator.FaultThrottledBusy, RetryAfter: "120"},
	} {
		dt.SetFault(apps[name].Key, fault)
		_, err := apps[name].TryRead()
		require.Error(t, err)
	}

	for name, a := range apps {
		var got, want map[string]float64
		// The next attempt is left out of both once its time has come, which may be between the two.
		harness.WaitFor(t, time.Minute, "the status does not change meanwhile", func() bool {
			before := asMetrics(t, a.Status(t))
			got = ofApp(scrape(t, m), a.Name)
			want = asMetrics(t, a.Status(t))
			return maps.Equal(before, want)
		})
		for metric := range got {
			if strings.HasPrefix(metric, "fetches_total ") || metric == "app_secret_set_timestamp_seconds" {
				delete(got, metric)
			} else if strings.HasSuffix(metric, "_timestamp_seconds") {
				got[metric] = float64(int64(got[metric])) // a status has whole seconds
			}
		}
		assert.Equal(t, want, got, name)
	}
	fetches := map[string]float64{}
	families := scrape(t, m)
	for name, a := range apps {
		for metric, value := range ofApp(families, a.Name) {
			if result, is := strings.CutPrefix(metric, "fetches_total "); is && value > 0 {
				fetches[name+" "+result] = value
			}
		}
	}
	require.Equal(t, map[string]float64{
		"works success": 1, "bridged success": 1, "bridged unreachable": 1, "rejected rejected_credentials": 1,
		"down unavailable": 1, "throttled throttled": 1,
	}, fetches)
}

func TestMetrics_are_those_of_one_mount(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	one, other := harness.NewMount(t), harness.NewMount(t)
	a := one.NewApp(t, dt, nil)
	a.Token(t)
	require.NotEmpty(t, ofApp(scrape(t, one), a.Name))
	families := scrape(t, other)
	require.Empty(t, ofApp(families, a.Name))
	require.Zero(t, families["dingtalk_apps"].GetMetric()[0].GetGauge().GetValue())
	require.NotContains(t, families, "dingtalk_fetch_duration_seconds")
}

func TestMetrics_are_in_the_form_that_Prometheus_asks_for(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	url := m.Vault.Addr + "/v1/" + m.Path + "/metrics"
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+m.Vault.RootToken)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "text/plain; version=0.0.4; charset=utf-8", response.Header.Get("Content-Type"))

	build := scrape(t, m)["dingtalk_build_info"].GetMetric()[0]
	labels := map[string]string{}
	for _, label := range build.GetLabel() {
		labels[label.GetName()] = label.GetValue()
	}
	require.Equal(t, m.Vault.PluginVersion, labels["version"])
}
