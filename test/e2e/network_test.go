// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The connection from the plugin to DingTalk, in a real Vault with real servers on loopback: which
// certificates are trusted, which TLS versions are used, that no redirect is followed, and to which
// addresses the secret is sent at all.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// authority is a CA of the test's own.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate in PEM
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	ca := &authority{file: filepath.Join(t.TempDir(), "ca.pem")}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "e2e CA"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	var err error
	ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &ca.key.PublicKey, ca.key)
	require.NoError(t, err)
	ca.cert, err = x509.ParseCertificate(raw)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(ca.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o600))
	return ca
}

// issue makes a server's certificate, good from an hour ago until the given time.
func (ca *authority) issue(t *testing.T, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "e2e server"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     until,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	raw, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}

// upstreamServer is a server on loopback that counts connections and requests.
type upstreamServer struct {
	addr        string // host:port
	connections atomic.Int64
	requests    atomic.Int64

	mu  sync.Mutex
	tls *tls.Config // nil for plain HTTP
}

// serveUpstream serves a handler on a loopback address, with TLS if there is a configuration for
// it.
func serveUpstream(t *testing.T, host string, config *tls.Config, handler http.Handler) *upstreamServer {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	u := &upstreamServer{addr: listener.Addr().String(), tls: config}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0), // failed handshakes are what is tested
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			u.requests.Add(1)
			handler.ServeHTTP(w, r)
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				u.connections.Add(1)
			}
		},
	}
	if config != nil {
		listener = tls.NewListener(listener, &tls.Config{
			MinVersion: tls.VersionTLS12, // of this outer one only
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				u.mu.Lock()
				defer u.mu.Unlock()
				return u.tls, nil
			},
		})
	}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		_ = server.Close()
		running.Wait()
	})
	return u
}

// present makes the server use another certificate from the next connection on.
func (u *upstreamServer) present(certificate tls.Certificate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tls = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}}
}

func (u *upstreamServer) port(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(u.addr)
	require.NoError(t, err)
	return port
}

// enableWith registers the plugin under a name of its own with an environment, as an operator does,
// and enables it.
func enableWith(t *testing.T, v *harness.VaultServer, name string, env ...string) *harness.Mount {
	t.Helper()
	harness.SkipOnOpenBao(t, "vault plugin register -env")
	args := []string{"plugin", "register", "-sha256=" + v.PluginSHA256, "-command=" + harness.PluginName}
	for _, pair := range env {
		args = append(args, "-env="+pair)
	}
	v.MustCLI(t, append(args, "secret", name)...)
	m := &harness.Mount{Vault: v, Path: name}
	require.NoError(t, v.Root.Sys().Mount(m.Path, &api.MountInput{Type: name}))
	return m
}

// newTLSMount returns a mount of a Vault of its own, and the TLS configuration of an upstream on
// 127.0.0.1 that the plugin trusts.
func newTLSMount(t *testing.T) (*harness.Mount, *tls.Config) {
	t.Helper()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem, Audit: true})
	ca := newAuthority(t)
	return enableWith(t, v, "dingtalk-own-ca", "SSL_CERT_FILE="+ca.file), &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{ca.issue(t, time.Now().Add(day), "127.0.0.1")},
	}
}

// appAt is an app of the simulator that is reached by another URL than the simulator's own.
func appAt(m *harness.Mount, dt *harness.DingTalk, url string) *harness.App {
	a := m.UnstoredApp(&harness.DingTalk{Server: dt.Server, URL: url})
	a.Name += "-at"
	return a
}

// storeApp stores the app's config, with a call upstream or without one.
func storeApp(t *testing.T, a *harness.App, verify bool) error {
	t.Helper()
	body := a.Config()
	body["verify_connection"] = verify
	body["request_timeout"] = "5s"
	_, err := a.Mount.Vault.Root.Logical().Write(a.ConfigPath(), body)
	return err
}

// requireWorks checks that the app is verified at the first go and hands out DingTalk's token.
func requireWorks(t *testing.T, a *harness.App) {
	t.Helper()
	require.NoError(t, storeApp(t, a, true))
	require.Equal(t, a.DingTalk.URL, a.Mount.ReadData(t, a.ConfigPath())["base_url"])
	harness.RequireSameToken(t, a.Token(t), a.DingTalk.LastToken(a.Key))
	require.Equal(t, 1, a.Calls())
}

