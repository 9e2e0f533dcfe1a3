// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The plugin behind a forward proxy that its environment names. The upstream has a made-up name
// that only the proxy can resolve, as Go never sends loopback addresses through a proxy.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// connectProxy is an HTTP proxy that knows CONNECT and nothing else.
type connectProxy struct {
	addr string

	mu      sync.Mutex
	routes  map[string]string // from the host and port asked for to the server meant
	refusal string            // a whole response in place of the tunnel
	hang    bool              // no response at all
	asked   []string          // the request lines
	logins  []string          // the Proxy-Authorization of each request
	relayed bytes.Buffer      // all that went through the tunnels, in either direction
	open    map[net.Conn]bool
	closed  bool
}

func startProxy(t *testing.T) *connectProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &connectProxy{addr: listener.Addr().String(), routes: map[string]string{}, open: map[net.Conn]bool{}}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.mu.Lock()
		p.closed = true
		for conn := range p.open {
			_ = conn.Close()
		}
		p.mu.Unlock()
		running.Wait()
	})
	return p
}

// keep makes sure that a connection is closed at the end. It reports whether the end is yet to
// come.
func (p *connectProxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = conn.Close()
	}
	p.open[conn] = true
	return !p.closed
}

func (p *connectProxy) drop(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, conn)
	_ = conn.Close()
}

func (p *connectProxy) serve(client net.Conn) {
	if !p.keep(client) {
		return
	}
	defer p.drop(client)
	request, err := http.ReadRequest(bufio.NewReader(client))
	if err != nil {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, request.Method+" "+request.RequestURI)
	p.logins = append(p.logins, request.Header.Get("Proxy-Authorization"))
	target, known := p.routes[request.RequestURI]
	refusal, hang := p.refusal, p.hang
	p.mu.Unlock()

	switch {
	case hang:
		_, _ = io.Copy(io.Discard, client) // until the client or the test ends
		return
	case refusal != "":
		_, _ = io.WriteString(client, refusal)
		return
	case request.Method != http.MethodConnect || !known:
		_, _ = io.WriteString(client, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
		return
	}
	server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), "tcp", target)
	if err != nil || !p.keep(server) {
		return
	}
	defer p.drop(server)
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	var both sync.WaitGroup
	for from, to := range map[net.Conn]net.Conn{client: server, server: client} {
		both.Go(func() {
			_, _ = io.Copy(io.MultiWriter(to, recorded{p}), from)
			_ = to.Close()
		})
	}
	both.Wait()
}

// recorded writes to what the proxy has seen.
type recorded struct{ p *connectProxy }

func (r recorded) Write(data []byte) (int, error) {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	return r.p.relayed.Write(data)
}

