// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A real Vault Proxy with the configuration in examples/proxy, which serves reads from its cache. A
// reader must get a token that DingTalk accepts at that moment, while Vault sees few leases and
// DingTalk few calls, whatever happens behind the Proxy.

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/internal/subprocess"
	"vault-plugin-secrets-dingtalk/test/harness"
)

const (
	proxiedLifetime = 30 * time.Second

	// renewedWithin is when Proxy has renewed a lease of this lifetime at the latest, if the token was
	// extended as the lease was made or last renewed: at two thirds of it, and up to a fifteenth for
	// spreading. The rest is for a busy machine.
	renewedWithin = proxiedLifetime*11/15 + 6*time.Second

	// minRemaining is the lowest remaining TTL of a cached token: Proxy gives up a lease in the last
	// tenth.
	minRemaining = proxiedLifetime / 10
)

// cachingProxy is a running Vault Proxy in front of one app.
type cachingProxy struct {
	*vaultClient
	a       *harness.App
	address string
	client  *api.Client // without retries, and without a token
}

func startCachingProxy(t *testing.T, a *harness.App) *cachingProxy {
	t.Helper()
	v, dir := a.Mount.Vault, t.TempDir()
	newRole(t, v, dir, harness.RunnableExample(t, "proxy/policy.hcl", map[string]string{
		harness.ExampleCreds: a.CredsPath(), "dingtalk/refresh/myapp": a.RefreshPath(),
	}))
	port, err := subprocess.ServerPorts.Free()
	require.NoError(t, err)
	p := &cachingProxy{a: a, address: "127.0.0.1:" + strconv.Itoa(port)}
	p.vaultClient = startVaultClient(t, "proxy", dir, harness.RunnableExample(t, "proxy/proxy.hcl", map[string]string{
		harness.ExampleVault: v.Addr, "/etc/vault-proxy": dir, "127.0.0.1:8100": p.address,
	}))
	p.client, err = v.NewClient("")
	require.NoError(t, err)
	require.NoError(t, p.client.SetAddress("http://"+p.address))
	harness.WaitFor(t, 30*time.Second, "the Proxy has logged in", func() bool {
		require.True(t, p.proc.Running(), "the Proxy runs")
		_, err := p.client.Auth().Token().LookupSelf()
		return err == nil
	})
	return p
}

// proxied is a response of the Proxy.
type proxied struct {
	token, lease string
	ttl          time.Duration
	cached       bool
	age          time.Duration // since the Proxy got it
}

func (p *cachingProxy) read() (proxied, error) {
	response, err := p.client.Logical().ReadRaw(p.a.CredsPath())
	if err != nil {
		return proxied{}, err
	}
	defer response.Body.Close()
	secret, err := api.ParseSecret(response.Body)
	if err != nil {
		return proxied{}, err
	}
	harness.NoteSecret(harness.TokenIn(secret), "an access token")
	age, _ := strconv.Atoi(response.Header.Get("Age"))
	return proxied{
		token: harness.TokenIn(secret), lease: secret.LeaseID, ttl: leaseTTL(secret),
		cached: response.Header.Get("X-Cache") == "HIT", age: time.Duration(age) * time.Second,
	}, nil
}

func (p *cachingProxy) mustRead(t *testing.T) proxied {
	t.Helper()
	got, err := p.read()
	require.NoError(t, err)
	require.NotEmpty(t, got.token)
	return got
}

// awaitRenewal waits for the renewal that the Proxy makes at once of a lease that it caches: made
// later, on a machine that is busy, it would find that the token was replaced and drop the copy.
func (p *cachingProxy) awaitRenewal(t *testing.T, lease string) {
	t.Helper()
	harness.WaitFor(t, 20*time.Second, "the Proxy has renewed the lease", func() bool {
		secret, err := p.a.Mount.Vault.Root.Sys().Lookup(lease)
		return err == nil && secret.Data["last_renewal"] != nil
	})
}

