// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package readme

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"go/format"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	dingtalk "vault-plugin-secrets-dingtalk"
	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/internal/subprocess"
	"vault-plugin-secrets-dingtalk/test/harness"
)

const (
	root    = "../.."
	appKey  = "dingxxxxxxxx" // the README's
	reading = 5 * time.Minute
)

func TestReadme_works_as_written(t *testing.T) {
	t.Parallel()
	blocks := pageBlocks(t, "README.md")
	n := newNewcomer(t, blocks)
	n.onFile = func(name string) {
		if name == "vault.hcl" {
			n.startVault(
				t,
				[]string{
					"VAULT_DEV_ROOT_TOKEN_ID=" + n.client.Token(),
					"VAULT_DEV_LISTEN_ADDRESS=" + strings.TrimPrefix(n.vault, "http://"),
				},
				"-dev",
				"-dev-no-store-token",
				"-config="+name,
			)
			n.await(t, true)
		}
	}
	n.read(t, blocks)
	require.True(t, n.used[pagePlugins], "the README names the plugin directory")
	require.Positive(t, n.dingtalk.Requests(appKey))
	n.checkPolicy(t)
}

// newcomer is somebody who has just checked the project out, and does what a page says.
type newcomer struct {
	checkout string
	dir      string // where the commands are run
	programs string // a directory on the PATH
	env      []string
	secret   string
	here     map[string]string // what the page says, and what it is here
	used     map[string]bool
	onFile   func(name string) // called when a file has been written
	dingtalk *simulator.Server
	network  company // in which Vault reaches the simulator by DingTalk's name
	upstream string  // the base_url of the page's app
	vault    string  // Vault's address
	log      output  // what Vault printed
	client   *api.Client

	unsealKey string // of a Vault that has one
	hidden    []string
}

// newNewcomer is a newcomer who is to read a page with these blocks.
func newNewcomer(t *testing.T, blocks []block) *newcomer {
	t.Helper()
	needPrograms(t, blocks)
	n := &newcomer{
		checkout: filepath.Join(t.TempDir(), "a checkout"), // with a space in its path
		onFile:   func(string) {},
		secret:   rand.Text(),
		vault:    "http://" + freeAddress(t),
		used:     map[string]bool{},
		dingtalk: simulator.New(simulator.Options{}),
	}
	n.dir, n.hidden = n.checkout, []string{n.secret}
	n.dingtalk.SetApp(appKey, n.secret)
	n.upstream = "https://" + dingtalkHost
	n.network = startCompany(t, n.dingtalk)
	t.Cleanup(func() { n.dingtalk.Close() }) // first, so that no request is left without a response

	plugins, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	n.here = map[string]string{
		pagePlugins:                      plugins,
		pageListener:                     freeAddress(t),
		"https://vault.example.com:8200": n.vault,
	}
	version, err := exec.CommandContext(t.Context(), vaultBin(t), "version").Output()
	require.NoError(t, err)
	if strings.HasPrefix(string(version), "OpenBao ") {
		n.here["plugin reload -type=secret"] = "plugin reload" // as docs/openbao.md has it
	}

	checkOut(t, n.checkout)
	require.NoError(t, os.WriteFile(filepath.Join(n.checkout, "app-secret.txt"), []byte(n.secret+"\n"), 0o600))
	n.programs = t.TempDir()
	require.NoError(t, os.Symlink(vaultBin(t), filepath.Join(n.programs, "vault")))
	path, token := n.programs, rand.Text()
	if prometheus := os.Getenv("PROMETHEUS_BIN"); prometheus != "" {
		path += ":" + filepath.Dir(prometheus) // promtool
	}
	n.env = append(environment(t), "PATH="+path+":"+os.Getenv("PATH"), "VAULT_ADDR="+n.vault, "VAULT_TOKEN="+token)

	config := api.DefaultConfig()
	config.Address = n.vault
	n.client, err = api.NewClient(config)
	require.NoError(t, err)
	n.client.SetToken(token)
	return n
}

// environment is that of somebody without any settings of Vault's or the demo's, with Go's caches
// where they are.
func environment(t *testing.T) []string {
	t.Helper()
	var env []string
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		// Below a make, another one is to behave as if it were the first.
		if !strings.HasPrefix(name, "VAULT_") && !strings.HasPrefix(name, "DINGTALK_") && !strings.HasPrefix(name, "MAKE") &&
			name != "MFLAGS" && name != "HOME" && name != "VERSION" &&
			name != "version" &&
			name != "PATH" {
			env = append(env, pair)
		}
	}
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		value, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
		require.NoError(t, err)
		env = append(env, name+"="+strings.TrimSpace(string(value)))
	}
	// The go command leaves a process behind that writes its telemetry below HOME, also while the test
	// removes it.
	home := t.TempDir()
	telemetry := filepath.Join(home, ".config", "go", "telemetry")
	require.NoError(t, os.MkdirAll(telemetry, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(telemetry, "mode"), []byte("off"), 0o600))
	return append(env, "HOME="+home, "VAULT_BIN="+vaultBin(t))
}

