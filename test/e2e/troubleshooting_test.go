// SPDX-License-Identifier: MPL-2.0

//go:build e2e

//nolint:thelper // a provocation is the test, no helper of it
package e2e

// docs/troubleshooting.md lists errors by their texts. The tests compare each text in a heading
// with the real one: they provoke every error, with the simulator's faults and the real binaries.
// Errors that need a storage that fails, or an hour, are tested with the engine alone
// (troubleshooting_engine_test.go).

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/internal/subprocess"
	"vault-plugin-secrets-dingtalk/test/harness"
)

const troubleshooting = "../../docs/troubleshooting.md"

// provocation makes somebody say something, and returns all of it.
type provocation func(t *testing.T) string

func TestTroubleshooting_every_text_in_a_heading_is_what_is_really_said(t *testing.T) {
	t.Parallel()
	texts := textsInHeadings(t, harness.FileText(t, troubleshooting))
	m := harness.NewMount(t)
	own := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	provocations := map[string]provocation{}
	for _, some := range []map[string]provocation{
		ofDingTalk(m), ofTheWay(m, own), ofRequests(m), ofWarnings(m), ofStorage(m), ofTheLog(m),
		ofTheCatalog(own), ofALostBinary(), ofVault(m, own), ofReaders(m), ofTheEngineAlone(),
	} {
		maps.Copy(provocations, some)
	}

	require.ElementsMatch(
		t,
		texts,
		slices.Collect(maps.Keys(provocations)),
		"each text in a heading has its provocation, and the other way round",
	)
	for text, provoke := range provocations {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			said := provoke(t)
			harness.AssertNoSecret(t, "what was said", said)
			require.Regexp(t, pattern(text), said)
		})
	}
}

// textsInHeadings are the texts in code in the headings. A heading without one is of a symptom that
// has no text.
func textsInHeadings(t *testing.T, page string) []string {
	t.Helper()
	var texts []string
	for _, heading := range regexp.MustCompile("(?m)^###+ .*`.*$").FindAllString(page, -1) {
		for _, code := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(heading, -1) {
			require.NotContains(t, texts, code[1], "a text has one heading")
			texts = append(texts, code[1])
		}
	}
	require.Greater(t, len(texts), 50)
	return texts
}

// pattern is a text with … for whatever differs.
func pattern(text string) string {
	return `(?s)` + strings.ReplaceAll(regexp.QuoteMeta(text), "…", ".+")
}

// words are what an error that reached a user says.
func words(t *testing.T, err error) string {
	t.Helper()
	var response *api.ResponseError
	require.ErrorAs(t, err, &response)
	return strings.Join(response.Errors, "\n")
}

// ofDingTalk are the errors for DingTalk's responses.
func ofDingTalk(m *harness.Mount) map[string]provocation {
	afterFault := func(fault simulator.Fault) provocation {
		return func(t *testing.T) string {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, harness.Fields{"request_timeout": "1s"})
			dt.SetFault(a.Key, fault)
			_, err := a.TryRead()
			harness.NoteSecret(dt.LastToken(a.Key), "an access token")
			return words(t, err)
		}
	}
	return map[string]provocation{
		`DingTalk rejected the credentials of app "…"`: afterFault(
			simulator.Fault{Kind: simulator.FaultRejectedCredentials},
		),
		`DingTalk does not allow Vault's IP address for app "…"`: afterFault(
			simulator.Fault{Kind: simulator.FaultIPNotAllowed},
		),
		`DingTalk rejected the token request for app "…"`: afterFault(
			simulator.Fault{Kind: simulator.FaultPermissionDenied},
		),
		`Forbidden.AccessDenied.AccessTokenPermissionDenied`: afterFault(
			simulator.Fault{Kind: simulator.FaultPermissionDenied},
		),
		`DingTalk throttles the token requests for app "…"`: afterFault(
			simulator.Fault{Kind: simulator.FaultThrottledQPS},
		),
		`DingTalk could not serve the token request for app "…"`: afterFault(
			simulator.Fault{Kind: simulator.FaultUnavailableUnknown},
		),
		`DingTalk has banned Vault's egress IP, which app "…" shares with all other apps at …`: afterFault(
			simulator.Fault{Kind: simulator.FaultBanned},
		),
		`… answered the token request for app "…" with a redirect, which is never followed`: afterFault(
			simulator.Fault{Kind: simulator.FaultRedirect},
		),
		`… answered the token request for app "…" with something that is not a token`: afterFault(
			simulator.Fault{Kind: simulator.FaultEmptyToken},
		),
		`the response is an HTML page, as a proxy or a ban of Vault's egress IP sends`: afterFault(
			simulator.Fault{Kind: simulator.FaultHTML},
		),
		`the response has no accessToken`: afterFault(
			simulator.Fault{Kind: simulator.FaultErrcode},
		),
		`the response is not a JSON object`: afterFault(
			simulator.Fault{Kind: simulator.FaultTruncated},
		),
		`the response is longer than 65536 bytes`: afterFault(
			simulator.Fault{Kind: simulator.FaultHuge},
		),
		`expireIn is missing, not a number or not positive`: afterFault(
			simulator.Fault{Kind: simulator.FaultExpireIn},
		),
		`the token had expired when it arrived (expireIn …)`: afterFault(
			simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: "1"},
		),
		`could not get a token for app "…" from …`: afterFault(
			simulator.Fault{Kind: simulator.FaultReset},
		),
		`connection reset`:           afterFault(simulator.Fault{Kind: simulator.FaultReset}),
		`no whole response within …`: afterFault(simulator.Fault{Kind: simulator.FaultHang}),
		`accessToken is not 1 to 2048 visible ASCII characters`: afterFault(simulator.Fault{
			Kind: simulator.FaultToken, Token: "two words",
		}),
		`message withheld: it repeats the request`: afterFault(simulator.Fault{Kind: simulator.FaultEchoRequest}),
	}
}

