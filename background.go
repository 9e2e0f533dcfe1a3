// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is what runs beside requests: refreshing tokens ahead, dropping idle apps from memory,
// removing stored tokens that no configuration owns; and the life of the goroutines.

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/errgroup"
)

const (
	aheadAtOnce   = 8                     // tokens that are refreshed ahead at a time for each host
	passInterval  = time.Minute           // between two passes: Vault calls the periodic function so often
	sweepInterval = time.Hour             // between removals of stored tokens that no configuration owns
	sweepTimeout  = time.Minute           // of one such removal
	closeTimeout  = 50 * time.Millisecond // the wait for goroutines at the end, under Vault's locks
)

// background is what one pass leaves for the next.
type background struct {
	hosts     sync.Map   // those whose tokens are being refreshed ahead, by base URL
	mu        sync.Mutex // over lastSweep
	lastSweep time.Time
}

// tick starts one pass in the background and returns at once: Vault holds its state lock meanwhile.
func (r *registry) tick(s logical.Storage) {
	r.life.run(func() { r.pass(s) })
	now := time.Now()
	r.background.mu.Lock()
	defer r.background.mu.Unlock()
	if now.Sub(r.background.lastSweep) >= sweepInterval {
		r.background.lastSweep = now
		r.life.run(func() { r.sweep(s) })
	}
}

// pass drops idle apps from memory, and starts refreshes of the tokens in use that are due soon.
func (r *registry) pass(s logical.Storage) {
	now := time.Now()
	due := map[string][]*app{}
	r.apps.Range(func(_, v any) bool {
		switch a := v.(*app); {
		case a.wantsRefreshAhead(now):
			host := a.config.Load().BaseURL
			due[host] = append(due[host], a)
		case a.evict(now):
			r.drop(a)
		}
		return true
	})
	r.measures.passes.Observe(time.Since(now).Seconds())
	for host, apps := range due {
		if _, underWay := r.background.hosts.LoadOrStore(host, nil); underWay {
			continue // since the pass before: a host that hangs delays no other
		}
		if !r.life.run(func() {
			defer r.background.hosts.Delete(host)
			r.refreshAll(s, apps)
		}) {
			return
		}
	}
}

// refreshAll refreshes the tokens of one host's apps, the soonest to end first, and waits for the
// last.
func (r *registry) refreshAll(s logical.Storage, apps []*app) {
	slices.SortFunc(apps, func(a, b *app) int { return a.token.Load().expiresAt.Compare(b.token.Load().expiresAt) })
	var group errgroup.Group
	group.SetLimit(aheadAtOnce)
	for _, a := range apps {
		if r.life.ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			ctx, cancel := a.patience(r.life.ctx, 0)
			defer cancel()
			r.measures.ahead.Inc()
			_, _, _ = a.get(ctx, s, want{ahead: true}) // what went wrong is remembered and logged
			return nil
		})
	}
	_ = group.Wait()
}

// sweep removes stored tokens that no configuration owns, such as a delete that was cut short
// leaves.
func (r *registry) sweep(s logical.Storage) {
	ctx, cancel := context.WithTimeout(r.life.ctx, sweepTimeout)
	defer cancel()
	warn := func(text string, args ...any) {
		if r.life.ctx.Err() == nil { // the end of a mount is no failure
			r.log.Warn(text+": the next try is in an hour", args...)
		}
	}
	tokens, err := s.List(ctx, tokenPrefix)
	configs, configErr := s.List(ctx, configPrefix)
	if err := errors.Join(err, configErr); err != nil {
		warn("looking for tokens without a config failed", "error", err)
		return
	}
	slices.Sort(configs)
	owned := func(name string) bool { _, found := slices.BinarySearch(configs, name); return found }
	for _, name := range slices.DeleteFunc(tokens, owned) {
		if err := r.removeOrphan(ctx, s, name); err != nil {
			warn("removing a token without a config failed", "app", name, "error", err)
		}
	}
}

func (r *registry) removeOrphan(ctx context.Context, s logical.Storage, name string) error {
	unlock, err := r.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	config, err := s.Get(ctx, configPrefix+name)
	if err != nil || config != nil {
		return err
	}
	return s.Delete(ctx, tokenPrefix+name)
}

// lifecycle owns every goroutine of a mount.
type lifecycle struct {
	// ctx ends with the mount. It derives from nothing: the factory's context ends with the
	// factory.
	ctx    context.Context //nolint:containedctx // it is the mount's life
	cancel context.CancelFunc

	mu     sync.Mutex // over ctx ending, and active growing
	active sync.WaitGroup
}

func newLifecycle() *lifecycle {
	ctx, cancel := context.WithCancel(context.Background())
	return &lifecycle{ctx: ctx, cancel: cancel}
}

// run runs f in a goroutine, unless the life has ended.
func (l *lifecycle) run(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return false
	}
	l.active.Go(f)
	return true
}

// close ends the life and waits a little for its goroutines, which all heed ctx. It may be called
// again.
func (l *lifecycle) close() {
	l.mu.Lock()
	l.cancel()
	l.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		l.active.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(closeTimeout):
	}
}
