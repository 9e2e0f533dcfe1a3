// SPDX-License-Identifier: MPL-2.0

//go:build e2e

//nolint:thelper // a provocation is the test, no helper of it
package e2e

// docs/troubleshooting.md lists errors by their texts. Each text in a heading is held here against
// what is really said: every one is provoked, with the simulator's faults and the real programs.
// What needs a storage that fails, or an hour, comes from the engine alone
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
)

const troubleshooting = "../../docs/troubleshooting.md"

// provocation has somebody say something, and returns all that was said.
type provocation func(t *testing.T) string

func TestTroubleshooting_every_text_in_a_heading_is_what_is_really_said(t *testing.T) {
	t.Parallel()
	texts := textsInHeadings(t, fileText(t, troubleshooting))
	m := newMount(t)
	own := startVault(t, vaultOptions{storage: storageInmem})
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
			assertNoSecret(t, "what was said", said)
			require.Regexp(t, pattern(text), said)
		})
	}
}

func fileText(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(content)
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

// ofDingTalk are the errors for what DingTalk answers.
func ofDingTalk(m *mount) map[string]provocation {
	answers := func(fault simulator.Fault) provocation {
		return func(t *testing.T) string {
			dt := startDingTalk(t, fullLifetime)
			a := m.newApp(t, dt, fields{"request_timeout": "1s"})
			dt.SetFault(a.key, fault)
			_, err := a.tryRead()
			noteSecret(dt.LastToken(a.key), "an access token")
			return words(t, err)
		}
	}
	return map[string]provocation{
		`DingTalk rejected the credentials of app "…"`: answers(
			simulator.Fault{Kind: simulator.FaultRejectedCredentials},
		),
		`DingTalk does not allow Vault's IP address for app "…"`: answers(
			simulator.Fault{Kind: simulator.FaultIPNotAllowed},
		),
		`DingTalk rejected the request for a token of app "…"`: answers(
			simulator.Fault{Kind: simulator.FaultPermissionDenied},
		),
		`Forbidden.AccessDenied.AccessTokenPermissionDenied`: answers(
			simulator.Fault{Kind: simulator.FaultPermissionDenied},
		),
		`DingTalk throttles the requests for a token of app "…"`: answers(
			simulator.Fault{Kind: simulator.FaultThrottledQPS},
		),
		`DingTalk could not serve the request for a token of app "…"`: answers(
			simulator.Fault{Kind: simulator.FaultUnavailableUnknown},
		),
		`DingTalk has banned Vault's egress IP, which app "…" shares with all other apps at …`: answers(
			simulator.Fault{Kind: simulator.FaultBanned},
		),
		`… answered the request for a token of app "…" with a redirect, which is never followed`: answers(
			simulator.Fault{Kind: simulator.FaultRedirect},
		),
		`… answered the request for a token of app "…" with something that is not a token`: answers(
			simulator.Fault{Kind: simulator.FaultEmptyToken},
		),
		`the response is an HTML page, as a proxy or a ban of Vault's egress IP sends`: answers(
			simulator.Fault{Kind: simulator.FaultHTML},
		),
		`the response has no accessToken`: answers(
			simulator.Fault{Kind: simulator.FaultErrcode},
		),
		`the response is not a JSON object`: answers(
			simulator.Fault{Kind: simulator.FaultTruncated},
		),
		`the response is longer than 65536 bytes`: answers(
			simulator.Fault{Kind: simulator.FaultHuge},
		),
		`expireIn is missing, not a number or not positive`: answers(
			simulator.Fault{Kind: simulator.FaultExpireIn},
		),
		`the token had expired when it arrived (expireIn …)`: answers(
			simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: "1"},
		),
		`could not get a token for app "…" from …`: answers(
			simulator.Fault{Kind: simulator.FaultReset},
		),
		`connection reset`:           answers(simulator.Fault{Kind: simulator.FaultReset}),
		`no whole response within …`: answers(simulator.Fault{Kind: simulator.FaultHang}),
		`accessToken is not 1 to 2048 visible ASCII characters`: answers(simulator.Fault{
			Kind: simulator.FaultToken, Token: "two words",
		}),
		`message withheld: it repeats the request`: answers(simulator.Fault{Kind: simulator.FaultEchoRequest}),
	}
}