// ofTheWay are the errors for what stands between Vault and DingTalk.
func ofTheWay(m *harness.Mount, own *harness.VaultServer) map[string]provocation {
	from := func(t *testing.T, m *harness.Mount, url string) string {
		t.Helper()
		a := appAt(m, harness.StartDingTalk(t, harness.FullLifetime), url)
		require.NoError(t, storeApp(t, a, false))
		_, err := a.TryRead()
		return words(t, err)
	}
	at := func(url string) provocation {
		return func(t *testing.T) string { return from(t, m, url) }
	}
	// behaving is a server that does what it likes with the connection.
	behaving := func(do func(net.Conn)) provocation {
		return func(t *testing.T) string {
			upstream := serveUpstream(
				t,
				"127.0.0.1",
				nil,
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					conn, _, err := w.(http.Hijacker).Hijack()
					if assert.NoError(t, err) {
						do(conn)
						assert.NoError(t, conn.Close())
					}
				}),
			)
			return from(t, m, "http://"+upstream.addr)
		}
	}
	speaking := func(most uint16) provocation {
		return func(t *testing.T) string {
			config := &tls.Config{
				MinVersion: tls.VersionTLS10, MaxVersion: most,
				Certificates: []tls.Certificate{newAuthority(t).issue(t, time.Now().Add(day), "127.0.0.1")},
			}
			return from(t, m, "https://"+serveUpstream(t, "127.0.0.1", config, http.NotFoundHandler()).addr)
		}
	}
	return map[string]provocation{
		// A name that no resolver needs to be asked for, as its first part is too long.
		`the name "…" cannot be resolved`: at("https://" + strings.Repeat("n", 64) + ".dingtalk.test"),
		`connection refused`: func(t *testing.T) string {
			return from(t, m,
				"https://"+harness.DeadAddress(t))
		},
		`network is unreachable`:                       at("https://255.255.255.255"),
		`the connection ended before the response did`: behaving(func(net.Conn) {}),
		`the HTTP exchange failed, or the response is not HTTP`: behaving(func(conn net.Conn) {
			_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.6\r\n")
		}),
		`its certificate is not trusted: …`: speaking(tls.VersionTLS13),
		`the TLS handshake failed: …`:       speaking(tls.VersionTLS11),
		`it does not speak TLS`: func(t *testing.T) string {
			return from(t, m, "https://"+serveUpstream(t, "127.0.0.1", nil, http.NotFoundHandler()).addr)
		},
		`the proxy refused to connect with HTTP status …`: func(t *testing.T) string {
			proxied := enableWith(t, own, "dingtalk-proxied", "HTTPS_PROXY=http://"+startProxy(t).addr)
			return from(t, proxied, "https://api.dingtalk.test")
		},
		`base_url is not usable`: func(t *testing.T) string {
			putRaw(t, m, "config/unusable", storedConfig("http://["))
			_, err := m.Vault.Root.Logical().Read(m.Path + "/creds/unusable")
			return words(t, err)
		},
	}
}

// storedConfig is an app's entry in storage.
func storedConfig(baseURL string) string {
	return fmt.Sprintf(
		`{"version":1,"generation":"g","app_key":"dingstored","app_secret":"x","base_url":%q,"refresh_before":200,"request_timeout":1,"leased":true}`,
		baseURL,
	)
}

// putRaw writes into the mount's storage past the engine.
func putRaw(t *testing.T, m *harness.Mount, key, value string) {
	t.Helper()
	_, err := m.Vault.Root.Logical().Write("sys/raw/logical/"+mountUUID(t, m)+"/"+key, map[string]any{"value": value})
	require.NoError(t, err)
}

