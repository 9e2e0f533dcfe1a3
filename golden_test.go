// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file holds the stored form fast. The files below testdata/v1 are entries as the first release stored them: every
// later release must read them and serve from them. What is written today must equal them to the byte, so that a change of the
// form cannot go unnoticed: it raises entryVersion, gets a directory of its own and leaves the old one be.

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

// goldenCase says what the entries config_<name>.json and token_<name>.json stand for.
type goldenCase struct {
	name       string
	generation string
	fields     map[string]any // the write that makes the entry
	secret     string
	config     map[string]any // what config/ answers
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
		name:       "default",
		generation: "000102030405060708090a0b0c0d0e0f",
		fields:     map[string]any{"app_key": "dingdefaultkey", "app_secret": "default-app-secret"},
		secret:     "default-app-secret",
		config:     map[string]any{"app_key": "dingdefaultkey", "base_url": "https://api.dingtalk.io", "refresh_before": int64(200), "request_timeout": int64(10), "leased": true},
		token:      "0123456789abcdef0123456789abcdef",
		fetchedAt:  "2026-03-01T08:00:00Z",
		expireIn:   7200 * time.Second,
		at:         time.Hour, state: stateFresh, ttl: 3600,
	},
	{
		name:       "all_fields",
		generation: "ffeeddccbbaa99887766554433221100",
		fields: map[string]any{
			"app_key": "dingallfieldskey", "app_secret": "GT-lsu_taDA~xxxsTsxxxx", "base_url": "https://DingTalk.Example.com:8443/",
			"refresh_before": "30m", "request_timeout": "25s", "leased": true, "verify_connection": false,
		},
		secret:    "GT-lsu_taDA~xxxsTsxxxx",
		config:    map[string]any{"app_key": "dingallfieldskey", "base_url": "https://dingtalk.example.com:8443", "refresh_before": int64(1800), "request_timeout": int64(25), "leased": true},
		token:     "token-of-all-fields",
		fetchedAt: "2026-03-01T08:00:00Z",
		expireIn:  7200 * time.Second,
		at:        90 * time.Minute, state: stateDue, ttl: 1800,
	},
	{
		name:       "china_edition",
		generation: "0badc0de0badc0de0badc0de0badc0de",
		fields:     map[string]any{"app_key": "dingchinakey", "app_secret": "china-app-secret", "base_url": "https://api.dingtalk.com"},
		secret:     "china-app-secret",
		config:     map[string]any{"app_key": "dingchinakey", "base_url": "https://api.dingtalk.com", "refresh_before": int64(200), "request_timeout": int64(10), "leased": true},
		token:      "token-of-the-china-edition",
		fetchedAt:  "2026-02-28T23:59:59Z",
		expireIn:   86400 * time.Second,
		at:         23 * time.Hour, state: stateFresh, ttl: 3600,
	},
	{
		name:       "unleased",
		generation: "00000000000000000000000000000001",
		fields:     map[string]any{"app_key": "dingunleasedkey", "app_secret": "unleased-app-secret", "leased": false, "refresh_before": 0, "request_timeout": 1},
		secret:     "unleased-app-secret",
		config:     map[string]any{"app_key": "dingunleasedkey", "base_url": "https://api.dingtalk.io", "refresh_before": int64(0), "request_timeout": int64(1), "leased": false},
		token:      "token-without-a-lease",
		fetchedAt:  "2026-03-01T08:00:00Z",
		expireIn:   7200 * time.Second,
		at:         7198 * time.Second, state: stateFresh, ttl: 2,
	},
	{
		name:       "fractional_times",
		generation: "123456789abcdef0123456789abcdef0",
		fields:     map[string]any{"app_key": "dingfractionkey", "app_secret": "fraction-app-secret", "base_url": "http://[::1]:8080", "refresh_before": 3600},
		secret:     "fraction-app-secret",
		config:     map[string]any{"app_key": "dingfractionkey", "base_url": "http://[::1]:8080", "refresh_before": int64(3600), "request_timeout": int64(10), "leased": true},
		token:      "token-of-a-fraction",
		fetchedAt:  "2026-03-01T08:00:00.123456789Z",
		expireIn:   7199 * time.Second,
		at:         100*time.Second + 500*time.Millisecond, state: stateFresh, ttl: 7098,
	},
	{
		name:       "every_character",
		generation: "5555555555555555aaaaaaaaaaaaaaaa",
		fields:     map[string]any{"app_key": printableASCII(), "app_secret": strings.Repeat(`<&>"\/`, 85) + "!~"},
		secret:     strings.Repeat(`<&>"\/`, 85) + "!~",
		config:     map[string]any{"app_key": printableASCII(), "base_url": "https://api.dingtalk.io", "refresh_before": int64(200), "request_timeout": int64(10), "leased": true},
		token:      `<t>&"\/~!`,
		fetchedAt:  "2026-03-01T08:00:00.5Z",
		expireIn:   7200 * time.Second,
		at:         7198*time.Second + 1, state: stateExpired, ttl: 1,
	},
}

func printableASCII() string {
	var b strings.Builder
	for c := '!'; c <= '~'; c++ {
		b.WriteRune(c)
	}
	return b.String()
}

