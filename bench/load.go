// SPDX-License-Identifier: MPL-2.0

package main

// This file is the load generator. It shares the machine with what it measures, so it does little:
// one keep-alive connection per worker, responses checked as bytes, latencies into a histogram per
// worker.

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/valyala/fasthttp"
)

const (
	// slowest bounds a request, and with it the histogram.
	slowest = time.Minute

	// histogramDigits is how many significant digits of a latency are kept.
	histogramDigits = 3
)

// target is what one measurement reads.
type target struct {
	base  string // scheme, host and port
	token string // empty where Vault Proxy adds its own

	// paths below /v1/, one of them taken at random for each read.
	paths []string

	// want is what every response must hold.
	want []string
}

// measured is what one measurement found.
type measured struct {
	latency *hdrhistogram.Histogram // in microseconds, of the reads that succeeded
	errors  int64
	err     error // the first of them
	took    time.Duration
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, slowest.Microseconds(), histogramDigits)
}

// perSecond is how many reads succeeded in a second.
func (m *measured) perSecond() float64 { return float64(m.latency.TotalCount()) / m.took.Seconds() }

// quantile returns a latency in microseconds; q is 0 to 100.
func (m *measured) quantile(q float64) int64 { return m.latency.ValueAtQuantile(q) }

// connection is one keep-alive HTTP connection, opened with the first request.
type connection struct {
	client fasthttp.HostClient
	req    fasthttp.Request
	resp   fasthttp.Response
	base   string
}

func newConnection(base, token string) *connection {
	c := &connection{base: base}
	c.client = fasthttp.HostClient{
		Addr:                          strings.TrimPrefix(base, "http://"),
		MaxConns:                      1,
		MaxIdleConnDuration:           slowest,
		ReadTimeout:                   slowest,
		WriteTimeout:                  slowest,
		NoDefaultUserAgentHeader:      true,
		DisableHeaderNamesNormalizing: true,
		DisablePathNormalizing:        true,
		// A read that failed counts as failed.
		RetryIfErr: func(*fasthttp.Request, int, error) (resetTimeout, retry bool) { return false, false },
	}
	if token != "" {
		c.req.Header.Set("X-Vault-Token", token)
	}
	return c
}

func (c *connection) close() { c.client.CloseIdleConnections() }

// do sends a request for a path below /v1/ and returns the body, which is valid until the next one.
// A response that is not a success is an error.
func (c *connection) do(method, path string, body []byte) ([]byte, error) {
	c.req.Header.SetMethod(method)
	c.req.SetRequestURI(c.base + "/v1/" + path)
	c.req.SetBodyRaw(body)
	if err := c.client.Do(&c.req, &c.resp); err != nil {
		return nil, err
	}
	if status := c.resp.StatusCode(); status != http.StatusOK && status != http.StatusNoContent {
		return nil, fmt.Errorf("%s %s: status %d: %s", method, path, status, c.resp.Body())
	}
	return c.resp.Body(), nil
}

// reader reads a target over one connection.
type reader struct {
	*connection
	paths []string
	want  [][]byte
}

func newReader(t *target) *reader {
	r := &reader{connection: newConnection(t.base, t.token), paths: t.paths}
	for _, w := range t.want {
		r.want = append(r.want, []byte(w))
	}
	return r
}

func (r *reader) read() error {
	path := r.paths[rand.IntN(len(r.paths))]
	body, err := r.do(http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	for _, w := range r.want {
		if !bytes.Contains(body, w) {
			return fmt.Errorf("the response of %s lacks %s", path, w)
		}
	}
	return nil
}

// pace says when the next read is meant to begin; false ends a worker.
type pace func() (intended time.Time, more bool)

// closedLoop makes every worker read again as soon as it has its response.
func closedLoop(began time.Time, length time.Duration) pace {
	end := began.Add(length)
	return func() (time.Time, bool) {
		now := time.Now()
		return now, now.Before(end)
	}
}

// openLoop starts reads at a fixed rate, whatever the responses do. A read that no connection was
// free for at its time is late, and its latency counts from that time: else the waiting that a slow
// response causes would not show (coordinated omission).
func openLoop(began time.Time, length time.Duration, perSecond float64) pace {
	var next atomic.Int64
	total := int64(length.Seconds() * perSecond)
	return func() (time.Time, bool) {
		n := next.Add(1) - 1
		if n >= total {
			return time.Time{}, false
		}
		intended := began.Add(time.Duration(float64(n) / perSecond * float64(time.Second)))
		time.Sleep(time.Until(intended))
		return intended, true
	}
}

// load reads the target over so many connections, which are open before the first read counts, at
// the pace that start makes. It ends early with the context.
func load(ctx context.Context, t *target, connections int, start func(began time.Time) pace) (*measured, error) {
	readers := make([]*reader, connections)
	defer func() {
		for _, r := range readers {
			if r != nil {
				r.close()
			}
		}
	}()
	for i := range readers {
		readers[i] = newReader(t)
		if err := readers[i].read(); err != nil {
			return nil, err
		}
	}

	found := make([]measured, connections)
	began := time.Now()
	next := start(began)
	var workers sync.WaitGroup
	for i, r := range readers {
		workers.Go(func() {
			m := &found[i]
			m.latency = newHistogram()
			for ctx.Err() == nil {
				intended, more := next()
				if !more {
					return
				}
				if err := r.read(); err != nil {
					m.errors++
					m.err = cmp.Or(m.err, err)
					continue
				}
				_ = m.latency.RecordValue(min(time.Since(intended), slowest).Microseconds())
			}
		})
	}
	workers.Wait()
	sum := &measured{latency: newHistogram(), took: time.Since(began)}
	for i := range found {
		sum.latency.Merge(found[i].latency)
		sum.errors += found[i].errors
		sum.err = cmp.Or(sum.err, found[i].err)
	}
	return sum, ctx.Err()
}
