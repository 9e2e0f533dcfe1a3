// SPDX-License-Identifier: MPL-2.0

package main

// This file is what a run measures: which paths, in which Vault, and what they must reach.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// The mounts: the engine with an app of each kind, with many of each kind and with one that hangs,
// and the plugin that does nothing.
const (
	mountOne  = "one"
	mountMany = "many"
	mountHung = "hung"
	mountNoop = "noop"
	mountKept = "kept" // the replication state kept for a second

	pluginEngine = "engine"
	pluginNoop   = "noop"
)

// hungAmong is among how many apps one hangs.
const hungAmong = 1000

type run struct {
	*options
	env   *environment
	out   io.Writer
	began time.Time
	bars  []bar
}

// log tells the person at the terminal what is going on; the results alone go to standard output.
func (r *run) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.0fs  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

func (r *run) all(ctx context.Context) error {
	if err := r.printHeader(ctx); err != nil {
		return err
	}
	if r.has(partInmem) || r.has(partProxy) || r.has(partOpen) || r.has(partHung) || r.has(partScrape) {
		if err := r.storage(ctx, storageInmem); err != nil {
			return err
		}
	}
	if r.has(partRaft) {
		if err := r.storage(ctx, storageRaft); err != nil {
			return err
		}
	}
	if r.has(partScale) {
		if err := r.scaleAll(ctx); err != nil {
			return err
		}
	}
	if err := r.binary(); err != nil {
		return err
	}
	r.printBars()
	r.log("done")
	return nil
}

// storage measures what is to be measured in a Vault of its own over the storage.
func (r *run) storage(ctx context.Context, storage string) (err error) {
	r.log("starting a Vault over %s and making %d apps", storage, 2*r.apps)
	s, err := startServer(ctx, r.env, storage, map[string]string{pluginEngine: r.env.plugin, pluginNoop: r.env.noop})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	err = errors.Join(
		s.mount(ctx, mountOne, pluginEngine, nil),
		s.mount(ctx, mountMany, pluginEngine, nil),
		s.mount(ctx, mountNoop, pluginNoop, nil),
		s.mount(ctx, mountKept, pluginNoop, map[string]string{"keep_replication_state": "true"}),
	)
	if err != nil {
		return err
	}
	apps := []app{{mountOne, "leased", true, true}, {mountOne, "unleased", false, true}}
	for i := range r.apps {
		apps = append(
			apps,
			app{mountMany, manyName("leased", i), true, true},
			app{mountMany, manyName("unleased", i), false, true},
		)
	}
	if err := s.configure(ctx, apps); err != nil {
		return err
	}

	if storage == storageRaft || r.has(partInmem) {
		if err := r.direct(ctx, s, storage); err != nil {
			return err
		}
	}
	if storage == storageRaft {
		return nil
	}
	if r.has(partOpen) {
		if err := r.open(ctx, s); err != nil {
			return err
		}
	}
	if r.has(partProxy) {
		if err := r.proxied(ctx, s); err != nil {
			return err
		}
	}
	if r.has(partHung) {
		if err := r.hung(ctx, s); err != nil {
			return err
		}
	}
	if r.has(partScrape) {
		return r.scrape(ctx, s)
	}
	return nil
}

func manyName(kind string, i int) string { return fmt.Sprintf("%s-%05d", kind, i) }

// kinds are the two ways to hand out a token.
var kinds = []string{"leased", "unleased"}

// subject makes a path to be read directly: the engine's creds/ of a mount, or what the plugin that
// does nothing has in its place.
func (s *server) subject(name, against, mount, kind string, apps ...string) *subject {
	t := target{base: s.addr, token: s.token, want: []string{`"access_token":"`}}
	if kind == "leased" {
		t.want = append(t.want, `"renewable":true`)
	} else {
		t.want = append(t.want, `"lease_id":""`, `"ttl":`)
	}
	directory := "creds"
	if mount == mountNoop || mount == mountKept {
		directory = kind
	}
	for _, a := range apps {
		t.paths = append(t.paths, mount+"/"+directory+"/"+a)
	}
	return &subject{name: name, against: against, target: t}
}

// plain is the no-op path and the engine's path of a kind, for the parts that need no more.
func (s *server) plain(kind string) []*subject {
	return []*subject{
		s.subject("no-op, "+kind, "", mountNoop, kind, kind),
		s.subject("engine, "+kind, "no-op, "+kind, mountOne, kind, kind),
	}
}