// behave changes what the proxy does from the next request on.
func (p *connectProxy) behave(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// seen is what the proxy was asked so far.
func (p *connectProxy) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

//nolint:tparallel // the subtests share one proxy and look at what it was asked
func TestProxy_of_the_environment_is_the_way_out(t *testing.T) {
	t.Parallel()
	const host = "api.dingtalk.test"
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem, Audit: true})
	ca := newAuthority(t)
	tomorrow := time.Now().Add(day)
	serverWith := func(certificate tls.Certificate) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}}
	}
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	upstream := serveUpstream(t, "127.0.0.1", serverWith(ca.issue(t, tomorrow, host)), dt)
	otherName := serveUpstream(t, "127.0.0.1", serverWith(ca.issue(t, tomorrow, "other.dingtalk.test")), dt)
	expired := serveUpstream(t, "127.0.0.1", serverWith(ca.issue(t, time.Now().Add(-time.Minute), host)), dt)
	inClear := serveUpstream(t, "127.0.0.1", nil, dt)

	proxy := startProxy(t)
	proxy.routes = map[string]string{
		host + ":443": upstream.addr, host + ":8443": upstream.addr,
		host + ":1001": otherName.addr, host + ":1002": expired.addr, host + ":1003": inClear.addr,
	}
	password := harness.NewSecret()
	const user = "vault"
	proxyURL := "http://" + user + ":" + password + "@" + proxy.addr
	m := enableWith(t, v, "dingtalk-proxied", "HTTPS_PROXY="+proxyURL, "HTTP_PROXY="+proxyURL, "SSL_CERT_FILE="+ca.file)

	t.Run("a token is fetched through it", func(t *testing.T) {
		a := appAt(m, dt, "https://"+host)
		requireWorks(t, a)
		require.Equal(t, []string{"CONNECT " + host + ":443"}, proxy.seen())
		require.Equal(t, "fresh", a.RefreshNow(t).Data["state"])
		require.Equal(t, 2, a.Calls())

		custom := appAt(m, dt, "https://"+host+":8443")
		requireWorks(t, custom)
		require.Contains(t, proxy.seen(), "CONNECT "+host+":8443")
		credentials := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
		proxy.mu.Lock()
		defer proxy.mu.Unlock()
		for _, given := range proxy.logins {
			harness.RequireSameToken(t, given, credentials) // those of the proxy's URL
		}
	})
	t.Run("the proxy sees neither a secret nor a token", func(t *testing.T) {
		proxy.mu.Lock()
		defer proxy.mu.Unlock()
		require.Greater(t, proxy.relayed.Len(), 1000)
		harness.AssertNoSecret(t, "what went through the proxy", proxy.relayed.String())
		require.NotContains(t, proxy.relayed.String(), simulator.TokenPath)
		require.NotContains(t, proxy.relayed.String(), "appKey")
	})
	t.Run("the certificate is checked all the same", func(t *testing.T) {
		const untrusted = "certificate is not trusted"
		for port, c := range map[string]struct {
			upstream *upstreamServer
			says     []string
		}{
			"1001": {otherName, []string{untrusted, "other.dingtalk.test"}},
			"1002": {expired, []string{untrusted, "expired"}},
			"1003": {inClear, []string{"does not speak TLS"}},
		} {
			a := appAt(m, dt, "https://"+host+":"+port)
			requireFails(t, a, c.says...)
			require.Zero(t, c.upstream.requests.Load())
			require.Zero(t, a.Calls())
		}
	})
	t.Run("loopback addresses do not go through it", func(t *testing.T) {
		before := proxy.seen()
		requireWorks(t, appAt(m, dt, dt.URL))
		require.Equal(t, before, proxy.seen())
	})
	t.Run("a refusal is told by its status alone", func(t *testing.T) {
		defer proxy.behave(func() { proxy.refusal = "" })
		for status, reason := range map[int]string{
			403: "Forbidden", 407: "Proxy Authentication Required",
			502: "Bad Gateway", 302: "Found",
		} {
			proxy.behave(func() {
				proxy.refusal = fmt.Sprintf(
					"HTTP/1.1 %d %s and the password is %s\r\nLocation: https://%s:8443/\r\nContent-Length: 5\r\n\r\nnever",
					status,
					reason,
					password,
					host,
				)
			})
			a := appAt(m, dt, fmt.Sprintf("https://status-%d.%s", status, host))
			requireFails(t, a, fmt.Sprintf("(?i)proxy.*%d", status))
			require.NotContains(t, a.Status(t)["last_error"], reason)
			require.Zero(t, a.Calls())
		}
	})
	t.Run("a name that the proxy does not know", func(t *testing.T) {
		a := appAt(m, dt, "https://nobody.dingtalk.test")
		requireFails(t, a, "(?i)proxy.*404")
	})
	t.Run("a proxy that responds with nonsense", func(t *testing.T) {
		proxy.behave(func() { proxy.refusal = "what do you want with " + password + "?\r\n\r\n" })
		defer proxy.behave(func() { proxy.refusal = "" })
		requireFails(t, appAt(m, dt, "https://nonsense."+host), "could not get a token for app")
	})
	t.Run("a proxy that does not respond", func(t *testing.T) {
		proxy.behave(func() { proxy.hang = true })
		defer proxy.behave(func() { proxy.hang = false })
		a := appAt(m, dt, "https://hanging."+host)
		require.NoError(t, storeApp(t, a, false))
		a.Update(t, harness.Fields{"request_timeout": "1s"})
		began := time.Now()
		_, err := a.TryRead()
		require.Less(t, time.Since(began), 5*time.Second) // below the 10 s of an app that sets no request_timeout
		require.Regexp(t, "no whole response within", harness.Refused(t, err, http.StatusBadGateway))
	})
	t.Run("a proxy that is not there", func(t *testing.T) {
		dead := harness.DeadAddress(t)
		lost := enableWith(
			t, v,
			"dingtalk-lost",
			"HTTPS_PROXY=http://"+user+":"+password+"@"+dead,
			"SSL_CERT_FILE="+ca.file,
		)
		a := appAt(lost, dt, "https://"+host)
		requireFails(t, a, "connection refused")
		require.Zero(t, a.Calls())
	})
	t.Run("NO_PROXY is honored", func(t *testing.T) {
		direct := enableWith(
			t, v,
			"dingtalk-direct",
			"HTTPS_PROXY="+proxyURL,
			"NO_PROXY=.dingtalk.test",
			"SSL_CERT_FILE="+ca.file,
		)
		before := proxy.seen()
		a := appAt(direct, dt, "https://"+host)
		require.NoError(t, storeApp(t, a, false))
		_, err := a.TryRead()
		harness.Refused(t, err, http.StatusBadGateway) // nobody else knows the name
		require.Equal(t, before, proxy.seen())
		require.Zero(t, a.Calls())
	})
	t.Run("no environment, no proxy", func(t *testing.T) {
		bare := v.Enable(t)
		before := proxy.seen()
		a := appAt(bare, dt, "https://"+host)
		require.NoError(t, storeApp(t, a, false))
		_, err := a.TryRead()
		harness.Refused(t, err, http.StatusBadGateway)
		require.Equal(t, before, proxy.seen())
	})
	for _, line := range proxy.seen() {
		require.True(
			t,
			strings.HasPrefix(line, "CONNECT "),
			"never a request of its own, which would be in clear: %s",
			line,
		)
	}
	require.NoError(t, v.FindLeaks())
}
