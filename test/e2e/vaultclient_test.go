// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Vault Agent and Vault Proxy as users run them: real processes with the configurations in
// examples/. Only addresses, paths and the mount are replaced. They log in by AppRole with a policy
// from examples/.

import (
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

	"vault-plugin-secrets-dingtalk/test/harness"
)

// vaultClient is a running Vault Agent or Vault Proxy.
type vaultClient struct {
	proc *harness.Process
	dir  string // of its files, credentials included
	log  string
}

// everyRead is what a Proxy logs for each read that it serves from its cache.
var everyRead = regexp.MustCompile(
	`received request: method=GET|using auto auth token: method=GET|returning cached dynamic secret`,
)

// startVaultClient runs `vault agent` or `vault proxy`, whose log must hold no secret when it has
// ended.
func startVaultClient(t *testing.T, command, dir, config string) *vaultClient {
	t.Helper()
	c := &vaultClient{dir: dir, log: filepath.Join(dir, command+".log")}
	file := harness.PutFile(t, dir, command+".hcl", config)
	var err error
	c.proc, err = harness.StartProcess(
		command+" of "+t.Name(),
		c.log,
		harness.ClientEnv(dir),
		harness.VaultBin,
		command,
		"-config="+file,
		"-log-level=debug",
	)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := c.proc.Terminate(10 * time.Second); err != nil {
			t.Error(err)
		}
		if err := harness.SearchFile(c.log); err != nil {
			t.Errorf("secrets in the log of vault %s: %v", command, err)
		}
		if t.Failed() {
			lines := slices.DeleteFunc(strings.Split(c.logged(t), "\n"), everyRead.MatchString)
			t.Logf(
				"the end of the log of vault %s:\n%s",
				command,
				harness.Mask(strings.Join(lines[max(0, len(lines)-60):], "\n")),
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

var approle sync.Map // *vaultServer to *sync.Once: the auth method is enabled once

// newRole makes a role of the AppRole auth method with one policy and the default one. It puts the
// role's credentials into a directory, in the files that the examples name.
func newRole(t *testing.T, v *harness.VaultServer, dir, policy string) {
	t.Helper()
	once, _ := approle.LoadOrStore(v, &sync.Once{})
	once.(*sync.Once).Do(func() {
		require.NoError(t, v.Root.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	})
	name := "role-" + harness.RandomHex(4)
	require.NoError(t, v.Root.Sys().PutPolicy(name, policy))
	path := "auth/approle/role/" + name
	_, err := v.Root.Logical().Write(path, harness.Fields{"token_policies": name, "token_ttl": "1h"})
	require.NoError(t, err)
	read, err := v.Root.Logical().Read(path + "/role-id")
	require.NoError(t, err)
	harness.PutFile(t, dir, "role-id", read.Data["role_id"].(string))
	issued, err := v.Root.Logical().Write(path+"/secret-id", nil)
	require.NoError(t, err)
	secretID := issued.Data["secret_id"].(string)
	harness.NoteSecret(secretID, "a secret id")
	harness.PutFile(t, dir, "secret-id", secretID)
}