// requireFails checks that neither verification nor a reader gets through, and that both say why.
func requireFails(t *testing.T, a *harness.App, says ...string) {
	t.Helper()
	check := func(err error) {
		text := harness.Refused(t, err, http.StatusBadGateway)
		for _, words := range append(says, regexp.QuoteMeta(a.Name), regexp.QuoteMeta(a.DingTalk.URL)) {
			require.Regexp(t, words, text)
		}
	}
	check(storeApp(t, a, true))
	stored := a.Mount.Vault.HTTP(t, "GET", a.ConfigPath(), "", "")
	require.Equal(t, http.StatusNotFound, stored.Status, "nothing was stored")

	require.NoError(t, storeApp(t, a, false))
	_, err := a.TryRead()
	check(err)
	require.Regexp(t, says[0], a.Status(t)["last_error"])
}

//nolint:tparallel // the subtests share one Vault
func TestTLS_only_a_trusted_certificate_of_the_right_name_and_time_gets_the_secret(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem, Audit: true})
	ca, stranger := newAuthority(t), newAuthority(t)
	m := enableWith(t, v, "dingtalk-own-ca", "SSL_CERT_FILE="+ca.file)
	plain := v.Enable(t)
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	tomorrow, yesterday := time.Now().Add(day), time.Now().Add(-time.Minute)
	local := []string{"127.0.0.1", "localhost"}

	// only limits what the server speaks.
	config := func(certificate tls.Certificate, least, most uint16) *tls.Config {
		return &tls.Config{MinVersion: least, MaxVersion: most, Certificates: []tls.Certificate{certificate}}
	}
	good := ca.issue(t, tomorrow, local...)

	for name, c := range map[string]struct {
		config *tls.Config
		host   string // in base_url
	}{
		"by its address":   {config(good, tls.VersionTLS12, 0), "127.0.0.1"},
		"by its name":      {config(good, tls.VersionTLS12, 0), "localhost"},
		"with TLS 1.2":     {config(good, tls.VersionTLS12, tls.VersionTLS12), "127.0.0.1"},
		"with TLS 1.3":     {config(good, tls.VersionTLS13, 0), "127.0.0.1"},
		"with TLS 1.0 too": {config(good, tls.VersionTLS10, 0), "127.0.0.1"},
	} {
		t.Run("own CA, "+name, func(t *testing.T) {
			upstream := serveUpstream(t, "127.0.0.1", c.config, dt)
			requireWorks(t, appAt(m, dt, "https://"+net.JoinHostPort(c.host, upstream.port(t))))
			require.EqualValues(t, 1, upstream.requests.Load())
		})
	}

	const untrusted = "certificate is not trusted"
	for name, c := range map[string]struct {
		mount  *harness.Mount
		config *tls.Config
		says   []string
	}{
		"the CA is not in SSL_CERT_FILE": {
			m, config(stranger.issue(t, tomorrow, local...), tls.VersionTLS12, 0),
			[]string{untrusted, "unknown authority"},
		},
		"no SSL_CERT_FILE": {
			plain, config(good, tls.VersionTLS12, 0),
			[]string{untrusted, "unknown authority"},
		},
		"another name": {
			m, config(ca.issue(t, tomorrow, "api.dingtalk.test"), tls.VersionTLS12, 0),
			[]string{untrusted, "127.0.0.1"},
		},
		"another address": {
			m, config(ca.issue(t, tomorrow, "127.0.0.2"), tls.VersionTLS12, 0),
			[]string{untrusted, "127.0.0.1"},
		},
		"expired": {
			m, config(ca.issue(t, yesterday, local...), tls.VersionTLS12, 0),
			[]string{untrusted, "expired"},
		},
		"TLS 1.1": {
			m, config(good, tls.VersionTLS10, tls.VersionTLS11),
			[]string{"(?i)tls.*(version|protocol)"},
		},
		"plain HTTP": {m, nil, []string{"does not speak TLS"}},
	} {
		t.Run(name, func(t *testing.T) {
			upstream := serveUpstream(t, "127.0.0.1", c.config, dt)
			a := appAt(c.mount, dt, "https://"+upstream.addr)
			requireFails(t, a, c.says...)
			require.Zero(t, upstream.requests.Load(), "no request, so no secret, was sent")
			require.Zero(t, a.Calls())
			require.EqualValues(
				t,
				2,
				upstream.connections.Load(),
				"what another attempt cannot fix is tried once: for the write, and for the read",
			)
		})
	}

	t.Run("a certificate that turns bad costs no reader the current token", func(t *testing.T) {
		upstream := serveUpstream(t, "127.0.0.1", config(good, tls.VersionTLS12, 0), dt)
		a := appAt(m, dt, "https://"+upstream.addr)
		requireWorks(t, a)
		token := a.Token(t)
		upstream.present(ca.issue(t, yesterday, local...))

		_, err := v.Root.Logical().Write(a.RefreshPath(), nil)
		require.Regexp(t, untrusted, harness.Refused(t, err, http.StatusBadGateway))
		require.Equal(t, 1, a.Calls())
		harness.RequireSameToken(t, a.Token(t), token)

		upstream.present(good)
		harness.WaitFor(t, 30*time.Second, "refresh/ asks DingTalk again, which it does once in ten seconds", func() bool {
			return len(a.RefreshNow(t).Warnings) == 0
		})
		require.Equal(t, 2, a.Calls())
		require.Equal(t, "fresh", a.Status(t)["state"])
	})
}