func mountUUID(t *testing.T, m *harness.Mount) string {
	t.Helper()
	mounted, err := m.Vault.Root.Sys().GetMount(m.Path)
	require.NoError(t, err)
	return mounted.UUID
}

// ofRequests are the errors for requests that are not right.
func ofRequests(m *harness.Mount) map[string]provocation {
	read := func(path string) provocation {
		return func(t *testing.T) string {
			_, err := m.Vault.Root.Logical().Read(m.Path + "/" + path)
			return words(t, err)
		}
	}
	// writes changes an app that exists.
	writes := func(changes harness.Fields) provocation {
		return func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), changes)
			return words(t, err)
		}
	}
	return map[string]provocation{
		`app "…" is not configured: write its app_key and app_secret to …/config/… first`: read("creds/nobody"),
		`app: the name has … characters; allowed are at most 128`: read(
			"creds/" + strings.Repeat("n", 129),
		),
		`app: the name "…" has two dots in a row, which Vault's storage refuses; single dots are allowed`: func(t *testing.T) string {
			_, err := m.Vault.Root.Logical().Write(m.Path+"/config/a..b", harness.Fields{"app_key": "k", "app_secret": "s"})
			return words(t, err)
		},
		`app "…" is not configured: nothing to patch`: func(t *testing.T) string {
			changes := harness.Fields{"leased": false}
			_, err := m.Vault.Root.Logical().JSONMergePatch(t.Context(), m.Path+"/config/nobody", changes)
			return words(t, err)
		},
		`No value found at …`: func(t *testing.T) string {
			return m.Vault.CLI(t, "read", m.Path+"/config/nobody").Stderr
		},
		`app "…" does not exist yet: to create it, app_key and app_secret are required`: func(t *testing.T) string {
			_, err := m.Vault.Root.Logical().Write(m.Path+"/config/nobody", harness.Fields{"leased": true})
			return words(t, err)
		},
		`app "…": changing base_url or app_key requires app_secret in the same request`: writes(
			harness.Fields{"app_key": "dingother"},
		),
		`app "…": a write with app_secret must name base_url too, since the stored one, …, is not one of DingTalk's hosts`: writes(
			harness.Fields{"app_secret": harness.NewSecret()},
		),
		`…: expected one string, got …`: writes(
			harness.Fields{"app_secret": []string{harness.NewSecret(), harness.NewSecret()}},
		),
		`…; allowed are 1 to 512 printable ASCII characters without spaces`: writes(harness.Fields{"app_secret": "two words"}),
		`corp_id: … given; allowed are 1 to 64 letters and digits, or an empty string for none`: writes(
			harness.Fields{"corp_id": "ding-corp"},
		),
		`…; allowed is a duration of whole seconds from … to …`: writes(harness.Fields{"refresh_before": "500ms"}),
		`…; allowed are true and false`:                         writes(harness.Fields{"leased": "perhaps"}),
		`base_url: … given: …; allowed is https://host[:port]`: writes(
			harness.Fields{"base_url": "https://api.dingtalk.io/v1.0", "app_secret": harness.NewSecret()},
		),
		`nothing was stored: …`: func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), a.Rotation(harness.NewSecret()))
			return words(t, err)
		},
		`app "…" was tried a moment ago, without success: the last refresh was less than 10s ago; try again at …`: func(t *testing.T) string {
			dt := harness.StartDingTalk(t, 4*time.Second)
			a := m.NewApp(t, dt, nil)
			a.RefreshNow(t)
			dt.WaitForAge(t, dt.LastToken(a.Key), 2*time.Second) // it is no longer served
			_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), harness.Fields{"verify_connection": true})
			return words(t, err)
		},
		`nothing was stored: the configuration of app "…" changed while this request was under way; read it and try again`: func(t *testing.T) string {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, nil)
			dt.SetFault(a.Key, simulator.Fault{Delay: 4 * time.Second})
			var first error
			var writing sync.WaitGroup
			writing.Go(func() {
				_, first = m.Vault.Client(t).
					Logical().
					Write(a.ConfigPath(), harness.Fields{"leased": false, "verify_connection": true})
			})
			harness.WaitFor(t, 10*time.Second, "the first write verifies", func() bool { return a.Calls() == 1 })
			a.Update(t, harness.Fields{"refresh_before": "5m"})
			writing.Wait()
			harness.NoteSecret(dt.LastToken(a.Key), "an access token")
			return words(t, first)
		},
	}
}

