// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

// A mount of the plugin, a simulator for one test, and apps that both know.

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// FullLifetime is the lifetime of DingTalk's tokens.
const FullLifetime = 2 * time.Hour

// DingTalk is a simulator in place of DingTalk.
type DingTalk struct {
	*simulator.Server
	URL string
}

// StartDingTalk runs a simulator for one test.
func StartDingTalk(t *testing.T, lifetime time.Duration) *DingTalk {
	t.Helper()
	server := simulator.New(simulator.Options{TokenLifetime: lifetime})
	url, err := server.Start("127.0.0.1:0")
	require.NoError(t, err, "start the simulator")
	t.Cleanup(func() { server.Close() })
	return &DingTalk{Server: server, URL: url}
}

// Remaining returns the remaining TTL of a token. A token that DingTalk does not know has none.
func (d *DingTalk) Remaining(token string) time.Duration {
	left, _ := d.LifeLeft(token)
	return left
}

// WaitForAge waits until a token's remaining TTL is less than given. Real time must pass for that.
func (d *DingTalk) WaitForAge(t *testing.T, token string, remaining time.Duration) {
	t.Helper()
	WaitFor(t, d.Remaining(token)-remaining+2*time.Second, "the token has aged", func() bool {
		return d.Remaining(token) < remaining
	})
}

// Mount is a mount of the plugin.
type Mount struct {
	Vault *VaultServer
	Path  string
}

// NewMount enables the plugin in the shared Vault for the length of the test.
func NewMount(t *testing.T) *Mount {
	t.Helper()
	m := SharedVault(t).Enable(t)
	t.Cleanup(func() { assert.NoError(t, m.Vault.Root.Sys().Unmount(m.Path), "disable the mount") })
	return m
}

// Reload makes Vault reload the mount, which forgets what was only in memory.
func (m *Mount) Reload(t *testing.T) {
	t.Helper()
	// The CLI's -mounts uses a path that Vault 1.21 does not have.
	_, err := m.Vault.Root.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{m.Path}})
	require.NoError(t, err, "reload the plugin")
}

// App is one app as DingTalk and the mount know it.
type App struct {
	Mount       *Mount
	DingTalk    *DingTalk
	Name        string
	Key, Secret string
}

// Fields are the fields of a request.
type Fields map[string]any

// NewApp makes an app that DingTalk knows, and stores its config without a call to DingTalk. tune
// changes or adds fields.
func (m *Mount) NewApp(t *testing.T, dt *DingTalk, tune Fields) *App {
	t.Helper()
	a := m.UnstoredApp(dt)
	body := a.Config()
	body["verify_connection"] = false
	maps.Copy(body, tune)
	_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), body)
	require.NoError(t, err, "store the app")
	return a
}

// UnstoredApp makes an app that DingTalk knows and the mount does not.
func (m *Mount) UnstoredApp(dt *DingTalk) *App {
	id := RandomHex(4)
	a := &App{Mount: m, DingTalk: dt, Name: "app-" + id, Key: "ding" + id, Secret: NewSecret()}
	dt.SetApp(a.Key, a.Secret)
	return a
}

// Config returns the fields that an app needs at least.
func (a *App) Config() Fields {
	return Fields{"app_key": a.Key, "app_secret": a.Secret, "base_url": a.DingTalk.URL}
}

// Rotation returns the fields of a write that changes the app's secret. They name the host, as it
// is not DingTalk's.
func (a *App) Rotation(secret string) Fields {
	return Fields{"app_secret": secret, "base_url": a.DingTalk.URL}
}

// ConfigPath is the path of the app's config.
func (a *App) ConfigPath() string { return a.Mount.Path + "/config/" + a.Name }

// CredsPath is the path of the app's credentials.
func (a *App) CredsPath() string { return a.Mount.Path + "/creds/" + a.Name }

// StatusPath is the path of the app's status.
func (a *App) StatusPath() string { return a.Mount.Path + "/status/" + a.Name }

// RefreshPath is the path that refreshes the app's token.
func (a *App) RefreshPath() string { return a.Mount.Path + "/refresh/" + a.Name }