func (r *run) direct(ctx context.Context, s *server, storage string) error {
	many := fmt.Sprintf("%d apps", r.apps)
	var subjects []*subject
	for _, kind := range kinds {
		names := make([]string, r.apps)
		for i := range names {
			names[i] = manyName(kind, i)
		}
		subjects = append(subjects, s.plain(kind)...)
		subjects = append(subjects,
			s.subject("no-op caching the state, "+kind, "no-op, "+kind, mountKept, kind, kind),
			s.subject("no-op, "+kind+", "+many, "no-op, "+kind, mountNoop, kind, names...),
			s.subject("engine, "+kind+", "+many, "no-op, "+kind+", "+many, mountMany, kind, names...),
		)
		usual := s.subject("engine, "+kind+", reader with the default policy", "engine, "+kind, mountOne, kind, kind)
		usual.target.token = s.usual
		subjects = append(subjects, usual)
	}
	got, err := r.measure(ctx, s, "Direct reads, "+storage+" storage", subjects)
	if err != nil {
		return err
	}
	if storage == storageInmem {
		ratio := func(of, to string, figure func(*measured) float64) spread {
			return find(got, of).ratio(find(got, to), figure)
		}
		for _, kind := range kinds {
			engine, noop := "engine, "+kind, "no-op, "+kind
			r.atLeast(
				kind+" reads/s over the no-op plugin's",
				map[string]float64{"leased": 1.10, "unleased": 1.20}[kind],
				ratio(engine, noop, reads),
			)
			r.atLeast(
				kind+" reads/s over those of a no-op plugin that caches the replication state",
				0.95,
				ratio(engine, "no-op caching the state, "+kind, reads),
			)
			r.atLeast(
				kind+" reads/s over the no-op plugin's, "+many+" at random",
				map[string]float64{"leased": 1.05, "unleased": 1.15}[kind],
				ratio(engine+", "+many, noop+", "+many, reads),
			)
			r.p99AtMost(kind+" p99 over the no-op plugin's, closed loop", ratio(engine, noop, p99))
		}
	}
	if err := r.profile(ctx, s, storage, subjects); err != nil {
		return err
	}
	if !r.has(partAudit) {
		return nil
	}
	return s.audited(ctx, func() error {
		_, err := r.measure(
			ctx,
			s,
			"Direct reads, "+storage+" storage, with a file audit device",
			append(s.plain("leased"), s.plain("unleased")...),
		)
		return err
	})
}

// open measures latency at one fixed rate for all, which is well below what the slowest can do.
func (r *run) open(ctx context.Context, s *server) error {
	subjects := append(s.plain("leased"), s.plain("unleased")...)
	slowest, err := subjects[0].measure(ctx, r.slice)
	if err != nil {
		return err
	}
	rate := float64(int(slowest.perSecond()*0.5/100)) * 100
	for _, sub := range subjects {
		sub.rate = max(rate, 100)
	}
	got, err := r.measure(ctx, s, fmt.Sprintf("Open loop, %.0f reads a second", subjects[0].rate), subjects)
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		r.p99AtMost(
			kind+" p99 over the no-op plugin's, open loop",
			find(got, "engine, "+kind).ratio(find(got, "no-op, "+kind), p99),
		)
	}
	return nil
}

func (r *run) proxied(ctx context.Context, s *server) (err error) {
	p, err := s.startProxy(r.env)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.proc.stop()) }()
	subjects := s.plain("leased")
	for _, direct := range s.plain("leased") {
		if err := p.awaitHit(ctx, direct.target.paths[0]); err != nil {
			return err
		}
		direct.name += ", through Proxy"
		direct.against = "no-op, leased"
		direct.target.base, direct.target.token = p.addr, ""
		subjects = append(subjects, direct)
	}
	got, err := r.measure(ctx, s, "Through Vault Proxy", subjects)
	if err != nil {
		return err
	}
	r.atLeast(
		"leased reads/s through Vault Proxy over the no-op plugin's without",
		5,
		find(got, "engine, leased, through Proxy").ratio(find(got, "no-op, leased"), reads),
	)
	return nil
}

// hung measures reads of many apps with and without another whose upstream does not respond, and
// whose readers wait for it.
func (r *run) hung(ctx context.Context, s *server) error {
	if err := s.mount(ctx, mountHung, pluginEngine, nil); err != nil {
		return err
	}
	const stuck = "stuck"
	apps := []app{{mountHung, stuck, false, false}}
	names := make([]string, hungAmong-1)
	for i := range names {
		names[i] = manyName("unleased", i)
		apps = append(apps, app{mountHung, names[i], false, true})
	}
	if err := s.configure(ctx, apps); err != nil {
		return err
	}
	s.dingtalk.SetFault(mountHung+"-"+stuck, simulator.Fault{Kind: simulator.FaultHang})
	without := s.subject("all respond", "", mountHung, "unleased", names...)
	with := s.subject("one hangs", "all respond", mountHung, "unleased", names...)
	readers := s.subject("", "", mountHung, "unleased", stuck)
	with.beside = func(ctx context.Context) { readers.target.insist(ctx) }
	got, err := r.measure(
		ctx,
		s,
		fmt.Sprintf("One hung app among %d: the others", hungAmong),
		[]*subject{without, with},
	)
	if err != nil {
		return err
	}
	if calls := s.dingtalk.Requests(mountHung + "-" + stuck); calls == 0 {
		return errors.New("the app that hangs was not read")
	}
	r.p99AtMost("p99 of the other apps while one hangs", find(got, "one hangs").ratio(find(got, "all respond"), p99))
	return nil
}