// ofWarnings are the warnings of responses that are good all the same.
func ofWarnings(m *harness.Mount) map[string]provocation {
	warnings := func(t *testing.T, secret *api.Secret, err error) string {
		t.Helper()
		require.NoError(t, err)
		require.NotNil(t, secret)
		harness.NoteSecret(harness.TokenIn(secret), "an access token")
		return strings.Join(secret.Warnings, "\n")
	}
	reads := func(t *testing.T, a *harness.App, minTTL string) string {
		t.Helper()
		secret, err := m.Vault.Root.Logical().ReadWithData(a.CredsPath(), map[string][]string{"min_ttl": {minTTL}})
		return warnings(t, secret, err)
	}
	// In the second quarter of its life, a token of 8 s has less left than three quarters of that.
	const lifetime, most = 8 * time.Second, "6s"
	return map[string]provocation{
		`The token could not be refreshed and is good until …: …`: func(t *testing.T) string {
			dt := harness.StartDingTalk(t, lifetime)
			a := m.NewApp(t, dt, harness.Fields{"request_timeout": "1s"})
			dt.WaitForAge(t, a.Token(t), lifetime*5/8)
			dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
			return reads(t, a, most)
		},
		`min_ttl of … is more than three quarters of the token's lifetime of …, and counts as …`: func(t *testing.T) string {
			return reads(t, m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil), "24h")
		},
		`The token has a shorter remaining TTL than min_ttl, but the last refresh was less than 10s ago`: func(t *testing.T) string {
			dt := harness.StartDingTalk(t, lifetime)
			a := m.NewApp(t, dt, nil)
			a.RefreshNow(t)
			dt.WaitForAge(t, dt.LastToken(a.Key), lifetime*5/8)
			return reads(t, a, most)
		},
		`Nothing was fetched: the last refresh was less than 10s ago`: func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			a.RefreshNow(t)
			return strings.Join(a.RefreshNow(t).Warnings, "\n")
		},
		`Nothing was fetched: …`: func(t *testing.T) string {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, nil)
			dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "60"})
			_, err := a.TryRead()
			harness.Refused(t, err, http.StatusBadGateway)
			return strings.Join(a.RefreshNow(t).Warnings, "\n")
		},
		`This lease ends now: app "…" has another token`: func(t *testing.T) string {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, nil)
			lease := a.Read(t).LeaseID
			dt.ExpireTokens(a.Key)
			fresh := harness.NewSecret()
			dt.SetApp(a.Key, fresh)
			a.Update(t, a.Rotation(fresh))
			harness.NoteSecret(dt.LastToken(a.Key), "an access token")
			return strings.Join(renewLease(t, a, lease, 0).Warnings, "\n")
		},
		`This lease ends now: app "…" is no longer configured`: func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			lease := a.Read(t).LeaseID
			a.Delete(t)
			return strings.Join(renewLease(t, a, lease, 0).Warnings, "\n")
		},
		`The credentials were not verified again, since a token was fetched with them less than 10 seconds ago`: func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			a.RefreshNow(t)
			return warnings(t, a.Update(t, harness.Fields{"verify_connection": true}), nil)
		},
		`Endpoint ignored these unrecognized parameters: …`: func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			return warnings(t, a.Update(t, harness.Fields{"leasd": true}), nil)
		},
	}
}

// ofStorage are the errors of a storage that holds what it should not.
func ofStorage(m *harness.Mount) map[string]provocation {
	reads := func(stored string) provocation {
		return func(t *testing.T) string {
			name := "stored-" + harness.RandomHex(4)
			putRaw(t, m, "config/"+name, stored)
			_, err := m.Vault.Root.Logical().Read(m.Path + "/creds/" + name)
			return words(t, err)
		}
	}
	return map[string]provocation{
		`its configuration in storage: the entry is not readable: it is not what this engine writes`: reads(
			"something else",
		),
		`the entry has version …, this release reads …`: reads(
			strings.Replace(storedConfig("https://api.dingtalk.io"), `"version":1`, `"version":2`, 1),
		),
	}
}

// ofTheLog are the lines in Vault's log.
func ofTheLog(m *harness.Mount) map[string]provocation {
	fetches := func(wait string) provocation {
		return func(t *testing.T) string {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, nil)
			dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
			_, err := a.TryRead()
			harness.Refused(t, err, http.StatusBadRequest)
			dt.ClearFaults()
			a.RefreshNow(t)
			harness.NoteSecret(dt.LastToken(a.Key), "an access token")
			return vaultLogged(t, m.Vault, a.Name, wait)
		}
	}
	return map[string]provocation{
		`fetching a token failed`:     fetches(`fetching a token failed`),
		`fetching tokens works again`: fetches(`fetching tokens works again`),
		`fetched a token`:             fetches(`fetched a token`),
		`verifying credentials failed`: func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), a.Rotation(harness.NewSecret()))
			harness.Refused(t, err, http.StatusBadRequest)
			return vaultLogged(t, m.Vault, a.Name, `verifying credentials failed`)
		},
		`the stored token is not used: another will be fetched`: func(t *testing.T) string {
			name := "stored-" + harness.RandomHex(4)
			putRaw(t, m, "config/"+name, storedConfig("https://api.dingtalk.io"))
			putRaw(t, m, "token/"+name, "not what this engine writes")
			require.Equal(t, "absent", m.ReadData(t, m.Path+"/status/"+name)["state"])
			return vaultLogged(t, m.Vault, name, `the stored token is not used`)
		},
		`plugin shutting down`: func(t *testing.T) string { return byHand(t, "-no-such-flag") },
	}
}

