// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

// A Vault server as a process on loopback: started with a configuration file, initialized and
// unsealed, with the plugin in its catalog and its trace log in a file. Tests can seal, stop and
// kill it, and start it again over the same storage.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

// The storage types of a Vault server. Only inmem forgets everything when Vault stops.
const (
	StorageInmem = "inmem"
	StorageRaft  = "raft"
)

// VaultOptions are the options of a Vault server.
type VaultOptions struct {
	Name    string // shown in messages, and the node's id in a raft cluster
	Storage string
	Audit   bool   // write an audit log to a file from the start
	Config  string // more of the server's configuration
}

// VaultServer is a Vault server process of one test, or of all that share it.
type VaultServer struct {
	Opts        VaultOptions
	Dir         string
	Addr        string // http://127.0.0.1:port
	ClusterAddr string // 127.0.0.1:port
	Proc        *Process
	RootToken   string
	UnsealKey   string
	Root        *api.Client // with the root token and without retries

	PluginPath    string // the plugin binary in this Vault's own plugin directory
	PluginSHA256  string
	PluginVersion string // as the catalog has it
}

// StartVault starts a Vault server for one test, which may do anything to it.
func StartVault(t *testing.T, opts VaultOptions) *VaultServer {
	t.Helper()
	if opts.Name == "" {
		opts.Name = strings.ReplaceAll(t.Name(), "/", "_")
	}
	v, err := launchVault(opts)
	require.NoError(t, err, "start Vault")
	v.stopAtTheEnd(t)
	return v
}

// stopAtTheEnd stops the server when the test ends, and searches its files for secrets.
func (v *VaultServer) stopAtTheEnd(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if err := v.Stop(); err != nil {
			t.Errorf("stop %s: %v", v.Opts.Name, err)
		}
		if err := v.FindLeaks(); err != nil {
			t.Errorf("secrets in the files of %s: %v", v.Opts.Name, err)
		}
	})
	v.reportOnFailure(t)
}

// launchVault is StartVault for callers without a test.
func launchVault(opts VaultOptions) (*VaultServer, error) {
	dir, err := os.MkdirTemp(WorkRoot, "vault-")
	if err != nil {
		return nil, err
	}
	v := &VaultServer{Opts: opts, Dir: dir}
	if err := v.installPlugin(); err != nil {
		return nil, err
	}
	if err := v.Start(); err != nil {
		return nil, err
	}
	if err := v.initialize(); err != nil {
		return nil, errors.Join(err, v.Stop())
	}
	return v, nil
}

// StartNode starts a server over raft storage that joins the cluster of another. Both have the same
// unseal key.
func StartNode(t *testing.T, name string, first *VaultServer) *VaultServer {
	t.Helper()
	v, err := launchNode(name, first)
	require.NoError(t, err, "start %s", name)
	v.stopAtTheEnd(t)
	joined, err := v.Root.Sys().RaftJoin(&api.RaftJoinRequest{LeaderAPIAddr: first.Addr})
	require.NoError(t, err, "join the cluster")
	require.True(t, joined.Joined)
	_, err = v.Root.Sys().Unseal(v.UnsealKey)
	require.NoError(t, err, "unseal %s", name)
	return v
}

// launchNode starts a server that is to join the cluster of another.
func launchNode(name string, first *VaultServer) (*VaultServer, error) {
	dir, err := os.MkdirTemp(WorkRoot, "vault-")
	if err != nil {
		return nil, err
	}
	v := &VaultServer{
		Opts: VaultOptions{Name: name, Storage: StorageRaft}, Dir: dir,
		RootToken: first.RootToken, UnsealKey: first.UnsealKey,
	}
	if err := v.installPlugin(); err != nil {
		return nil, err
	}
	if err := v.Start(); err != nil {
		return nil, err
	}
	v.Root, err = v.NewClient(v.RootToken)
	return v, err
}

