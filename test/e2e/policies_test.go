// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The policies in examples/policies, unchanged, with real Vault tokens: what each allows, and that
// it allows nothing else.

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

const (
	policiesDir   = "../../examples/policies"
	clientsPolicy = "../../examples/clients/policy.hcl"
	patchType     = "application/merge-patch+json"
)

// policyWorld is a Vault with the engine where the policies expect it, and the apps that they are
// about.
type policyWorld struct {
	v  *harness.VaultServer
	dt *harness.DingTalk
	// apps are the one that reader.hcl names, another, and one whose name begins like it.
	apps map[string]*harness.App

	attempts int // for names that were not there before
}

func newPolicyWorld(t *testing.T) *policyWorld {
	t.Helper()
	w := &policyWorld{
		v:    harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem, Audit: true}),
		dt:   harness.StartDingTalk(t, harness.FullLifetime),
		apps: map[string]*harness.App{},
	}
	m := &harness.Mount{Vault: w.v, Path: "dingtalk"}
	require.NoError(t, w.v.Root.Sys().Mount(m.Path, &api.MountInput{Type: harness.PluginName}))
	for _, name := range []string{"myapp", "other", "myapp-payroll"} {
		a := m.UnstoredApp(w.dt)
		a.Name = name
		_, err := w.v.Root.Logical().Write(a.ConfigPath(), a.Config())
		require.NoError(t, err)
		w.apps[name] = a
	}
	return w
}

// write stores a policy from its file, under the name that the examples use.
func (w *policyWorld) write(t *testing.T, file string) (name string) {
	t.Helper()
	name = "dingtalk-" + strings.TrimSuffix(file, ".hcl")
	w.v.MustCLI(t, "policy", "write", name, filepath.Join(policiesDir, file))
	return name
}

// holder is somebody with a token of Vault.
type holder struct{ *harness.VaultServer }

func (w *policyWorld) withToken(token string) holder {
	harness.NoteSecret(token, "a Vault token")
	as := *w.v
	as.RootToken = token
	return holder{&as}
}

// holderOf makes a token with one policy and Vault's default one.
func (w *policyWorld) holderOf(t *testing.T, policy string) holder {
	t.Helper()
	secret, err := w.v.Root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{policy}})
	require.NoError(t, err)
	require.Contains(t, secret.Auth.TokenPolicies, policy)
	return w.withToken(secret.Auth.ClientToken)
}

// operations are all that can be asked of the mount, by name.
func (w *policyWorld) operations(t *testing.T) map[string]func(holder) harness.Response {
	t.Helper()
	ops := map[string]func(holder) harness.Response{
		"list config/": func(h holder) harness.Response { return h.HTTP(t, "LIST", "dingtalk/config/", "", "") },
		"read metrics": func(h holder) harness.Response { return h.HTTP(t, "GET", "dingtalk/metrics", "", "") },
		"create config/": func(h holder) harness.Response {
			w.attempts++
			body, err := json.Marshal(w.apps["other"].Config())
			require.NoError(t, err)
			return h.HTTP(t, "POST", fmt.Sprintf("dingtalk/config/new-%d", w.attempts), "", string(body))
		},
		"delete config/": func(h holder) harness.Response {
			w.attempts++
			path := fmt.Sprintf("dingtalk/config/doomed-%d", w.attempts)
			_, err := w.v.Root.Logical().Write(path, w.apps["other"].Config())
			require.NoError(t, err)
			return h.HTTP(t, "DELETE", path, "", "")
		},
	}
	for _, a := range w.apps {
		for name, op := range map[string]struct{ method, path, contentType, body string }{
			"read config/":    {"GET", a.ConfigPath(), "", ""},
			"update config/":  {"POST", a.ConfigPath(), "", `{"refresh_before":"100s"}`},
			"patch config/":   {"PATCH", a.ConfigPath(), patchType, `{"refresh_before":"100s"}`},
			"read creds/":     {"GET", a.CredsPath(), "", ""},
			"long creds/":     {"GET", a.CredsPath() + "?min_ttl=30m", "", ""},
			"read status/":    {"GET", a.StatusPath(), "", ""},
			"update refresh/": {"POST", a.RefreshPath(), "", ""},
		} {
			ops[name+a.Name] = func(h holder) harness.Response { return h.HTTP(t, op.method, op.path, op.contentType, op.body) }
		}
	}
	return ops
}

