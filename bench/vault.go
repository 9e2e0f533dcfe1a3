// SPDX-License-Identifier: MPL-2.0

package main

// This file is the set-up that is measured: a Vault server with the plugins mounted and the
// simulator in DingTalk's place, and a Vault Proxy in front of it.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-dingtalk/bench/profiling"
	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

const (
	storageInmem = "inmem"
	storageRaft  = "raft"

	// Everything the clients here read, and what Proxy needs. They hold a service token with this
	// policy, as clients do, not the root token. Vault's default policy would come with it: that
	// has templates, so that Vault parses it anew at every request, which takes it a third of its
	// time.
	policy = `
path "+/creds/*"    { capabilities = ["read"] }
path "+/leased/*"   { capabilities = ["read"] }
path "+/unleased/*" { capabilities = ["read"] }

path "sys/leases/renew"       { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
`
)

// environment is where a run finds its programs and keeps its files.
type environment struct {
	vault  string // the programs
	plugin string
	noop   string
	engine string // the plugin with profiles served
	work   string
}

// pluginProgram is a program in a server's plugin directory.
type pluginProgram struct {
	path  string
	pprof string // where it serves profiles; empty if it does not
}

type server struct {
	dir     string
	addr    string // http://127.0.0.1:port
	proc    *process
	root    *api.Client
	token   string // the clients'
	usual   string // the same with Vault's default policy
	plugins map[string]*pluginProgram

	dingtalk *simulator.Server
	upstream string // the simulator's base URL
}

// startServer starts a Vault over the storage. Its plugins are named by program; those to be looked
// into serve profiles.
func startServer(ctx context.Context, env *environment, storage string, programs map[string]string) (*server, error) {
	dir, err := os.MkdirTemp(env.work, "vault-")
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, plugins: map[string]*pluginProgram{}, dingtalk: simulator.New(simulator.Options{})}
	if s.upstream, err = s.dingtalk.Start("127.0.0.1:0"); err == nil {
		err = s.start(ctx, env, storage, programs)
	}
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *server) start(ctx context.Context, env *environment, storage string, programs map[string]string) error {
	port, err := subprocess.ServerPorts.Free()
	if err != nil {
		return err
	}
	clusterPort, err := subprocess.ServerPorts.Free()
	if err != nil {
		return err
	}
	listen := fmt.Sprintf("127.0.0.1:%d", port)
	s.addr = "http://" + listen

	pluginDir := filepath.Join(s.dir, "plugins")
	data := filepath.Join(s.dir, "data")
	if err := errors.Join(os.Mkdir(pluginDir, 0o755), os.Mkdir(data, 0o700)); err != nil {
		return err
	}
	stanza := `storage "inmem" {}`
	if storage == storageRaft {
		stanza = fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = \"bench\"\n}", data)
	}
	config := filepath.Join(s.dir, "vault.hcl")
	err = os.WriteFile(config, fmt.Appendf(nil, `
api_addr = %q
cluster_addr = "https://127.0.0.1:%d"
plugin_directory = %q
disable_mlock = true

listener "tcp" {
  address = %q
  cluster_address = "127.0.0.1:%d"
  tls_disable = true
}

%s
`, s.addr, clusterPort, pluginDir, listen, clusterPort, stanza), 0o600)
	if err != nil {
		return err
	}
	if s.proc, err = startProcess(
		filepath.Join(s.dir, "vault.log"),
		s.dir,
		env.vault,
		"server",
		"-config="+config,
	); err != nil {
		return err
	}
	if err := s.initialize(ctx); err != nil {
		return err
	}
	for name, program := range programs {
		if err := s.register(ctx, name, program, pluginDir); err != nil {
			return err
		}
	}
	if err := s.root.Sys().PutPolicyWithContext(ctx, "bench", policy); err != nil {
		return err
	}
	if s.token, err = s.createToken(ctx, true); err != nil {
		return err
	}
	s.usual, err = s.createToken(ctx, false)
	return err
}

func (s *server) initialize(ctx context.Context) error {
	config := api.DefaultConfig()
	if config.Error != nil {
		return config.Error
	}
	config.Address, config.MaxRetries, config.Timeout = s.addr, 0, 5*time.Minute
	client, err := api.NewClient(config)
	if err != nil {
		return err
	}
	client.SetToken("")
	s.root = client
	if err := s.proc.await(
		ctx,
		func() error { _, err := client.Sys().SealStatusWithContext(ctx); return err },
	); err != nil {
		return err
	}
	keys, err := client.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("initialize Vault: %w", err)
	}
	client.SetToken(keys.RootToken)
	if _, err := client.Sys().UnsealWithContext(ctx, keys.KeysB64[0]); err != nil {
		return fmt.Errorf("unseal Vault: %w", err)
	}
	return s.proc.await(ctx, func() error {
		health, err := client.Sys().HealthWithContext(ctx)
		if err == nil && (health.Sealed || health.Standby) {
			err = errors.New("it is sealed or a standby")
		}
		return err
	})
}

