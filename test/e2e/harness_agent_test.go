// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Vault Agent and Vault Proxy as users run them: real processes with the configurations in
// examples/, of which only addresses, paths and the mount are replaced, logged in by AppRole with a
// policy from examples/ too.

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"
)

// What the examples say where a user puts something else.
const (
	examplesDir  = "../../examples"
	exampleVault = "https://vault.example.com:8200"
	exampleCreds = "dingtalk/creds/myapp"
	otherCreds   = "dingtalk/creds/otherapp"
)

// somebodysPath is a path that an example must not be run with here.
var somebodysPath = regexp.MustCompile(`"/(etc|run|usr|var)/`)

// runnableExample is a file of examples/ with what is here in place of what it says. It has to say
// all of that.
func runnableExample(t *testing.T, name string, here map[string]string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(examplesDir, name))
	require.NoError(t, err)
	var pairs []string
	for said, instead := range here {
		require.Contains(t, string(content), said, "%s", name)
		pairs = append(pairs, said, instead)
	}
	text := strings.NewReplacer(pairs...).Replace(string(content))
	require.NotRegexp(t, somebodysPath, text, "%s", name)
	return text
}

// vaultClient is a running Vault Agent or Vault Proxy.
type vaultClient struct {
	proc *process
	dir  string // of its files, credentials included
	log  string
}

// vaultClientEnv is the environment for an Agent or a Proxy: it says nothing about Vault, all of
// that is in the configuration.
func vaultClientEnv(dir string) []string {
	return []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir}
}

// everyRead is what a Proxy logs for each read that it answers from its cache.
var everyRead = regexp.MustCompile(
	`received request: method=GET|using auto auth token: method=GET|returning cached dynamic secret`,
)

// startVaultClient runs `vault agent` or `vault proxy`, whose log must hold no secret when it has
// ended.
func startVaultClient(t *testing.T, command, dir, config string) *vaultClient {
	t.Helper()
	c := &vaultClient{dir: dir, log: filepath.Join(dir, command+".log")}
	file := putFile(t, dir, command+".hcl", config)
	var err error
	c.proc, err = startProcess(
		command+" of "+t.Name(),
		c.log,
		vaultClientEnv(dir),
		vaultBin,
		command,
		"-config="+file,
		"-log-level=debug",
	)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := c.proc.stop(10 * time.Second); err != nil {
			t.Error(err)
		}
		if err := searchFile(c.log); err != nil {
			t.Errorf("secrets in the log of vault %s: %v", command, err)
		}
		if t.Failed() {
			lines := slices.DeleteFunc(strings.Split(c.logged(t), "\n"), everyRead.MatchString)
			t.Logf(
				"the end of the log of vault %s:\n%s",
				command,
				mask(strings.Join(lines[max(0, len(lines)-60):], "\n")),
			)
		}
	})
	return c
}

// logged is what the process has logged up to now.
func (c *vaultClient) logged(t *testing.T) string {
	t.Helper()
	log, err := os.ReadFile(c.log)
	require.NoError(t, err)
	return string(log)
}

