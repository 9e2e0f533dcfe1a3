// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package consumers

// A real Prometheus as a process on loopback, with the configuration and the rules of
// examples/prometheus, in which a minute lasts a second.

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
	"vault-plugin-secrets-dingtalk/test/harness"
)

const prometheusDir = harness.ExamplesDir + "/prometheus"

type prometheus struct {
	url string
	log string
}

// prometheusFiles puts what Prometheus is configured with into a directory: the examples, with what
// here says in place of what they say in prometheus.yaml.
func prometheusFiles(t *testing.T, token string, here map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	harness.PutFile(t, dir, "vault-token", token)
	harness.PutFile(t, dir, "prometheus.yaml", harness.RunnableExample(t, "prometheus/prometheus.yaml", here))
	for _, name := range []string{"alerts.yaml", "secret-age.yaml"} {
		rules := harness.FileText(t, filepath.Join(prometheusDir, name))
		rules = regexp.MustCompile(`(for: |\[)(\d+)[mh]\b`).ReplaceAllString(rules, "${1}${2}s")
		harness.PutFile(t, dir, name, strings.ReplaceAll(rules, "> 31536000", "> 20"))
	}
	return dir
}

func startPrometheus(t *testing.T, dir string) *prometheus {
	t.Helper()
	port, err := subprocess.ServerPorts.Free()
	require.NoError(t, err)
	listen := "127.0.0.1:" + strconv.Itoa(port)
	p := &prometheus{url: "http://" + listen, log: filepath.Join(dir, "prometheus.log")}
	proc, err := harness.StartProcess("prometheus", p.log, []string{"HOME=" + dir, "TMPDIR=" + dir},
		harness.PrometheusProgram(t, "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yaml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+listen)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := proc.Terminate(20 * time.Second); err != nil {
			t.Error(err)
		}
		if err := harness.SearchFile(p.log); err != nil {
			t.Errorf("secrets in Prometheus' log: %v", err)
		}
		if t.Failed() {
			t.Logf("Prometheus' log:\n%s", harness.Mask(harness.FileText(t, p.log)))
		}
	})
	harness.WaitFor(t, time.Minute, "Prometheus is ready", func() bool {
		require.True(t, proc.Running(), "Prometheus ended at its start")
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/-/ready", http.NoBody)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return p
}

// api asks Prometheus' API, and decodes the data of its response.
func (p *prometheus) api(t *testing.T, path string, parameters url.Values, into any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	address := p.url + "/api/v1/" + path + "?" + parameters.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	var decoded struct {
		Status, Error string
		Data          json.RawMessage
	}
	harness.DecodeJSON(t, string(body), &decoded)
	require.Equal(t, "success", decoded.Status, "%s %v: %s", path, parameters, decoded.Error)
	harness.DecodeJSON(t, string(decoded.Data), into)
}

// labels are those of a series or an alert.
type labels map[string]string

type vectorSample struct {
	Metric labels
	Value  [2]any // the time, and the value as text
}

// query evaluates an expression now. A sample that is not a number is left out.
func (p *prometheus) query(t *testing.T, expression string) []vectorSample {
	t.Helper()
	var got struct {
		ResultType string
		Result     []vectorSample
	}
	p.api(t, "query", url.Values{"query": {expression}}, &got)
	require.Equal(t, "vector", got.ResultType, expression)
	return slices.DeleteFunc(got.Result, func(s vectorSample) bool { return s.Value[1] == "NaN" })
}

// labelValues is what Grafana's label_values(selector, label) evaluates to.
func (p *prometheus) labelValues(t *testing.T, selector, label string) (values []string) {
	t.Helper()
	p.api(t, "label/"+label+"/values", url.Values{"match[]": {selector}}, &values)
	return values
}

// firing are the alerts that fire, each as its name and what it is about, in order.
func (p *prometheus) firing(t *testing.T) []string {
	t.Helper()
	var got struct {
		Alerts []struct {
			Labels labels
			State  string
		}
	}
	p.api(t, "alerts", nil, &got)
	all := map[string]bool{}
	for _, alert := range got.Alerts {
		if alert.State == "firing" {
			all[strings.TrimSpace(alert.Labels["alertname"]+" "+alert.Labels["mount"]+"/"+alert.Labels["app"])] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// requireFires waits until exactly these alerts fire; those of the age of secrets do not count.
func (p *prometheus) requireFires(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	defer func() {
		if t.Failed() {
			t.Logf("firing: %q\nwanted: %q", got, want)
		}
	}()
	harness.WaitFor(t, 2*time.Minute, "the alerts that fire are those that should", func() bool {
		got = slices.DeleteFunc(p.firing(t), func(a string) bool { return strings.HasPrefix(a, secretOld) })
		return slices.Equal(got, want)
	})
}

const secretOld = "DingtalkSecretOld "
