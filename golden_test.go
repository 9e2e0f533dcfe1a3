// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file pins the stored form. The files below testdata/v1 are entries as the first release
// stored them: every later release must read them and serve from them. What is written today must
// equal them to the byte, so that a change of the form cannot go unnoticed: it raises entryVersion,
// gets a directory of its own and leaves the old one be.

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// goldenCase says what the entries config_<name>.json and token_<name>.json stand for.
type goldenCase struct {
	name       string
	generation string
	fields     map[string]any // the write that makes the entry
	config     map[string]any // what a read of config/ shows other than the defaults
	token      string
	fetchedAt  string
	expireIn   time.Duration

	// What is seen at a moment in the token's life.
	at    time.Duration // since it was fetched
	state tokenState
	ttl   int64
}

var goldenCases = []goldenCase{
	{
		name: "default", generation: "000102030405060708090a0b0c0d0e0f",
		fields: map[string]any{"app_key": "dingdefaultkey", "app_secret": "default-app-secret"},
		token:  "0123456789abcdef0123456789abcdef", fetchedAt: "2026-03-01T08:00:00Z", expireIn: 7200 * time.Second,
		at: time.Hour, state: stateFresh, ttl: 3600,
	},
	{
		name: "all_fields", generation: "ffeeddccbbaa99887766554433221100",
		fields: map[string]any{
			"app_key": "dingallfieldskey", "app_secret": "GT-lsu_taDA~xxxsTsxxxx",
			"base_url": "https://DingTalk.Example.com:8443/", "refresh_before": "30m", "request_timeout": "25s",
			"leased": true, "verify_connection": false,
		},
		config: map[string]any{
			"base_url": "https://dingtalk.example.com:8443", "refresh_before": int64(1800), "request_timeout": int64(25),
		},
		token: "token-of-all-fields", fetchedAt: "2026-03-01T08:00:00Z", expireIn: 7200 * time.Second,
		at: 90 * time.Minute, state: stateDue, ttl: 1800,
	},
	{
		name: "china_edition", generation: "0badc0de0badc0de0badc0de0badc0de",
		fields: map[string]any{
			"app_key": "dingchinakey", "app_secret": "china-app-secret", "base_url": "https://api.dingtalk.com",
		},
		config: map[string]any{"base_url": "https://api.dingtalk.com"},
		token:  "token-of-the-china-edition", fetchedAt: "2026-02-28T23:59:59Z", expireIn: 86400 * time.Second,
		at: 23 * time.Hour, state: stateFresh, ttl: 3600,
	},
	{
		name: "unleased", generation: "00000000000000000000000000000001",
		fields: map[string]any{
			"app_key": "dingunleasedkey", "app_secret": "unleased-app-secret", "leased": false,
			"refresh_before": 0, "request_timeout": 1,
		},
		config: map[string]any{"refresh_before": int64(0), "request_timeout": int64(1), "leased": false},
		token:  "token-without-a-lease", fetchedAt: "2026-03-01T08:00:00Z", expireIn: 7200 * time.Second,
		at: 7198 * time.Second, state: stateFresh, ttl: 2,
	},
	{
		name: "fractional_times", generation: "123456789abcdef0123456789abcdef0",
		fields: map[string]any{
			"app_key": "dingfractionkey", "app_secret": "fraction-app-secret", "base_url": "http://[::1]:8080",
			"refresh_before": 3600,
		},
		config: map[string]any{"base_url": "http://[::1]:8080", "refresh_before": int64(3600)},
		token:  "token-of-a-fraction", fetchedAt: "2026-03-01T08:00:00.123456789Z", expireIn: 7199 * time.Second,
		at: 100*time.Second + 500*time.Millisecond, state: stateFresh, ttl: 7098,
	},
	{
		name: "every_character", generation: "5555555555555555aaaaaaaaaaaaaaaa",
		fields: map[string]any{"app_key": printableASCII(), "app_secret": strings.Repeat(`<&>"\/`, 85) + "!~"},
		token:  `<t>&"\/~!`, fetchedAt: "2026-03-01T08:00:00.5Z", expireIn: 7200 * time.Second,
		at: 7198*time.Second + 1, state: stateExpired, ttl: 1,
	},
}

func printableASCII() (all string) {
	for c := '!'; c <= '~'; c++ {
		all += string(c)
	}
	return all
}

func (c goldenCase) key() string    { return c.fields["app_key"].(string) }
func (c goldenCase) secret() string { return c.fields["app_secret"].(string) }

// shown is what a read of config/ responds.
func (c goldenCase) shown() map[string]any {
	shown := map[string]any{
		"app_key": c.key(), "base_url": defaultBaseURL, "refresh_before": int64(200), "request_timeout": int64(10),
		"leased": true,
	}
	maps.Copy(shown, c.config)
	return shown
}

func (c goldenCase) fetched() time.Time {
	at, _ := time.Parse(time.RFC3339, c.fetchedAt)
	return at
}

// golden reads a golden entry; the file ends in a line break, which the entry does not.
func golden(t *testing.T, version int, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("v%d", version), file))
	require.NoError(t, err)
	return bytes.TrimSuffix(content, []byte("\n"))
}

// anyHost is the simulator at every URL, also one with TLS.
type anyHost struct {
	*simulator.Server
	last string // the base URL of the last call
}

