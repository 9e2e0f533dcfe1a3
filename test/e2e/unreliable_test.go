// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A simulator that makes one call in so many fail. It also records whose a token is, and until when
// the engine has one to serve.

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// serveLess is how long before its end a token is no longer served, and the time that a call may
// take to arrive.
const serveLess = 2*time.Second + time.Second

type unreliable struct {
	*harness.DingTalk
	lifetime time.Duration
	oneIn    int
	kinds    []string // of faults, which take turns

	mu     sync.Mutex
	random *rand.Rand
	truths map[string]*truth // by app key
	owners map[string]string // the app key by token
	calls  int
	turn   int            // of the kinds
	failed map[string]int // by the kind of fault
	broken []string       // what the engine must not do to DingTalk
}

// truth is what the engine can know of one app's token.
type truth struct {
	usableUntil time.Time // from when the last token was sent to when it is no longer served
	endsAt      time.Time
	underWay    int             // calls
	failed      int             // calls
	early       []time.Duration // the remaining TTL of the token at calls that were too early
}

// startUnreliableDingTalk runs a simulator behind a handler that makes one call in oneIn fail, by
// the seed.
func startUnreliableDingTalk(t *testing.T, lifetime time.Duration, oneIn int, seed uint64) *unreliable {
	t.Helper()
	u := &unreliable{
		lifetime: lifetime, oneIn: oneIn, random: rand.New(rand.NewPCG(seed, 0)),
		truths: map[string]*truth{}, owners: map[string]string{}, failed: map[string]int{},
		kinds: slices.DeleteFunc(simulator.FaultKinds(), func(kind string) bool {
			switch kind {
			case simulator.FaultBanned:
				return true // it would stop every app for five minutes, and is tested elsewhere
			case simulator.FaultSurplus,
				simulator.FaultHTTP2GoAway, simulator.FaultHTTP2Silent, simulator.FaultHTTP2Flood:
				return true // over HTTP/1.1 the token in them is a good one
			}
			return false
		}),
	}
	server := httptest.NewServer(u)
	u.DingTalk = &harness.DingTalk{Server: simulator.New(simulator.Options{TokenLifetime: lifetime}), URL: server.URL}
	t.Cleanup(func() {
		_ = u.Close() // first, so that no request is left without a response
		server.Close()
	})
	return u
}

func (u *unreliable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var credentials struct {
		AppKey string `json:"appKey"`
	}
	if err != nil || json.Unmarshal(body, &credentials) != nil {
		u.mu.Lock()
		u.broken = append(u.broken, "a request without credentials")
		u.mu.Unlock()
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))

	kind := u.begin(credentials.AppKey)
	defer u.end(credentials.AppKey)
	if kind != "" {
		// The app has no other call under way, which would be hit in its place.
		u.SetFault(credentials.AppKey, simulator.Fault{Kind: kind, Times: 1})
		u.Server.ServeHTTP(w, r)
		return
	}
	arrived := time.Now()
	u.Server.ServeHTTP(w, r)
	if r.Context().Err() == nil { // otherwise the engine has given up meanwhile
		u.given(credentials.AppKey, arrived)
	}
}

// begin counts a call and decides how it fails, if it does.
func (u *unreliable) begin(key string) (kind string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls++
	now, app := time.Now(), u.truth(key)
	if app.underWay++; app.underWay > 1 {
		u.broken = append(u.broken, "two calls for one app at once")
	}
	// Renewals and the background start at half of the lifetime.
	if left := app.endsAt.Sub(now); left > u.lifetime/2+time.Second {
		app.early = append(app.early, left)
	}
	if u.random.IntN(u.oneIn) == 0 {
		kind = u.kinds[u.turn%len(u.kinds)]
		u.turn++
		u.failed[kind]++
		app.failed++
	}
	return kind
}

func (u *unreliable) end(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.truth(key).underWay--
}

// given notes that a good response was sent.
func (u *unreliable) given(key string, arrived time.Time) {
	token := u.LastToken(key)
	harness.NoteSecret(token, "an access token")
	u.mu.Lock()
	defer u.mu.Unlock()
	u.owners[token] = key
	app := u.truth(key)
	app.endsAt = arrived.Add(u.lifetime)
	app.usableUntil = app.endsAt.Add(-serveLess)
}

// truth is the app's; it is called with u.mu held.
func (u *unreliable) truth(key string) *truth {
	if u.truths[key] == nil {
		u.truths[key] = &truth{}
	}
	return u.truths[key]
}

// usableUntil is until when the engine must serve the token that it has by now. It is a past time
// if there is none.
func (u *unreliable) usableUntil(key string) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.truth(key).usableUntil
}

// earlyCalls are the calls for a token with more than half of its TTL remaining, next to how many
// were made to fail.
func (u *unreliable) earlyCalls(key string) (remaining []time.Duration, failed int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.truth(key).early, u.truth(key).failed
}

// owner is the app that a token belongs to.
func (u *unreliable) owner(token string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.owners[token]
}

func (u *unreliable) counts() (calls, failed int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, n := range u.failed {
		failed += n
	}
	return u.calls, failed
}