// scrape measures reads of an app among many whose metrics are scraped meanwhile, once in each
// slice.
func (r *run) scrape(ctx context.Context, s *server) error {
	const name = "fresh"
	if err := s.configure(ctx, []app{{mountMany, name, false, true}}); err != nil {
		return err
	}
	without := s.subject("not scraped", "", mountMany, "unleased", name)
	with := s.subject("scraped", "not scraped", mountMany, "unleased", name)
	url, token := s.addr+"/v1/"+mountMany+"/metrics", s.root.Token()
	if _, err := get(ctx, url, token); err != nil {
		return err
	}
	with.beside = func(ctx context.Context) {
		_, _ = get(ctx, url, token)
		<-ctx.Done()
	}
	title := fmt.Sprintf("Reads while the metrics of %d apps are scraped", 2*r.apps+1)
	got, err := r.measure(ctx, s, title, []*subject{without, with})
	if err != nil {
		return err
	}
	r.p99AtMost("p99 of reads during scrapes", find(got, "scraped").ratio(find(got, "not scraped"), p99))
	return nil
}

// insist has as many readers as a measurement ask for what does not come, each again a second after
// it failed. It ends with the context.
func (t *target) insist(ctx context.Context) {
	var readers sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: connections}}
	defer client.CloseIdleConnections()
	for range connections {
		readers.Go(func() {
			for ctx.Err() == nil {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.base+"/v1/"+t.paths[0], http.NoBody)
				if err != nil {
					return
				}
				req.Header.Set("X-Vault-Token", t.token)
				if resp, err := client.Do(req); err == nil {
					_ = resp.Body.Close()
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	readers.Wait()
}

// measure measures the subjects and prints what came out.
func (r *run) measure(ctx context.Context, s *server, title string, subjects []*subject) ([]*outcome, error) {
	got, err := rounds{count: r.rounds, slice: r.slice, tidy: s.endLeases, log: r.log}.run(ctx, title, subjects)
	if err != nil {
		return nil, err
	}
	printTable(r.out, title, got)
	for _, o := range got {
		if failed, first := o.errors(); failed > 0 {
			r.bar(title+": "+o.name, "no errors", fmt.Sprintf("%d, the first: %.100s", failed, first), false)
		}
	}
	if r.histograms != "" {
		err = writeHistograms(r.histograms, title, got)
	}
	return got, err
}

// profile reads the paths once more while profiles of Vault and of the plugin are taken.
func (r *run) profile(ctx context.Context, s *server, storage string, subjects []*subject) error {
	if r.profiles == "" {
		return nil
	}
	if err := os.MkdirAll(r.profiles, 0o755); err != nil {
		return err
	}
	length := max(5*r.slice, time.Second).Round(time.Second) // Vault takes whole seconds
	for _, sub := range subjects {
		r.log("profiling %s", sub.name)
		plugin := s.plugins[pluginEngine]
		if strings.HasPrefix(sub.name, "no-op") {
			plugin = s.plugins[pluginNoop]
		}
		from := map[string]string{
			"plugin": "http://" + plugin.pprof + "/debug/pprof/profile",
			"vault":  s.addr + "/v1/sys/pprof/profile",
		}
		errs := make(chan error, len(from))
		for of, url := range from {
			go func() {
				file := filepath.Join(r.profiles, fileName(storage, sub.name, of)+".pprof")
				errs <- download(ctx, fmt.Sprintf("%s?seconds=%.0f", url, length.Seconds()), s.root.Token(), file)
			}()
		}
		_, err := sub.measure(ctx, length)
		for range from {
			err = errors.Join(err, <-errs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func download(ctx context.Context, url, token, file string) error {
	body, err := get(ctx, url, token)
	if err != nil {
		return err
	}
	return os.WriteFile(file, body, 0o600)
}

func get(ctx context.Context, url, token string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d", url, resp.StatusCode)
	}
	return io.ReadAll(resp.Body)
}

// binary judges the plugin's own program, which a release ships stripped.
func (r *run) binary() error {
	if r.profiles != "" {
		return nil
	}
	info, err := os.Stat(r.env.plugin)
	if err != nil {
		return err
	}
	const most = 30e6
	r.bar(
		"the plugin's binary",
		"at most 30 MB",
		fmt.Sprintf("%.1f MB", float64(info.Size())/1e6),
		info.Size() <= most,
	)
	return nil
}
