// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package readme

// This file is what a page other than the README takes for granted: a Vault over raft storage with
// the engine mounted at dingtalk/ and the app myapp in it, whose token nobody has read yet. A
// Vault's configuration that the page shows is in force from the start. Vault reaches the simulator
// by DingTalk's own name, through a proxy, since the engine treats DingTalk's hosts otherwise than
// others. A client reaches it by its address, on the page of the clients and those of the examples.
// What more a block needs is said in comments before it:
//
//	<!-- given: DingTalk answers {"kind":"hang"} -->   a fault of the simulator, for every app, until it works again
//	<!-- given: DingTalk works -->
//	<!-- given: tokens live 20s -->                    those that are fetched from now on
//	<!-- given: the secret was reset -->               at DingTalk; what blocks read from standard input is the new one
//	<!-- given: myapp has no token -->                 stored anew without a verification, and nothing remembered of bans or failures
//	<!-- given: myapp has a token with 14s to live --> fetched if need be, and waited for to be so old
//	<!-- given: there is no app -->
//	<!-- given: the log has works again -->            by now: a plugin's lines take a moment
//	<!-- given: a second passes -->                    for which the engine keeps what Vault says of the mount
//	<!-- given: the engine is not installed -->        unmounted, and out of the catalog
//	<!-- given: the release 0.2.0 was downloaded -->   its binary for Linux on amd64, and the checksums, by their names
//	<!-- given: Proxy runs -->                         a Vault Proxy with the page's proxy.hcl, to the end
//	<!-- given: exit status 2 -->                      of the block, which fails
//	<!-- given: not run here: docker -->               the block needs what it names, which no test has: bash reads it alone

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

const (
	pluginName    = "vault-plugin-secrets-dingtalk"
	pluginVersion = "v0.1.0"

	// What a page says.
	dingtalkHost = "api.dingtalk.io"
	chinaHost    = "api.dingtalk.com" // of the other edition
	pageSecret   = "the-client-secret"
	pageProxy    = "http://proxy.example.com:3128"
	pageCA       = "/etc/ssl/company-ca.pem"
	pageLogs     = "/var/log/vault"
	pagePlugins  = "/etc/vault.d/plugins"
	pageListener = "127.0.0.1:8100" // of a Vault Proxy
	clientsPage  = "docs/clients.md"
)

// newReader is a newcomer who has got as far as the pages of docs/ take for granted.
func newReader(t *testing.T, program, page string, blocks []block) *newcomer {
	t.Helper()
	n := newNewcomer(t, blocks)
	if strings.HasPrefix(page, "examples/") {
		n.dir = filepath.Join(n.checkout, filepath.Dir(page))
	}
	if strings.HasPrefix(page, "examples/") || page == clientsPage {
		address, err := n.dingtalk.Start("127.0.0.1:0")
		require.NoError(t, err)
		n.here[n.upstream] = address
		n.upstream = address
	}
	if page == clientsPage {
		require.NoError(t, os.Symlink(harness.ConsulTemplateBin(t), filepath.Join(n.programs, "consul-template")))
	}
	for _, directory := range []string{pageLogs, "/etc/vault-agent", "/etc/vault-proxy", "/run/myapp"} {
		n.here[directory] = t.TempDir()
	}
	n.here[pageSecret] = n.secret
	if strings.Contains(pageText(t, page), pageProxy) {
		itsOwn := startCompany(t, n.dingtalk)
		n.here[pageProxy], n.here[pageCA] = itsOwn.proxy, itsOwn.caFile
		t.Cleanup(func() { assert.Positive(t, itsOwn.tunnels.Load(), "calls through the proxy that the page names") })
	}
	n.startRaft(t, blocks)

	plugins := n.here[pagePlugins]
	content, err := os.ReadFile(program)
	require.NoError(t, err)
	file := pluginName + "-" + pluginVersion
	require.NoError(t, os.WriteFile(filepath.Join(plugins, file), content, 0o700))
	digest := sha256.Sum256(content)
	require.NoError(t, n.client.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name:    pluginName,
		Type:    api.PluginTypeSecrets,
		Command: file,
		SHA256:  hex.EncodeToString(digest[:]),
		Version: pluginVersion,
	}))
	require.NoError(t, n.client.Sys().Mount("dingtalk", &api.MountInput{Type: pluginName}))
	n.storeApp(t)
	return n
}