func TestRedirect_is_never_followed(t *testing.T) {
	t.Parallel()
	m, config := newTLSMount(t)
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	// Where redirects lead: each would respond with a token.
	elsewhere := serveUpstream(t, "127.0.0.1", config, dt)
	inClear := serveUpstream(t, "127.0.0.1", nil, dt)

	for _, status := range []int{300, 301, 302, 303, 304, 307, 308} {
		for name, location := range map[string]string{
			"another host":    "https://" + elsewhere.addr + simulator.TokenPath,
			"clear text":      "http://" + inClear.addr + simulator.TokenPath,
			"the same host":   "/v2.0" + simulator.TokenPath,
			"itself":          simulator.TokenPath,
			"no URL at all":   "://",
			"nowhere":         "",
			"a secret's home": "https://user:password@" + elsewhere.addr + "/",
		} {
			t.Run(fmt.Sprintf("%d to %s", status, name), func(t *testing.T) {
				t.Parallel()
				var paths sync.Map
				upstream := serveUpstream(
					t,
					"127.0.0.1",
					config,
					http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						paths.Store(r.URL.Path, true)
						if location != "" {
							w.Header().Set("Location", location)
						}
						w.WriteHeader(status)
					}),
				)
				a := appAt(m, dt, "https://"+upstream.addr)
				requireFails(t, a, "(?i)redirect", fmt.Sprint(status))
				require.EqualValues(
					t,
					2,
					upstream.requests.Load(),
					"one for the write, one for the read, and none after them",
				)
				paths.Range(func(path, _ any) bool {
					return assert.Equal(t, simulator.TokenPath, path)
				})
			})
		}
	}
	t.Cleanup(func() {
		assert.Zero(t, elsewhere.connections.Load(), "nobody came by a redirect")
		assert.Zero(t, inClear.connections.Load(), "nobody came by a redirect")
	})
}