func vaultBin(t *testing.T) string {
	t.Helper()
	path := os.Getenv("VAULT_BIN")
	if path == "" {
		path = root + "/bin/vault"
	}
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	require.FileExists(t, path, "run `make vault` first, or set VAULT_BIN")
	return path
}

// checkOut copies the project without what a clone would not have.
func checkOut(t *testing.T, to string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case relative == ".git" && !entry.IsDir(): // of a worktree
			return nil
		case relative == "bin" || relative == "dist" || relative == ".git":
			return fs.SkipDir
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, relative), 0o700)
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			return nil // an editor's, which has gone
		}
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, relative), content, info.Mode().Perm())
	})
	require.NoError(t, err)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := subprocess.DemoPorts.Free()
	require.NoError(t, err)
	return "127.0.0.1:" + strconv.Itoa(port)
}

// needed are the programs of the pages' commands that a machine may lack.
var needed = regexp.MustCompile(`\b(curl|jq|promtool|python3)\b`)

// needPrograms skips a page with a command that this machine lacks.
func needPrograms(t *testing.T, blocks []block) {
	t.Helper()
	for _, b := range blocks {
		if b.language != "shell" {
			continue
		}
		for _, program := range needed.FindAllString(b.body, -1) {
			if program == "promtool" {
				harness.PrometheusProgram(t, program)
				continue
			}
			harness.NeedProgram(t, program, fmt.Sprintf("%v needs it", b))
		}
	}
}

// read does what the page says.
func (n *newcomer) read(t *testing.T, blocks []block) {
	t.Helper()
	for i, b := range blocks {
		status := 0
		run := n.shell
		for _, given := range b.given {
			if needs, ok := strings.CutPrefix(given, "not run here: "); ok {
				requireNeeds(t, b, needs)
				run = n.readOnly
				continue
			}
			if _, err := fmt.Sscanf(given, "exit status %d", &status); err != nil {
				n.arrange(t, b, given)
			}
		}
		body := n.translate(b.body)
		var printed string
		switch b.language {
		case "shell":
			printed = run(t, b, body, status)
		case "hcl", "yaml", "json":
			n.onFile(n.write(t, b, body))
		case "go":
			printed = n.goProgram(t, b, body, n.translate(blocks[i+1].body))
		}
		if i+1 < len(blocks) && blocks[i+1].language == "text" {
			require.True(
				t,
				matches(n.translate(blocks[i+1].body), printed),
				"%v printed something else than the text that follows:\n%s",
				b,
				printed,
			)
		}
	}
}

// translate puts what is here in place of the page's examples.
func (n *newcomer) translate(body string) string {
	for example, here := range n.here {
		if strings.Contains(body, example) {
			n.used[example] = true
			body = strings.ReplaceAll(body, example, here)
		}
	}
	return body
}

// command is a program in a process group of its own, which ends with the test.
func (n *newcomer) command(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), reading)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = n.dir, n.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// shell runs the block, which has to end with the given exit status.
func (n *newcomer) shell(t *testing.T, b block, body string, status int) string {
	t.Helper()
	cmd := n.command(t, "bash", "-euo", "pipefail", "-c", body)
	cmd.Stdin = strings.NewReader(n.secret + "\n")
	if strings.Contains(body, "sys/unseal") {
		cmd.Stdin = strings.NewReader(n.unsealKey + "\n")
	}
	printed, err := cmd.CombinedOutput()
	if status == 0 {
		require.NoError(t, err, "%v printed:\n%s", b, printed)
	}
	require.Equal(t, status, cmd.ProcessState.ExitCode(), "%v printed:\n%s", b, printed)
	n.checkHidden(t, string(printed))
	return string(printed)
}

// elsewhere is what a page may need that a test has not.
var elsewhere = []string{"cosign", "docker", "github.com", "helm", "kubectl", "registry.example.com", "skopeo"}

// requireNeeds holds what a block is said to need against the list, and against the block.
func requireNeeds(t *testing.T, b block, needs string) {
	t.Helper()
	require.Equal(t, "shell", b.language, "%v", b)
	for need := range strings.SplitSeq(needs, ", ") {
		require.Contains(t, elsewhere, need, "%v", b)
		require.Contains(t, b.body, need, "%v does not need it", b)
	}
}

// readOnly lets bash read the block without running it.
func (n *newcomer) readOnly(t *testing.T, b block, body string, _ int) string {
	t.Helper()
	printed, err := n.command(t, "bash", "-n", "-c", body).CombinedOutput()
	require.NoError(t, err, "%v: %s", b, printed)
	return string(printed)
}

// checkHidden looks for what nothing may print.
func (n *newcomer) checkHidden(t *testing.T, text string) {
	t.Helper()
	for _, secret := range n.hidden {
		assert.NotContains(t, text, secret)
	}
}