// vaultLogged waits for a line of the log about an app, and returns it.
func vaultLogged(t *testing.T, v *harness.VaultServer, name, text string) string {
	t.Helper()
	var line string
	harness.WaitFor(t, 15*time.Second, "a line in the log: "+text, func() bool {
		for each := range strings.Lines(harness.FileText(t, v.LogPath())) {
			if strings.Contains(each, "app="+name) && strings.Contains(each, text) {
				line = each
			}
		}
		return line != ""
	})
	return line
}

// byHand runs the plugin as nobody should, and returns what it says.
func byHand(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), harness.PluginBin, args...).CombinedOutput()
	require.Error(t, err)
	return string(out)
}

// ofTheCatalog are the errors of registering, enabling and starting a plugin.
func ofTheCatalog(v *harness.VaultServer) map[string]provocation {
	register := func(input api.RegisterPluginInput) error {
		input.Type = api.PluginTypeSecrets
		return v.Root.Sys().RegisterPlugin(&input)
	}
	// starts registers a file, which Vault does not object to whatever it is, and enables it. What was
	// tampered with is no longer in the file.
	starts := func(content string, mode os.FileMode, tampered string) provocation {
		return func(t *testing.T) string {
			name := "odd-" + harness.RandomHex(4)
			file := filepath.Join(filepath.Dir(v.PluginPath), name)
			require.NoError(t, os.WriteFile(file, []byte(content), mode))
			digest := sha256.Sum256([]byte(content + tampered))
			require.NoError(
				t,
				register(api.RegisterPluginInput{Name: name, Command: name, SHA256: hex.EncodeToString(digest[:])}),
			)
			return words(t, v.Root.Sys().Mount(name, &api.MountInput{Type: name}))
		}
	}
	return map[string]provocation{
		`could not set plugin, plugin directory is not configured`: func(t *testing.T) string {
			client := startDevVault(t)
			return words(t, client.Sys().RegisterPlugin(&api.RegisterPluginInput{
				Name: harness.PluginName, Type: api.PluginTypeSecrets, Command: harness.PluginName, SHA256: v.PluginSHA256,
			}))
		},
		`error while validating the command path: …`: func(t *testing.T) string {
			return words(
				t,
				register(api.RegisterPluginInput{Name: "missing", Command: "missing", SHA256: v.PluginSHA256}),
			)
		},
		`cannot execute files outside of configured plugin directory …`: func(t *testing.T) string {
			require.NoError(t, os.Symlink(harness.PluginBin, filepath.Join(filepath.Dir(v.PluginPath), "linked")))
			return words(
				t,
				register(api.RegisterPluginInput{Name: "linked", Command: "linked", SHA256: v.PluginSHA256}),
			)
		},
		`checksums did not match`:            starts("#!/bin/sh\n", 0o755, "exit 0\n"),
		`fork/exec …: permission denied`:     starts("#!/bin/sh\n", 0o644, ""),
		`fork/exec …: exec format error`:     starts("a program for another system\n", 0o755, ""),
		`Unrecognized remote plugin message`: starts("#!/bin/sh\necho hello\n", 0o755, ""),
		`This binary is a plugin`:            func(t *testing.T) string { return byHand(t) },
		`plugin version mismatch`: func(t *testing.T) string {
			return words(
				t,
				register(
					api.RegisterPluginInput{
						Name:    "mismatch",
						Command: harness.PluginName,
						SHA256:  v.PluginSHA256,
						Version: "v99.0.0",
					},
				),
			)
		},
		`version "…" is not a valid semantic version`: func(t *testing.T) string {
			return words(
				t,
				register(
					api.RegisterPluginInput{
						Name:    "version",
						Command: harness.PluginName,
						SHA256:  v.PluginSHA256,
						Version: "latest",
					},
				),
			)
		},
		`plugin not found in the catalog`: func(t *testing.T) string {
			return words(t, v.Root.Sys().Mount("unregistered", &api.MountInput{Type: "unregistered"}))
		},
	}
}