// requireAllows checks that the holder may do what is named, and that Vault refuses it everything
// else.
func (w *policyWorld) requireAllows(t *testing.T, h holder, allowed ...string) {
	t.Helper()
	ops := w.operations(t)
	for _, name := range allowed {
		require.Contains(t, ops, name)
	}
	for _, name := range slices.Sorted(maps.Keys(ops)) {
		reply := ops[name](h)
		may := slices.Contains(allowed, name)
		if may {
			assert.Contains(
				t,
				[]int{http.StatusOK, http.StatusNoContent},
				reply.Status,
				"%s: %s",
				name,
				harness.Mask(reply.Body),
			)
		} else {
			assert.Equal(t, http.StatusForbidden, reply.Status, "%s: %s", name, harness.Mask(reply.Body))
			assert.Contains(t, reply.Body, "permission denied", name)
		}
		_, app, gives := strings.Cut(name, "creds/")
		if !may || !gives {
			harness.AssertNoSecret(t, name, reply.Body)
			continue
		}
		var got struct{ Data map[string]string }
		harness.DecodeJSON(t, reply.Body, &got)
		harness.RequireSameToken(t, got.Data["access_token"], w.dt.LastToken(w.apps[app].Key))
	}
}

// ofEveryApp is an operation on each of the apps.
func (w *policyWorld) ofEveryApp(operations ...string) []string {
	var names []string
	for _, op := range operations {
		for app := range w.apps {
			names = append(names, op+app)
		}
	}
	return names
}

func TestPolicies_are_all_tested_here(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(policiesDir, "*"))
	require.NoError(t, err)
	var names []string
	for _, file := range files {
		names = append(names, filepath.Base(file))
	}
	// reader-wrapped.hcl has its tests in wrapping_test.go.
	require.Equal(
		t,
		[]string{"monitor.hcl", "operator.hcl", "reader-by-entity.hcl", "reader-wrapped.hcl", "reader.hcl"},
		names,
	)
}

//nolint:tparallel // the subtests share one Vault
func TestPolicy_allows_what_it_says_and_nothing_else(t *testing.T) {
	t.Parallel()
	w := newPolicyWorld(t)
	for _, a := range w.apps {
		harness.NoteSecret(a.Token(t), "an access token")
	}

	t.Run("operator", func(t *testing.T) {
		h := w.holderOf(t, w.write(t, "operator.hcl"))
		w.requireAllows(t, h, append(
			w.ofEveryApp("read config/", "update config/", "patch config/", "read status/", "update refresh/"),
			"list config/", "create config/", "delete config/",
		)...)
		h.MustCLI(t, "list", "dingtalk/config")
		fresh := w.apps["myapp"]
		h.CLIWithInput(t, fresh.Secret, "write", fresh.ConfigPath(), "app_key="+fresh.Key, "app_secret=-",
			"base_url="+fresh.DingTalk.URL).
			Succeeded(t)
	})
	t.Run("monitor", func(t *testing.T) {
		w.requireAllows(t, w.holderOf(t, w.write(t, "monitor.hcl")),
			append(w.ofEveryApp("read status/"), "read metrics")...)
	})
	t.Run("reader", func(t *testing.T) {
		h := w.holderOf(t, w.write(t, "reader.hcl"))
		w.requireAllows(t, h, "read creds/myapp", "long creds/myapp")
		w.requireReachesNothingElse(t, h)
		requireKeepsItsLease(t, h)
	})
	t.Run("reader without Vault's default policy", func(t *testing.T) {
		secret, err := w.v.Root.Auth().
			Token().
			Create(&api.TokenCreateRequest{Policies: []string{"dingtalk-reader"}, NoDefaultPolicy: true})
		require.NoError(t, err)
		h := w.withToken(secret.Auth.ClientToken)
		w.requireAllows(t, h, "read creds/myapp", "long creds/myapp")
		require.Equal(t, http.StatusForbidden, h.renew(t).Status, "as the policy's own text says")
	})
	t.Run("none", func(t *testing.T) {
		w.requireAllows(t, w.holderOf(t, "default"))
	})
	t.Run("all three together give no more than each", func(t *testing.T) {
		secret, err := w.v.Root.Auth().Token().Create(&api.TokenCreateRequest{
			Policies: []string{"dingtalk-operator", "dingtalk-monitor", "dingtalk-reader"},
		})
		require.NoError(t, err)
		w.requireAllows(t, w.withToken(secret.Auth.ClientToken), append(
			w.ofEveryApp("read config/", "update config/", "patch config/", "read status/", "update refresh/"),
			"list config/", "create config/", "delete config/", "read creds/myapp", "long creds/myapp", "read metrics",
		)...)
	})
}