// startRaft starts a Vault with storage of its own, initialized and unsealed.
func (n *newcomer) startRaft(t *testing.T, blocks []block) {
	t.Helper()
	config := fmt.Sprintf(`
api_addr         = %q
cluster_addr     = "https://%s"
disable_mlock    = true

listener "tcp" {
  address     = %q
  tls_disable = true
}

storage "raft" {
  path                   = %q
  node_id                = "page"
  performance_multiplier = 1
}
`, n.vault, freeAddress(t), strings.TrimPrefix(n.vault, "http://"), t.TempDir())
	const directory = "plugin_directory"
	if !slices.ContainsFunc(blocks, func(b block) bool {
		name, err := b.fileName()
		return err == nil && name == "vault.hcl" && strings.Contains(b.body, directory)
	}) {
		config += fmt.Sprintf("%s = %q\n", directory, n.here[pagePlugins])
	}
	for _, b := range blocks {
		if name, err := b.fileName(); err == nil && name == "vault.hcl" {
			config += n.translate(b.body)
		}
	}
	file := filepath.Join(t.TempDir(), "vault.hcl")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	n.startVault(t, nil, "-config="+file)
	n.await(t, false)
	t.Cleanup(func() { n.checkHidden(t, n.logged(t)) })

	keys, err := n.client.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	require.NoError(t, err)
	n.unsealKey = keys.KeysB64[0]
	n.hidden = append(n.hidden, n.unsealKey)
	n.client.SetToken(keys.RootToken)
	n.env = append(n.env, "VAULT_TOKEN="+keys.RootToken)
	_, err = n.client.Sys().Unseal(n.unsealKey)
	require.NoError(t, err)
	n.await(t, true)
}

// logged is what Vault has written into its log files.
func (n *newcomer) logged(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.here[pageLogs], "*"))
	require.NoError(t, err)
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		all.Write(text)
	}
	return all.String()
}

func (n *newcomer) storeApp(t *testing.T) {
	t.Helper()
	_, err := n.client.Logical().Write("dingtalk/config/myapp", map[string]any{
		"app_key": appKey, "app_secret": n.secret, "base_url": n.upstream, "verify_connection": false,
	})
	require.NoError(t, err)
}

// arrange brings about what a block takes for granted.
func (n *newcomer) arrange(t *testing.T, b block, given string) {
	t.Helper()
	if kind, ok := strings.CutPrefix(given, "DingTalk answers "); ok {
		var fault simulator.Fault
		require.NoError(t, json.Unmarshal([]byte(kind), &fault), "%v", b)
		require.NoError(t, fault.Validate(), "%v", b)
		n.dingtalk.SetFault(simulator.AnyApp, fault)
		return
	}
	if life, ok := strings.CutPrefix(given, "tokens live "); ok {
		lifetime, err := time.ParseDuration(life)
		require.NoError(t, err, "%v", b)
		n.dingtalk.SetTokenLifetime(lifetime)
		return
	}
	if seconds := 0; strings.HasPrefix(given, "myapp has a token with ") {
		_, err := fmt.Sscanf(given, "myapp has a token with %ds to live", &seconds)
		require.NoError(t, err, "%v", b)
		_, err = n.client.Logical().Read("dingtalk/creds/myapp")
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			status, err := n.client.Logical().Read("dingtalk/status/myapp")
			return err == nil && fmt.Sprint(status.Data["ttl"]) == strconv.Itoa(seconds)
		}, time.Minute, 50*time.Millisecond, "%v", b)
		return
	}
	if version, ok := strings.CutPrefix(given, "the release "); ok {
		n.download(t, strings.TrimSuffix(version, " was downloaded"))
		return
	}
	if line, ok := strings.CutPrefix(given, "the log has "); ok {
		require.Eventually(
			t,
			func() bool { return strings.Contains(n.logged(t), line) },
			10*time.Second,
			20*time.Millisecond,
			"%v",
			b,
		)
		return
	}
	switch given {
	case "there is no app":
		_, err := n.client.Logical().Delete("dingtalk/config/myapp")
		require.NoError(t, err)
	case "DingTalk works":
		n.dingtalk.ClearFaults()
	case "a second passes":
		time.Sleep(time.Second)
	case "the secret was reset":
		n.secret = rand.Text()
		n.hidden = append(n.hidden, n.secret)
		n.here[pageSecret] = n.secret
		n.dingtalk.SetApp(appKey, n.secret)
	case "Proxy runs":
		n.startProxy(t)
	case "the engine is not installed":
		require.NoError(t, n.client.Sys().Unmount("dingtalk"))
		require.NoError(t, n.client.Sys().DeregisterPlugin(&api.DeregisterPluginInput{
			Name: pluginName, Type: api.PluginTypeSecrets, Version: pluginVersion,
		}))
	case "myapp has no token":
		_, err := n.client.Logical().Delete("dingtalk/config/myapp")
		require.NoError(t, err)
		_, err = n.client.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{"dingtalk/"}})
		require.NoError(t, err)
		n.storeApp(t)
	default:
		require.FailNow(t, "unknown", "%v: given %q", b, given)
	}
}