// ofALostBinary are Vault's errors where the plugin's binary is not in the plugin directory.
func ofALostBinary() map[string]provocation {
	newApp := func(t *testing.T) *harness.App {
		t.Helper()
		v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
		return v.Enable(t).NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
	}
	writes := func(t *testing.T, a *harness.App) string {
		t.Helper()
		_, err := a.Mount.Vault.Root.Logical().Write(a.ConfigPath(), harness.Fields{"leased": false})
		return words(t, err)
	}
	return map[string]provocation{
		`error verifying checksum: open …: no such file or directory`: func(t *testing.T) string {
			return words(t, endWithoutBinary(t, newApp(t)))
		},
		`route entry found, but backend is nil`: func(t *testing.T) string {
			a := newApp(t)
			skipMounts(t, a.Mount.Vault)
			return writes(t, a)
		},
		`cannot write to storage during setup`: func(t *testing.T) string {
			a := newApp(t)
			skipMounts(t, a.Mount.Vault)
			a.Mount.Reload(t)
			return writes(t, a)
		},
	}
}

// startDevVault starts a Vault whose configuration names no plugin directory.
func startDevVault(t *testing.T) *api.Client {
	t.Helper()
	port, err := subprocess.ServerPorts.Free()
	require.NoError(t, err)
	v := &harness.VaultServer{
		Opts:      harness.VaultOptions{Name: "dev"},
		Dir:       t.TempDir(),
		Addr:      "http://127.0.0.1:" + strconv.Itoa(port),
		RootToken: "root-" + harness.RandomHex(12),
	}
	harness.NoteSecret(v.RootToken, "a root token")
	env := append(
		v.Env(""),
		"VAULT_DEV_ROOT_TOKEN_ID="+v.RootToken,
		"VAULT_DEV_LISTEN_ADDRESS="+strings.TrimPrefix(v.Addr, "http://"),
	)
	v.Proc, err = harness.StartProcess("vault dev", v.LogPath(), env,
		harness.VaultBin, "server", "-dev", "-dev-no-store-token")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, v.Stop()) })
	require.NoError(t, v.WaitForResponse())
	client := v.Client(t)
	harness.WaitFor(t, 30*time.Second, "the dev server serves", func() bool {
		_, err := client.Auth().Token().LookupSelf()
		return err == nil
	})
	return client
}

// ofVault are Vault's own errors around the engine.
func ofVault(m *harness.Mount, own *harness.VaultServer) map[string]provocation {
	// asked is a request by hand: of a 404, the CLI does not show what Vault said.
	asked := func(path string) provocation {
		return func(t *testing.T) string {
			var said struct{ Errors []string }
			harness.DecodeJSON(t, m.Vault.HTTP(t, http.MethodGet, path, "", "").Body, &said)
			return strings.Join(said.Errors, "\n")
		}
	}
	return map[string]provocation{
		`no handler for route "…"`: asked("nowhere/creds/myapp"),
		`unsupported path`:         asked(m.Path + "/cred/myapp"),
		`unsupported operation`:    asked(m.Path + "/refresh/myapp"),
		`permission denied`: func(t *testing.T) string {
			created, err := m.Vault.Root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"default"}})
			require.NoError(t, err)
			harness.NoteSecret(created.Auth.ClientToken, "a Vault token")
			client := m.Vault.Client(t)
			client.SetToken(created.Auth.ClientToken)
			_, err = client.Logical().Read(m.Path + "/creds/myapp")
			return words(t, err)
		},
		`lease not found`: func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			lease := a.Read(t).LeaseID
			require.NoError(t, m.Vault.Root.Sys().Revoke(lease))
			_, err := m.Vault.Root.Sys().Renew(lease, 0)
			return words(t, err)
		},
		`past the max TTL, cannot renew`: func(t *testing.T) string {
			mounted := own.Enable(t)
			a := mounted.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			lease := a.Read(t).LeaseID
			second := "1s"
			require.NoError(
				t,
				own.Root.Sys().
					TuneMountAllowNil(mounted.Path, api.TuneMountConfigInput{DefaultLeaseTTL: &second, MaxLeaseTTL: &second}),
			)
			var err error
			harness.WaitFor(t, 15*time.Second, "the lease is older than the mount allows", func() bool {
				_, err = own.Root.Sys().Renew(lease, 0)
				return err != nil
			})
			return words(t, err)
		},
		`rate limit quota exceeded`: func(t *testing.T) string {
			mounted := own.Enable(t)
			_, err := own.Root.Logical().
				Write("sys/quotas/rate-limit/"+mounted.Path, map[string]any{"path": mounted.Path + "/", "rate": 1})
			require.NoError(t, err)
			harness.WaitFor(t, 15*time.Second, "the quota is used up", func() bool {
				_, err = own.Root.Logical().List(mounted.Path + "/config")
				return err != nil
			})
			return words(t, err)
		},
		`rpc error: code = Unavailable`: func(t *testing.T) string {
			v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
			a := v.Enable(t).NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			a.Token(t)
			// Vault repeats a request whose plugin has died, so it takes several to meet that moment.
			said := make(chan string, 1)
			clients := patientClients(t, v, 16)
			load := startReaders(t, len(clients), time.Millisecond, func(i, _ int) {
				_, err := clients[i].Logical().Read(a.CredsPath())
				var response *api.ResponseError
				if !errors.As(err, &response) {
					return
				}
				// There is also "plugin is shut down", but rarely.
				if text := strings.Join(response.Errors, "\n"); strings.Contains(text, "rpc error") {
					select {
					case said <- text:
					default:
					}
				}
			})
			defer load.end()
			for range 20 {
				require.NoError(t, syscall.Kill(v.PluginPID(t), syscall.SIGKILL))
				harness.WaitFor(t, 20*time.Second, "the app is served again", func() bool {
					_, err := a.TryRead()
					return err == nil
				})
				select {
				case text := <-said:
					return text
				default:
				}
			}
			return ""
		},
		`Vault is sealed`: func(t *testing.T) string {
			v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
			mounted := v.Enable(t)
			require.NoError(t, v.Root.Sys().Seal())
			_, err := v.Root.Logical().Read(mounted.Path + "/creds/myapp")
			return words(t, err)
		},
	}
}