func (v *VaultServer) installPlugin() error {
	program, err := os.ReadFile(PluginBin)
	if err != nil {
		return err
	}
	pluginDir := filepath.Join(v.Dir, "plugins")
	if err := os.Mkdir(pluginDir, 0o755); err != nil {
		return err
	}
	// Vault compares the resolved paths of the directory and the program.
	if pluginDir, err = filepath.EvalSymlinks(pluginDir); err != nil {
		return err
	}
	digest := sha256.Sum256(program)
	v.PluginSHA256 = hex.EncodeToString(digest[:])
	v.PluginPath = filepath.Join(pluginDir, PluginName)
	return os.WriteFile(v.PluginPath, program, 0o755)
}

// Start runs the server and waits until it responds. If somebody else took its port in the
// meantime, it uses another.
func (v *VaultServer) Start() error {
	for attempt := 1; ; attempt++ {
		err := v.startOnce()
		portTaken := err != nil && strings.Contains(v.logTail(20), "address already in use")
		if !portTaken || v.Root != nil || attempt == 3 {
			return err
		}
		v.Addr = ""
	}
}

func (v *VaultServer) startOnce() error {
	if v.Addr == "" {
		if err := v.configure(); err != nil {
			return err
		}
	}
	proc, err := StartProcess(
		"vault "+v.Opts.Name,
		v.LogPath(),
		v.Env(""),
		VaultBin,
		"server",
		"-config="+v.configPath(),
	)
	if err != nil {
		return err
	}
	v.Proc = proc
	if err := v.WaitForResponse(); err != nil {
		v.Proc = nil
		return errors.Join(err, proc.Kill())
	}
	return nil
}

func (v *VaultServer) configure() error {
	port, err := subprocess.ServerPorts.Free()
	if err != nil {
		return err
	}
	clusterPort, err := subprocess.ServerPorts.Free()
	if err != nil {
		return err
	}
	listen := "127.0.0.1:" + strconv.Itoa(port)
	v.Addr = "http://" + listen
	v.ClusterAddr = "127.0.0.1:" + strconv.Itoa(clusterPort)

	data := filepath.Join(v.Dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	storage := map[string]string{
		StorageInmem: `storage "inmem" {}`,
		StorageRaft: fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = %q\n  performance_multiplier = 1\n}",
			data, v.Opts.Name),
	}[v.Opts.Storage]
	if storage == "" {
		return fmt.Errorf("no storage called %q", v.Opts.Storage)
	}
	config := fmt.Sprintf(`
api_addr = %q
cluster_addr = %q
plugin_directory = %q
log_level = "trace"
disable_mlock = true
raw_storage_endpoint = true

listener "tcp" {
  address = %q
  cluster_address = %q
  tls_disable = true
}

%s

%s
`, v.Addr, "https://"+v.ClusterAddr, filepath.Dir(v.PluginPath), listen, v.ClusterAddr, storage, v.Opts.Config)
	if onOpenBao {
		config += "unsafe_allow_api_audit_creation = true\n" // which Vault allows by default
	}
	return os.WriteFile(v.configPath(), []byte(config), 0o600)
}

// WaitForResponse waits until the server responds.
func (v *VaultServer) WaitForResponse() error {
	client, err := v.NewClient("")
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err = client.Sys().SealStatus(); err == nil {
			return nil
		}
		if !v.Proc.Running() {
			return fmt.Errorf("vault ended at its start:\n%s", v.logTail(20))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("vault does not respond: %w", err)
		}
	}
}

func (v *VaultServer) initialize() error {
	client, err := v.NewClient("")
	if err != nil {
		return err
	}
	keys, err := client.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	v.RootToken, v.UnsealKey = keys.RootToken, keys.KeysB64[0]
	NoteSecret(v.RootToken, "a root token")
	NoteSecret(v.UnsealKey, "an unseal key")
	if v.Root, err = v.NewClient(v.RootToken); err != nil {
		return err
	}
	if err := v.Unseal(); err != nil {
		return err
	}
	if v.Opts.Audit {
		err := v.Root.Sys().EnableAuditWithOptions("file", &api.EnableAuditOptions{
			Type: "file", Options: map[string]string{"file_path": v.AuditPath()},
		})
		if err != nil {
			return fmt.Errorf("enable the audit device: %w", err)
		}
	}
	return v.registerPlugin()
}

