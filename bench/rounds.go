// SPDX-License-Identifier: MPL-2.0

package main

// This file measures paths in turn, round by round, in another order each round, so that a machine
// that gets slower or busier on the way does so for all alike. Paths are compared within a round,
// and the comparison's spread over the rounds is shown.

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// connections is over how many connections paths are read.
const connections = 16

// subject is one path under measurement.
type subject struct {
	name    string // in the tables, unique in its set
	against string // the name of the subject that it is compared with; empty for none
	target  target
	rate    float64 // reads a second in an open loop; 0 is a closed one

	// beside is load that runs for the time of the measurement and is not measured; nil for none.
	beside func(ctx context.Context)
}

// outcome is what all rounds found about a subject.
type outcome struct {
	*subject
	rounds []*measured
}

// rounds is how a set of subjects is measured.
type rounds struct {
	count int
	slice time.Duration                   // how long a subject is read in each round
	tidy  func(ctx context.Context) error // called before each round, in time that does not count
	log   func(format string, args ...any)
}

// run measures the subjects, after a short warm-up of each.
func (r rounds) run(ctx context.Context, title string, subjects []*subject) ([]*outcome, error) {
	outcomes := make([]*outcome, len(subjects))
	for i, s := range subjects {
		outcomes[i] = &outcome{subject: s}
		if _, err := s.measure(ctx, min(r.slice, time.Second/2)); err != nil {
			return nil, fmt.Errorf("%s: warming up: %w", s.name, err)
		}
	}
	for n := range r.count {
		if err := r.tidy(ctx); err != nil {
			return nil, err
		}
		r.log("%s: round %d of %d", title, n+1, r.count)
		for _, i := range rand.Perm(len(subjects)) {
			m, err := subjects[i].measure(ctx, r.slice)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", subjects[i].name, err)
			}
			outcomes[i].rounds = append(outcomes[i].rounds, m)
		}
	}
	return outcomes, nil
}

func (s *subject) measure(ctx context.Context, length time.Duration) (*measured, error) {
	if s.beside != nil {
		beside, end := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.beside(beside)
		}()
		defer func() {
			end()
			<-ended
		}()
	}
	return load(ctx, &s.target, connections, func(began time.Time) pace {
		if s.rate > 0 {
			return openLoop(began, length, s.rate)
		}
		return closedLoop(began, length)
	})
}

// spread is how a figure came out over the rounds.
type spread struct{ median, least, most float64 }

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	v := slices.Sorted(slices.Values(values))
	middle := v[len(v)/2]
	if len(v)%2 == 0 {
		middle = (middle + v[len(v)/2-1]) / 2
	}
	return spread{median: middle, least: v[0], most: v[len(v)-1]}
}

func (s spread) String() string {
	if s == (spread{}) {
		return ""
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.least, s.most)
}

func (o *outcome) perSecond() spread {
	return o.over(func(m *measured) float64 { return m.perSecond() })
}

func (o *outcome) over(figure func(*measured) float64) spread {
	values := make([]float64, len(o.rounds))
	for i, m := range o.rounds {
		values[i] = figure(m)
	}
	return spreadOf(values)
}

// all is the latencies of all rounds together.
func (o *outcome) all() *hdrhistogram.Histogram {
	h := newHistogram()
	for _, m := range o.rounds {
		h.Merge(m.latency)
	}
	return h
}

func (o *outcome) errors() (count int64, first error) {
	for _, m := range o.rounds {
		count += m.errors
		first = cmp.Or(first, m.err)
	}
	return count, first
}

// ratio compares a figure with another subject's, round by round.
func (o *outcome) ratio(to *outcome, figure func(*measured) float64) spread {
	var values []float64
	for i, m := range o.rounds {
		values = append(values, figure(m)/figure(to.rounds[i]))
	}
	return spreadOf(values)
}

func reads(m *measured) float64 { return m.perSecond() }
func p99(m *measured) float64   { return float64(m.quantile(99)) }

func find(outcomes []*outcome, name string) *outcome {
	for _, o := range outcomes {
		if o.name == name {
			return o
		}
	}
	return nil
}

// printTable writes a table of the outcomes in Markdown. Reads a second are the median of the
// rounds, latencies are of all rounds together, and ratios are medians of the rounds' own with
// their spread.
func printTable(w io.Writer, title string, outcomes []*outcome) {
	fmt.Fprintf(w, "\n### %s\n\n", title)
	fmt.Fprintln(
		w,
		"| path | reads/s | p50 ms | p99 ms | p99.9 ms | errors | compared with | reads/s, ratio | p99, ratio |",
	)
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|--:|---|---|---|")
	for _, o := range outcomes {
		h := o.all()
		ms := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }
		failed, _ := o.errors()
		var ratios [2]string
		if base := find(outcomes, o.against); base != nil {
			ratios = [2]string{o.ratio(base, reads).String(), o.ratio(base, p99).String()}
		}
		fmt.Fprintf(w, "| %s | %.0f | %.2f | %.2f | %.2f | %d | %s | %s | %s |\n",
			o.name, o.perSecond().median, ms(50), ms(99), ms(99.9), failed, o.against, ratios[0], ratios[1])
	}
	for _, o := range outcomes {
		if failed, first := o.errors(); failed > 0 {
			fmt.Fprintf(w, "\n%s: the first of %d errors: %.300s\n", o.name, failed, first)
		}
	}
}

var notInFileName = regexp.MustCompile(`[^a-z0-9]+`)

func fileName(parts ...string) string {
	return strings.Trim(notInFileName.ReplaceAllString(strings.ToLower(strings.Join(parts, "-")), "-"), "-")
}

// writeHistograms writes each outcome's latencies in milliseconds as a percentile distribution,
// which the tools around HdrHistogram plot.
func writeHistograms(dir, title string, outcomes []*outcome) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, o := range outcomes {
		f, err := os.Create(filepath.Join(dir, fileName(title, o.name)+".hgrm"))
		if err != nil {
			return err
		}
		_, err = o.all().PercentilesPrint(f, 5, 1000)
		if err := cmp.Or(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