// ofTheWay are the errors for what stands between Vault and DingTalk.
func ofTheWay(m *mount, own *vaultServer) map[string]provocation {
	from := func(t *testing.T, m *mount, url string) string {
		t.Helper()
		a := m.appAt(startDingTalk(t, fullLifetime), url)
		require.NoError(t, a.store(t, false))
		_, err := a.tryRead()
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
				"https://"+deadAddress(t))
		},
		`network is unreachable`:                       at("https://255.255.255.255"),
		`the connection ended before the response did`: behaving(func(net.Conn) {}),
		`the HTTP exchange failed, or what came is not HTTP`: behaving(func(conn net.Conn) {
			_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.6\r\n")
		}),
		`its certificate is not trusted: …`: speaking(tls.VersionTLS13),
		`the TLS handshake failed: …`:       speaking(tls.VersionTLS11),
		`it does not speak TLS`: func(t *testing.T) string {
			return from(t, m, "https://"+serveUpstream(t, "127.0.0.1", nil, http.NotFoundHandler()).addr)
		},
		`the proxy refused to connect with HTTP status …`: func(t *testing.T) string {
			proxied := own.enableWith(t, "dingtalk-proxied", "HTTPS_PROXY=http://"+startProxy(t).addr)
			return from(t, proxied, "https://api.dingtalk.test")
		},
		`base_url is not usable`: func(t *testing.T) string {
			m.putRaw(t, "config/unusable", storedConfig("http://["))
			_, err := m.v.root.Logical().Read(m.path + "/creds/unusable")
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
func (m *mount) putRaw(t *testing.T, key, value string) {
	t.Helper()
	_, err := m.v.root.Logical().Write("sys/raw/logical/"+m.uuid(t)+"/"+key, map[string]any{"value": value})
	require.NoError(t, err)
}

func (m *mount) uuid(t *testing.T) string {
	t.Helper()
	mounted, err := m.v.root.Sys().GetMount(m.path)
	require.NoError(t, err)
	return mounted.UUID
}

// ofRequests are the errors for requests that are not right.
func ofRequests(m *mount) map[string]provocation {
	read := func(path string) provocation {
		return func(t *testing.T) string {
			_, err := m.v.root.Logical().Read(m.path + "/" + path)
			return words(t, err)
		}
	}
	// writes changes an app that exists.
	writes := func(changes fields) provocation {
		return func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			_, err := m.v.root.Logical().Write(a.configPath(), changes)
			return words(t, err)
		}
	}
	return map[string]provocation{
		`app "…" is not configured: write its app_key and app_secret to …/config/… first`: read("creds/nobody"),
		`app: the name has … characters; allowed are at most 128`: read(
			"creds/" + strings.Repeat("n", 129),
		),
		`app: the name "…" has two dots in a row, which Vault's storage refuses; allowed are single ones`: func(t *testing.T) string {
			_, err := m.v.root.Logical().Write(m.path+"/config/a..b", fields{"app_key": "k", "app_secret": "s"})
			return words(t, err)
		},
		`app "…" is not configured: nothing to patch`: func(t *testing.T) string {
			_, err := m.v.root.Logical().JSONMergePatch(t.Context(), m.path+"/config/nobody", fields{"leased": false})
			return words(t, err)
		},
		`No value found at …`: func(t *testing.T) string {
			return m.v.cli(t, "read", m.path+"/config/nobody").stderr
		},
		`app "…" does not exist yet: to create it, app_key and app_secret are required`: func(t *testing.T) string {
			_, err := m.v.root.Logical().Write(m.path+"/config/nobody", fields{"leased": true})
			return words(t, err)
		},
		`app "…": changing base_url or app_key requires app_secret in the same request`: writes(
			fields{"app_key": "dingother"},
		),
		`app "…": a write with app_secret must name base_url too, since the stored one, …, is not one of DingTalk's hosts`: writes(
			fields{"app_secret": newSecret()},
		),
		`…: expected one string, got …`: writes(
			fields{"app_secret": []string{newSecret(), newSecret()}},
		),
		`…; allowed are 1 to 512 printable ASCII characters without spaces`: writes(fields{"app_secret": "two words"}),
		`corp_id: … given; allowed are 1 to 64 letters and digits, or an empty string for none`: writes(
			fields{"corp_id": "ding-corp"},
		),
		`…; allowed is a duration of whole seconds from … to …`: writes(fields{"refresh_before": "500ms"}),
		`…; allowed are true and false`:                         writes(fields{"leased": "perhaps"}),
		`base_url: … given: …; allowed is https://host[:port]`: writes(
			fields{"base_url": "https://api.dingtalk.io/v1.0", "app_secret": newSecret()},
		),
		`nothing was stored: …`: func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			_, err := m.v.root.Logical().Write(a.configPath(), a.rotation(newSecret()))
			return words(t, err)
		},
		`app "…" was tried a moment ago, without success: the last refresh was less than 10s ago; try again at …`: func(t *testing.T) string {
			dt := startDingTalk(t, 4*time.Second)
			a := m.newApp(t, dt, nil)
			a.refreshNow(t)
			dt.waitForAge(t, dt.LastToken(a.key), 2*time.Second) // it is no longer served
			_, err := m.v.root.Logical().Write(a.configPath(), fields{"verify_connection": true})
			return words(t, err)
		},
		`nothing was stored: the configuration of app "…" changed while this request was under way; read it and try again`: func(t *testing.T) string {
			dt := startDingTalk(t, fullLifetime)
			a := m.newApp(t, dt, nil)
			dt.SetFault(a.key, simulator.Fault{Delay: 4 * time.Second})
			var first error
			var writing sync.WaitGroup
			writing.Go(func() {
				_, first = m.v.client(t).
					Logical().
					Write(a.configPath(), fields{"leased": false, "verify_connection": true})
			})
			waitFor(t, 10*time.Second, "the first write verifies", func() bool { return a.calls() == 1 })
			a.update(t, fields{"refresh_before": "5m"})
			writing.Wait()
			noteSecret(dt.LastToken(a.key), "an access token")
			return words(t, first)
		},
	}
}