func (h *anyHost) RoundTrip(r *http.Request) (*http.Response, error) {
	h.last = r.URL.Scheme + "://" + r.URL.Host
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result(), nil
}

// issue makes the simulator give the case's app the case's token.
func (c goldenCase) issue(upstream *anyHost) {
	expireIn := strconv.Itoa(int(c.expireIn.Seconds()))
	upstream.SetApp(c.key(), c.secret())
	upstream.SetFault(c.key(), simulator.Fault{Kind: simulator.FaultToken, Token: c.token, ExpireIn: expireIn})
}

func TestGolden_entries_of_every_known_version_are_read_and_served(t *testing.T) {
	for _, version := range knownVersions {
		for _, c := range goldenCases {
			t.Run(fmt.Sprintf("v%d %s", version, c.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					storage, upstream := &logical.InmemStorage{}, &anyHost{Server: simulator.New(simulator.Options{})}
					c.issue(upstream)
					for _, kind := range []string{"config", "token"} {
						entry := golden(t, version, kind+"_"+c.name+".json")
						require.NoError(t, storage.Put(t.Context(), &logical.StorageEntry{Key: kind + "/" + theApp, Value: entry}))
					}
					m := mountOver(t, storage, upstream)
					fetched := c.fetched()
					time.Sleep(time.Until(fetched.Add(c.at)))

					config := m.do(logical.ReadOperation, "config/myapp", nil)
					require.NoError(t, config.err)
					require.Equal(t, c.shown(), config.Data)

					status := m.state(theApp)
					require.Equal(t, string(c.state), status["state"])
					require.Equal(t, c.ttl, status["ttl"])
					require.Equal(t, timestamp(fetched), status["fetched_at"])
					require.Equal(t, timestamp(fetched.Add(c.expireIn)), status["expires_at"])
					require.Zero(t, upstream.Requests(simulator.AnyApp))

					// A due token is served with a warning while DingTalk is down; a fresh one asks
					// nobody.
					upstream.SetFault(c.key(), simulator.Fault{Kind: simulator.FaultErrcode})
					got := m.read(theApp)
					if c.state == stateExpired {
						require.Equal(t, http.StatusBadGateway, got.status)
						time.Sleep(time.Minute)
					} else {
						require.NoError(t, got.err)
						require.Equal(t, c.token, got.Data["access_token"])
						require.Equal(t, c.shown()["leased"], got.Secret != nil)
						if got.Secret != nil {
							require.Equal(t, time.Duration(c.ttl)*time.Second, got.Secret.TTL)
						}
						require.Len(t, got.Warnings, map[tokenState]int{stateFresh: 0, stateDue: 1}[c.state])
					}
					calls := map[tokenState]int{stateFresh: 0, stateDue: 1, stateExpired: 1}[c.state]
					require.Equal(t, calls, upstream.Requests(c.key()))

					// What it takes to fetch another is there, the secret above all.
					c.issue(upstream)
					time.Sleep(2 * time.Hour * 13)
					require.Equal(t, c.token, m.token(theApp))
					require.Equal(t, calls+1, upstream.Requests(c.key()))
					require.Equal(t, c.shown()["base_url"], upstream.last)

					// A write of what is there already keeps the generation.
					require.Equal(t, http.StatusNoContent, m.do(logical.UpdateOperation, "config/myapp", map[string]any{
						"app_secret": c.secret(), "base_url": c.shown()["base_url"], "request_timeout": 7,
					}).status)
					require.Equal(t, c.generation, m.stored("config/myapp")["generation"])
					require.Equal(t, c.generation, m.stored("token/myapp")["generation"])
				})
			})
		}
	}
}

func TestGolden_what_is_written_today_is_the_form_of_its_version(t *testing.T) {
	for _, c := range goldenCases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage, upstream := &logical.InmemStorage{}, &anyHost{Server: simulator.New(simulator.Options{})}
				c.issue(upstream)
				m := mountOver(t, storage, upstream)
				time.Sleep(time.Until(c.fetched()))
				require.NoError(t, m.do(logical.UpdateOperation, "config/"+theApp, c.fields).err)
				require.NoError(t, m.read(theApp).err)
				for _, kind := range []string{"config", "token"} {
					entry, err := storage.Get(t.Context(), kind+"/"+theApp)
					require.NoError(t, err)
					require.True(t, m.storage.sealed[kind+"/"+theApp])
					generation := m.stored(kind + "/" + theApp)["generation"].(string)
					require.Regexp(t, `^[0-9a-f]{32}$`, generation)
					written := strings.Replace(string(entry.Value), generation, c.generation, 1)
					require.Equal(t, string(golden(t, entryVersion, kind+"_"+c.name+".json")), written,
						"the stored form has changed: raise entryVersion, give it a directory of its own in testdata, "+
							"and keep reading the old one")
				}
			})
		})
	}
}

func TestGolden_every_file_belongs_to_a_case(t *testing.T) {
	var cases []string
	for _, version := range knownVersions {
		for _, c := range goldenCases {
			for _, kind := range []string{"config", "token"} {
				cases = append(cases, fmt.Sprintf("v%d/%s_%s.json", version, kind, c.name))
			}
		}
	}
	files, err := fs.Glob(os.DirFS("testdata"), "v*/*.json")
	require.NoError(t, err)
	require.ElementsMatch(t, cases, files)
}