// ofReaders are what those say who read tokens, or use them.
func ofReaders(m *harness.Mount) map[string]provocation {
	renders := func(template func(*harness.App) string, text string) provocation {
		return func(t *testing.T) string {
			a := m.NewApp(t, harness.StartDingTalk(t, harness.FullLifetime), nil)
			return agentSays(t, m.Vault, template(a), text)
		}
	}
	return map[string]provocation{
		`no secret exists at …`: renders(func(*harness.App) string {
			return `{{ with secret "nowhere/creds/myapp" }}{{ .Data.access_token }}{{ end }}`
		}, `no secret exists at `),
		`nil pointer evaluating interface {}.access_token`: renders(func(a *harness.App) string {
			return fmt.Sprintf(`{{ with secret %q }}{{ .Data.data.access_token }}{{ end }}`, a.CredsPath())
		}, `nil pointer evaluating`),
		`InvalidAuthentication`: func(t *testing.T) string {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, nil)
			old := a.Token(t)
			dt.ExpireTokens(a.Key)
			return apiSays(t, dt, old)
		},
		`AuthenticationFailed.MissingParameter`: func(t *testing.T) string {
			return apiSays(t, harness.StartDingTalk(t, harness.FullLifetime), "")
		},
		`"errcode":88,"sub_code":"40014"`: func(t *testing.T) string {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			request, err := http.NewRequestWithContext(
				t.Context(), http.MethodPost, dt.URL+simulator.DepartmentsPath+"?access_token=expired", http.NoBody)
			require.NoError(t, err)
			return saidTo(t, request, http.StatusOK)
		},
	}
}

// apiSays calls an API of DingTalk's with a token, and returns the response.
func apiSays(t *testing.T, d *harness.DingTalk, accessToken string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+simulator.AppsPath, http.NoBody)
	require.NoError(t, err)
	if accessToken != "" {
		request.Header.Set(simulator.TokenHeader, accessToken)
	}
	return saidTo(t, request, http.StatusBadRequest)
}

// saidTo returns the body of the response to a request.
func saidTo(t *testing.T, request *http.Request, status int) string {
	t.Helper()
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, status, response.StatusCode)
	return string(text)
}

// agentSays runs an Agent with a template until its log has the text, and returns what it logged.
func agentSays(t *testing.T, v *harness.VaultServer, template, text string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		return file
	}
	config := write("agent.hcl", fmt.Sprintf(`
vault {
  address = %q
}

auto_auth {
  method "token_file" {
    config = {
      token_file_path = %q
    }
  }
}

template {
  source      = %q
  destination = %q
}
`, v.Addr, write("token", v.RootToken), write("template", template), filepath.Join(dir, "rendered")))
	log := filepath.Join(dir, "agent.log")
	proc, err := harness.StartProcess("agent of "+t.Name(), log, v.Env(""), harness.VaultBin, "agent", "-config="+config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, proc.Terminate(10*time.Second)) })
	harness.WaitFor(t, 20*time.Second, "the Agent says: "+text, func() bool {
		content, err := os.ReadFile(log)
		return err == nil && bytes.Contains(content, []byte(text))
	})
	return harness.FileText(t, log)
}

