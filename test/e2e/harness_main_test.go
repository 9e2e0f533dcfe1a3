// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package e2e drives the plugin as its users do: the real binary in a real Vault server process, through Vault's client
// library, its CLI and its Agent, with the simulator on loopback in DingTalk's place. Nothing is skipped: without the two
// binaries the run fails and says how to build them.
package e2e

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

const pluginName = "vault-plugin-secrets-dingtalk"

// Where the run finds its programs and keeps its files; set once by TestMain.
var (
	vaultBin  string
	pluginBin string
	workRoot  string
)

// parallelTests is how many tests run at once unless -parallel says otherwise. They mostly wait for tokens to age, so
// there may be more of them than processors.
const parallelTests = 8

func TestMain(m *testing.M) {
	if os.Getenv(reaperEnv) != "" {
		reap(os.Stdin)
		return
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	flag.Parse()
	if !flagGiven("test.parallel") {
		if err := flag.Set("test.parallel", strconv.Itoa(parallelTests)); err != nil {
			return fail(err)
		}
	}

	var err error
	if vaultBin, err = findBinary("VAULT_BIN", "../../bin/vault"); err != nil {
		return fail(err)
	}
	if pluginBin, err = findBinary("PLUGIN_BIN", "../../bin/"+pluginName); err != nil {
		return fail(err)
	}
	clearVaultEnvironment()

	if workRoot, err = os.MkdirTemp("", "dingtalk-e2e-"); err != nil {
		return fail(err)
	}
	if err = children.start(workRoot); err != nil {
		return fail(err)
	}

	code := m.Run()
	if err = stopSharedVault(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: the shared Vault:", err)
		code = 1
	}
	if err = children.finish(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

func flagGiven(name string) bool {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}

func findBinary(env, fallback string) (string, error) {
	path := os.Getenv(env)
	if path == "" {
		path = fallback
	} else if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s must be an absolute path, not %q", env, path)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("no program at %s: run `make build vault` first, or set %s", path, env)
	}
	return path, nil
}

// clearVaultEnvironment keeps the caller's own Vault settings out of the clients made here.
func clearVaultEnvironment() {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "VAULT_") {
			_ = os.Unsetenv(name)
		}
	}
}

// The shared Vault serves every test that harms nothing but its own mount.
var shared struct {
	once sync.Once
	v    *vaultServer
	err  error
}

func sharedVault(t *testing.T) *vaultServer {
	t.Helper()
	shared.once.Do(func() {
		shared.v, shared.err = launchVault(vaultOptions{name: "shared", storage: storageInmem, audit: true})
	})
	require.NoError(t, shared.err, "start the shared Vault")
	shared.v.reportOnFailure(t)
	return shared.v
}

func stopSharedVault() error {
	if shared.v == nil {
		return nil
	}
	stopErr := shared.v.stop()
	return errors.Join(stopErr, shared.v.findLeaks())
}

// The reaper is this test binary started again as a small watchman. It holds a pipe from the tests and, when that closes
// for whatever reason, kills what is left of the processes they started: a test run that dies by its own -timeout runs no
// clean-up, and a killed Vault leaves its plugin process behind.
const reaperEnv = "DINGTALK_E2E_REAPER"

type childRegister struct {
	mu    sync.Mutex
	pipe  io.WriteCloser
	cmd   *exec.Cmd
	alive map[int]string // process groups that were started and not yet ended, with their names
}

var children = childRegister{alive: map[int]string{}}

func (c *childRegister) start(root string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.cmd = exec.CommandContext(context.Background(), self) // it ends when the pipe does
	c.cmd.Env = append(os.Environ(), reaperEnv+"=1")
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.pipe, err = c.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.pipe, "dir", root)
	return err
}

func (c *childRegister) add(group int, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive[group] = name
	_, err := fmt.Fprintln(c.pipe, "add", group)
	return err
}

func (c *childRegister) remove(group int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.alive, group)
	_, _ = fmt.Fprintln(c.pipe, "del", group)
}

// finish lets the reaper remove the files and names every process that a test left running.
func (c *childRegister) finish() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for group, name := range c.alive {
		err = errors.Join(err, fmt.Errorf("%s (process group %d) was left running", name, group))
	}
	return errors.Join(err, c.pipe.Close(), c.cmd.Wait())
}

func reap(from io.Reader) {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	groups := map[int]bool{}
	var dir string
	for lines := bufio.NewScanner(from); lines.Scan(); {
		verb, value, _ := strings.Cut(lines.Text(), " ")
		group, _ := strconv.Atoi(value)
		switch verb {
		case "dir":
			dir = value
		case "add":
			groups[group] = true
		case "del":
			delete(groups, group)
		}
	}
	for group := range groups {
		if group > 1 {
			_ = syscall.Kill(-group, syscall.SIGKILL)
		}
	}
	if dir != "" {
		_ = os.RemoveAll(dir)
	}
}
