// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package consumers

// A real Terraform applies the files in examples/terraform, with the rights of the policy beside
// them. The test needs TERRAFORM_BIN, and skips without it. `terraform init` installs the provider
// as the CLI configuration says that TF_CLI_CONFIG_FILE names: by default, from Terraform's
// registry.

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

// terraform is a working directory with the files of the example.
type terraform struct {
	bin, dir string
	env      map[string]string
}

// newTerraform initializes a working directory for a Vault. The catalog of that Vault has no
// plugin.
func newTerraform(t *testing.T, bin string, v *harness.VaultServer, dt *harness.DingTalk, key string) *terraform {
	t.Helper()
	dir := t.TempDir()
	example := filepath.Join(harness.ExamplesDir, "terraform")
	files, err := filepath.Glob(filepath.Join(example, "*.tf"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		harness.PutFile(t, dir, filepath.Base(file), harness.FileText(t, file))
	}
	// A token with the policy of the example, and Vault's default one, by which it looks itself up.
	require.NoError(t, v.Root.Sys().PutPolicy("terraform", harness.FileText(t, filepath.Join(example, "policy.hcl"))))
	operator, err := v.Root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"terraform"}})
	require.NoError(t, err)
	harness.NoteSecret(operator.Auth.ClientToken, "a Vault token")
	programs := t.TempDir()
	require.NoError(t, os.Symlink(harness.VaultBin, filepath.Join(programs, "vault")))
	tf := &terraform{bin: bin, dir: dir, env: map[string]string{
		"HOME": t.TempDir(), "TMPDIR": t.TempDir(), "PATH": programs + ":" + os.Getenv("PATH"),
		"TF_CLI_CONFIG_FILE": os.Getenv("TF_CLI_CONFIG_FILE"), "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1",
		"VAULT_ADDR":                v.Addr,
		"VAULT_TOKEN":               operator.Auth.ClientToken,
		"TF_VAR_plugins":            fmt.Sprintf(`{%q=%q}`, v.PluginVersion, v.PluginSHA256),
		"TF_VAR_plugin_version":     v.PluginVersion,
		"TF_VAR_app_key":            key,
		"TF_VAR_base_url":           dt.URL,
		"TF_VAR_app_secret_version": "1",
	}}
	tf.mustRun(t, nil, "init", "-input=false")
	return tf
}

// run runs a terraform command with more variables, and returns its exit status and its output,
// which must hold no secret.
func (tf *terraform) run(t *testing.T, more map[string]string, args ...string) (status int, output string) {
	t.Helper()
	env := maps.Clone(tf.env)
	maps.Copy(env, more)
	cmd := exec.CommandContext(t.Context(), tf.bin, append(args, "-no-color")...)
	cmd.Dir = tf.dir
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else {
		require.NoError(t, err, "run terraform")
	}
	harness.AssertNoSecret(t, "the output of terraform "+args[0], string(out))
	return status, string(out)
}

func (tf *terraform) mustRun(t *testing.T, more map[string]string, args ...string) {
	t.Helper()
	status, output := tf.run(t, more, args...)
	require.Zero(t, status, "terraform %s: %s", args[0], harness.Mask(output))
}

// requireNoChanges requires a plan without an app_secret and without changes.
func (tf *terraform) requireNoChanges(t *testing.T) {
	t.Helper()
	status, output := tf.run(t, nil, "plan", "-input=false", "-detailed-exitcode")
	require.Zero(t, status, "terraform plan has changes, or fails: %s", harness.Mask(output))
}

// requireKeepsNoSecret requires that no file that Terraform wrote holds a secret.
func (tf *terraform) requireKeepsNoSecret(t *testing.T) {
	t.Helper()
	require.FileExists(t, filepath.Join(tf.dir, "terraform.tfstate.backup"))
	require.NoError(t, filepath.WalkDir(tf.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "providers" {
			return fs.SkipDir // the provider's binary
		}
		if err == nil && entry.Type().IsRegular() {
			harness.AssertNoSecret(t, path, harness.FileText(t, path))
		}
		return err
	}))
}

func TestTerraform_applies_the_example_rotates_the_secret_and_destroys_all(t *testing.T) {
	t.Parallel()
	bin := os.Getenv("TERRAFORM_BIN")
	if bin == "" {
		t.Skip("set TERRAFORM_BIN to the absolute path of a terraform")
	}
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem, Audit: true})
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	mount := &harness.Mount{Vault: v, Path: "dingtalk"}
	a := mount.UnstoredApp(dt)
	a.Name = "myapp"
	tf := newTerraform(t, bin, v, dt, a.Key)
	require.NoError(t, os.Link(v.PluginPath, v.PluginPath+"-"+v.PluginVersion))
	require.NoError(t, v.Root.Sys().DeregisterPlugin(&api.DeregisterPluginInput{
		Name: harness.PluginName, Type: api.PluginTypeSecrets, Version: v.PluginVersion,
	}))
	apply := []string{"apply", "-input=false", "-auto-approve"}

	tf.mustRun(t, map[string]string{"TF_VAR_app_secret": a.Secret}, apply...)
	harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
	policy, err := v.Root.Sys().GetPolicy("dingtalk-myapp")
	require.NoError(t, err)
	require.Contains(t, policy, a.CredsPath())
	tf.requireNoChanges(t)

	// A secret that DingTalk rejects: the stored one stays, and the next apply writes again.
	tf.env["TF_VAR_app_secret_version"] = "2"
	status, output := tf.run(t, map[string]string{"TF_VAR_app_secret": harness.NewSecret()}, apply...)
	require.NotZero(t, status)
	require.Contains(t, output, "invalidClientIdOrSecret")
	a.RefreshNow(t)
	rotated := harness.NewSecret()
	dt.SetApp(a.Key, rotated)
	tf.mustRun(t, map[string]string{"TF_VAR_app_secret": rotated}, apply...)
	a.RefreshNow(t)
	tf.requireNoChanges(t)

	// A saved plan.
	tf.env["TF_VAR_app_secret_version"] = "3"
	secret := map[string]string{"TF_VAR_app_secret": rotated}
	tf.mustRun(t, secret, "plan", "-input=false", "-out=saved.tfplan")
	tf.mustRun(t, secret, "apply", "-input=false", "saved.tfplan")
	tf.requireNoChanges(t)
	tf.requireKeepsNoSecret(t)

	tf.mustRun(t, nil, "destroy", "-input=false", "-auto-approve")
	tf.requireKeepsNoSecret(t)
	mounts, err := v.Root.Sys().ListMounts()
	require.NoError(t, err)
	require.NotContains(t, mounts, "dingtalk/")
	plugins, err := v.Root.Sys().ListPlugins(&api.ListPluginsInput{Type: api.PluginTypeSecrets})
	require.NoError(t, err)
	require.NotContains(t, plugins.PluginsByType[api.PluginTypeSecrets], harness.PluginName)
	policies, err := v.Root.Sys().ListPolicies()
	require.NoError(t, err)
	require.NotContains(t, policies, "dingtalk-myapp")
}