// Calls returns how often DingTalk was asked for the app's token.
func (a *App) Calls() int { return a.DingTalk.Requests(a.Key) }

// TryRead reads the app's credentials.
func (a *App) TryRead() (*api.Secret, error) {
	secret, err := a.Mount.Vault.Root.Logical().Read(a.CredsPath())
	if err == nil && secret == nil {
		err = errors.New("no response from " + a.CredsPath())
	}
	if err == nil {
		NoteSecret(TokenIn(secret), "an access token")
	}
	return secret, err
}

// Read reads the app's credentials, which must succeed.
func (a *App) Read(t *testing.T) *api.Secret {
	t.Helper()
	secret, err := a.TryRead()
	require.NoError(t, err, "read the credentials")
	require.NotEmpty(t, TokenIn(secret))
	return secret
}

// Token reads the app's token.
func (a *App) Token(t *testing.T) string {
	t.Helper()
	return TokenIn(a.Read(t))
}

// Status reads the app's status.
func (a *App) Status(t *testing.T) map[string]any {
	t.Helper()
	return a.Mount.ReadData(t, a.StatusPath())
}

// RefreshNow makes the engine fetch a token, whether or not it has one.
func (a *App) RefreshNow(t *testing.T) *api.Secret {
	t.Helper()
	secret, err := a.Mount.Vault.Root.Logical().Write(a.RefreshPath(), nil)
	require.NoError(t, err, "refresh")
	require.NotNil(t, secret)
	return secret
}

// Update changes fields of the stored config.
func (a *App) Update(t *testing.T, changes Fields) *api.Secret {
	t.Helper()
	secret, err := a.Mount.Vault.Root.Logical().Write(a.ConfigPath(), changes)
	require.NoError(t, err, "update the config")
	return secret
}

// Delete removes the stored config.
func (a *App) Delete(t *testing.T) {
	t.Helper()
	_, err := a.Mount.Vault.Root.Logical().Delete(a.ConfigPath())
	require.NoError(t, err, "delete the config")
}

// Leases lists the ids of the app's leases.
func (a *App) Leases(t *testing.T) []string {
	t.Helper()
	return a.Mount.List(t, "sys/leases/lookup/"+a.CredsPath())
}

// List returns the keys below a path.
func (m *Mount) List(t *testing.T, path string) []string {
	t.Helper()
	secret, err := m.Vault.Root.Logical().List(path)
	require.NoError(t, err, "list %s", path)
	if secret == nil {
		return nil
	}
	var names []string
	for _, key := range secret.Data["keys"].([]any) {
		names = append(names, key.(string))
	}
	return names
}

// ReadData returns the data of a read that must succeed.
func (m *Mount) ReadData(t *testing.T, path string) map[string]any {
	t.Helper()
	secret, err := m.Vault.Root.Logical().Read(path)
	require.NoError(t, err, "read %s", path)
	require.NotNil(t, secret, "read %s", path)
	return secret.Data
}

// TokenIn returns the access token in a response, and "" if there is none.
func TokenIn(secret *api.Secret) string {
	token, _ := secret.Data["access_token"].(string)
	return token
}

// Seconds reads a JSON number that counts whole seconds.
func Seconds(t *testing.T, value any) time.Duration {
	t.Helper()
	number, ok := value.(json.Number)
	require.True(t, ok, "a JSON number, not %T", value)
	whole, err := number.Int64()
	require.NoError(t, err)
	return time.Duration(whole) * time.Second
}

// Refused requires an error response of Vault's with a status, and returns its text.
func Refused(t *testing.T, err error, status int) string {
	t.Helper()
	var response *api.ResponseError
	require.ErrorAs(t, err, &response)
	text := strings.Join(response.Errors, "\n")
	AssertNoSecret(t, "an error", text)
	require.Equal(t, status, response.StatusCode, "status of: %s", Mask(text))
	return text
}

// DecodeJSON decodes JSON, which must be valid.
func DecodeJSON(t *testing.T, text string, into any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), into), "in %.200s", Mask(text))
}