func (n *newcomer) write(t *testing.T, b block, body string) string {
	t.Helper()
	name, err := b.fileName()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(n.dir, name), []byte(body), 0o600))
	return name
}

// goProgram runs the program until it has printed the text.
func (n *newcomer) goProgram(t *testing.T, b block, body, text string) string {
	t.Helper()
	formatted, err := format.Source([]byte(body))
	require.NoError(t, err, "%v", b)
	require.Equal(t, string(formatted), body, "%v is not formatted", b)

	// A directory of its own is a package of its own, with the project's version of the client library.
	name, err := b.fileName()
	require.NoError(t, err)
	dir := filepath.Join(n.checkout, "program")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600))
	built, err := n.command(t, "go", "build", "-buildvcs=false", "-o", "program/", "./program").CombinedOutput()
	require.NoError(t, err, "build %v: %s", b, built)

	cmd := n.command(t, filepath.Join(dir, "program"))
	var printed output
	cmd.Stdout, cmd.Stderr = &printed, &printed
	require.NoError(t, cmd.Start())
	require.Eventually(
		t,
		func() bool { return matches(text, printed.String()) },
		20*time.Second,
		50*time.Millisecond,
		"%v",
		b,
	)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.NoError(t, cmd.Wait(), "%v printed:\n%s", b, &printed)
	return printed.String()
}

// startVault starts a server, which ends with the test.
func (n *newcomer) startVault(t *testing.T, env []string, args ...string) {
	t.Helper()
	cmd := n.command(t, vaultBin(t), append([]string{"server"}, args...)...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Env = append(cmd.Env, n.network.env()...) // which the plugin gets from Vault
	cmd.Stdout, cmd.Stderr = &n.log, &n.log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // a plugin's process ends with its Vault
	cmd.WaitDelay = 20 * time.Second
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		// The test's context has ended, so Vault is ending.
		_ = cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if t.Failed() {
			t.Logf("Vault's log:\n%s", &n.log)
		}
		n.checkHidden(t, n.log.String())
	})
}

// await waits until Vault answers, and is ready for work where that is asked for.
func (n *newcomer) await(t *testing.T, ready bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		health, err := n.client.Sys().Health()
		return err == nil && (!ready || health.Initialized && !health.Sealed && !health.Standby)
	}, 30*time.Second, 100*time.Millisecond, "Vault does not start: %s", &n.log)
}

// checkPolicy holds the README's policy against what it says of it.
func (n *newcomer) checkPolicy(t *testing.T) {
	t.Helper()
	login, err := n.client.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"dingtalk-myapp"}})
	require.NoError(t, err)
	for path, want := range map[string]string{
		"dingtalk/creds/myapp":   "read",
		"dingtalk/creds/another": "deny",
		"dingtalk/config/":       "deny",
		"dingtalk/config/myapp":  "deny",
		"dingtalk/status/myapp":  "deny",
		"dingtalk/refresh/myapp": "deny",
		"sys/leases/renew":       "update",
		"sys/mounts":             "deny",
	} {
		capabilities, err := n.client.Sys().Capabilities(login.Auth.ClientToken, path)
		require.NoError(t, err)
		require.Equal(t, want, strings.Join(capabilities, " "), path)
	}
}

// output is what a program printed up to now.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

var _ io.Writer = (*output)(nil)

func TestReference_names_every_path_and_field(t *testing.T) {
	t.Parallel()
	engine, err := dingtalk.Factory(
		t.Context(),
		&logical.BackendConfig{
			StorageView: &logical.InmemStorage{},
			System:      &logical.StaticSystemView{PluginEnvironment: &logical.PluginEnvironment{}},
		},
	)
	require.NoError(t, err)
	t.Cleanup(func() { engine.Cleanup(context.Background()) })
	help, err := engine.HandleRequest(t.Context(), &logical.Request{Operation: logical.HelpOperation})
	require.NoError(t, err)
	document, ok := help.Data["openapi"].(*framework.OASDocument)
	require.True(t, ok)

	named := func(name string, pages ...string) {
		for _, page := range append(pages, "docs/api.md") {
			if !strings.Contains(pageText(t, page), "`"+name+"`") {
				t.Errorf("%s does not name `%s`", page, name)
			}
		}
	}
	require.Len(t, document.Paths, 6)
	for path, item := range document.Paths {
		path = strings.ReplaceAll(strings.TrimPrefix(path, "/"), "{app}", "<app>")
		named(path, "README.md")
		for _, operation := range []*framework.OASOperation{item.Get, item.Post, item.Delete} {
			if operation == nil {
				continue
			}
			for _, parameter := range operation.Parameters {
				if parameter.Name != "list" { // what makes a GET a LIST
					named(parameter.Name)
				}
			}
		}
	}
	for _, schema := range document.Components.Schemas {
		for field := range schema.Properties {
			named(field)
		}
	}
}
