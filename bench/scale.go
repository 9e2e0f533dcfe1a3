// SPDX-License-Identifier: MPL-2.0

package main

// This file measures how the engine takes to many apps: making and listing them, what a restart of
// the plugin costs, the first read of each after it, and how much memory each takes. Memory is
// counted by the plugin itself after a garbage collection; the size of its process, which also
// has room for garbage, is shown too.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

const (
	mountScale = "scale"

	// restarts is how often the plugin is started anew, for the median.
	restarts = 9

	// listings is how often the apps are listed.
	listings = 5

	// mostPerApp is how many bytes an app in memory may take.
	mostPerApp = 2048

	// startMayGrow is how much longer a start with many apps may take than with one, for the noise
	// of starting processes.
	startMayGrow = 1.25
)

// scaled is what was found with a number of apps.
type scaled struct {
	apps     int
	create   time.Duration
	list     spread    // ms
	fetch    *measured // the first read of each app, with a call upstream
	start    spread    // ms, from the reload to the first response
	first    *measured // the first read of each app after a restart
	scrape   spread    // ms, of the metrics
	weight   int       // of a scrape, in bytes
	heap     memory    // of the plugin
	resident memory
}

// memory is bytes with hardly an app in memory, and with all.
type memory struct{ before, after int64 }

func (m memory) perApp(apps int) int64 { return (m.after - m.before) / int64(apps) }

func (r *run) scaleAll(ctx context.Context) error {
	var found []*scaled
	for _, apps := range append([]int{1}, r.scale...) {
		s, err := r.scaleTo(ctx, apps)
		if err != nil {
			return fmt.Errorf("%d apps: %w", apps, err)
		}
		found = append(found, s)
	}

	fmt.Fprint(r.out, "\n### Many apps in one mount, raft storage\n\n")
	fmt.Fprintln(
		r.out,
		"| apps | created per s | listed in ms | first read, with a fetch: reads/s | from reload to first response, ms | "+
			"first read after it: reads/s | p50 ms | p99 ms | scraped in ms | scrape, MB | memory per app, bytes | "+
			"process before, MiB | after, MiB |",
	)
	fmt.Fprintln(r.out, "|--:|--:|---|--:|---|--:|--:|--:|---|--:|--:|--:|--:|")
	for _, s := range found {
		fmt.Fprintf(r.out, "| %d | %.0f | %s | %.0f | %s | %.0f | %.2f | %.2f | %s | %.2f | %s | %.0f | %.0f |\n",
			s.apps, float64(s.apps)/s.create.Seconds(), s.list, s.fetch.perSecond(), s.start, s.first.perSecond(),
			float64(s.first.quantile(50))/1000, float64(s.first.quantile(99))/1000, s.scrape, float64(s.weight)/1e6, s.perApp(),
			float64(s.resident.before)/(1<<20), float64(s.resident.after)/(1<<20))
	}
	one := found[0]
	for _, s := range found[1:] {
		r.bar(
			fmt.Sprintf("memory of each of %d apps, counted by the plugin", s.apps),
			fmt.Sprintf("at most %d bytes", mostPerApp),
			s.perApp()+" bytes",
			s.heap.perApp(s.apps) <= mostPerApp,
		)
		if s.apps <= 10_000 {
			r.bar(fmt.Sprintf("a scrape of %d apps", s.apps), "at most 100 ms", fmt.Sprintf("%.0f ms", s.scrape.median),
				s.scrape.median <= 100)
		}
		growth := s.start.median / one.start.median
		r.bar(
			fmt.Sprintf("from reload to first response with %d apps over with 1", s.apps),
			fmt.Sprintf("at most %.2f", startMayGrow),
			fmt.Sprintf("%.2f", growth),
			growth <= startMayGrow,
		)
	}
	return nil
}

func (s *scaled) perApp() string {
	if s.apps == 1 {
		return ""
	}
	return strconv.FormatInt(s.heap.perApp(s.apps), 10)
}

func (r *run) scaleTo(ctx context.Context, apps int) (result *scaled, err error) {
	r.log("scale: starting a Vault for %d apps", apps)
	s, err := startServer(ctx, r.env, storageRaft, map[string]string{pluginEngine: r.env.engine})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.mount(ctx, mountScale, pluginEngine, nil); err != nil {
		return nil, err
	}

	all := make([]app, apps)
	for i := range all {
		all[i] = app{mountScale, fmt.Sprintf("app-%06d", i), false, false}
	}
	result = &scaled{apps: apps}
	began := time.Now()
	if err := s.configure(ctx, all); err != nil {
		return nil, err
	}
	result.create = time.Since(began)

	r.log("scale: listing and reading %d apps", apps)
	if result.list, err = s.list(ctx, apps); err != nil {
		return nil, err
	}
	if result.fetch, err = s.readAll(ctx, all); err != nil {
		return nil, err
	}
	r.log("scale: restarting the plugin %d times", restarts)
	if result.start, err = s.restart(ctx, all); err != nil {
		return nil, err
	}

	r.log("scale: reading %d apps after the restart", apps)
	// As many reads of one app first, so that what requests take by themselves is there before and
	// after.
	same := make([]app, apps)
	for i := range same {
		same[i] = all[0]
	}
	if _, err := s.readAll(ctx, same); err != nil {
		return nil, err
	}
	if result.heap.before, result.resident.before, err = s.memory(ctx); err != nil {
		return nil, err
	}
	if result.first, err = s.readAll(ctx, all); err != nil {
		return nil, err
	}
	if result.heap.after, result.resident.after, err = s.memory(ctx); err != nil {
		return nil, err
	}
	result.scrape, result.weight, err = s.scrapes(ctx)
	return result, err
}