// registerPlugin registers the plugin in the catalog. Vault then asks the binary for its version.
func (v *VaultServer) registerPlugin() error {
	err := v.Root.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name: PluginName, Type: api.PluginTypeSecrets, Command: PluginName, SHA256: v.PluginSHA256,
	})
	if err != nil {
		return fmt.Errorf("register the plugin: %w", err)
	}
	catalog, err := v.Root.Sys().ListPlugins(&api.ListPluginsInput{Type: api.PluginTypeSecrets})
	if err != nil {
		return fmt.Errorf("list the catalog: %w", err)
	}
	for _, entry := range catalog.Details {
		if entry.Name == PluginName {
			v.PluginVersion = entry.Version
			return nil
		}
	}
	return errors.New("the catalog does not list the plugin")
}

// Unseal unseals and waits until the server is active.
func (v *VaultServer) Unseal() error {
	if _, err := v.Root.Sys().Unseal(v.UnsealKey); err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	var health *api.HealthResponse
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		health, err = v.Root.Sys().Health()
		if err == nil && health.Initialized && !health.Sealed && !health.Standby {
			return nil
		}
	}
	return fmt.Errorf("vault is not active after unsealing: %+v, %w", health, err)
}

// Restart stops the server as an operator would and starts it again over the same storage.
func (v *VaultServer) Restart(t *testing.T) {
	t.Helper()
	require.NoError(t, v.Stop(), "stop Vault")
	require.NoError(t, v.Start(), "start Vault again")
	require.NoError(t, v.Unseal(), "unseal Vault again")
}

// Crash ends the server and its plugin with SIGKILL, and starts it again over the same storage.
func (v *VaultServer) Crash(t *testing.T) {
	t.Helper()
	require.NoError(t, v.Proc.Kill(), "kill Vault")
	require.NoError(t, v.Start(), "start Vault again")
	require.NoError(t, v.Unseal(), "unseal Vault again")
}

// StartAgain starts a Vault that was stopped, over the same storage.
func (v *VaultServer) StartAgain(t *testing.T) {
	t.Helper()
	require.NoError(t, v.Start(), "start Vault again")
	require.NoError(t, v.Unseal(), "unseal Vault again")
}

// Stop stops the server as an operator would.
func (v *VaultServer) Stop() error {
	if v.Proc == nil {
		return nil
	}
	err := v.Proc.Terminate(2 * time.Minute)
	v.Proc = nil
	return err
}

// PluginPID returns the process that serves every mount of the plugin, as it is multiplexed.
func (v *VaultServer) PluginPID(t *testing.T) int {
	t.Helper()
	pids, err := subprocess.Children(v.Proc.PID(), v.PluginPath)
	require.NoError(t, err)
	require.Len(t, pids, 1, "one process serves all mounts of a multiplexed plugin")
	return pids[0]
}

// KillPlugin kills the plugin's process and waits until Vault knows. Until then, Vault returns an
// error of its connection to any request, whatever the plugin.
func (v *VaultServer) KillPlugin(t *testing.T) {
	t.Helper()
	pid := v.PluginPID(t)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	exited := regexp.MustCompile(fmt.Sprintf(`plugin process exited:.* id=%d\b`, pid))
	WaitFor(t, 20*time.Second, "Vault sees the end of the plugin's process", func() bool {
		log, err := os.ReadFile(v.LogPath())
		require.NoError(t, err)
		return exited.Match(log)
	})
}

func (v *VaultServer) configPath() string { return filepath.Join(v.Dir, "vault.hcl") }

// LogPath is the file of the server's log.
func (v *VaultServer) LogPath() string { return filepath.Join(v.Dir, "vault.log") }

// AuditPath is the file of the server's audit log.
func (v *VaultServer) AuditPath() string { return filepath.Join(v.Dir, "audit.log") }

// FindLeaks searches the server's log and its audit log for secrets.
func (v *VaultServer) FindLeaks() error {
	err := SearchFile(v.LogPath())
	if v.Opts.Audit {
		err = errors.Join(err, SearchFile(v.AuditPath()))
	}
	return err
}

// reportOnFailure prints the end of what the server logged during a test that failed.
func (v *VaultServer) reportOnFailure(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of Vault's log:\n%s", v.logTail(60))
		}
	})
}