// register puts a copy of a program into the plugin directory and into the catalog.
func (s *server) register(ctx context.Context, name, program, pluginDir string) error {
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	p := &pluginProgram{path: filepath.Join(pluginDir, name)}
	if err := os.WriteFile(p.path, binary, 0o755); err != nil {
		return err
	}
	port, err := subprocess.ServerPorts.Free()
	if err != nil {
		return err
	}
	p.pprof = fmt.Sprintf("127.0.0.1:%d", port)
	digest := sha256.Sum256(binary)
	s.plugins[name] = p
	return s.root.Sys().RegisterPluginWithContext(ctx, &api.RegisterPluginInput{
		Name: name, Type: api.PluginTypeSecrets, Command: name, SHA256: hex.EncodeToString(digest[:]),
		Env: []string{profiling.AddressEnv + "=" + p.pprof}, // to the plugin's own binary it means nothing
	})
}

func (s *server) createToken(ctx context.Context, noDefaultPolicy bool) (string, error) {
	secret, err := s.root.Auth().Token().CreateOrphanWithContext(ctx, &api.TokenCreateRequest{
		Policies: []string{"bench"}, Period: "24h", NoDefaultPolicy: noDefaultPolicy,
	})
	if err != nil {
		return "", err
	}
	return secret.Auth.ClientToken, nil
}

func (s *server) mount(ctx context.Context, path, plugin string, options map[string]string) error {
	return s.root.Sys().MountWithContext(ctx, path, &api.MountInput{Type: plugin, Options: options})
}

// endLeases ends all leases. Vault's garbage collector takes the longer the more there are, and
// what it happens to run in would be measured for slow.
func (s *server) endLeases(ctx context.Context) error {
	mounts, err := s.root.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return err
	}
	for path := range mounts {
		_, err := s.root.Logical().WriteWithContext(ctx, "sys/leases/revoke-prefix/"+path, map[string]any{"sync": true})
		if err != nil {
			return fmt.Errorf("ending the leases of %s: %w", path, err)
		}
	}
	return nil
}

func (s *server) stop() error {
	var err error
	if s.proc != nil {
		err = s.proc.stop()
	}
	return errors.Join(err, s.dingtalk.Close(), os.RemoveAll(s.dir))
}

// app is an app to make.
type app struct {
	mount, name      string
	leased, verified bool
}

// configure makes apps, many at a time. It is done as root.
func (s *server) configure(ctx context.Context, apps []app) error {
	for _, a := range apps {
		s.dingtalk.SetApp(a.mount+"-"+a.name, appSecret)
	}
	return s.parallel(ctx, s.root.Token(), len(apps), func(c *connection, i int) error {
		a := apps[i]
		body, err := json.Marshal(map[string]any{
			"app_key": a.mount + "-" + a.name, "app_secret": appSecret, "base_url": s.upstream,
			"leased": a.leased, "verify_connection": a.verified,
		})
		if err != nil {
			return err
		}
		_, err = c.do(http.MethodPut, a.mount+"/config/"+a.name, body)
		return err
	})
}

// appSecret is every app's, at the simulator.
const appSecret = "bench-app-secret"

// parallel does n things over the connections of a measurement, and stops at the first error.
func (s *server) parallel(ctx context.Context, token string, n int, do func(c *connection, i int) error) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var next atomic.Int64
	var workers sync.WaitGroup
	for range connections {
		workers.Go(func() {
			c := newConnection(s.addr, token)
			defer c.close()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(c, i); err != nil {
					fail(err)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// audited runs f while a file audit device is on.
func (s *server) audited(ctx context.Context, f func() error) error {
	err := s.root.Sys().EnableAuditWithOptionsWithContext(ctx, "file", &api.EnableAuditOptions{
		Type: "file", Options: map[string]string{"file_path": filepath.Join(s.dir, "audit.log")},
	})
	if err != nil {
		return err
	}
	err = f()
	return errors.Join(err, s.root.Sys().DisableAuditWithContext(context.WithoutCancel(ctx), "file"))
}

// proxy is a Vault Proxy with its cache on, which uses the token it logged in with for every
// request.
type proxy struct {
	proc *process
	addr string
}

func (s *server) startProxy(env *environment) (*proxy, error) {
	port, err := subprocess.ServerPorts.Free()
	if err != nil {
		return nil, err
	}
	token := filepath.Join(s.dir, "proxy-token")
	if err := os.WriteFile(token, []byte(s.token), 0o600); err != nil {
		return nil, err
	}
	listen := fmt.Sprintf("127.0.0.1:%d", port)
	config := filepath.Join(s.dir, "proxy.hcl")
	err = os.WriteFile(config, fmt.Appendf(nil, `
vault {
  address = %q
}

auto_auth {
  method "token_file" {
    config = {
      token_file_path = %q
    }
  }
}

api_proxy {
  use_auto_auth_token = true
}

cache {}

# At its default level it logs a line for every read.
log_level = "warn"

listener "tcp" {
  address = %q
  tls_disable = true
}
`, s.addr, token, listen), 0o600)
	if err != nil {
		return nil, err
	}
	p := &proxy{addr: "http://" + listen}
	p.proc, err = startProcess(filepath.Join(s.dir, "proxy.log"), s.dir, env.vault, "proxy", "-config="+config)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// awaitHit reads a path through the proxy until it answers from its cache, so that nothing else is
// measured for it.
func (p *proxy) awaitHit(ctx context.Context, path string) error {
	return p.proc.await(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.addr+"/v1/"+path, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if hit := resp.Header.Get("X-Cache"); resp.StatusCode != http.StatusOK || hit != "HIT" {
			return fmt.Errorf("%s: status %d, X-Cache %q", path, resp.StatusCode, hit)
		}
		return nil
	})
}