func (c goldenCase) fetched(t *testing.T) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, c.fetchedAt)
	require.NoError(t, err)
	return at
}

// golden reads a golden entry; the file ends in a line break, which the entry does not.
func golden(t *testing.T, version int, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("v%d", version), file))
	require.NoError(t, err)
	return bytes.TrimSuffix(content, []byte("\n"))
}

// goldenUpstream issues the case's token.
func goldenUpstream(c goldenCase) *modelDingTalk {
	upstream := newModelDingTalk()
	upstream.accepted = map[string][]string{c.config["app_key"].(string): {c.secret}}
	upstream.lifetime, upstream.named = c.expireIn, func() string { return c.token }
	return upstream
}

func TestGolden_entries_of_every_known_version_are_read_and_served(t *testing.T) {
	for _, version := range knownVersions {
		for _, c := range goldenCases {
			t.Run(fmt.Sprintf("v%d %s", version, c.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					storage, upstream := &logical.InmemStorage{}, goldenUpstream(c)
					for _, kind := range []string{"config", "token"} {
						require.NoError(t, storage.Put(t.Context(), &logical.StorageEntry{Key: kind + "/" + theApp, Value: golden(t, version, kind+"_"+c.name+".json")}))
					}
					m := mountOver(t, storage, upstream)
					fetched := c.fetched(t)
					time.Sleep(time.Until(fetched.Add(c.at)))

					config := m.do(logical.ReadOperation, "config/myapp", nil)
					require.NoError(t, config.err)
					require.Equal(t, c.config, config.Data)

					status := m.state(theApp)
					require.Equal(t, string(c.state), status["state"])
					require.Equal(t, c.ttl, status["ttl"])
					require.Equal(t, timestamp(fetched), status["fetched_at"])
					require.Equal(t, timestamp(fetched.Add(c.expireIn)), status["expires_at"])
					require.Empty(t, upstream.callsOf(""))

					// A due token is served with a warning while DingTalk is down; a fresh one asks nobody.
					upstream.mood = moodMalformed
					got := m.read(theApp)
					if c.state == stateExpired {
						require.Equal(t, http.StatusBadGateway, got.status)
						time.Sleep(longestBackOff)
					} else {
						require.NoError(t, got.err)
						require.Equal(t, c.token, got.Data["access_token"])
						require.Equal(t, c.config["leased"], got.Secret != nil)
						if got.Secret != nil {
							require.Equal(t, time.Duration(c.ttl)*time.Second, got.Secret.TTL)
						}
						require.Len(t, got.Warnings, map[tokenState]int{stateFresh: 0, stateDue: 1}[c.state])
					}
					require.Len(t, upstream.callsOf(""), map[tokenState]int{stateFresh: 0, stateDue: 1, stateExpired: 1}[c.state])

					// What it takes to fetch another is there, the secret above all.
					upstream.mood = moodWell
					time.Sleep(2 * time.Hour * 13)
					got = m.read(theApp)
					require.NoError(t, got.err)
					calls := upstream.callsOf("")
					require.Equal(t, account{host: c.config["base_url"].(string), key: c.config["app_key"].(string), secret: c.secret}, calls[len(calls)-1].account)

					// A write of what is there already keeps the generation.
					require.Equal(t, http.StatusNoContent, m.do(logical.UpdateOperation, "config/myapp", map[string]any{"app_secret": c.secret, "base_url": c.config["base_url"], "request_timeout": 7}).status)
					require.Equal(t, c.generation, m.stored("config/myapp")["generation"])
					require.Equal(t, c.generation, m.stored("token/myapp")["generation"])
				})
			})
		}
	}
}

// puts remembers what was put last under each key, with the wish for a seal wrap, which the storage in memory does not keep.
type puts struct {
	logical.Storage
	last map[string]logical.StorageEntry
}

// Put implements logical.Storage.
func (p *puts) Put(ctx context.Context, e *logical.StorageEntry) error {
	p.last[e.Key] = *e
	return p.Storage.Put(ctx, e)
}

func TestGolden_what_is_written_today_is_the_form_of_its_version(t *testing.T) {
	for _, c := range goldenCases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := &puts{Storage: &logical.InmemStorage{}, last: map[string]logical.StorageEntry{}}
				m := mountOver(t, storage, goldenUpstream(c))
				time.Sleep(time.Until(c.fetched(t)))
				require.NoError(t, m.do(logical.UpdateOperation, "config/"+theApp, c.fields).err)
				require.NoError(t, m.read(theApp).err)
				for _, kind := range []string{"config", "token"} {
					entry := storage.last[kind+"/"+theApp]
					require.True(t, entry.SealWrap)
					generation := m.stored(kind + "/" + theApp)["generation"].(string)
					require.Regexp(t, `^[0-9a-f]{32}$`, generation)
					written := strings.Replace(string(entry.Value), generation, c.generation, 1)
					require.Equal(t, string(golden(t, entryVersion, kind+"_"+c.name+".json")), written,
						"the stored form has changed: raise entryVersion, give it a directory of its own in testdata, and keep reading the old one")
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