func (v *VaultServer) logTail(count int) string {
	data, err := os.ReadFile(v.LogPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return Mask(strings.Join(lines[max(0, len(lines)-count):], "\n"))
}

// NewClient returns an API client that does not retry, so that a test sees every response.
func (v *VaultServer) NewClient(token string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, config.Error
	}
	config.Address = v.Addr
	config.MaxRetries = 0
	config.Timeout = 60 * time.Second
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	client.SetToken(token)
	return client, nil
}

// Client returns a client with the root token and without retries.
func (v *VaultServer) Client(t *testing.T) *api.Client {
	t.Helper()
	client, err := v.NewClient(v.RootToken)
	require.NoError(t, err)
	return client
}

// NewToken returns a Vault token with one policy, without the default one.
func (v *VaultServer) NewToken(t *testing.T, policy string) string {
	t.Helper()
	name := "policy-" + RandomHex(4)
	require.NoError(t, v.Root.Sys().PutPolicy(name, policy))
	secret, err := v.Root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{name}, NoDefaultPolicy: true})
	require.NoError(t, err)
	NoteSecret(secret.Auth.ClientToken, "a Vault token")
	return secret.Auth.ClientToken
}

// Env returns the environment of a vault process. It holds none of the caller's own settings.
func (v *VaultServer) Env(token string) []string {
	env := []string{
		"HOME=" + v.Dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + v.Dir,
		"VAULT_ADDR=" + v.Addr, "VAULT_MAX_RETRIES=0",
	}
	if token != "" {
		env = append(env, "VAULT_TOKEN="+token)
	}
	return env
}

// CLIResult is the result of one command of the vault binary.
type CLIResult struct {
	Stdout, Stderr string
	Status         int
	Took           time.Duration
}

// CLI runs a vault command with the root token and an empty standard input.
func (v *VaultServer) CLI(t *testing.T, args ...string) CLIResult {
	t.Helper()
	return v.CLIWithInput(t, "", args...)
}

// CLIWithInput is CLI with something on the standard input.
func (v *VaultServer) CLIWithInput(t *testing.T, input string, args ...string) CLIResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, VaultBin, args...)
	cmd.Env = v.Env(v.RootToken)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr

	began := time.Now()
	err := cmd.Run()
	result := CLIResult{Stdout: stdout.String(), Stderr: stderr.String(), Took: time.Since(began)}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		result.Status = exit.ExitCode()
	} else {
		require.NoError(t, err, "run vault")
	}
	return result
}

// MustCLI is CLI for a command that must succeed. It returns what the command printed.
func (v *VaultServer) MustCLI(t *testing.T, args ...string) string {
	t.Helper()
	return v.CLI(t, args...).Succeeded(t)
}

// Succeeded requires that the command succeeded, and returns what it printed.
func (r CLIResult) Succeeded(t *testing.T) string {
	t.Helper()
	require.Zero(t, r.Status, "exit status; standard error: %s", Mask(r.Stderr))
	return r.Stdout
}

// Response is a response of Vault's HTTP API as it was sent.
type Response struct {
	Status int
	Body   string
}

// HTTP sends a body to Vault as it is, which no client library allows.
func (v *VaultServer) HTTP(t *testing.T, method, path, contentType, body string) Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, v.Addr+"/v1/"+path, strings.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("X-Vault-Token", v.RootToken)
	request.Header.Set("X-Vault-Request", "true")
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return Response{Status: response.StatusCode, Body: string(text)}
}

var mountCount atomic.Int64

// Enable enables the plugin at a path of its own.
func (v *VaultServer) Enable(t *testing.T) *Mount {
	t.Helper()
	return v.EnableVersion(t, "")
}

// EnableVersion enables a version of the plugin that was registered under it.
func (v *VaultServer) EnableVersion(t *testing.T, version string) *Mount {
	t.Helper()
	m := &Mount{Vault: v, Path: fmt.Sprintf("dingtalk-%d", mountCount.Add(1))}
	require.NoError(t, v.Root.Sys().Mount(m.Path, &api.MountInput{
		Type: PluginName, Config: api.MountConfigInput{PluginVersion: version},
	}), "enable the plugin %s", version)
	return m
}