// refresh is what a reader does whose token is refused: it asks for another one.
func (p *cachingProxy) refresh(t *testing.T) {
	t.Helper()
	_, err := p.client.Logical().Write(p.a.RefreshPath(), nil)
	require.NoError(t, err, "refresh through the Proxy")
}

// revoke revokes a lease through the Proxy. Vault's response follows that, as it does by default,
// or before.
func (p *cachingProxy) revoke(t *testing.T, lease string, wait bool) {
	t.Helper()
	_, err := p.client.Logical().Write("sys/leases/revoke", harness.Fields{"lease_id": lease, "sync": wait})
	require.NoError(t, err, "revoke through the Proxy")
}

// proxyReaders read through a Proxy all the time and keep account of what they get.
type proxyReaders struct {
	*readers
	p *cachingProxy

	mu        sync.Mutex
	responses int
	cached    int
	leases    map[string]bool
	tokens    map[string]time.Time // when the last read began that was given it
	dead      []time.Time          // when reads began that were given a token that DingTalk refuses
	errors    []readError
	least     time.Duration // the lowest remaining TTL of a token that was given
}

type readError struct {
	from, to time.Time
	text     string
}

// startProxyReaders starts four readers with forty reads a second each.
func startProxyReaders(t *testing.T, p *cachingProxy) *proxyReaders {
	t.Helper()
	r := &proxyReaders{p: p, leases: map[string]bool{}, tokens: map[string]time.Time{}, least: proxiedLifetime}
	r.readers = startReaders(t, 4, 25*time.Millisecond, func(int, int) { r.readOnce() })
	return r
}

func (r *proxyReaders) readOnce() {
	from := time.Now()
	got, err := r.p.read()
	to, left := time.Now(), r.p.a.DingTalk.Remaining(got.token)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.errors = append(r.errors, readError{from, to, err.Error()})
		return
	}
	r.responses++
	if got.cached {
		r.cached++
	}
	r.leases[got.lease] = true
	if from.After(r.tokens[got.token]) {
		r.tokens[got.token] = from
	}
	r.least = min(r.least, left)
	if left <= 0 {
		r.dead = append(r.dead, from)
	}
}

// gotSince reports whether a read that began since then was given the token.
func (r *proxyReaders) gotSince(since time.Time, token string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tokens[token].After(since)
}

// responsesNow counts the responses up to now.
func (r *proxyReaders) responsesNow() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.responses
}

// requireNoneDead checks that every response had a token that lived then.
func (r *proxyReaders) requireNoneDead(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Empty(t, r.dead, "when reads began that were given a token that DingTalk refuses")
}

// requireErrorsWithin checks that no read failed but for those that overlap a span of time.
func (r *proxyReaders) requireErrorsWithin(t *testing.T, from, to time.Time) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.errors {
		if e.from.After(to) || e.to.Before(from) {
			t.Fatalf("a read failed with nothing amiss: %s", harness.Mask(e.text))
		}
	}
}

// requireFew checks what two minutes of reads may take, and says what they took.
func (r *proxyReaders) requireFew(t *testing.T, calls int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Logf("%d responses, %d of them cached, %d errors, %d leases, %d tokens, %d calls upstream, lowest remaining TTL %s",
		r.responses, r.cached, len(r.errors), len(r.leases), len(r.tokens), calls, r.least.Round(100*time.Millisecond))
	require.Greater(t, r.responses, 4000, "responses")
	// At each new token, Proxy lets a few readers through until it has a copy; a busy machine, more.
	require.LessOrEqual(t, len(r.leases), 12, "leases")
	require.LessOrEqual(t, calls, 10, "calls upstream")
	require.GreaterOrEqual(t, r.cached, r.responses-4*len(r.leases), "all but the first response of each lease are cached")
}

// awaitToken waits until the readers get the token that DingTalk returned last, if that is another
// than before.
func (r *proxyReaders) awaitToken(t *testing.T, bound time.Duration, before string) string {
	t.Helper()
	dt, key := r.p.a.DingTalk, r.p.a.Key
	began := time.Now()
	harness.WaitFor(t, bound, "readers get another token", func() bool {
		token := dt.LastToken(key)
		return token != before && r.gotSince(began, token)
	})
	return dt.LastToken(key)
}

