// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests metrics: that each is there and says what status/ says, and what a scrape costs.

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// scrape reads the metrics as Prometheus does: each sample's value by its name and labels, without
// those of Go and the process, which are returned apart.
func (m *mount) scrape() (samples map[string]float64, families map[string]*dto.MetricFamily) {
	m.t.Helper()
	got := m.do(logical.ReadOperation, "metrics", nil).works(m.t)
	require.Contains(m.t, got.Data[logical.HTTPContentType], "text/plain; version=0.0.4; charset=utf-8")
	require.Equal(m.t, http.StatusOK, got.Data[logical.HTTPStatusCode])
	body := got.Data[logical.HTTPRawBody].([]byte)
	require.NotContains(m.t, string(body), theSecret)
	if tok := m.upstream.LastToken(theKey); tok != "" {
		require.NotContains(m.t, string(body), tok)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	require.NoError(m.t, err)
	samples = map[string]float64{}
	for name, family := range families {
		if !strings.HasPrefix(name, "dingtalk_") {
			continue
		}
		require.NotEmpty(m.t, family.GetHelp(), name)
		for _, metric := range family.Metric {
			var labels []string
			for _, l := range metric.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			sample := name + "{" + strings.Join(labels, ",") + "}"
			switch family.GetType() {
			case dto.MetricType_HISTOGRAM:
				samples[sample] = float64(metric.Histogram.GetSampleCount())
			case dto.MetricType_COUNTER:
				require.True(m.t, strings.HasSuffix(name, "_total"), name)
				samples[sample] = metric.Counter.GetValue()
			default:
				samples[sample] = metric.Gauge.GetValue()
			}
		}
	}
	return samples, families
}

func TestMetrics_say_of_each_app_in_memory_what_its_status_says(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, tok string) {
		set := time.Now()
		m.configure("other", map[string]any{"app_key": "otherkey"})
		want := func(app string, more map[string]float64) map[string]float64 {
			all := map[string]float64{}
			for sample, value := range more {
				name, labels, _ := strings.Cut(sample, " ")
				all[fmt.Sprintf("dingtalk_%s{app=%q%s}", name, app, labels)] = value
			}
			return all
		}
		of := func(app string) map[string]float64 {
			samples, _ := m.scrape()
			for sample := range samples {
				if !strings.Contains(sample, fmt.Sprintf("app=%q", app)) {
					delete(samples, sample)
				}
			}
			return samples
		}
		secretSet := float64(set.Unix())
		require.Equal(t, want(theApp, map[string]float64{
			"token_expiry_timestamp_seconds":   float64(set.Add(2 * time.Hour).Unix()),
			"app_secret_set_timestamp_seconds": secretSet,
			`fetches_total ,result="success"`:  1,
			"upstream_calls_total":             1, "upstream_failures_total": 0,
			"fetch_failing": 0,
		}), of(theApp))

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultUnavailableEmpty})
		time.Sleep(7000 * time.Second)
		m.read(theApp)
		time.Sleep(longestFirstBackOff)
		m.read(theApp)
		state := m.state(theApp)
		unixOf := func(field string) float64 {
			at, err := time.Parse(time.RFC3339, state[field].(string))
			require.NoError(t, err)
			return float64(at.Unix())
		}
		got := of(theApp)
		for sample, field := range map[string]string{
			"token_expiry_timestamp_seconds": "expires_at", "fetch_failing_since_timestamp_seconds": "failing_since",
			"fetch_next_attempt_timestamp_seconds": "next_attempt_at",
		} {
			sample = fmt.Sprintf("dingtalk_%s{app=%q}", sample, theApp)
			require.InDelta(t, unixOf(field), got[sample], 1, sample)
			delete(got, sample)
		}
		require.Equal(t, want(theApp, map[string]float64{
			"app_secret_set_timestamp_seconds": secretSet,
			`fetches_total ,result="success"`:  1, `fetches_total ,result="unavailable"`: 2,
			"upstream_calls_total": 7, "upstream_failures_total": 6,
			"fetch_failing": 1, "fetch_consecutive_failures": 2, `fetch_failure_info ,class="unavailable"`: 1,
		}), got)
		require.EqualValues(t, 2, state["consecutive_failures"])
		require.EqualValues(t, 7, state["upstream_calls"])
		require.EqualValues(t, 6, state["upstream_failures"])
		require.NotContains(t, of("other"), `dingtalk_token_expiry_timestamp_seconds{app="other"}`)
		require.NotContains(t, fmt.Sprint(got), tok)
	})
}

func TestMetrics_of_hosts_and_of_the_mount(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		m.configure("other", nil)
		time.Sleep(time.Hour)
		m.tick()
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "60", Delay: time.Second})
		time.Sleep(time.Minute)
		m.refresh(theApp)
		samples, families := m.scrape()
		for sample, value := range map[string]float64{
			"dingtalk_apps{}":                                        2,
			"dingtalk_refreshes_ahead_total{}":                       1,
			"dingtalk_background_pass_duration_seconds{}":            1,
			`dingtalk_fetch_duration_seconds{host="` + theURL + `"}`: 3,
			`dingtalk_cooldowns{host="` + theURL + `"}`:              1,
			`dingtalk_cooldowns{host="https://api.dingtalk.io"}`:     0,
			`dingtalk_cooldowns{host="https://api.dingtalk.com"}`:    0,
		} {
			require.InDelta(t, value, samples[sample], 0, sample)
		}
		build := families["dingtalk_build_info"].Metric[0].Label
		require.True(t, slices.ContainsFunc(build, func(l *dto.LabelPair) bool { return l.GetValue() == Version }))
		require.InDelta(t, 1, families["dingtalk_fetch_duration_seconds"].Metric[0].Histogram.GetSampleSum(), 0.1)
		require.Contains(t, families, "go_goroutines")
		require.Contains(t, families, "process_open_fds")
		time.Sleep(time.Minute)
		samples, _ = m.scrape()
		require.Zero(t, samples[`dingtalk_cooldowns{host="`+theURL+`"}`])
	})
}

func TestMetrics_of_a_strangers_hosts_are_bounded(t *testing.T) {
	measures := newMeasures()
	labels := map[string]bool{}
	for i := range 10 * maxHosts {
		labels[measures.host(fmt.Sprintf("https://host%d.example", i))] = true
	}
	require.Len(t, labels, maxHosts+1)
	require.Equal(t, chinaBaseURL, measures.host(chinaBaseURL), "DingTalk's own always have theirs")
}
