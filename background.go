// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is what runs in the background: refreshing tokens ahead, dropping idle apps from
// memory, removing orphaned tokens from storage; and the lifecycle of the goroutines.

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
	aheadAtOnce   = 8                     // tokens of one host that are refreshed ahead at a time
	passInterval  = time.Minute           // between two passes: how often Vault calls the periodic function
	sweepInterval = time.Hour             // between two removals of stored tokens without a configuration
	sweepTimeout  = time.Minute           // of one such removal
	closeTimeout  = 50 * time.Millisecond // the wait for goroutines when the mount ends, under Vault's locks
)

// background is the state between two passes.
type background struct {
	hosts     sync.Map   // base URLs whose tokens are being refreshed ahead
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

// pass drops idle apps from memory, and starts to refresh tokens ahead.
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
			continue // since the previous pass: a host that hangs delays no other
		}
		if !r.life.run(func() {
			defer r.background.hosts.Delete(host)
			r.refreshAll(s, apps)
		}) {
			return
		}
	}
}

// refreshAll refreshes the tokens of one host's apps, the first to expire first, and waits for all
// of them.
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
			_, _, _ = a.get(ctx, s, want{ahead: true}) // a failure is recorded and logged
			return nil
		})
	}
	_ = group.Wait()
}

// sweep removes stored tokens without a configuration, which an interrupted delete leaves behind.
func (r *registry) sweep(s logical.Storage) {
	ctx, cancel := context.WithTimeout(r.life.ctx, sweepTimeout)
	defer cancel()
	warn := func(text string, args ...any) {
		if r.life.ctx.Err() == nil { // the end of a mount is not a failure
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
	// ctx ends with the mount. It has no parent: the factory's context ends with the factory.
	ctx    context.Context //nolint:containedctx // it is the mount's lifetime
	cancel context.CancelFunc

	mu     sync.Mutex // over the end of ctx, and over active growing
	active sync.WaitGroup
}

func newLifecycle() *lifecycle {
	ctx, cancel := context.WithCancel(context.Background())
	return &lifecycle{ctx: ctx, cancel: cancel}
}

// run runs f in a goroutine, unless the mount has ended. It reports whether it did.
func (l *lifecycle) run(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return false
	}
	l.active.Go(f)
	return true
}

// close ends the context and waits for the goroutines, which all end with it, for closeTimeout at
// most. It may be called again.
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