func TestVaultProxy_takes_few_leases_and_calls_for_two_minutes_of_reads(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, proxiedLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	p := startCachingProxy(t, a)
	first := p.mustRead(t)
	require.GreaterOrEqual(t, first.ttl, proxiedLifetime-leaseSlack)

	r := startProxyReaders(t, p)
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		got := p.mustRead(t)
		if got.lease == first.lease {
			// The response is repeated to the letter: its lease_duration is that of the first, its age
			// grows.
			require.Equal(t, first.ttl, got.ttl)
			require.True(t, got.cached)
		}
		r.requireNoneDead(t)
	}
	r.end()

	last := p.mustRead(t)
	harness.RequireSameToken(t, last.token, first.token)
	require.Greater(t, r.least, minRemaining, "the lowest remaining TTL of a token that was given")
	r.requireErrorsWithin(t, time.Time{}, time.Time{})
	r.requireFew(t, a.Calls())
	for _, lease := range a.Leases(t) {
		require.Contains(t, r.leases, a.CredsPath()+"/"+lease, "a lease that no reader was given")
	}
	if last.lease == first.lease {
		require.GreaterOrEqual(t, last.age, 2*time.Minute-2*time.Second, "the Age of the response")
	}
}

func TestVaultProxy_answers_live_across_a_replaced_token_a_restart_and_a_change_of_secret(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageRaft})
	dt := harness.StartDingTalk(t, proxiedLifetime)
	a := v.Enable(t).NewApp(t, dt, nil)
	p := startCachingProxy(t, a)
	end := time.Now().Add(2 * time.Minute)
	token := p.mustRead(t).token
	r := startProxyReaders(t, p)

	// DingTalk returns another token at the next renewal. The old one lives on to its end.
	dt.RotateTokens(a.Key, true)
	token = r.awaitToken(t, renewedWithin, token)
	dt.RotateTokens(a.Key, false)

	// Vault restarts while the copy is good: the readers do not notice.
	harness.WaitFor(
		t,
		proxiedLifetime,
		"the token has more than half of its TTL remaining",
		func() bool { return dt.Remaining(token) > proxiedLifetime/2 },
	)
	down, responses := time.Now(), r.responsesNow()
	require.NoError(t, v.Stop())
	harness.WaitFor(
		t,
		10*time.Second,
		"readers get responses while Vault is down",
		func() bool { return r.responsesNow() > responses+20 },
	)
	v.StartAgain(t)
	calls, up := a.Calls(), time.Now()
	harness.WaitFor(t, proxiedLifetime, "the Proxy has the token extended", func() bool { return a.Calls() > calls })

	// The app gets another secret, at DingTalk and then in Vault, and with it another token.
	dt.RotateTokens(a.Key, true)
	secret := harness.NewSecret()
	dt.SetApp(a.Key, secret)
	a.Update(t, a.Rotation(secret))
	dt.RotateTokens(a.Key, false)
	changed := r.awaitToken(t, renewedWithin, token)
	harness.RequireOtherToken(t, changed, token)

	harness.WaitFor(t, 2*time.Minute, "two minutes are over", func() bool { return time.Now().After(end) })
	r.end()
	r.requireNoneDead(t)
	r.requireErrorsWithin(t, down, up.Add(5*time.Second))
	r.requireFew(t, a.Calls())
	require.Len(t, r.tokens, 3)
}

