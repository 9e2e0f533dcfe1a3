// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is metrics: the apps in memory, their hosts and the plugin itself, in Prometheus' text
// format. A read of a fresh token counts nothing: an app's metrics come from its state, and are
// collected at a scrape.

import (
	"bytes"
	"context"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

const (
	metricsPath = "metrics"

	maxHosts    = 100 // with metrics of their own, in addition to DingTalk's two
	otherHosts  = "other"
	resultGiven = "success" // result of a fetch; the other results are the error classes
)

func (b *backend) pathMetrics() *framework.Path {
	const summary = "Read the metrics of the mount, in Prometheus' text format."
	read := operation(b.readMetrics, "read", summary, map[int][]framework.Response{
		http.StatusOK: {{Description: "OK", MediaType: "text/plain"}},
	})
	read.ForwardPerformanceStandby = false // each node has a memory, and a process, of its own
	return &framework.Path{
		Pattern:         metricsPath + "$",
		DisplayAttrs:    &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationSuffix: "metrics"},
		Operations:      map[logical.Operation]framework.OperationHandler{logical.ReadOperation: read},
		HelpSynopsis:    summary,
		HelpDescription: strings.TrimSpace(metricsHelp),
	}
}

func (b *backend) readMetrics(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
	var body bytes.Buffer
	for _, gatherer := range b.metrics {
		families, err := gatherer.Gather()
		if err != nil {
			return nil, err
		}
		for _, family := range families {
			body.Grow(64 * len(family.Metric)) // about their size
			if _, err := expfmt.MetricFamilyToText(&body, family); err != nil {
				return nil, err
			}
		}
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPContentType: string(expfmt.NewFormat(expfmt.TypeTextPlain)),
		logical.HTTPRawBody:     body.Bytes(),
		logical.HTTPStatusCode:  http.StatusOK,
	}}, nil
}

// newMetrics returns all metrics of a mount.
func newMetrics(r *registry) []prometheus.Gatherer {
	all := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "dingtalk_build_info", Help: "The plugin's version and that of Go; always 1.",
		ConstLabels: prometheus.Labels{"version": Version, "goversion": runtime.Version()},
	})
	build.Set(1)
	all.MustRegister(build, r.measures.fetches, r.measures.passes, r.measures.ahead,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return []prometheus.Gatherer{prometheus.GathererFunc(r.gatherApps), all}
}

// measures are the metrics that are counted as events happen, none of them by a read of a fresh
// token.
type measures struct {
	fetches *prometheus.HistogramVec
	passes  prometheus.Histogram
	ahead   prometheus.Counter

	mu    sync.Mutex // over hosts
	hosts map[string]struct{}
}

func newMeasures() *measures {
	return &measures{
		fetches: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "dingtalk_fetch_duration_seconds", Help: "Duration of fetches of a token, retries included.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30},
		}, []string{"host"}),
		passes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "dingtalk_background_pass_duration_seconds", Help: "Duration of background passes over the apps in memory.",
			Buckets: []float64{.0001, .001, .01, .1, 1},
		}),
		ahead: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dingtalk_refreshes_ahead_total", Help: "Refreshes that the engine started in the background.",
		}),
		hosts: map[string]struct{}{},
	}
}

// host returns the label of a base URL. Beyond maxHosts, strangers' hosts share one.
func (m *measures) host(baseURL string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.hosts[baseURL]; !known && len(m.hosts) >= maxHosts && !isDingTalk(baseURL) {
		return otherHosts
	}
	m.hosts[baseURL] = struct{}{}
	return baseURL
}

func (m *measures) fetched(baseURL string, took time.Duration) {
	m.fetches.WithLabelValues(m.host(baseURL)).Observe(took.Seconds())
}

// gatherApps implements prometheus.GathererFunc for the metrics of each app. It is not a collector:
// with 10,000 apps, client_golang's checks of each sample took five times as long as the samples.
func (r *registry) gatherApps() ([]*dto.MetricFamily, error) {
	var all []*dto.MetricFamily
	family := func(kind dto.MetricType, name, help string) *dto.MetricFamily {
		name = "dingtalk_" + name
		f := &dto.MetricFamily{Name: &name, Help: &help, Type: &kind}
		all = append(all, f)
		return f
	}
	const gauge, counter = dto.MetricType_GAUGE, dto.MetricType_COUNTER
	expiry := family(gauge, "token_expiry_timestamp_seconds", "When the current token expires, in Unix time.")
	secretSet := family(gauge, "app_secret_set_timestamp_seconds",
		"When the stored secret last changed, in Unix time.")
	fetches := family(counter, "fetches_total", "Fetches of a token, by success or class of error.")
	calls := family(counter, "upstream_calls_total", "Calls to DingTalk, retries included.")
	failures := family(counter, "upstream_failures_total", "Calls to DingTalk that failed.")
	failing := family(gauge, "fetch_failing", "Whether the last fetch failed: 0 or 1.")
	since := family(gauge, "fetch_failing_since_timestamp_seconds",
		"Since when fetches have been failing, in Unix time.")
	why := family(gauge, "fetch_failure_info", "The error class of the last fetch, while fetches fail; always 1.")
	inARow := family(gauge, "fetch_consecutive_failures", "Fetches that have failed since the last success.")
	next := family(gauge, "fetch_next_attempt_timestamp_seconds", "When the next fetch may be attempted, in Unix time.")
	inMemory := family(gauge, "apps", "Apps in memory.")
	cooldowns := family(gauge, "cooldowns", "Bans and Retry-Afters in force.")

	now := time.Now()
	r.apps.Range(func(_, v any) bool {
		a := v.(*app)
		s, app := a.snapshot(now), label("app", a.name)
		if s.token != nil {
			sample(expiry, unix(s.token.expiresAt), app)
		}
		if at, err := time.Parse(time.RFC3339, s.config.AppSecretSetAt); err == nil {
			sample(secretSet, unix(at), app)
		}
		for result, n := range s.fetches {
			sample(fetches, float64(n), app, label("result", result))
		}
		sample(calls, float64(s.calls), app)
		sample(failures, float64(s.failures), app)
		if last := s.last; last == nil {
			sample(failing, 0, app)
		} else {
			sample(failing, 1, app)
			sample(inARow, float64(last.inARow), app)
			sample(why, 1, app, label("class", string(last.err.class)))
			sample(since, unix(last.since), app)
		}
		if !s.nextAttempt.IsZero() {
			sample(next, unix(s.nextAttempt), app)
		}
		return true
	})
	sample(inMemory, float64(len(failing.Metric)))
	byHost := map[string]int{defaultBaseURL: 0, chinaBaseURL: 0}
	for baseURL, n := range r.client.cooldowns.count(now) {
		byHost[r.measures.host(baseURL)] += n
	}
	for host, n := range byHost {
		sample(cooldowns, float64(n), label("host", host))
	}
	return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool { return len(f.Metric) == 0 }), nil
}

func label(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

func sample(f *dto.MetricFamily, value float64, labels ...*dto.LabelPair) {
	m := &dto.Metric{Label: labels}
	if f.GetType() == dto.MetricType_COUNTER {
		m.Counter = &dto.Counter{Value: &value}
	} else {
		m.Gauge = &dto.Gauge{Value: &value}
	}
	f.Metric = append(f.Metric, m)
}

// unix returns a time in Unix seconds.
func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

const metricsHelp = `
Returns the metrics of the apps in memory, of their hosts and of the plugin's
process, for Prometheus. Scrape v1/<mount>/metrics with a token whose policy
allows reading it. Each mount has metrics of its own, on each node.
`