//nolint:tparallel // the subtests count the connections of one server
func TestAddress_in_clear_text_is_for_literal_loopback_only(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)

	for host, listenOn := range map[string]string{
		"127.0.0.1": "127.0.0.1", "localhost": "127.0.0.1", "LocalHost": "127.0.0.1", "127.0.0.2": "127.0.0.2",
		"127.255.255.254": "127.255.255.254", "[::1]": "::1",
	} {
		t.Run("to "+host, func(t *testing.T) {
			upstream := serveUpstream(t, listenOn, nil, dt)
			a := appAt(m, dt, "http://"+host+":"+upstream.port(t))
			require.NoError(t, storeApp(t, a, true))
			harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
			require.Equal(t, strings.ToLower(a.DingTalk.URL), m.ReadData(t, a.ConfigPath())["base_url"])
			require.EqualValues(t, 1, upstream.requests.Load())
			a.Update(t, a.Config())
			require.EqualValues(t, 1, upstream.requests.Load(), "the same host in another spelling is the same")
		})
	}

	// Each of these reaches the server if it is dialled: all are other names of this machine, or the
	// server with something around it.
	upstream := serveUpstream(t, "0.0.0.0", nil, dt)
	port := upstream.port(t)
	urls := []string{
		"http://0.0.0.0:" + port,
		"http://[::]:" + port,
		"http://[::ffff:127.0.0.1]:" + port,
		"http://[::127.0.0.1]:" + port,
		"http://127.1:" + port,
		"http://127.0.1:" + port,
		"http://2130706433:" + port,
		"http://0x7f000001:" + port,
		"http://0x7f.0.0.1:" + port,
		"http://0177.0.0.1:" + port,
		"http://127.0.0.01:" + port,
		"http://127.0.0.1.:" + port,
		"http://localhost.:" + port,
		"http://localhost.localdomain:" + port,
		"http://[::1%25lo]:" + port,
		"http://:" + port,
		"http://127.0.0.1.nip.io:" + port,
		"http://evil.localhost:" + port,
		"http://user:" + harness.NewSecret() + "@127.0.0.1:" + port,
		"http://" + harness.NewSecret() + "@127.0.0.1:" + port,
		"http://127.0.0.1:" + port + "@127.0.0.1:" + port,
		"http://@127.0.0.1:" + port,
		"http://127.0.0.1:" + port + "/v1.0",
		"http://127.0.0.1:" + port + "//",
		"http://127.0.0.1:" + port + "/%2f",
		"http://127.0.0.1:" + port + "?x=1",
		"http://127.0.0.1:" + port + "/?",
		"http://127.0.0.1:" + port + "#x",
		`http://127.0.0.1:` + port + `\`,
		`http:\\127.0.0.1:` + port,
		"http://127%2e0.0.1:" + port,
		"http:127.0.0.1:" + port,
		"http:///127.0.0.1:" + port,
		"127.0.0.1:" + port,
		"//127.0.0.1:" + port,
		"ftp://127.0.0.1:" + port,
		"unix://127.0.0.1:" + port,
		" http://127.0.0.1:" + port,
		"http://127.0.0.1:" + port + " ",
		"http://127.0.0.1:" + port + "\n",
		"http://127.0.0.1: " + port,
		"http://127.0.0.1\t:" + port,
		"http://１２７.0.0.1:" + port,
		"http://127。0。0。1:" + port,
		"http://ⓛocalhost:" + port,
	}
	for _, address := range ownAddresses(t) {
		urls = append(urls, "http://"+net.JoinHostPort(address, port))
	}
	for _, url := range urls {
		a := appAt(m, dt, url)
		for _, verify := range []bool{true, false} {
			text := harness.Refused(t, storeApp(t, a, verify), http.StatusBadRequest)
			assert.Contains(t, text, "base_url", "%q", harness.Mask(url))
			assert.Contains(t, text, "https://", "%q: what is allowed", harness.Mask(url))
		}
		assert.Zero(t, a.Calls(), "%q", harness.Mask(url))
	}
	require.Zero(t, upstream.connections.Load(), "nothing went out")
	require.Equal(t, http.StatusNotFound, m.Vault.HTTP(t, "GET", m.Path+"/config/nobody", "", "").Status)
}

// ownAddresses are this machine's addresses that are not loopback.
func ownAddresses(t *testing.T) []string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	require.NoError(t, err)
	var own []string
	for _, a := range all {
		if network, ok := a.(*net.IPNet); ok && !network.IP.IsLoopback() && !network.IP.IsLinkLocalUnicast() {
			own = append(own, network.IP.String())
		}
	}
	return own
}

func TestResponse_is_read_to_its_bound_and_the_connection_given_up(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	var sent atomic.Int64
	upstream := serveUpstream(t, "127.0.0.1", nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		chunk := bytes.Repeat([]byte(" "), 32<<10)
		for range 4096 { // 128 MiB
			n, err := w.Write(chunk)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}))
	a := appAt(m, dt, "http://"+upstream.addr)
	requireFails(t, a, "longer than 65536 bytes")
	require.Less(t, sent.Load(), int64(32<<20), "bytes that the network's buffers took")
	require.EqualValues(t, 2, upstream.requests.Load())
}

// A few calls a day need no HTTP/2, no kept connections and no compression, which were each turned
// against a client. The server here would take all three.
func TestCall_is_one_request_of_HTTP_1_1_on_a_connection_of_its_own(t *testing.T) {
	t.Parallel()
	m, config := newTLSMount(t)
	config.NextProtos = []string{"h2", "http/1.1"}
	dt := harness.StartDingTalk(t, harness.FullLifetime)

	t.Run("whatever the server offers", func(t *testing.T) {
		t.Parallel()
		var seen sync.Map
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked := r.Header.Get("Accept-Encoding")
			seen.Store(fmt.Sprintf("%s, close %t, compressed %q", r.Proto, r.Close, asked), true)
			dt.ServeHTTP(w, r)
		})
		upstream := serveUpstream(t, "127.0.0.1", config, handler)
		for range 3 {
			requireWorks(t, appAt(m, dt, "https://"+upstream.addr))
		}
		seen.Range(func(got, _ any) bool {
			return assert.Equal(t, `HTTP/1.1, close true, compressed ""`, got)
		})
		require.EqualValues(t, 3, upstream.requests.Load())
		require.EqualValues(t, 3, upstream.connections.Load())
	})
	for _, kind := range []string{simulator.FaultHTTP2GoAway, simulator.FaultHTTP2Silent, simulator.FaultHTTP2Flood} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			hostile := harness.StartDingTalk(t, harness.FullLifetime)
			hostile.SetFault(simulator.AnyApp, simulator.Fault{Kind: kind}) // so that HTTP/2 is offered
			url, err := hostile.StartTLS("127.0.0.1:0", config)
			require.NoError(t, err)
			a := appAt(m, hostile, url)
			requireWorks(t, a) // with one call
			require.Equal(t, "fresh", a.RefreshNow(t).Data["state"])
			require.Equal(t, 2, a.Calls())
			require.Equal(t, json.Number("2"), a.Status(t)["upstream_calls"], "every request is counted")
			requireNoConnection(t, m.Vault.PluginPID(t), url)
		})
	}
}
