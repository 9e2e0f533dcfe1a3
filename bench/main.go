// SPDX-License-Identifier: MPL-2.0

// The command bench measures what reading tokens costs in a real Vault, next to a plugin that does
// nothing, and how the engine takes to many apps. It starts all it needs on loopback, prints tables
// in Markdown and whether the bars were met, and removes everything. Run it as `make bench`; see
// docs/benchmarks.md for what the figures mean.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The parts of a run, in their order.
const (
	partInmem  = "inmem"
	partRaft   = "raft"
	partAudit  = "audit"
	partProxy  = "proxy"
	partOpen   = "open"
	partHung   = "hung"
	partScrape = "scrape"
	partScale  = "scale"
)

var allParts = []string{partInmem, partRaft, partAudit, partProxy, partOpen, partHung, partScrape, partScale}

// options are what a run is told.
type options struct {
	parts      []string
	rounds     int
	slice      time.Duration
	apps       int
	scale      []int
	histograms string
	profiles   string
}

func (o *options) has(part string) bool { return slices.Contains(o.parts, part) }

func main() {
	// A reader of the output that has gone ends the run as well, with all that it started.
	ctx, stop := signal.NotifyContext(
		context.Background(),
		os.Interrupt,
		syscall.SIGTERM,
		syscall.SIGHUP,
		syscall.SIGPIPE,
	)
	err := bench(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, args []string) (err error) {
	opts, env, err := parse(args)
	if err != nil {
		return err
	}
	if env.work, err = os.MkdirTemp("", "dingtalk-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(env.work)) }()
	// Vault compares the resolved paths of its plugin directory and the program.
	if env.work, err = filepath.EvalSymlinks(env.work); err != nil {
		return err
	}
	r := &run{options: opts, env: env, out: os.Stdout, began: time.Now()}
	return r.all(ctx)
}

func parse(args []string) (*options, *environment, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	here := filepath.Dir(self)
	env := &environment{noop: filepath.Join(here, "noop"), engine: filepath.Join(here, "engine")}
	opts := &options{}

	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(
		&env.vault,
		"vault",
		os.Getenv("VAULT_BIN"),
		"Vault's program; by default VAULT_BIN of the environment",
	)
	flags.StringVar(
		&env.plugin,
		"plugin",
		filepath.Join(here, "..", "vault-plugin-secrets-dingtalk"),
		"the plugin's binary",
	)
	parts := flags.String("parts", strings.Join(allParts, ","), "what to measure")
	quick := flags.Bool(
		"quick",
		false,
		"a minute's run, to see that all works and roughly where things stand: its bars say little",
	)
	flags.IntVar(&opts.rounds, "rounds", 15, "how often each path is measured")
	flags.DurationVar(&opts.slice, "slice", time.Second, "for how long each time")
	flags.IntVar(&opts.apps, "apps", 10_000, "how many apps are read at random")
	scale := flags.String("scale", "10000,100000", "the numbers of apps of the part scale; it also measures 1 app")
	flags.StringVar(
		&opts.histograms,
		"histograms",
		"",
		"a directory to write every path's latencies to, as percentile distributions",
	)
	flags.StringVar(
		&opts.profiles,
		"profiles",
		"",
		"a directory to write CPU profiles of Vault and of the plugins to; the plugin is then one built with profiling",
	)
	if err := flags.Parse(args); err != nil {
		return nil, nil, err
	}
	if flags.NArg() > 0 {
		return nil, nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *quick {
		// A flag that is given also stands.
		given := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, value := range map[string]string{
			"rounds": "3", "slice": "300ms", "apps": "500", "scale": "1000", "parts": "inmem,audit,proxy,open,hung,scrape,scale",
		} {
			if !given[name] {
				if err := flags.Set(name, value); err != nil {
					return nil, nil, err
				}
			}
		}
	}
	opts.parts = strings.Split(*parts, ",")
	for _, part := range opts.parts {
		if !slices.Contains(allParts, part) {
			return nil, nil, fmt.Errorf(
				"-parts: there is no part %q; the parts are %s",
				part,
				strings.Join(allParts, ","),
			)
		}
	}
	for text := range strings.SplitSeq(*scale, ",") {
		var n int
		if _, err := fmt.Sscan(text, &n); err != nil || n < 1 {
			return nil, nil, fmt.Errorf("-scale: %q is not a number of apps", text)
		}
		opts.scale = append(opts.scale, n)
	}
	if opts.rounds < 1 || opts.slice <= 0 || opts.apps < 1 {
		return nil, nil, errors.New("-rounds, -slice and -apps must be positive")
	}
	if env.vault == "" {
		return nil, nil, errors.New("no Vault given: run make bench, or set VAULT_BIN")
	}
	if opts.profiles != "" {
		env.plugin = env.engine
	}
	for _, program := range []*string{&env.vault, &env.plugin, &env.noop, &env.engine} {
		if *program, err = filepath.Abs(*program); err != nil {
			return nil, nil, err
		}
		if _, err := os.Stat(*program); err != nil {
			return nil, nil, fmt.Errorf("%w: run make bench, which builds what is missing", err)
		}
	}
	return opts, env, nil
}

// bar is something that must be reached.
type bar struct {
	what, want, got string
	met             bool
}

func (r *run) bar(what, want, got string, met bool) {
	r.bars = append(r.bars, bar{what, want, got, met})
}

// mostP99 is the p99 over that of what it is compared with.
const mostP99 = 1.10

// atLeast and p99AtMost judge the median of the rounds.
func (r *run) atLeast(what string, want float64, got spread) {
	r.bar(what, fmt.Sprintf("at least %.2f", want), got.String(), got.median >= want)
}

func (r *run) p99AtMost(what string, got spread) {
	r.bar(what, fmt.Sprintf("at most %.2f", mostP99), got.String(), got.median > 0 && got.median <= mostP99)
}

func (r *run) printBars() {
	if len(r.bars) == 0 {
		return
	}
	fmt.Fprint(r.out, "\n### Bars\n\n| what | bar | measured | |\n|---|---|---|---|\n")
	for _, b := range r.bars {
		verdict := "met"
		if !b.met {
			verdict = "**missed**"
		}
		fmt.Fprintf(r.out, "| %s | %s | %s | %s |\n", b.what, b.want, b.got, verdict)
	}
}

func (r *run) printHeader(ctx context.Context) error {
	version, err := exec.CommandContext(ctx, r.env.vault, "version").Output()
	if err != nil {
		return fmt.Errorf("%s version: %w", r.env.vault, err)
	}
	number, _, _ := strings.Cut(string(version), ",")
	fmt.Fprintf(r.out, "%s, %s, %d cores; %d connections, %d rounds of %s for each path.\n",
		strings.TrimSpace(number), runtime.Version(), runtime.NumCPU(), connections, r.rounds, r.slice)
	return nil
}