func putFile(t *testing.T, dir, name, content string) (path string) {
	t.Helper()
	path = filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

var approle sync.Map // *vaultServer to *sync.Once: the auth method is enabled once

// newRole makes a role of the AppRole login method that has one policy besides the default one, and
// puts its credentials into the files of a folder that the examples name.
func (v *vaultServer) newRole(t *testing.T, dir, policy string) {
	t.Helper()
	once, _ := approle.LoadOrStore(v, &sync.Once{})
	once.(*sync.Once).Do(func() {
		require.NoError(t, v.root.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	})
	name := "role-" + randomHex(4)
	require.NoError(t, v.root.Sys().PutPolicy(name, policy))
	path := "auth/approle/role/" + name
	_, err := v.root.Logical().Write(path, fields{"token_policies": name, "token_ttl": "1h"})
	require.NoError(t, err)
	read, err := v.root.Logical().Read(path + "/role-id")
	require.NoError(t, err)
	putFile(t, dir, "role-id", read.Data["role_id"].(string))
	issued, err := v.root.Logical().Write(path+"/secret-id", nil)
	require.NoError(t, err)
	secretID := issued.Data["secret_id"].(string)
	noteSecret(secretID, "a secret id")
	putFile(t, dir, "secret-id", secretID)
}

// bootAgain starts a Vault that was stopped, over the same storage.
func (v *vaultServer) bootAgain(t *testing.T) {
	t.Helper()
	require.NoError(t, v.start(), "start Vault again")
	require.NoError(t, v.unseal(), "unseal Vault again")
}

// deadAtMost is for how long a file may hold a token that DingTalk refuses.
const deadAtMost = time.Second

// rendered is a file that an Agent renders, as an application sees it: it is looked at all the
// time.
type rendered struct {
	file   string
	dt     *dingtalk
	tokens int // how many it holds

	contents  []string // one after another, no two in a row the same
	mayBeDead time.Duration
	deadSince time.Time // zero while the tokens live
	longest   time.Duration
}

// renderedToken is a token as the simulator makes them.
var renderedToken = regexp.MustCompile(`\b[0-9a-f]{32}\b`)

func newRendered(file string, dt *dingtalk, tokens int) *rendered {
	return &rendered{file: file, dt: dt, tokens: tokens, mayBeDead: deadAtMost}
}

// look reads the file once. It may be missing until it was there for the first time.
func (r *rendered) look(t *testing.T) {
	t.Helper()
	content, err := os.ReadFile(r.file)
	if errors.Is(err, fs.ErrNotExist) && len(r.contents) == 0 {
		return
	}
	require.NoError(t, err, "read the rendered file")
	now, text := time.Now(), string(content)
	tokens := renderedToken.FindAllString(text, -1)
	require.Len(t, tokens, r.tokens, "tokens in the rendered file")
	if len(r.contents) == 0 || text != r.last() {
		r.contents = append(r.contents, text)
		for _, token := range tokens {
			noteSecret(token, "an access token")
		}
	}
	for _, token := range tokens {
		if r.dt.left(token) > 0 {
			continue
		}
		if r.deadSince.IsZero() {
			r.deadSince = now
		}
		dead := now.Sub(r.deadSince)
		r.longest = max(r.longest, dead)
		require.LessOrEqual(t, dead, r.mayBeDead, "how long the file has held a token that DingTalk refuses")
		return
	}
	r.deadSince = time.Time{}
}

// last is the file's present content.
func (r *rendered) last() string {
	if len(r.contents) == 0 {
		return ""
	}
	return r.contents[len(r.contents)-1]
}

// holds reports whether the file holds the app's token as DingTalk has it, and nothing of DingTalk's
// that is dead.
func (r *rendered) holds(apps ...*app) bool {
	for _, a := range apps {
		token := a.dt.LastToken(a.key)
		if token == "" || !strings.Contains(r.last(), token) || a.dt.left(token) <= 0 {
			return false
		}
	}
	return true
}

// watchFiles looks at the files until the condition holds, and fails the test if that takes longer
// than the bound.
func watchFiles(t *testing.T, bound time.Duration, what string, files []*rendered, holds func() bool) {
	t.Helper()
	waitFor(t, bound, what, func() bool {
		for _, r := range files {
			r.look(t)
		}
		return holds()
	})
}

// callLog is when an app's calls upstream were made.
type callLog struct {
	a     *app
	at    []time.Time // no later than so
	after []time.Time // the look before, which each came after
	last  time.Time   // look
}

// look notes the calls since the last look.
func (l *callLog) look() {
	for n := l.a.calls(); len(l.at) < n; {
		l.at, l.after = append(l.at, time.Now()), append(l.after, l.last)
	}
	l.last = time.Now()
}

// requireAtMostTwoPer checks that there is no span of a token's lifetime with three calls in it.
func (l *callLog) requireAtMostTwoPer(t *testing.T, lifetime time.Duration) {
	t.Helper()
	const early = 500 * time.Millisecond // the engine counts whole seconds
	for i := 2; i < len(l.at); i++ {
		require.Greater(t, l.at[i].Sub(l.after[i-2])+early, lifetime, "three calls upstream within a lifetime")
	}
}