// requireReachesNothingElse tries the ways around a policy for creds/myapp that a path allows.
func (w *policyWorld) requireReachesNothingElse(t *testing.T, h holder) {
	t.Helper()
	for _, path := range []string{
		"dingtalk/creds/other/", "dingtalk/creds/myapp/", "dingtalk/creds/myapp/other", "dingtalk/creds/myapp/../other",
		"dingtalk/creds/myapp%2f..%2fother", "dingtalk/creds/myapp/%2e%2e/other", "dingtalk/creds//other",
		"dingtalk//creds/other",
		"dingtalk/./creds/other", "dingtalk/creds/OTHER", "dingtalk/creds/MYAPP", "dingtalk/creds/myapp%00",
		"dingtalk/creds/*",
		"dingtalk/creds/+", "dingtalk/creds/", "dingtalk/creds/other?app=myapp", "dingtalk/creds/myapp-payroll",
		"dingtalk/config/myapp/../../creds/other", "dingtalk/creds/myapp/../../config/myapp", "dingtalk/config/?list=true",
	} {
		reply := h.HTTP(t, "GET", path, "", "")
		assert.GreaterOrEqual(t, reply.Status, 400, "%s: %s", path, harness.Mask(reply.Body))
		harness.AssertNoSecret(t, path, reply.Body)
	}

	// The app is the one of the path, whatever else the request says.
	reply := h.HTTP(t, "GET", "dingtalk/creds/myapp?app=other", "", "")
	require.Equal(t, http.StatusOK, reply.Status)
	require.NotContains(t, reply.Body, w.dt.LastToken(w.apps["other"].Key))
}

// readLease reads the token of myapp and returns its lease, as the body of a request about that.
func (h holder) readLease(t *testing.T) string {
	t.Helper()
	reply := h.HTTP(t, "GET", "dingtalk/creds/myapp", "", "")
	var lease struct {
		ID string `json:"lease_id"`
	}
	harness.DecodeJSON(t, reply.Body, &lease)
	require.NotEmpty(t, lease.ID)
	return fmt.Sprintf(`{"lease_id":%q}`, lease.ID)
}

// renew renews a lease of the holder's own.
func (h holder) renew(t *testing.T) harness.Response {
	t.Helper()
	return h.HTTP(t, "POST", "sys/leases/renew", "", h.readLease(t))
}

func requireKeepsItsLease(t *testing.T, h holder) {
	t.Helper()
	require.Equal(t, http.StatusOK, h.renew(t).Status)
	for _, path := range []string{"sys/leases/revoke", "sys/leases/revoke-prefix/dingtalk/creds/myapp"} {
		require.Equal(
			t,
			http.StatusForbidden,
			h.HTTP(t, "POST", path, "", h.readLease(t)).Status,
			"which would end nothing anyway",
		)
	}
}