// ofWarnings are what comes with an answer that is good all the same.
func ofWarnings(m *mount) map[string]provocation {
	warnings := func(t *testing.T, secret *api.Secret, err error) string {
		t.Helper()
		require.NoError(t, err)
		require.NotNil(t, secret)
		noteSecret(tokenIn(secret), "an access token")
		return strings.Join(secret.Warnings, "\n")
	}
	reads := func(t *testing.T, a *app, minTTL string) string {
		t.Helper()
		secret, err := m.v.root.Logical().ReadWithData(a.credsPath(), map[string][]string{"min_ttl": {minTTL}})
		return warnings(t, secret, err)
	}
	// In the second quarter of its life, a token of 8 s has less left than three quarters of that.
	const lifetime, most = 8 * time.Second, "6s"
	return map[string]provocation{
		`The token could not be refreshed and is good until …: …`: func(t *testing.T) string {
			dt := startDingTalk(t, lifetime)
			a := m.newApp(t, dt, fields{"request_timeout": "1s"})
			dt.waitForAge(t, a.token(t), lifetime*5/8)
			dt.SetFault(a.key, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
			return reads(t, a, most)
		},
		`min_ttl of … is more than three quarters of the token's lifetime of …, and counts as …`: func(t *testing.T) string {
			return reads(t, m.newApp(t, startDingTalk(t, fullLifetime), nil), "24h")
		},
		`The token has a shorter remaining TTL than min_ttl, but the last refresh was less than 10s ago`: func(t *testing.T) string {
			dt := startDingTalk(t, lifetime)
			a := m.newApp(t, dt, nil)
			a.refreshNow(t)
			dt.waitForAge(t, dt.LastToken(a.key), lifetime*5/8)
			return reads(t, a, most)
		},
		`Nothing was fetched: the last refresh was less than 10s ago`: func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			a.refreshNow(t)
			return strings.Join(a.refreshNow(t).Warnings, "\n")
		},
		`Nothing was fetched: …`: func(t *testing.T) string {
			dt := startDingTalk(t, fullLifetime)
			a := m.newApp(t, dt, nil)
			dt.SetFault(a.key, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "60"})
			_, err := a.tryRead()
			refused(t, err, http.StatusBadGateway)
			return strings.Join(a.refreshNow(t).Warnings, "\n")
		},
		`This lease ends now: app "…" has another token`: func(t *testing.T) string {
			dt := startDingTalk(t, fullLifetime)
			a := m.newApp(t, dt, nil)
			lease := a.read(t).LeaseID
			dt.ExpireTokens(a.key)
			fresh := newSecret()
			dt.SetApp(a.key, fresh)
			a.update(t, a.rotation(fresh))
			noteSecret(dt.LastToken(a.key), "an access token")
			return strings.Join(a.renew(t, lease, 0).Warnings, "\n")
		},
		`This lease ends now: app "…" is no longer configured`: func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			lease := a.read(t).LeaseID
			a.delete(t)
			return strings.Join(a.renew(t, lease, 0).Warnings, "\n")
		},
		`The credentials were not verified again, since a token was fetched with them less than 10 seconds ago`: func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			a.refreshNow(t)
			return warnings(t, a.update(t, fields{"verify_connection": true}), nil)
		},
		`Endpoint ignored these unrecognized parameters: …`: func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			return warnings(t, a.update(t, fields{"leasd": true}), nil)
		},
	}
}