// download puts a release's binary and the file of checksums into the reader's directory. The binary is
// this machine's, whatever its name says.
func (n *newcomer) download(t *testing.T, version string) {
	t.Helper()
	name := pluginName + "_" + version + "_linux_amd64"
	content, err := os.ReadFile(buildPlugin(t, "v"+version))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(n.dir, name), content, 0o600))
	digest := sha256.Sum256(content)
	checksums := hex.EncodeToString(digest[:]) + "  " + name + "\n" + strings.Repeat("0", 64) + "  another-file\n"
	file := filepath.Join(n.dir, pluginName+"_"+version+"_checksums.txt")
	require.NoError(t, os.WriteFile(file, []byte(checksums), 0o600))
}

// startProxy starts a Vault Proxy, which ends with the test.
func (n *newcomer) startProxy(t *testing.T) {
	t.Helper()
	cmd := n.command(t, vaultBin(t), "proxy", "-config=proxy.hcl")
	var printed output
	cmd.Stdout, cmd.Stderr = &printed, &printed
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Wait() // the test's context has ended
		n.checkHidden(t, printed.String())
	})
	client, err := n.client.Clone()
	require.NoError(t, err)
	require.NoError(t, client.SetAddress("http://"+n.here[pageListener]))
	require.Eventually(t, func() bool {
		_, err := client.Auth().Token().LookupSelf()
		return err == nil
	}, 30*time.Second, 100*time.Millisecond, "Proxy does not start: %s", &printed)
}

// company is a network in which DingTalk is reached through a proxy alone, and shows a certificate
// of the company's own authority, whose certificate is in the file.
type company struct {
	proxy, caFile string
	tunnels       *atomic.Int32
}

// env is the environment of a program in the network.
func (c company) env() []string {
	return []string{"HTTPS_PROXY=" + c.proxy, "SSL_CERT_FILE=" + c.caFile}
}

func startCompany(t *testing.T, dingtalk http.Handler) company {
	t.Helper()
	c := company{caFile: filepath.Join(t.TempDir(), "ca.pem"), tunnels: &atomic.Int32{}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{dingtalkHost, chinaHost},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	require.NoError(t, err)
	require.NoError(
		t,
		os.WriteFile(c.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o600),
	)

	inner := httptest.NewUnstartedServer(dingtalk)
	inner.TLS = &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}},
	}
	inner.StartTLS()
	t.Cleanup(inner.Close)

	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != dingtalkHost+":443" && r.Host != chinaHost+":443" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		c.tunnels.Add(1)
		client, pending, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		tunnel(client, pending, inner.Listener.Addr().String())
	}))
	t.Cleanup(proxy.Close)
	c.proxy = proxy.URL
	return c
}

// tunnel connects the client of a proxy with a server until one of them goes.
func tunnel(client net.Conn, pending *bufio.ReadWriter, address string) {
	defer client.Close()
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(server, pending)
		_ = server.Close()
	}()
	_, _ = io.Copy(client, server)
}