func TestVaultProxy_gives_no_dead_token_while_Vault_is_away(t *testing.T) {
	t.Parallel()
	const lifetime = 45 * time.Second // whose last tenth is long enough for a few attempts to renew
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageRaft})
	dt := harness.StartDingTalk(t, lifetime)
	a := v.Enable(t).NewApp(t, dt, nil)
	p := startCachingProxy(t, a)
	token := p.mustRead(t).token
	r := startProxyReaders(t, p)
	harness.WaitFor(
		t,
		20*time.Second,
		"the Proxy has begun to renew the lease",
		func() bool { return strings.Contains(p.logged(t), "secret renewed") },
	)

	// The copy is still served, and is dropped before its token ends.
	down := time.Now()
	require.NoError(t, v.Stop())
	lastGot := func() time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.tokens[token]
	}
	harness.WaitFor(
		t,
		20*time.Second,
		"readers get responses while Vault is down",
		func() bool { return lastGot().Sub(down) > 5*time.Second },
	)
	harness.WaitFor(t, lifetime+5*time.Second, "the token ends", func() bool { return dt.Remaining(token) <= 0 })
	r.requireNoneDead(t)
	t.Logf("Vault stopped, the copy was served for another %s", lastGot().Sub(down).Round(time.Second))

	v.StartAgain(t)
	up := time.Now()
	r.awaitToken(t, 20*time.Second, token)
	r.end()
	r.requireNoneDead(t)
	r.requireErrorsWithin(t, down, up.Add(5*time.Second))
	require.NotEmpty(t, r.errors, "reads failed while there was neither a copy nor Vault")
}

func TestVaultProxy_a_token_that_DingTalk_ended_is_replaced_at_the_next_renewal(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, proxiedLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	p := startCachingProxy(t, a)
	r := startProxyReaders(t, p)
	harness.WaitFor(t, 10*time.Second, "readers get responses", func() bool { return r.responsesNow() > 20 })
	r.requireNoneDead(t)

	// Nobody is told, and nobody does anything about it.
	dead := dt.LastToken(a.Key)
	dt.ExpireTokens(a.Key)
	ended := time.Now()
	harness.WaitFor(
		t,
		10*time.Second,
		"the copy is still served",
		func() bool { return r.gotSince(ended.Add(2*time.Second), dead) },
	)
	// The Proxy renews at two thirds of the lease. Where the background has extended the token
	// since, that is one renewal later, but never beyond nine tenths of the token's life as the engine
	// knows it.
	r.awaitToken(t, proxiedLifetime*9/10, dead)
	t.Logf("a token that DingTalk ended was replaced after %s", time.Since(ended).Round(time.Second))
	replaced := time.Now()
	harness.WaitFor(
		t,
		10*time.Second,
		"readers go on",
		func() bool { return r.gotSince(replaced.Add(time.Second), dt.LastToken(a.Key)) },
	)
	r.end()
	for _, at := range r.dead {
		require.False(t, at.After(replaced), "a dead token after the new one")
	}
}

func TestVaultProxy_reader_that_refreshes_and_revokes_gets_another_token_at_once(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, proxiedLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	p := startCachingProxy(t, a)
	r := startProxyReaders(t, p) // who get it too
	for _, evict := range []struct {
		by string
		do func(proxied)
	}{
		{"revoking its lease", func(refused proxied) {
			// Where Vault responds before it has revoked the lease, the Proxy takes no notice.
			p.revoke(t, refused.lease, false)
			asked := time.Now()
			harness.WaitFor(t, 10*time.Second, "the copy is still served",
				func() bool { return r.gotSince(asked.Add(time.Second), refused.token) })
			p.revoke(t, refused.lease, true)
		}},
		{"clearing the cache", func(proxied) {
			p.clearCache(t, harness.Fields{"type": "request_path", "value": "/v1/" + a.CredsPath()})
		}},
	} {
		refused := p.mustRead(t)
		p.awaitRenewal(t, refused.lease)
		dt.ExpireTokens(a.Key)
		// First the refresh: were the copy dropped before, the next reader would have the engine's dead
		// token cached again.
		harness.WaitFor(t, 20*time.Second, "the engine has another token", func() bool {
			p.refresh(t) // at most once in 10 s
			return dt.LastToken(a.Key) != refused.token
		})
		harness.RequireSameToken(t, p.mustRead(t).token, refused.token) // still the copy
		evict.do(refused)
		// Sooner than by the next renewal, which would end the copy too.
		harness.WaitFor(t, 5*time.Second, "the next reads give the new token, after "+evict.by, func() bool {
			return p.mustRead(t).token == dt.LastToken(a.Key)
		})
		evicted := time.Now()
		harness.WaitFor(
			t,
			10*time.Second,
			"readers go on",
			func() bool { return r.gotSince(evicted.Add(time.Second), dt.LastToken(a.Key)) },
		)
		require.False(t, r.gotSince(evicted, refused.token), "everybody has the new token")
	}
	r.end()
	r.requireErrorsWithin(t, time.Time{}, time.Time{})
}

