// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is the apps of a mount: those in memory, and the lock over each one's storage with what
// is done under it.

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
)

// registry holds the apps of one mount.
type registry struct {
	client     *client
	log        hclog.Logger
	life       *lifecycle
	background background
	measures   *measures

	// apps has an *app by name. It alone decides which generation of an app is served. A read takes
	// no lock.
	apps sync.Map

	// stripes are the locks over storage. Each name has one of them, so that an unknown name takes
	// no memory.
	stripes [256]stripe
	seed    maphash.Seed
}

// stripe is the lock over the storage of the names that share it.
type stripe struct {
	held chan struct{} // holds one value while the lock is held

	// changes counts the changes that other nodes have made to storage. An app is installed in
	// memory only if nothing has changed since its storage was read.
	mu      sync.Mutex // over changes, and over apps where changes decide; never held over anything that waits
	changes int
}

func newRegistry(c *client, log hclog.Logger) *registry {
	r := &registry{client: c, log: log, life: newLifecycle(), measures: newMeasures(), seed: maphash.MakeSeed()}
	c.fetched = r.measures.fetched
	for i := range r.stripes {
		r.stripes[i].held = make(chan struct{}, 1)
	}
	r.background.lastSweep = time.Now()
	return r
}

// unknownAppError is a request for an app that is not configured.
type unknownAppError struct{ app string }

func (e *unknownAppError) Error() string { return fmt.Sprintf("app %q is not configured", e.app) }

func (r *registry) stripe(name string) *stripe {
	return &r.stripes[maphash.String(r.seed, name)%uint64(len(r.stripes))]
}

// lock waits for the lock over an app's storage as long as the context allows.
func (r *registry) lock(ctx context.Context, name string) (unlock func(), err error) {
	held := r.stripe(name).held
	select {
	case held <- struct{}{}:
		return func() { <-held }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("app %q: waiting for its storage: %w", name, ctx.Err())
	}
}

// changes returns the count that install compares.
func (r *registry) changes(name string) int {
	st := r.stripe(name)
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.changes
}

// install puts a into memory, in place of any other app of its name, unless storage has changed
// since seen. It reports whether it did. It is called with the app's lock held.
func (r *registry) install(a *app, seen int) bool {
	st := r.stripe(a.name)
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.changes != seen {
		return false
	}
	if old, ok := r.apps.Swap(a.name, a); ok {
		old.(*app).retire()
	}
	return true
}

// invalidate drops an app from memory because another node has changed its storage. It never
// blocks, and a load that is under way does not bring the old state back.
func (r *registry) invalidate(name string) {
	st := r.stripe(name)
	st.mu.Lock()
	st.changes++
	st.mu.Unlock()
	r.forget(name)
}

// forget drops the app of that name from memory, whichever it is.
func (r *registry) forget(name string) {
	if a := r.inMemory(name); a != nil {
		r.drop(a)
	}
}

// drop drops this app from memory, and no other of its name.
func (r *registry) drop(a *app) {
	r.apps.CompareAndDelete(a.name, a)
	a.retire()
}

// holds reports whether a is the app in memory for its name.
func (r *registry) holds(a *app) bool { return r.inMemory(a.name) == a }

// inMemory returns the app if it is in memory, otherwise nil.
func (r *registry) inMemory(name string) *app {
	if v, ok := r.apps.Load(name); ok {
		return v.(*app)
	}
	return nil
}

// app returns the app, loading it from storage if it is not in memory. The error is an
// *unknownAppError or storage's.
func (r *registry) app(ctx context.Context, s logical.Storage, name string) (*app, error) {
	if a := r.inMemory(name); a != nil {
		return a, nil
	}
	unlock, err := r.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for ctx.Err() == nil {
		if a := r.inMemory(name); a != nil {
			return a, nil
		}
		seen := r.changes(name)
		a, err := r.load(ctx, s, name)
		if err != nil {
			return nil, err
		}
		if r.install(a, seen) {
			return a, nil
		}
	}
	return nil, fmt.Errorf("app %q: loading it from storage: %w", name, ctx.Err())
}

// load returns the app that is in storage, without installing it. Its errors are those of app.
func (r *registry) load(ctx context.Context, s logical.Storage, name string) (*app, error) {
	config, err := readConfig(ctx, s, name)
	if err != nil {
		return nil, err
	}
	if config == nil {
		return nil, &unknownAppError{app: name}
	}
	a := r.newApp(name, config)
	t, err := a.readToken(ctx, s)
	a.token.Store(t)
	return a, err
}

// newApp returns an app for a configuration, without installing it.
func (r *registry) newApp(name string, c *appConfig) *app {
	// The count of successes exists from the start: to Prometheus, a counter that appears with 1
	// has not increased.
	a := &app{name: name, registry: r, fetches: map[string]uint64{resultGiven: 0}}
	a.config.Store(c.withoutSecret())
	a.usedAt.Store(time.Now().Unix())
	return a
}

// get returns an app's token as the caller wants it, as app.get does. It waits for the app's
// request_timeout at most.
func (r *registry) get(
	ctx context.Context, s logical.Storage, name string, w want,
) (a *app, t *token, warning, err error) {
	if a, err = r.app(ctx, s, name); err != nil {
		return nil, nil, nil, err
	}
	now := time.Now()
	if t := a.token.Load(); a.meets(t, now, w) {
		return a, t, nil, nil
	}
	a.touch(now, false) // even without a token: the app must stay in memory until the back-off is over
	ctx, cancel := a.patience(ctx, w.timeout)
	defer cancel()
	for {
		t, warning, err = a.get(ctx, s, w)
		if !errors.Is(err, errGone) {
			return a, t, warning, err
		}
		r.drop(a) // otherwise the next round could get it again
		if a, err = r.app(ctx, s, name); err != nil {
			return nil, nil, nil, err
		}
	}
}