// ofStorage are the errors of a storage that holds what it should not.
func ofStorage(m *mount) map[string]provocation {
	reads := func(stored string) provocation {
		return func(t *testing.T) string {
			name := "stored-" + randomHex(4)
			m.putRaw(t, "config/"+name, stored)
			_, err := m.v.root.Logical().Read(m.path + "/creds/" + name)
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
func ofTheLog(m *mount) map[string]provocation {
	fetches := func(wait string) provocation {
		return func(t *testing.T) string {
			dt := startDingTalk(t, fullLifetime)
			a := m.newApp(t, dt, nil)
			dt.SetFault(a.key, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
			_, err := a.tryRead()
			refused(t, err, http.StatusBadRequest)
			dt.ClearFaults()
			a.refreshNow(t)
			noteSecret(dt.LastToken(a.key), "an access token")
			return m.v.logged(t, a.name, wait)
		}
	}
	return map[string]provocation{
		`fetching a token failed`:     fetches(`fetching a token failed`),
		`fetching tokens works again`: fetches(`fetching tokens works again`),
		`fetched a token`:             fetches(`fetched a token`),
		`verifying credentials failed`: func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			_, err := m.v.root.Logical().Write(a.configPath(), a.rotation(newSecret()))
			refused(t, err, http.StatusBadRequest)
			return m.v.logged(t, a.name, `verifying credentials failed`)
		},
		`the stored token is not used: another will be fetched`: func(t *testing.T) string {
			name := "stored-" + randomHex(4)
			m.putRaw(t, "config/"+name, storedConfig("https://api.dingtalk.io"))
			m.putRaw(t, "token/"+name, "not what this engine writes")
			require.Equal(t, "absent", m.readData(t, m.path+"/status/"+name)["state"])
			return m.v.logged(t, name, `the stored token is not used`)
		},
		`plugin shutting down`: func(t *testing.T) string { return byHand(t, "-no-such-flag") },
	}
}

// logged waits for a line of the log about an app, and returns it.
func (v *vaultServer) logged(t *testing.T, name, text string) string {
	t.Helper()
	var line string
	waitFor(t, 15*time.Second, "a line in the log: "+text, func() bool {
		for each := range strings.Lines(fileText(t, v.logPath())) {
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
	out, err := exec.CommandContext(t.Context(), pluginBin, args...).CombinedOutput()
	require.Error(t, err)
	return string(out)
}

// ofTheCatalog are the errors of registering, enabling and starting a plugin.
func ofTheCatalog(v *vaultServer) map[string]provocation {
	register := func(input api.RegisterPluginInput) error {
		input.Type = api.PluginTypeSecrets
		return v.root.Sys().RegisterPlugin(&input)
	}
	// starts registers a file, which Vault does not object to whatever it is, and enables it. What was
	// tampered with is no longer in the file.
	starts := func(content string, mode os.FileMode, tampered string) provocation {
		return func(t *testing.T) string {
			name := "odd-" + randomHex(4)
			file := filepath.Join(filepath.Dir(v.pluginPath), name)
			require.NoError(t, os.WriteFile(file, []byte(content), mode))
			digest := sha256.Sum256([]byte(content + tampered))
			require.NoError(
				t,
				register(api.RegisterPluginInput{Name: name, Command: name, SHA256: hex.EncodeToString(digest[:])}),
			)
			return words(t, v.root.Sys().Mount(name, &api.MountInput{Type: name}))
		}
	}
	return map[string]provocation{
		`could not set plugin, plugin directory is not configured`: func(t *testing.T) string {
			client := startDevVault(t)
			return words(t, client.Sys().RegisterPlugin(&api.RegisterPluginInput{
				Name: pluginName, Type: api.PluginTypeSecrets, Command: pluginName, SHA256: v.pluginSHA256,
			}))
		},
		`error while validating the command path: …`: func(t *testing.T) string {
			return words(
				t,
				register(api.RegisterPluginInput{Name: "missing", Command: "missing", SHA256: v.pluginSHA256}),
			)
		},
		`cannot execute files outside of configured plugin directory …`: func(t *testing.T) string {
			require.NoError(t, os.Symlink(pluginBin, filepath.Join(filepath.Dir(v.pluginPath), "linked")))
			return words(
				t,
				register(api.RegisterPluginInput{Name: "linked", Command: "linked", SHA256: v.pluginSHA256}),
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
						Command: pluginName,
						SHA256:  v.pluginSHA256,
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
						Command: pluginName,
						SHA256:  v.pluginSHA256,
						Version: "latest",
					},
				),
			)
		},
		`plugin not found in the catalog`: func(t *testing.T) string {
			return words(t, v.root.Sys().Mount("unregistered", &api.MountInput{Type: "unregistered"}))
		},
	}
}

// ofALostBinary are Vault's errors where the plugin's binary is not in the plugin directory.
func ofALostBinary() map[string]provocation {
	newApp := func(t *testing.T) *app {
		t.Helper()
		v := startVault(t, vaultOptions{storage: storageInmem})
		return v.enable(t).newApp(t, startDingTalk(t, fullLifetime), nil)
	}
	writes := func(t *testing.T, a *app) string {
		t.Helper()
		_, err := a.m.v.root.Logical().Write(a.configPath(), fields{"leased": false})
		return words(t, err)
	}
	return map[string]provocation{
		`error verifying checksum: open …: no such file or directory`: func(t *testing.T) string {
			return words(t, newApp(t).endWithoutBinary(t))
		},
		`route entry found, but backend is nil`: func(t *testing.T) string {
			a := newApp(t)
			a.m.v.skipMounts(t)
			return writes(t, a)
		},
		`cannot write to storage during setup`: func(t *testing.T) string {
			a := newApp(t)
			a.m.v.skipMounts(t)
			a.m.reload(t)
			return writes(t, a)
		},
	}
}

// startDevVault starts a Vault whose configuration names no plugin directory.
func startDevVault(t *testing.T) *api.Client {
	t.Helper()
	port, err := subprocess.ServerPorts.Free()
	require.NoError(t, err)
	v := &vaultServer{
		opts:      vaultOptions{name: "dev"},
		dir:       t.TempDir(),
		addr:      "http://127.0.0.1:" + strconv.Itoa(port),
		rootToken: "root-" + randomHex(12),
	}
	noteSecret(v.rootToken, "a root token")
	env := append(
		v.env(""),
		"VAULT_DEV_ROOT_TOKEN_ID="+v.rootToken,
		"VAULT_DEV_LISTEN_ADDRESS="+strings.TrimPrefix(v.addr, "http://"),
	)
	v.proc, err = startProcess("vault dev", v.logPath(), env, vaultBin, "server", "-dev", "-dev-no-store-token")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, v.stop()) })
	require.NoError(t, v.waitForAnswer())
	client := v.client(t)
	waitFor(t, 30*time.Second, "the dev server serves", func() bool {
		_, err := client.Auth().Token().LookupSelf()
		return err == nil
	})
	return client
}

// ofVault are Vault's own errors around the engine.
func ofVault(m *mount, own *vaultServer) map[string]provocation {
	// asked is a request by hand: of a 404, the CLI does not show what Vault said.
	asked := func(path string) provocation {
		return func(t *testing.T) string {
			var said struct{ Errors []string }
			decodeJSON(t, m.v.http(t, http.MethodGet, path, "", "").body, &said)
			return strings.Join(said.Errors, "\n")
		}
	}
	return map[string]provocation{
		`no handler for route "…"`: asked("nowhere/creds/myapp"),
		`unsupported path`:         asked(m.path + "/cred/myapp"),
		`unsupported operation`:    asked(m.path + "/refresh/myapp"),
		`permission denied`: func(t *testing.T) string {
			login, err := m.v.root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"default"}})
			require.NoError(t, err)
			noteSecret(login.Auth.ClientToken, "a Vault token")
			client := m.v.client(t)
			client.SetToken(login.Auth.ClientToken)
			_, err = client.Logical().Read(m.path + "/creds/myapp")
			return words(t, err)
		},
		`lease not found`: func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			lease := a.read(t).LeaseID
			require.NoError(t, m.v.root.Sys().Revoke(lease))
			_, err := m.v.root.Sys().Renew(lease, 0)
			return words(t, err)
		},
		`past the max TTL, cannot renew`: func(t *testing.T) string {
			mounted := own.enable(t)
			a := mounted.newApp(t, startDingTalk(t, fullLifetime), nil)
			lease := a.read(t).LeaseID
			second := "1s"
			require.NoError(
				t,
				own.root.Sys().
					TuneMountAllowNil(mounted.path, api.TuneMountConfigInput{DefaultLeaseTTL: &second, MaxLeaseTTL: &second}),
			)
			var err error
			waitFor(t, 15*time.Second, "the lease is older than the mount allows", func() bool {
				_, err = own.root.Sys().Renew(lease, 0)
				return err != nil
			})
			return words(t, err)
		},
		`rate limit quota exceeded`: func(t *testing.T) string {
			mounted := own.enable(t)
			_, err := own.root.Logical().
				Write("sys/quotas/rate-limit/"+mounted.path, map[string]any{"path": mounted.path + "/", "rate": 1})
			require.NoError(t, err)
			waitFor(t, 15*time.Second, "the quota is used up", func() bool {
				_, err = own.root.Logical().List(mounted.path + "/config")
				return err != nil
			})
			return words(t, err)
		},
		`rpc error: code = Unavailable`: func(t *testing.T) string {
			v := startVault(t, vaultOptions{storage: storageInmem})
			a := v.enable(t).newApp(t, startDingTalk(t, fullLifetime), nil)
			a.token(t)
			// Vault repeats a request whose plugin has died, so it takes several to meet that moment.
			said := make(chan string, 1)
			clients := v.patientClients(t, 16)
			load := startReaders(t, len(clients), time.Millisecond, func(i, _ int) {
				_, err := clients[i].Logical().Read(a.credsPath())
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
				require.NoError(t, syscall.Kill(v.pluginPID(t), syscall.SIGKILL))
				waitFor(t, 20*time.Second, "the app is served again", func() bool {
					_, err := a.tryRead()
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
			v := startVault(t, vaultOptions{storage: storageInmem})
			mounted := v.enable(t)
			require.NoError(t, v.root.Sys().Seal())
			_, err := v.root.Logical().Read(mounted.path + "/creds/myapp")
			return words(t, err)
		},
	}
}

// ofReaders are what those say who read tokens, or use them.
func ofReaders(m *mount) map[string]provocation {
	renders := func(template func(*app) string, text string) provocation {
		return func(t *testing.T) string {
			a := m.newApp(t, startDingTalk(t, fullLifetime), nil)
			return m.v.agentSays(t, template(a), text)
		}
	}
	return map[string]provocation{
		`no secret exists at …`: renders(func(*app) string {
			return `{{ with secret "nowhere/creds/myapp" }}{{ .Data.access_token }}{{ end }}`
		}, `no secret exists at `),
		`nil pointer evaluating interface {}.access_token`: renders(func(a *app) string {
			return fmt.Sprintf(`{{ with secret %q }}{{ .Data.data.access_token }}{{ end }}`, a.credsPath())
		}, `nil pointer evaluating`),
		`InvalidAuthentication`: func(t *testing.T) string {
			dt := startDingTalk(t, fullLifetime)
			a := m.newApp(t, dt, nil)
			old := a.token(t)
			dt.ExpireTokens(a.key)
			return dt.apiSays(t, old)
		},
		`AuthenticationFailed.MissingParameter`: func(t *testing.T) string {
			return startDingTalk(t, fullLifetime).apiSays(t, "")
		},
		`"errcode":88,"sub_code":"40014"`: func(t *testing.T) string {
			dt := startDingTalk(t, fullLifetime)
			request, err := http.NewRequestWithContext(
				t.Context(), http.MethodPost, dt.url+simulator.DepartmentsPath+"?access_token=expired", http.NoBody)
			require.NoError(t, err)
			return saidTo(t, request, http.StatusOK)
		},
	}
}

// apiSays calls an API of DingTalk's with a token, and returns the answer.
func (d *dingtalk) apiSays(t *testing.T, accessToken string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.url+simulator.AppsPath, http.NoBody)
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
func (v *vaultServer) agentSays(t *testing.T, template, text string) string {
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
`, v.addr, write("token", v.rootToken), write("template", template), filepath.Join(dir, "rendered")))
	log := filepath.Join(dir, "agent.log")
	proc, err := startProcess("agent of "+t.Name(), log, v.env(""), vaultBin, "agent", "-config="+config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, proc.stop(10*time.Second)) })
	waitFor(t, 20*time.Second, "the Agent says: "+text, func() bool {
		content, err := os.ReadFile(log)
		return err == nil && bytes.Contains(content, []byte(text))
	})
	return fileText(t, log)
}

// Each of the engine's classes of failure is in the log. Whoever looks for one there must find it
// on the page.
func TestTroubleshooting_has_every_class_of_failure_under_a_heading(t *testing.T) {
	t.Parallel()
	page := fileText(t, troubleshooting)
	classes := regexp.MustCompile(`(?m)^\tclass\w+\s+errorClass = "(\w+)"`).
		FindAllStringSubmatch(fileText(t, "../../client.go"), -1)
	require.Greater(t, len(classes), 5)
	for _, class := range classes {
		require.Regexp(t, "(?m)^### `[^`]+`\n\n[^#]*`class="+class[1]+"`", page)
	}
}

// Whatever the engine can say is on the page, as far as its beginning: every text that its code
// makes an error, a warning or a line of the log of.
func TestTroubleshooting_has_every_text_of_the_engine(t *testing.T) {
	t.Parallel()
	page := strings.Join(strings.Fields(fileText(t, troubleshooting)), " ")
	elsewhere := []string{
		// The hints at an error's end, which is on the page by its beginning.
		"check app_key and app_secret",
		"add Vault's egress IP",
		"look the request id up",
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