// Each of the engine's classes of failure is in the log. Whoever looks for one there must find it
// on the page.
func TestTroubleshooting_has_every_class_of_failure_under_a_heading(t *testing.T) {
	t.Parallel()
	page := harness.FileText(t, troubleshooting)
	classes := regexp.MustCompile(`(?m)^\tclass\w+\s+errorClass = "(\w+)"`).
		FindAllStringSubmatch(harness.FileText(t, "../../client.go"), -1)
	require.Greater(t, len(classes), 5)
	for _, class := range classes {
		require.Regexp(t, "(?m)^### `[^`]+`\n\n[^#]*`class="+class[1]+"`", page)
	}
}

// Whatever the engine can say is on the page, as far as its beginning: every text that its code
// makes an error, a warning or a line of the log of.
func TestTroubleshooting_has_every_text_of_the_engine(t *testing.T) {
	t.Parallel()
	page := strings.Join(strings.Fields(harness.FileText(t, troubleshooting)), " ")
	elsewhere := []string{
		// The hints at an error's end, which is on the page by its beginning.
		"check app_key and app_secret",
		"add Vault's egress IP",
		"look up the request id",
		"find what makes more than",
		"check base_url and any proxy",
		"check Vault's storage",
		"please report this with the stack",
		"; for an app of the China edition",
		"; for an app of the international edition",
		", that the organization of corp_id",
		// What nobody gets to see: Vault always gives a configuration; a record of plain fields can be
		// encoded; the transport's own limits are longer than what request_timeout leaves it; and the
		// last two make their caller start over.
		"no configuration given",
		"encoding ",
		"timed out",
		"the app's configuration changed",
		"the fetch is still under way",
	}
	files, err := filepath.Glob("../../*.go")
	require.NoError(t, err)
	count := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, text := range textsIn(t, file) {
			if slices.ContainsFunc(elsewhere, func(e string) bool { return strings.HasPrefix(text, e) }) {
				continue
			}
			// A text of fields alone, such as "%s: %s", says nothing by itself.
			parts := slices.DeleteFunc(
				regexp.MustCompile(`%[a-z]`).Split(text, -1),
				func(part string) bool { return len(part) < 10 },
			)
			if len(parts) == 0 {
				continue
			}
			count++
			found := slices.ContainsFunc(parts, func(part string) bool {
				part = strings.Trim(part, " :;,.\"()")
				return strings.Contains(page, part[:min(len(part), 25)])
			})
			assert.True(t, found, "%s says %q, which is not on the page", filepath.Base(file), text)
		}
	}
	require.Greater(t, count, 80)
}

// describesPath reports whether an expression is of a path's help or its description in OpenAPI, or
// of a metric's.
func describesPath[E ast.Node](expression E) bool {
	switch n := any(expression).(type) {
	case *ast.KeyValueExpr:
		return slices.Contains([]string{"Description", "Summary", "Name", "Help"}, fmt.Sprint(n.Key))
	case *ast.SelectorExpr: // such as p.HelpSynopsis
		return strings.HasPrefix(n.Sel.Name, "Help") || n.Sel.Name == "Description"
	case *ast.CallExpr:
		switch f := n.Fun.(type) {
		case *ast.Ident:
			return slices.Contains([]string{"path", "parameter", "field", "operation", "responses", "family"}, f.Name)
		case *ast.SelectorExpr:
			return f.Sel.Name == "configWrite"
		}
	}
	return false
}

// textsIn are the texts in a file of the engine that are made errors, warnings and lines of the log
// of.
func textsIn(t *testing.T, file string) []string {
	t.Helper()
	says := regexp.MustCompile(
		`^(badInput|refuse|fail|ended|Errorf|New|CodedError|AddWarning|Warn|Info|Debug|Error|log|describe|said|Sprintf|append)$`,
	)
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	var texts []string
	take := func(expressions ...ast.Expr) {
		for _, expression := range expressions {
			ast.Inspect(expression, func(n ast.Node) bool {
				if describesPath(n) {
					return false
				}
				literal, ok := n.(*ast.BasicLit)
				if !ok || literal.Kind != token.STRING {
					return true
				}
				text, err := strconv.Unquote(literal.Value)
				require.NoError(t, err)
				if strings.Contains(text, " ") {
					texts = append(texts, text)
				}
				return true
			})
		}
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			name := ""
			switch f := n.Fun.(type) {
			case *ast.Ident:
				name = f.Name
			case *ast.SelectorExpr:
				name = f.Sel.Name
			}
			if says.MatchString(name) {
				take(n.Args...)
			}
		case *ast.AssignStmt: // e.cause = "…", hint = "…", warning = "…"
			if !slices.ContainsFunc(n.Lhs, describesPath) {
				take(n.Rhs...)
			}
			return false
		case *ast.KeyValueExpr: // cause: "…"
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "cause" {
				take(n.Value)
			}
		}
		return true
	})
	return texts
}
