// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// A mount of the plugin, a DingTalk of the test's own, and apps that both know.

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

// fullLifetime is what DingTalk gives a token.
const fullLifetime = 2 * time.Hour

// leaseSlack is how far a lease may stay below the token's life: both sides round down to whole
// seconds.
const leaseSlack = 2 * time.Second

type dingtalk struct {
	*simulator.Server
	url string
}

// startDingTalk runs a simulator for one test.
func startDingTalk(t *testing.T, lifetime time.Duration) *dingtalk {
	t.Helper()
	server := simulator.New(simulator.Options{TokenLifetime: lifetime})
	url, err := server.Start("127.0.0.1:0")
	require.NoError(t, err, "start the simulator")
	t.Cleanup(func() { server.Close() })
	return &dingtalk{Server: server, url: url}
}

// left is the life that DingTalk gives a token; a token that it does not know has none.
func (d *dingtalk) left(token string) time.Duration {
	left, _ := d.LifeLeft(token)
	return left
}

// waitForAge waits until a token has less life left than given. Real time has to pass for that.
func (d *dingtalk) waitForAge(t *testing.T, token string, left time.Duration) {
	t.Helper()
	waitFor(t, d.left(token)-left+2*time.Second, "the token has aged", func() bool { return d.left(token) < left })
}

type mount struct {
	v    *vaultServer
	path string
}

// newMount enables the plugin in the shared Vault for the length of the test.
func newMount(t *testing.T) *mount {
	t.Helper()
	m := sharedVault(t).enable(t)
	t.Cleanup(func() { assert.NoError(t, m.v.root.Sys().Unmount(m.path), "disable the mount") })
	return m
}

// reload has Vault make the mount's backend anew, which forgets what only memory held.
func (m *mount) reload(t *testing.T) {
	t.Helper()
	// The CLI's -mounts asks for a path that Vault 1.21 does not have.
	_, err := m.v.root.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{m.path}})
	require.NoError(t, err, "reload the plugin")
}

// app is one app as DingTalk and the mount know it.
type app struct {
	m           *mount
	dt          *dingtalk
	name        string
	key, secret string
}

type fields map[string]any

// newApp makes an app known to DingTalk and stores its config without a call upstream; tune changes
// or adds fields.
func (m *mount) newApp(t *testing.T, dt *dingtalk, tune fields) *app {
	t.Helper()
	a := m.unstoredApp(dt)
	body := a.config()
	body["verify_connection"] = false
	maps.Copy(body, tune)
	_, err := m.v.root.Logical().Write(a.configPath(), body)
	require.NoError(t, err, "store the app")
	return a
}

// unstoredApp makes an app that DingTalk knows and the mount does not.
func (m *mount) unstoredApp(dt *dingtalk) *app {
	id := randomHex(4)
	a := &app{m: m, dt: dt, name: "app-" + id, key: "ding" + id, secret: newSecret()}
	dt.SetApp(a.key, a.secret)
	return a
}

// config is the least that stores the app.
func (a *app) config() fields {
	return fields{"app_key": a.key, "app_secret": a.secret, "base_url": a.dt.url}
}

// rotation is the write that gives the app another secret. It names the host, since that is none of
// DingTalk's.
func (a *app) rotation(secret string) fields {
	return fields{"app_secret": secret, "base_url": a.dt.url}
}

func (a *app) configPath() string  { return a.m.path + "/config/" + a.name }
func (a *app) credsPath() string   { return a.m.path + "/creds/" + a.name }
func (a *app) statusPath() string  { return a.m.path + "/status/" + a.name }
func (a *app) refreshPath() string { return a.m.path + "/refresh/" + a.name }

// calls is how often the app's token was asked for upstream.
func (a *app) calls() int { return a.dt.Requests(a.key) }

func (a *app) tryRead() (*api.Secret, error) {
	secret, err := a.m.v.root.Logical().Read(a.credsPath())
	if err == nil && secret == nil {
		err = errors.New("no answer from " + a.credsPath())
	}
	if err == nil {
		noteSecret(tokenIn(secret), "an access token")
	}
	return secret, err
}

// read reads the app's credentials, which must succeed.
func (a *app) read(t *testing.T) *api.Secret {
	t.Helper()
	secret, err := a.tryRead()
	require.NoError(t, err, "read the credentials")
	require.NotEmpty(t, tokenIn(secret))
	return secret
}

// token reads the app's token.
func (a *app) token(t *testing.T) string {
	t.Helper()
	return tokenIn(a.read(t))
}

// status reads the app's status.
func (a *app) status(t *testing.T) map[string]any {
	t.Helper()
	return a.m.readData(t, a.statusPath())
}

// refreshNow has the engine fetch a token, whatever it holds.
func (a *app) refreshNow(t *testing.T) *api.Secret {
	t.Helper()
	secret, err := a.m.v.root.Logical().Write(a.refreshPath(), nil)
	require.NoError(t, err, "refresh")
	require.NotNil(t, secret)
	return secret
}

// update changes fields of the stored config.
func (a *app) update(t *testing.T, changes fields) *api.Secret {
	t.Helper()
	secret, err := a.m.v.root.Logical().Write(a.configPath(), changes)
	require.NoError(t, err, "update the config")
	return secret
}

// delete removes the stored config.
func (a *app) delete(t *testing.T) {
	t.Helper()
	_, err := a.m.v.root.Logical().Delete(a.configPath())
	require.NoError(t, err, "delete the config")
}

// leases lists the ids of the app's leases.
func (a *app) leases(t *testing.T) []string {
	t.Helper()
	return a.m.list(t, "sys/leases/lookup/"+a.credsPath())
}

func (m *mount) list(t *testing.T, path string) []string {
	t.Helper()
	secret, err := m.v.root.Logical().List(path)
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

func (m *mount) readData(t *testing.T, path string) map[string]any {
	t.Helper()
	secret, err := m.v.root.Logical().Read(path)
	require.NoError(t, err, "read %s", path)
	require.NotNil(t, secret, "read %s", path)
	return secret.Data
}

func tokenIn(secret *api.Secret) string {
	token, _ := secret.Data["access_token"].(string)
	return token
}

// seconds reads a JSON number that counts whole seconds.
func seconds(t *testing.T, value any) time.Duration {
	t.Helper()
	number, ok := value.(json.Number)
	require.True(t, ok, "a JSON number, not %T", value)
	whole, err := number.Int64()
	require.NoError(t, err)
	return time.Duration(whole) * time.Second
}

func leaseTTL(secret *api.Secret) time.Duration {
	return time.Duration(secret.LeaseDuration) * time.Second
}

// refused is the error that Vault's answer carried: its status and its words.
func refused(t *testing.T, err error, status int) string {
	t.Helper()
	var response *api.ResponseError
	require.ErrorAs(t, err, &response)
	text := strings.Join(response.Errors, "\n")
	assertNoSecret(t, "an error", text)
	require.Equal(t, status, response.StatusCode, "status of: %s", mask(text))
	return text
}

func decodeJSON(t *testing.T, text string, into any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), into), "in %.200s", mask(text))
}