func TestPolicy_by_entity_lets_each_entity_read_the_app_in_its_metadata(t *testing.T) {
	t.Parallel()
	w := newPolicyWorld(t)
	for _, a := range w.apps {
		harness.NoteSecret(a.Token(t), "an access token")
	}
	policy := w.write(t, "reader-by-entity.hcl")
	require.NoError(t, w.v.Root.Sys().EnableAuthWithOptions("userpass", &api.EnableAuthOptions{Type: "userpass"}))
	mounts, err := w.v.Root.Sys().ListAuth()
	require.NoError(t, err)
	accessor := mounts["userpass/"].Accessor

	// login makes an entity with that metadata and somebody who logs in as it.
	login := func(t *testing.T, name string, metadata map[string]string) holder {
		t.Helper()
		password := harness.NewSecret()
		_, err := w.v.Root.Logical().Write("auth/userpass/users/"+name, map[string]any{"password": password})
		require.NoError(t, err)
		entity, err := w.v.Root.Logical().Write("identity/entity", map[string]any{
			"name": name, "metadata": metadata, "policies": []string{policy},
		})
		require.NoError(t, err)
		_, err = w.v.Root.Logical().Write("identity/entity-alias", map[string]any{
			"name": name, "canonical_id": entity.Data["id"], "mount_accessor": accessor,
		})
		require.NoError(t, err)
		secret, err := w.v.Root.Logical().Write("auth/userpass/login/"+name, map[string]any{"password": password})
		require.NoError(t, err)
		require.Contains(t, secret.Auth.IdentityPolicies, policy)
		return w.withToken(secret.Auth.ClientToken)
	}

	mine := login(t, "holder-of-myapp", map[string]string{"dingtalk_app": "myapp"})
	w.requireAllows(t, mine, "read creds/myapp", "long creds/myapp")
	w.requireReachesNothingElse(t, mine)
	requireKeepsItsLease(t, mine)
	w.requireAllows(
		t,
		login(t, "holder-of-other", map[string]string{"dingtalk_app": "other"}),
		"read creds/other",
		"long creds/other",
	)
	w.requireAllows(t, login(t, "holder-of-nothing", nil))
	w.requireAllows(t, login(t, "holder-of-something-else", map[string]string{"app": "myapp"}))
	w.requireAllows(t, login(t, "holder-of-an-empty-name", map[string]string{"dingtalk_app": ""}))
	w.requireAllows(t, login(t, "holder-of-a-path", map[string]string{"dingtalk_app": "../config/myapp"}))

	// A token that is out already follows the metadata.
	_, err = w.v.Root.Logical().Write("identity/entity/name/holder-of-myapp", map[string]any{
		"metadata": map[string]string{"dingtalk_app": "other"}, "policies": []string{policy},
	})
	require.NoError(t, err)
	w.requireAllows(t, mine, "read creds/other", "long creds/other")

	// What the policy's own text warns of.
	for i, wildcard := range []string{"*", "+"} {
		w.requireAllows(t, login(t, fmt.Sprintf("holder-of-all-%d", i), map[string]string{"dingtalk_app": wildcard}),
			w.ofEveryApp("read creds/", "long creds/")...)
	}
}

func TestPolicy_of_the_clients_allows_what_they_do_and_no_more(t *testing.T) {
	t.Parallel()
	w := newPolicyWorld(t)
	const policy = "dingtalk-client"
	w.v.MustCLI(t, "policy", "write", policy, clientsPolicy)
	h := w.holderOf(t, policy)
	harness.NoteSecret(w.apps["myapp"].Token(t), "an access token")
	w.requireAllows(t, h, "read creds/myapp", "long creds/myapp", "update refresh/myapp")
	w.requireReachesNothingElse(t, h)
}

func TestPolicies_are_in_the_form_that_Vault_writes(t *testing.T) {
	t.Parallel()
	v := harness.SharedVault(t)
	files, err := filepath.Glob(filepath.Join(policiesDir, "*.hcl"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range append(files, clientsPolicy) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		formatted := filepath.Join(t.TempDir(), filepath.Base(file))
		require.NoError(t, os.WriteFile(formatted, text, 0o600))
		v.MustCLI(t, "policy", "fmt", formatted)
		again, err := os.ReadFile(formatted)
		require.NoError(t, err)
		require.Equal(t, string(text), string(again), "vault policy fmt %s", file)
	}
}
