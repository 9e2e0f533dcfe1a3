// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A Vault server as a process on loopback: started from a configuration file, initialised and
// unsealed, with the plugin in its catalog and its trace log in a file. It can be sealed, stopped,
// killed and started again over the same storage.

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

// The storages a test may ask for. Only inmem forgets everything when Vault stops.
const (
	storageInmem = "inmem"
	storageRaft  = "raft"
)

type vaultOptions struct {
	name    string // shown in messages, and the node's id in a raft cluster
	storage string
	audit   bool   // write an audit log to a file from the start
	config  string // more of the server's configuration
}

type vaultServer struct {
	opts      vaultOptions
	dir       string
	addr      string // http://127.0.0.1:port
	cluster   string // 127.0.0.1:port
	proc      *process
	rootToken string
	unsealKey string
	root      *api.Client // with the root token and without retries

	pluginPath    string // the plugin's program in this Vault's own plugin directory
	pluginSHA256  string
	pluginVersion string // as the catalog has it
}

// startVault gives the test a Vault of its own, which it may harm as it likes.
func startVault(t *testing.T, opts vaultOptions) *vaultServer {
	t.Helper()
	if opts.name == "" {
		opts.name = strings.ReplaceAll(t.Name(), "/", "_")
	}
	v, err := launchVault(opts)
	require.NoError(t, err, "start Vault")
	t.Cleanup(func() {
		if err := v.stop(); err != nil {
			t.Errorf("stop Vault: %v", err)
		}
		if err := v.findLeaks(); err != nil {
			t.Errorf("secrets in Vault's files: %v", err)
		}
	})
	v.reportOnFailure(t)
	return v
}