// clearCache asks the Proxy itself to drop copies.
func (p *cachingProxy) clearCache(t *testing.T, what harness.Fields) {
	t.Helper()
	request := p.client.NewRequest(http.MethodPost, "/proxy/v1/cache-clear")
	require.NoError(t, request.SetJSONBody(what))
	//nolint:staticcheck // the library has no other way
	response, err := p.client.RawRequestWithContext(t.Context(), request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
}

func TestVaultProxy_reader_that_revokes_before_it_refreshes_may_get_the_dead_token_again(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, proxiedLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	p := startCachingProxy(t, a)
	refused := p.mustRead(t)
	p.awaitRenewal(t, refused.lease)
	dt.ExpireTokens(a.Key)
	p.revoke(t, refused.lease, true)
	// Another reader is first, and gets a copy again.
	harness.WaitFor(t, 10*time.Second, "another reader's lease", func() bool {
		return p.mustRead(t).lease != refused.lease
	})
	p.awaitRenewal(t, p.mustRead(t).lease)
	p.refresh(t)
	got := p.mustRead(t)
	harness.RequireSameToken(t, got.token, refused.token)
	require.True(t, got.cached)
	require.NotEqual(t, dt.LastToken(a.Key), refused.token, "the engine has another one")
}

func TestVaultProxy_caches_no_response_without_a_lease_and_no_error(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, proxiedLifetime)
	a := harness.NewMount(t).NewApp(t, dt, harness.Fields{"leased": false})
	p := startCachingProxy(t, a)
	for range 3 {
		got := p.mustRead(t)
		require.False(t, got.cached, "a response without a lease")
		require.Empty(t, got.lease)
	}
	require.Equal(t, 1, a.Calls())

	// DingTalk is down and there is no token: the reader is told so, by the engine, and soon.
	a.Update(t, harness.Fields{
		"leased": true, "app_secret": a.Secret + "-2", "base_url": dt.URL, "verify_connection": false,
	})
	dt.SetApp(a.Key, a.Secret+"-2")
	harness.NoteSecret(a.Secret+"-2", "an app secret")
	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultUnavailableUnknown})
	began := time.Now()
	_, err := p.read()
	text := harness.Refused(t, err, http.StatusBadGateway)
	require.Contains(t, text, "the next attempt is due at")
	require.Less(t, time.Since(began), 20*time.Second, "when the reader was told")
	dt.ClearFault(a.Key)
	harness.WaitFor(t, 30*time.Second, "a token is served again", func() bool {
		_, err := p.read()
		return err == nil
	})
	require.True(t, p.mustRead(t).cached)
}

func TestVaultProxy_answers_only_requests_that_say_they_are_for_Vault(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, proxiedLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	p := startCachingProxy(t, a)
	ask := func(headers map[string]string) (status int, body string) {
		request, err := http.NewRequestWithContext(
			t.Context(),
			http.MethodGet,
			"http://"+p.address+"/v1/"+a.CredsPath(),
			http.NoBody,
		)
		require.NoError(t, err)
		for name, value := range headers {
			request.Header.Set(name, value)
		}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(text)
	}
	status, body := ask(nil)
	require.Equal(t, http.StatusPreconditionFailed, status)
	harness.AssertNoSecret(t, "the refusal", body)
	// Whatever token a reader sends, the Proxy's own is used.
	status, body = ask(map[string]string{"X-Vault-Request": "true", "X-Vault-Token": "somebody-elses"})
	require.Equal(t, http.StatusOK, status, harness.Mask(body))
	if !strings.Contains(body, dt.LastToken(a.Key)) {
		t.Fatalf("the response does not have the app's token: %s", harness.Mask(body))
	}
}
