// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A real Vault Agent, logged in by AppRole with a policy that allows one app's credentials, renders the token into a file.

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"
)

// agent is a running Vault Agent and the file it renders.
type agent struct {
	proc *process
	file string
	log  string
}

var approle sync.Map // *vaultServer to *sync.Once: the auth method is enabled once

// startAgent runs an Agent that renders a template of the app's credentials.
func startAgent(t *testing.T, a *app, template string) *agent {
	t.Helper()
	v := a.m.v
	dir := t.TempDir()
	once, _ := approle.LoadOrStore(v, &sync.Once{})
	once.(*sync.Once).Do(func() {
		require.NoError(t, v.root.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	})

	policy := "read-" + a.name
	require.NoError(t, v.root.Sys().PutPolicy(policy, fmt.Sprintf("path %q { capabilities = [\"read\"] }\n", a.credsPath())))
	role := "auth/approle/role/" + a.name
	_, err := v.root.Logical().Write(role, map[string]any{"token_policies": policy, "token_ttl": "1h"})
	require.NoError(t, err)
	roleID := a.m.readData(t, role+"/role-id")["role_id"].(string)
	issued, err := v.root.Logical().Write(role+"/secret-id", nil)
	require.NoError(t, err)
	secretID := issued.Data["secret_id"].(string)

	path := func(name, content string) string {
		file := filepath.Join(dir, name)
		if content != "" {
			require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		}
		return file
	}
	g := &agent{file: path("rendered", ""), log: path("agent.log", "")}
	config := path("agent.hcl", fmt.Sprintf(`
vault {
  address = %q
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path = %q
      secret_id_file_path = %q
      remove_secret_id_file_after_reading = false
    }
  }
}

template {
  source = %q
  destination = %q
  error_on_missing_key = true
}
`, v.addr, path("role-id", roleID), path("secret-id", secretID), path("token.ctmpl", template), g.file))

	g.proc, err = startProcess("agent of "+t.Name(), g.log, v.env(""), vaultBin, "agent", "-config="+config, "-log-level=debug")
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := g.proc.stop(10 * time.Second); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			data, _ := os.ReadFile(g.log)
			lines := strings.Split(string(data), "\n")
			t.Logf("the end of the Agent's log:\n%s", mask(strings.Join(lines[max(0, len(lines)-40):], "\n")))
		}
	})
	return g
}

// holds tells whether the file is there and holds the text.
func (g *agent) holds(t *testing.T, text string) bool {
	t.Helper()
	require.True(t, g.proc.running(), "the Agent runs")
	data, err := os.ReadFile(g.file)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	require.NoError(t, err)
	return bytes.Contains(data, []byte(text))
}

func TestAgent_renders_the_token_and_follows_a_changed_one(t *testing.T) {
	t.Parallel()
	// The Agent renews after two thirds of a lease, and a token is extended at most once in 10 s.
	const lifetime = 16 * time.Second
	for name, leased := range map[string]bool{"leased": true, "unleased": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, lifetime)
			a := newMount(t).newApp(t, dt, fields{"leased": leased})
			g := startAgent(t, a, fmt.Sprintf(`token={{ with secret %q }}{{ .Data.access_token }}{{ end }};`, a.credsPath()))

			waitFor(t, 30*time.Second, "the Agent renders the token", func() bool {
				return a.calls() > 0 && g.holds(t, "token="+dt.LastToken(a.key)+";")
			})
			first := dt.LastToken(a.key)
			noteSecret(first, "an access token")

			// Over more than a lifetime the token is extended, and the file goes on to hold a live one.
			lived := time.Now().Add(lifetime + lifetime/4)
			waitFor(t, 2*lifetime, "the token was kept alive", func() bool {
				requireSameToken(t, dt.LastToken(a.key), first) // DingTalk gives the same token
				require.Positive(t, dt.left(first), "the rendered token lives")
				return time.Now().After(lived)
			})
			require.True(t, g.holds(t, "token="+first+";"))
			require.LessOrEqual(t, a.calls(), 5, "two calls in a lifetime are enough")

			// DingTalk replaces the token: the file follows within a lifetime.
			dt.ExpireTokens(a.key)
			waitFor(t, 2*lifetime, "the file holds the new token", func() bool {
				token := dt.LastToken(a.key)
				return token != first && g.holds(t, "token="+token+";")
			})
			noteSecret(dt.LastToken(a.key), "an access token")
		})
	}
}