// launchVault is startVault for callers that have no test.
func launchVault(opts vaultOptions) (*vaultServer, error) {
	dir, err := os.MkdirTemp(workRoot, "vault-")
	if err != nil {
		return nil, err
	}
	v := &vaultServer{opts: opts, dir: dir}
	if err := v.installPlugin(); err != nil {
		return nil, err
	}
	if err := v.start(); err != nil {
		return nil, err
	}
	if err := v.initialise(); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

func (v *vaultServer) installPlugin() error {
	program, err := os.ReadFile(pluginBin)
	if err != nil {
		return err
	}
	pluginDir := filepath.Join(v.dir, "plugins")
	if err := os.Mkdir(pluginDir, 0o755); err != nil {
		return err
	}
	// Vault compares the resolved paths of the directory and the program.
	if pluginDir, err = filepath.EvalSymlinks(pluginDir); err != nil {
		return err
	}
	digest := sha256.Sum256(program)
	v.pluginSHA256 = hex.EncodeToString(digest[:])
	v.pluginPath = filepath.Join(pluginDir, pluginName)
	return os.WriteFile(v.pluginPath, program, 0o755)
}

// start runs the server and waits until it answers. A port that somebody else took in the meantime
// is given up for another.
func (v *vaultServer) start() error {
	for attempt := 1; ; attempt++ {
		err := v.startOnce()
		portTaken := err != nil && strings.Contains(v.logTail(20), "address already in use")
		if !portTaken || v.root != nil || attempt == 3 {
			return err
		}
		v.addr = ""
	}
}

func (v *vaultServer) startOnce() error {
	if v.addr == "" {
		if err := v.configure(); err != nil {
			return err
		}
	}
	proc, err := startProcess(
		"vault "+v.opts.name,
		v.logPath(),
		v.env(""),
		vaultBin,
		"server",
		"-config="+v.configPath(),
	)
	if err != nil {
		return err
	}
	v.proc = proc
	if err := v.waitForAnswer(); err != nil {
		v.proc = nil
		return errors.Join(err, proc.Kill())
	}
	return nil
}

func (v *vaultServer) configure() error {
	port, err := subprocess.ServerPorts.Free()
	if err != nil {
		return err
	}
	clusterPort, err := subprocess.ServerPorts.Free()
	if err != nil {
		return err
	}
	listen := "127.0.0.1:" + strconv.Itoa(port)
	v.addr = "http://" + listen
	v.cluster = "127.0.0.1:" + strconv.Itoa(clusterPort)

	data := filepath.Join(v.dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	storage := map[string]string{
		storageInmem: `storage "inmem" {}`,
		storageRaft: fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = %q\n  performance_multiplier = 1\n}",
			data, v.opts.name),
	}[v.opts.storage]
	if storage == "" {
		return fmt.Errorf("no storage called %q", v.opts.storage)
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
`, v.addr, "https://"+v.cluster, filepath.Dir(v.pluginPath), listen, v.cluster, storage, v.opts.config)
	if onOpenBao {
		config += "unsafe_allow_api_audit_creation = true\n" // which Vault allows as it is
	}
	return os.WriteFile(v.configPath(), []byte(config), 0o600)
}

func (v *vaultServer) waitForAnswer() error {
	client, err := v.newClient("")
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err = client.Sys().SealStatus(); err == nil {
			return nil
		}
		if !v.proc.Running() {
			return fmt.Errorf("vault ended at its start:\n%s", v.logTail(20))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("vault does not answer: %w", err)
		}
	}
}

func (v *vaultServer) initialise() error {
	client, err := v.newClient("")
	if err != nil {
		return err
	}
	keys, err := client.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	v.rootToken, v.unsealKey = keys.RootToken, keys.KeysB64[0]
	noteSecret(v.rootToken, "a root token")
	noteSecret(v.unsealKey, "an unseal key")
	if v.root, err = v.newClient(v.rootToken); err != nil {
		return err
	}
	if err := v.unseal(); err != nil {
		return err
	}
	if v.opts.audit {
		err := v.root.Sys().EnableAuditWithOptions("file", &api.EnableAuditOptions{
			Type: "file", Options: map[string]string{"file_path": v.auditPath()},
		})
		if err != nil {
			return fmt.Errorf("enable the audit device: %w", err)
		}
	}
	return v.registerPlugin()
}

// registerPlugin puts the plugin into the catalog. Vault asks the program for its version then.
func (v *vaultServer) registerPlugin() error {
	err := v.root.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name: pluginName, Type: api.PluginTypeSecrets, Command: pluginName, SHA256: v.pluginSHA256,
	})
	if err != nil {
		return fmt.Errorf("register the plugin: %w", err)
	}
	catalog, err := v.root.Sys().ListPlugins(&api.ListPluginsInput{Type: api.PluginTypeSecrets})
	if err != nil {
		return fmt.Errorf("list the catalog: %w", err)
	}
	for _, entry := range catalog.Details {
		if entry.Name == pluginName {
			v.pluginVersion = entry.Version
			return nil
		}
	}
	return errors.New("the catalog does not list the plugin")
}

// unseal unseals and waits until the server is active.
func (v *vaultServer) unseal() error {
	if _, err := v.root.Sys().Unseal(v.unsealKey); err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	var health *api.HealthResponse
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		health, err = v.root.Sys().Health()
		if err == nil && health.Initialized && !health.Sealed && !health.Standby {
			return nil
		}
	}
	return fmt.Errorf("vault is not active after unsealing: %+v, %w", health, err)
}

// restart stops the server as an operator would and starts it again over the same storage.
func (v *vaultServer) restart(t *testing.T) {
	t.Helper()
	require.NoError(t, v.stop(), "stop Vault")
	require.NoError(t, v.start(), "start Vault again")
	require.NoError(t, v.unseal(), "unseal Vault again")
}

// crash ends the server and its plugin with SIGKILL, and starts it again over the same storage.
func (v *vaultServer) crash(t *testing.T) {
	t.Helper()
	require.NoError(t, v.proc.Kill(), "kill Vault")
	require.NoError(t, v.start(), "start Vault again")
	require.NoError(t, v.unseal(), "unseal Vault again")
}

func (v *vaultServer) stop() error {
	if v.proc == nil {
		return nil
	}
	err := v.proc.stop(30 * time.Second)
	v.proc = nil
	return err
}

// pluginPID is the process that serves every mount of the plugin, since it is multiplexed.
func (v *vaultServer) pluginPID(t *testing.T) int {
	t.Helper()
	pids, err := subprocess.Children(v.proc.PID(), v.pluginPath)
	require.NoError(t, err)
	require.Len(t, pids, 1, "one process serves all mounts of a multiplexed plugin")
	return pids[0]
}

// killPlugin ends the plugin's process with SIGKILL and waits until Vault knows. What Vault is
// asked before that it answers with an error of its own connection, whatever the plugin.
func (v *vaultServer) killPlugin(t *testing.T) {
	t.Helper()
	pid := v.pluginPID(t)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	exited := regexp.MustCompile(fmt.Sprintf(`plugin process exited:.* id=%d\b`, pid))
	waitFor(t, 20*time.Second, "Vault sees the end of the plugin's process", func() bool {
		log, err := os.ReadFile(v.logPath())
		require.NoError(t, err)
		return exited.Match(log)
	})
}

func (v *vaultServer) configPath() string { return filepath.Join(v.dir, "vault.hcl") }
func (v *vaultServer) logPath() string    { return filepath.Join(v.dir, "vault.log") }
func (v *vaultServer) auditPath() string  { return filepath.Join(v.dir, "audit.log") }

// findLeaks searches the server's log and its audit log for secrets.
func (v *vaultServer) findLeaks() error {
	err := searchFile(v.logPath())
	if v.opts.audit {
		err = errors.Join(err, searchFile(v.auditPath()))
	}
	return err
}

// reportOnFailure prints the end of what the server logged during a test that failed.
func (v *vaultServer) reportOnFailure(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of Vault's log:\n%s", v.logTail(60))
		}
	})
}

func (v *vaultServer) logTail(count int) string {
	data, err := os.ReadFile(v.logPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return mask(strings.Join(lines[max(0, len(lines)-count):], "\n"))
}

// newClient makes an API client that does not retry: a test sees every answer as it comes.
func (v *vaultServer) newClient(token string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, config.Error
	}
	config.Address = v.addr
	config.MaxRetries = 0
	config.Timeout = 60 * time.Second
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	client.SetToken(token)
	return client, nil
}

func (v *vaultServer) client(t *testing.T) *api.Client {
	t.Helper()
	client, err := v.newClient(v.rootToken)
	require.NoError(t, err)
	return client
}

// env is the environment for a vault process; nothing of the caller's own settings gets into it.
func (v *vaultServer) env(token string) []string {
	env := []string{
		"HOME=" + v.dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + v.dir,
		"VAULT_ADDR=" + v.addr, "VAULT_MAX_RETRIES=0",
	}
	if token != "" {
		env = append(env, "VAULT_TOKEN="+token)
	}
	return env
}

// cliResult is what one command of the vault program did.
type cliResult struct {
	stdout, stderr string
	status         int
	took           time.Duration
}

// cli runs a command of the vault program as root, with nothing on its standard input.
func (v *vaultServer) cli(t *testing.T, args ...string) cliResult {
	t.Helper()
	return v.cliWithInput(t, "", args...)
}

func (v *vaultServer) cliWithInput(t *testing.T, input string, args ...string) cliResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, vaultBin, args...)
	cmd.Env = v.env(v.rootToken)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr

	began := time.Now()
	err := cmd.Run()
	result := cliResult{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(began)}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		result.status = exit.ExitCode()
	} else {
		require.NoError(t, err, "run vault")
	}
	return result
}

// mustCLI is cli for a command that has to succeed; it returns what the command printed.
func (v *vaultServer) mustCLI(t *testing.T, args ...string) string {
	t.Helper()
	return v.cli(t, args...).succeeded(t)
}

func (r cliResult) succeeded(t *testing.T) string {
	t.Helper()
	require.Zero(t, r.status, "exit status; standard error: %s", mask(r.stderr))
	return r.stdout
}

// answer is one reply of Vault's HTTP API as it came over the wire.
type answer struct {
	status int
	body   string
}

// http sends a body to Vault as it is, which no client library would let through.
func (v *vaultServer) http(t *testing.T, method, path, contentType, body string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, v.addr+"/v1/"+path, strings.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("X-Vault-Token", v.rootToken)
	request.Header.Set("X-Vault-Request", "true")
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return answer{status: response.StatusCode, body: string(text)}
}

var mountCount atomic.Int64

// enable enables the plugin at a path of its own.
func (v *vaultServer) enable(t *testing.T) *mount {
	t.Helper()
	m := &mount{v: v, path: fmt.Sprintf("dingtalk-%d", mountCount.Add(1))}
	require.NoError(t, v.root.Sys().Mount(m.path, &api.MountInput{Type: pluginName}), "enable the plugin")
	return m
}
