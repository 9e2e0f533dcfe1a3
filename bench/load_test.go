// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stalling answers at once, but for its tenth response, which takes so long.
func stalling(t *testing.T, stall time.Duration) *target {
	t.Helper()
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 10 {
			time.Sleep(stall)
		}
		_, _ = w.Write([]byte(`{"data":{"access_token":"abc"}}`))
	}))
	t.Cleanup(server.Close)
	return &target{base: server.URL, paths: []string{"a", "b"}, want: []string{`"access_token":"`}}
}

func slowerThan(m *measured, d time.Duration) (count int64) {
	for _, b := range m.latency.Distribution() {
		if b.From > d.Microseconds() {
			count += b.Count
		}
	}
	return count
}

// total is how long all reads took together, at the least.
func total(m *measured) (sum time.Duration) {
	for _, b := range m.latency.Distribution() {
		sum += time.Duration(b.From*b.Count) * time.Microsecond
	}
	return sum
}

func TestOpenLoop_counts_the_waiting_that_a_slow_response_causes(t *testing.T) {
	const stall = 300 * time.Millisecond
	m, err := load(
		t.Context(),
		stalling(t, stall),
		1,
		func(began time.Time) pace { return openLoop(began, time.Second, 100) },
	)
	require.NoError(t, err)
	require.EqualValues(t, 100, m.latency.TotalCount(), "every read that was due was made")
	// 100 a second were due, so 25 of them fell into the first 250 ms of the stall and waited for
	// its end.
	require.GreaterOrEqual(t, slowerThan(m, 50*time.Millisecond), int64(24))
	require.Greater(t, total(m), m.took)
}

func TestClosedLoop_reads_again_when_answered(t *testing.T) {
	const stall = 300 * time.Millisecond
	m, err := load(
		t.Context(),
		stalling(t, stall),
		1,
		func(began time.Time) pace { return closedLoop(began, time.Second) },
	)
	require.NoError(t, err)
	require.Positive(t, slowerThan(m, stall-time.Millisecond), "the slow response counts")
	// One connection's reads begin one after the other. Were the waiting for the slow one counted,
	// they would add up to more than the time that there was, however slow the machine.
	require.LessOrEqual(t, total(m), m.took, "the reads behind the slow one begin after it")
	require.InDelta(t, 1, m.took.Seconds(), 5)
	require.InEpsilon(t, float64(m.latency.TotalCount())/m.took.Seconds(), m.perSecond(), 1e-9)
}

func TestLoad_counts_what_is_not_a_response_as_an_error(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 3 {
		case 1:
			_, _ = w.Write([]byte(`{"access_token":"abc"}`))
		case 2:
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte(`{"errors":["no upstream"]}`))
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	}))
	defer server.Close()
	to := &target{base: server.URL, paths: []string{"a"}, want: []string{`"access_token":"`}}
	m, err := load(t.Context(), to, 1, func(began time.Time) pace { return openLoop(began, 60*time.Millisecond, 1000) })
	require.NoError(t, err)
	require.EqualValues(t, 20, m.latency.TotalCount())
	require.EqualValues(t, 40, m.errors)
	require.ErrorContains(t, m.err, "no upstream", "the first error is kept")
}

func TestLoad_fails_where_nothing_answers_rightly(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	_, err := load(
		t.Context(),
		&target{base: server.URL, paths: []string{"a"}},
		2,
		func(began time.Time) pace { return closedLoop(began, time.Second) },
	)
	require.ErrorContains(t, err, "status 404")
}

func TestLoad_ends_with_its_context(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	to := stalling(t, 0)
	_, err := load(ctx, to, 4, func(began time.Time) pace {
		cancel()
		return closedLoop(began, time.Hour)
	})
	require.ErrorIs(t, err, context.Canceled)
}

func TestSpread_is_the_median_and_the_ends(t *testing.T) {
	require.Equal(t, spread{2, 1, 9}, spreadOf([]float64{9, 1, 2}))
	require.Equal(t, spread{2.5, 1, 9}, spreadOf([]float64{9, 3, 1, 2}))
	require.Equal(t, spread{}, spreadOf(nil))
}

func TestRatio_compares_within_each_round(t *testing.T) {
	of := func(counts ...int) *outcome {
		o := &outcome{subject: &subject{name: "x"}}
		for _, count := range counts {
			m := &measured{latency: newHistogram(), took: time.Second}
			require.NoError(t, m.latency.RecordValues(1000, int64(count)))
			o.rounds = append(o.rounds, m)
		}
		return o
	}
	// A machine twice as slow in the last round leaves the ratio as it is.
	require.Equal(t, spread{1.5, 1.2, 2}, of(150, 120, 100).ratio(of(100, 100, 50), reads))
}

func TestTable_shows_errors_and_ratios(t *testing.T) {
	base := &outcome{subject: &subject{name: "no-op"}}
	other := &outcome{subject: &subject{name: "engine", against: "no-op"}}
	for _, o := range []*outcome{base, other} {
		m := &measured{latency: newHistogram(), took: time.Second}
		require.NoError(t, m.latency.RecordValues(2000, 100))
		o.rounds = []*measured{m}
	}
	other.rounds[0].errors, other.rounds[0].err = 3, errors.New("status 502")
	var out bytes.Buffer
	printTable(&out, "Title", []*outcome{base, other})
	require.Contains(
		t,
		out.String(),
		"| engine | 100 | 2.00 | 2.00 | 2.00 | 3 | no-op | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) |",
	)
	require.Contains(t, out.String(), "engine: the first of 3 errors: status 502")
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "|") {
			require.Equal(t, 10, strings.Count(line, "|"), line)
		}
	}
}

func TestFileName_is_fit_for_any_file_system(t *testing.T) {
	require.Equal(t, "direct-reads-engine-leased-10000-apps", fileName("Direct reads", "engine, leased, 10000 apps"))
}