// scrapes reads the metrics some times and returns how many milliseconds that takes, and the bytes.
func (s *server) scrapes(ctx context.Context) (spread, int, error) {
	var took []float64
	weight := 0
	for range listings {
		began := time.Now()
		body, err := get(ctx, s.addr+"/v1/"+mountScale+"/metrics", s.root.Token())
		if err != nil {
			return spread{}, 0, err
		}
		took, weight = append(took, milliseconds(time.Since(began))), len(body)
	}
	return spreadOf(took), weight, nil
}

// list lists the apps some times and returns how many milliseconds that takes.
func (s *server) list(ctx context.Context, apps int) (spread, error) {
	var took []float64
	for range listings {
		began := time.Now()
		secret, err := s.root.Logical().ListWithContext(ctx, mountScale+"/config")
		if err != nil {
			return spread{}, err
		}
		took = append(took, milliseconds(time.Since(began)))
		if keys, _ := secret.Data["keys"].([]any); len(keys) != apps {
			return spread{}, fmt.Errorf("%d of %d apps are listed", len(keys), apps)
		}
	}
	return spreadOf(took), nil
}

// readAll reads each app once.
func (s *server) readAll(ctx context.Context, apps []app) (*measured, error) {
	order := rand.Perm(len(apps))
	m := &measured{latency: newHistogram()}
	var mu sync.Mutex
	began := time.Now()
	err := s.parallel(ctx, s.token, len(apps), func(c *connection, i int) error {
		a := apps[order[i]]
		sent := time.Now()
		if _, err := c.do(http.MethodGet, a.mount+"/creds/"+a.name, nil); err != nil {
			return err
		}
		took := time.Since(sent)
		mu.Lock()
		defer mu.Unlock()
		return m.latency.RecordValue(took.Microseconds())
	})
	m.took = time.Since(began)
	return m, err
}

// restart ends the plugin's process lets Vault start another, some times, and returns how many
// milliseconds pass until the first token is read.
func (s *server) restart(ctx context.Context, apps []app) (spread, error) {
	reader := newConnection(s.addr, s.token)
	defer reader.close()
	var took []float64
	for range restarts {
		before, err := child(s.proc.PID(), s.plugins[pluginEngine].path)
		if err != nil {
			return spread{}, err
		}
		began := time.Now()
		if _, err := s.root.Sys().
			ReloadPluginWithContext(ctx, &api.ReloadPluginInput{Plugin: pluginEngine}); err != nil {
			return spread{}, err
		}
		a := apps[rand.IntN(len(apps))]
		if _, err := reader.do(http.MethodGet, a.mount+"/creds/"+a.name, nil); err != nil {
			return spread{}, err
		}
		took = append(took, milliseconds(time.Since(began)))
		after, err := child(s.proc.PID(), s.plugins[pluginEngine].path)
		if err != nil {
			return spread{}, err
		}
		if before == after {
			return spread{}, errors.New("the reload did not start another process")
		}
	}
	return spreadOf(took), nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

var inUse = regexp.MustCompile(`(?m)^# (HeapInuse|Stack) = (\d+)`)

// memory returns how many bytes of heap and stack the plugin has in use after a garbage collection,
// and how many its process takes.
func (s *server) memory(ctx context.Context) (heap, resident int64, err error) {
	// What is finalized in one collection is freed in the next. The first response may be long in
	// coming: the process before had the port.
	var profile []byte
	for range 2 {
		err := s.proc.await(ctx, func() error {
			profile, err = get(ctx, "http://"+s.plugins[pluginEngine].pprof+"/debug/pprof/heap?debug=1&gc=1", "")
			return err
		})
		if err != nil {
			return 0, 0, err
		}
	}
	found := inUse.FindAllSubmatch(profile, -1)
	if len(found) != 2 {
		return 0, 0, errors.New("the plugin does not tell how much memory is in use")
	}
	for _, f := range found {
		n, err := strconv.ParseInt(string(f[2]), 10, 64)
		if err != nil {
			return 0, 0, err
		}
		heap += n
	}
	pid, err := child(s.proc.PID(), s.plugins[pluginEngine].path)
	if err != nil {
		return 0, 0, err
	}
	kib, err := subprocess.Status(pid, "VmRSS")
	return heap, kib << 10, err
}