// storeToken stores a fetched token. It returns errGone if the app has left memory. If storage
// fails or is slow, it logs that and returns no error, since the token is valid.
func (r *registry) storeToken(a *app, s logical.Storage, t *token) error {
	ctx, cancel := context.WithTimeout(r.life.ctx, storeBudget)
	defer cancel()
	unlock, err := r.lock(ctx, a.name)
	if err == nil {
		defer unlock()
		if !r.holds(a) {
			return errGone
		}
		err = a.writeToken(ctx, s, t)
	}
	if err != nil && r.life.ctx.Err() == nil {
		r.log.Warn("a fetched token could not be stored: it is served from memory, and after a restart another is fetched",
			"app", a.name, "error", err)
	}
	return nil
}

// commit changes what is stored of an app, under its lock. The change does not end with the
// request: over gRPC a put returns when its context ends, but Vault's own put continues and can
// take effect later, without memory following it. So the change runs until storage has confirmed
// it, or the mount ends. The caller waits for storeBudget at most. If the error is the request
// context's own, nothing was changed.
func (r *registry) commit(
	ctx context.Context, name string, change func(toTheEnd context.Context) (warning string, err error),
) (warning string, err error) {
	unlock, err := r.lock(ctx, name)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		unlock()
		return "", err
	}
	type outcome struct {
		warning string
		err     error
	}
	ended := make(chan outcome, 1)
	if !r.life.run(func() {
		warning, err := change(r.life.ctx)
		unlock()
		ended <- outcome{warning, err}
	}) {
		unlock()
		return "", errShuttingDown
	}
	patience := time.NewTimer(storeBudget)
	defer patience.Stop()
	select {
	case o := <-ended:
		return o.warning, o.err
	case <-patience.C:
		return "", fmt.Errorf("app %q: storage has not confirmed the change within %s, and it may take effect later: "+
			"read its configuration before you try again", name, storeBudget)
	}
}

// verify fetches the first token of a new generation, before anything is stored. It ignores the
// back-off, since the operator may have fixed something, but honors cooldowns.
func (r *registry) verify(ctx context.Context, name string, next *appConfig) (t *token, calls int, err error) {
	var known *token
	if a := r.inMemory(name); a != nil {
		known = a.token.Load()
	}
	fetching, cancel := context.WithTimeout(ctx, next.RequestTimeout)
	defer cancel()
	stop := context.AfterFunc(r.life.ctx, cancel)
	defer stop()
	t, calls, failure := r.client.fetch(fetching, next.credentials(), known)
	switch {
	case failure == nil:
		return t, calls, nil
	case r.life.ctx.Err() != nil:
		return nil, calls, errShuttingDown
	case ctx.Err() != nil:
		return nil, calls, ctx.Err()
	}
	r.log.Debug("verifying credentials failed", "app", name, "class", string(failure.class),
		"code", failure.code, "request_id", failure.requestID, "cause", failure.cause)
	return nil, calls, &tokenError{
		fetchError: failure, app: name, config: next.withoutSecret(), nextAttempt: failure.cooldown,
	}
}

// configure puts a configuration into storage, then into memory. For a new generation, verified is
// its first token, or nil. It is called within a commit. The warning says what went wrong after the
// configuration was stored.
func (r *registry) configure(
	ctx context.Context, s logical.Storage, name string, next *appConfig, newGeneration bool, verified *token, calls int,
) (warning string, err error) {
	seen := r.changes(name)
	if err := writeConfig(ctx, s, name, next); err != nil {
		r.forget(name) // the write may have taken effect: storage decides
		return "", err
	}
	old := r.inMemory(name)
	if !newGeneration {
		if old != nil {
			old.config.Store(next.withoutSecret())
		}
		return "", nil
	}
	a := r.newApp(name, next)
	if old != nil {
		a.warned = old.retire()
	}
	if verified != nil {
		a.count(calls, nil)
		a.publish(verified)()
		err = a.writeToken(ctx, s, verified)
	} else {
		err = s.Delete(ctx, tokenPrefix+name) // of the previous generation, which would not be used
	}
	if err != nil && r.life.ctx.Err() == nil {
		r.log.Warn("the app is configured, but its stored token could not be updated: "+
			"after a restart another is fetched", "app", name, "error", err)
		warning = "The configuration was stored, but its token was not: " +
			"after a restart another will be fetched."
	}
	if !r.install(a, seen) {
		r.forget(name)
	}
	return warning, nil
}

// agree makes sure that memory has the configuration that is in storage. A write that was reported
// as failed may have taken effect.
func (r *registry) agree(name string, stored *appConfig) {
	if a := r.inMemory(name); a != nil && !a.config.Load().equal(stored.withoutSecret()) {
		r.drop(a)
	}
}

// remove deletes an app: first its configuration, then its token, so that a token without a
// configuration is all that can be left over. It is called within a commit.
func (r *registry) remove(ctx context.Context, s logical.Storage, name string) error {
	err := s.Delete(ctx, configPrefix+name)
	r.forget(name) // the delete may have taken effect even if it failed: storage decides
	if err != nil {
		return fmt.Errorf("app %q: deleting its configuration from storage: %w", name, err)
	}
	if err := s.Delete(ctx, tokenPrefix+name); err != nil {
		return fmt.Errorf("app %q is deleted, but its stored token is not; it is never served: delete the app "+
			"again, or wait for the engine to remove the token within two hours: %w", name, err)
	}
	return nil
}
