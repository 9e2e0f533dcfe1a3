// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests an app's configuration without an engine: the limits of each field, which changes
// a write may make, and the form in storage.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

func TestConfig_base_url_is_stored_in_its_one_spelling(t *testing.T) {
	spellings := map[string][]string{ // of what is stored
		"https://api.dingtalk.com": {
			"https://api.dingtalk.com/", "https://api.dingtalk.com:", "HTTPS://API.DingTalk.COM",
			"https://api.dingtalk.com:443", "https://api.dingtalk.com:0443/",
		},
		"https://192.0.2.1":          {"https://[::ffff:192.0.2.1]", "https://[::ffff:c000:201]"},
		"https://[2001:db8::1]":      {"https://[2001:0db8:0:0::0001]:00443"},
		"https://[2001:db8::1]:8443": {"https://[2001:DB8::1]:8443"},
		"http://localhost:8080":      {"HTTP://LocalHost:8080/"},
		"http://127.255.255.254":     {"http://127.255.255.254:80"},
		"http://127.0.0.1:18300":     {"http://127.0.0.1:018300"},
		"http://[::1]":               {"http://[0:0:0:0:0:0:0:1]"},
	}
	for _, canonical := range []string{
		"https://api.dingtalk.io", "https://api.dingtalk.com:8443", "https://api.dingtalk.com:80",
		"https://api.dingtalk.com:1", "https://api.dingtalk.com:65535", "https://my_proxy.corp-1.example",
		"https://localhost", "https://10.1.2.3:8443", "http://127.0.0.1", "http://127.255.255.254:443",
		"http://[::1]:8080", "https://" + strings.Repeat("a.", 100) + "a",
	} {
		spellings[canonical] = nil
	}
	for want, others := range spellings {
		for _, given := range append(others, want) {
			got, err := parseBaseURL(given)
			require.NoError(t, err, given)
			require.Equal(t, want, got, given)
		}
	}
}

func TestConfig_base_url_that_is_no_plain_host_or_would_send_the_secret_in_clear_is_refused(t *testing.T) {
	for why, all := range map[string][]string{
		"its scheme is not https":  {"ftp://api.dingtalk.com", "unix://run"},
		"its host ends in a dot":   {"https://a.example.", "https://a.example.:443", "https://192.0.2.1."},
		"its port is not one of 1": {"https://a.example:0", "https://a.example:65536", "http://localhost:080808080"},
		"it is not of that form": {
			"", " ", "//api.dingtalk.com", "api.dingtalk.com", "api.dingtalk.com:443", "https:a.example", "https:/a.example",
			"https://", "https:///v1.0", "https://:443", "file:///etc/passwd", "unix:///run/x",
			"https://a.example/v1.0", "https://a.example//", "https://a.example/.",
			"https://::1", "https://a.example:1:2", "https://a.example:-1", "https://a.example:https", "https://[::1",
			" https://a.example", "https://a.example ", "https://a.exa mple", "https://a.example\n", "https://a.example\x00",
			"https://钉钉.example", "https://api。dingtalk.com", "https://\u212a.example", "https://a.exa!mple",
			"https://a.example,b.example", "https://a.example?x=1", "https://a.example/?", "https://a.example#x",
			"https://a.example/#", "https://user@a.example", "https://user:hunter2@a.example", "https://@a.example",
			`https://a.example\`, `https:\\a.example`, `https://evil.example\.api.dingtalk.com`,
			"https://api%2edingtalk.com", "https://a.example/%2f", "https://[fe80::1%25eth0]",
		},
		"is not a name or an address": {
			"https://127.1", "https://2130706433", "https://0x7f.0.0.1", "https://127.0.0.01",
			"https://.a.example", "https://a..example", "https://" + strings.Repeat("a.", 300) + "example",
			"https://[a]", "https://[192.0.2.1]", "https://[::1::]",
		},
		"http:// would send the secret in clear text": {
			"http://api.dingtalk.com", "http://10.0.0.1", "http://0.0.0.0", "http://[::]", "http://[::1:1]",
			"http://[::ffff:127.0.0.1]", "http://127.1", "http://2130706433", "http://0177.0.0.1",
			"http://127.0.0.1.example", "http://x.localhost", "http://localhost.", "http://localhost.example",
		},
	} {
		for _, given := range all {
			got, err := parseBaseURL(given)
			require.ErrorContains(t, err, "base_url: ", "%s is taken as %s", given, got)
			require.ErrorContains(t, err, why)
			require.ErrorContains(t, err, "allowed is https://host[:port]")
			require.NotContains(t, err.Error(), "hunter2")
			require.Less(t, len(err.Error()), 512)
		}
	}
}

func TestConfig_credentials_are_1_to_512_printable_ASCII_characters_and_a_secret_may_end_in_a_line_break(t *testing.T) {
	const every = `!"#$%&'()*+,-./09:;<=>?@AZ[\]^_az{|}~`
	longest := strings.Repeat("x", 512)
	for _, field := range []string{"app_key", "app_secret"} {
		for _, given := range []string{"x", every, longest} {
			for _, end := range []string{"", "\n", "\r\n"} {
				change, err := parseChange(map[string]any{field: given + end})
				switch {
				case field == "app_secret":
					require.NoError(t, err)
					require.Equal(t, given, change.appSecret.reveal())
				case end == "":
					require.NoError(t, err)
					require.Equal(t, given, *change.appKey)
				default:
					require.ErrorContains(t, err, "app_key: ")
				}
			}
		}
		for _, given := range []string{
			"", "\n", longest + "x", longest + "x\n", "pri vate", " private", "private ", "private\t",
			"private\x00", "private\x7f", "privaté", "privat\xe9", "private\u00a0", "pri\nvate", "\nprivate",
			"private\n\n", "private\r\n\r\n", "private\n\r",
		} {
			_, err := parseChange(map[string]any{field: given})
			require.ErrorContains(t, err, field+": ", "%q", given)
			require.ErrorContains(t, err, "allowed are 1 to 512 printable ASCII characters without spaces")
			require.NotContains(t, err.Error(), "priva")
		}
	}
}

func TestConfig_durations_are_whole_seconds_in_their_range(t *testing.T) {
	parse := func(field string, given any) (*time.Duration, error) {
		change, err := parseChange(map[string]any{field: given})
		if err != nil {
			return nil, err
		}
		return cmp.Or(change.refreshBefore, change.requestTimeout), nil
	}
	for _, c := range []struct {
		field string
		want  time.Duration
		given []any
	}{
		{"refresh_before", 0, []any{0, "0", "0s"}},
		{"refresh_before", time.Second, []any{"1000ms"}},
		{"refresh_before", 90 * time.Second, []any{"1m30s", "0.025h"}},
		{"refresh_before", 200 * time.Second, []any{200, int64(200), 200.0, json.Number("200"), "200", "200s"}},
		{"refresh_before", time.Hour, []any{"1h", 3600}},
		{"request_timeout", time.Second, []any{1, "1s"}},
		{"request_timeout", 30 * time.Second, []any{"30s", json.Number("30")}},
	} {
		for _, given := range c.given {
			got, err := parse(c.field, given)
			require.NoError(t, err, "%v", given)
			require.Equal(t, c.want, *got, "%v", given)
		}
	}
	for _, given := range []any{
		nil, true, false,
		[]any{1},
		[]string{"1s"},
		map[string]any{"s": 1},
		"", " ", "soon", "s", "1x", "1 h", "1d", "0x10", "1e1", "NaN", "Inf", "1\n2", strings.Repeat("9", 1000),
		"500ms", "1.5s", "1s1ms", "1.5", 1.5, -0.5, json.Number("1.5"), "-0.5s",
		-1, "-1", "-1s", json.Number("-1"), 3601, "61m", "2h", "1h1s",
		1e30, 18446744074, int64(9223372036854775807), uint64(18446744073709551615), "18446744074",
		"9223372036854775808", json.Number("1e30"), json.Number("18446744074"),
	} {
		for field, allowed := range map[string]string{"refresh_before": "0s to 1h", "request_timeout": "1s to 30s"} {
			_, err := parse(field, given)
			require.ErrorContains(t, err, field+": ", "%v", given)
			require.ErrorContains(t, err, "allowed is a duration of whole seconds from "+allowed)
			require.Less(t, len(err.Error()), 300)
			require.NotContains(t, err.Error(), "\n")
		}
	}
	for _, given := range []any{0, "0", "0s", 31, "31s", "1m"} {
		_, err := parse("request_timeout", given)
		require.ErrorContains(t, err, fmt.Sprintf(`"%v" given`, given))
	}
}

func TestConfig_booleans_are_true_and_false_also_as_text_or_number(t *testing.T) {
	for _, field := range []string{"leased", "verify_connection"} {
		for given, want := range map[any]bool{
			true: true, "true": true, "TRUE": true, "1": true, 1: true,
			false: false, "false": false, "0": false, json.Number("0"): false,
		} {
			change, err := parseChange(map[string]any{field: given})
			require.NoError(t, err, "%v", given)
			require.Equal(t, want, *cmp.Or(change.leased, change.verify), "%v", given)
		}
		for _, given := range []any{
			nil, "", " ", "yes", "on", "2", 2, -1, json.Number("1.0"), 1.5, []any{true}, map[string]any{},
		} {
			_, err := parseChange(map[string]any{field: given})
			require.ErrorContains(t, err, field+": ", "%v", given)
			require.ErrorContains(t, err, "allowed are true and false", "%v", given)
		}
	}
}

func TestConfig_moving_an_app_needs_its_secret_and_a_secret_for_a_strangers_host_needs_the_host_named(t *testing.T) {
	const mine = "https://dedicated.example:8443"
	type fields = map[string]any
	for _, c := range []struct {
		stored string
		fields fields
		wrong  string // what the error says; empty is that there is none
	}{
		{mine, fields{"base_url": "https://evil.example"}, "requires app_secret in the same request"},
		{mine, fields{"base_url": "https://dedicated.example"}, "requires app_secret in the same request"},
		{mine, fields{"app_key": "another"}, "requires app_secret in the same request"},
		{mine, fields{"app_key": "another", "base_url": theURL}, "requires app_secret in the same request"},
		{mine, fields{"base_url": mine, "leased": false}, ""},

		{mine, fields{"app_secret": theSecret}, "must name base_url too, since the stored one, " + mine},
		{mine, fields{"app_secret": "junk"}, "must name base_url too"}, // which is the stored one
		{mine, fields{"app_secret": theSecret, "app_key": "another"}, "must name base_url too"},
		{theURL, fields{"app_secret": theSecret}, "must name base_url too"},
		{"https://api.dingtalk.com:8443", fields{"app_secret": theSecret}, "must name base_url too"},
		{"https://api.dingtalk.com.evil", fields{"app_secret": theSecret}, "must name base_url too"},
		{mine, fields{"app_secret": theSecret, "app_key": "another", "base_url": mine}, ""},
		{mine, fields{"app_secret": theSecret, "app_key": "another", "base_url": chinaBaseURL}, ""},
		{defaultBaseURL, fields{"app_secret": theSecret}, ""},
		{chinaBaseURL, fields{"app_secret": theSecret, "app_key": "another", "leased": false}, ""},
	} {
		change, err := parseChange(c.fields)
		require.NoError(t, err)
		present := appConfig{AppKey: theKey, AppSecret: newSensitive("junk"), BaseURL: c.stored}
		next, _, err := change.apply(theApp, &present)
		if c.wrong != "" {
			require.ErrorContains(t, err, c.wrong, "%s %v", c.stored, c.fields)
			require.NotContains(t, err.Error(), theSecret)
			continue
		}
		require.NoError(t, err, "%s %v", c.stored, c.fields)
		require.Equal(t, valueOr(change.baseURL, c.stored), next.BaseURL)
		require.Equal(t, "junk", present.AppSecret.reveal(), "the present configuration is not touched")
	}
}

// goldenCase says what the entries config_<name>.json and token_<name>.json below testdata/v1 stand
// for, which are as a release stored them: every later release must read them. What is
// written today must equal them to the byte, so that a change of the form cannot go unnoticed: it
// raises entryVersion, gets a directory of its own and leaves the old one be.
type goldenCase struct {
	generation string
	fields     map[string]any // the write that makes the entry
	token      string
	fetched    time.Time
	lives      time.Duration
	setAt      string // when the secret was set; the first release did not store it
}

var (
	marchFirst     = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	printableASCII = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
)

var goldenCases = map[string]goldenCase{
	"default": {
		"000102030405060708090a0b0c0d0e0f",
		map[string]any{"app_key": "dingdefaultkey", "app_secret": "default-app-secret"},
		"0123456789abcdef0123456789abcdef", marchFirst, 7200 * time.Second, "",
	},
	"all_fields": {
		"ffeeddccbbaa99887766554433221100", map[string]any{
			"app_key": "dingallfieldskey", "app_secret": "GT-lsu_taDA~xxxsTsxxxx",
			"base_url": "https://DingTalk.Example.com:8443/", "refresh_before": "30m", "request_timeout": "25s",
			"leased": true, "verify_connection": false,
		}, "token-of-all-fields", marchFirst, 7200 * time.Second, "",
	},
	"china_edition": {
		"0badc0de0badc0de0badc0de0badc0de", map[string]any{
			"app_key": "dingchinakey", "app_secret": "china-app-secret", "base_url": "https://api.dingtalk.com",
		}, "token-of-the-china-edition", time.Date(2026, 2, 28, 23, 59, 59, 0, time.UTC), 86400 * time.Second, "",
	},
	"unleased": {
		"00000000000000000000000000000001", map[string]any{
			"app_key": "dingunleasedkey", "app_secret": "unleased-app-secret", "leased": false,
			"refresh_before": 0, "request_timeout": 1,
		}, "token-without-a-lease", marchFirst, 7200 * time.Second, "",
	},
	"fractional_times": {
		"123456789abcdef0123456789abcdef0", map[string]any{
			"app_key": "dingfractionkey", "app_secret": "fraction-app-secret", "base_url": "http://[::1]:8080",
			"refresh_before": 3600,
		}, "token-of-a-fraction", marchFirst.Add(123456789 * time.Nanosecond), 7199 * time.Second, "",
	},
	"every_character": {
		"5555555555555555aaaaaaaaaaaaaaaa",
		map[string]any{"app_key": printableASCII, "app_secret": strings.Repeat(`<&>"\/`, 85) + "!~"},
		`<t>&"\/~!`, marchFirst.Add(500 * time.Millisecond), 7200 * time.Second, "",
	},
	"organization": { // as the second release stores it
		"77777777777777777777777777777777", map[string]any{
			"app_key": "dingcorpkey", "app_secret": "corp-app-secret", "corp_id": "dingcorp0123456789abcdef",
		}, "token-of-an-organization", marchFirst, 7200 * time.Second, "2026-03-01T08:00:00Z",
	},
}

// config is what the entry stands for.
func (c goldenCase) config(t *testing.T) *appConfig {
	t.Helper()
	change, err := parseChange(c.fields)
	require.NoError(t, err)
	config, _, err := change.apply(theApp, nil)
	require.NoError(t, err)
	config.Generation, config.AppSecretSetAt = c.generation, c.setAt
	return config
}

// golden reads a golden entry; the file ends in a line break, which the entry does not.
func golden(t *testing.T, version int, kind, name string) string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("testdata/v%d/%s_%s.json", version, kind, name))
	require.NoError(t, err)
	return strings.TrimSuffix(string(content), "\n")
}

// readStored reads a configuration and a token of storage, without an engine.
func readStored(t *testing.T, config, tok string, present *appConfig) (
	c *appConfig, stored *token, log string, configErr error,
) {
	t.Helper()
	m, out := &mount{t: t, storage: &faultyStorage{Storage: &logical.InmemStorage{}}}, &safeBuffer{}
	m.putRaw("config/myapp", config)
	m.putRaw("token/myapp", tok)
	c, configErr = readConfig(t.Context(), m.storage, theApp)
	logger := hclog.New(&hclog.LoggerOptions{Output: out})
	r := newRegistry(newClient(newTransport(), logger), logger)
	stored, err := r.newApp(theApp, present).readToken(t.Context(), m.storage)
	require.NoError(t, err)
	return c, stored, out.String(), configErr
}

func TestStored_records_of_every_known_version_are_read_also_with_fields_of_a_later_release(t *testing.T) {
	for _, version := range knownVersions {
		for name, want := range goldenCases {
			for _, more := range []string{"}", `,"of_a_later_release":{"a":[1]}}`} {
				entry := func(kind string) string {
					return strings.TrimSuffix(golden(t, version, kind, name), "}") + more
				}
				c, tok, log, err := readStored(t, entry("config"), entry("token"), want.config(t))
				require.NoError(t, err)
				require.Equal(t, want.config(t), c, name)
				require.Equal(t, want.token, tok.Value.reveal())
				require.WithinDuration(t, want.fetched, tok.fetchedAt, 0)
				require.WithinDuration(t, want.fetched.Add(want.lives), tok.expiresAt, 0)
				require.Equal(t, want.lives, tok.lifetime)
				require.Empty(t, log)
			}
		}
	}
	files, err := fs.Glob(os.DirFS("testdata"), "v*/*.json")
	require.NoError(t, err)
	require.Len(t, files, 2*len(knownVersions)*len(goldenCases), "each belongs to a case")
}

func TestStored_records_written_today_are_of_the_form_of_their_version(t *testing.T) {
	for name, c := range goldenCases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				issued, err := json.Marshal(map[string]any{"accessToken": c.token, "expireIn": c.lives / time.Second})
				require.NoError(t, err)
				m := mountOver(t, &logical.InmemStorage{}, transportFunc(func(*http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(issued))}, nil
				}))
				time.Sleep(time.Until(c.fetched))
				m.write(theApp, c.fields).works(t)
				m.read(theApp).works(t)
				for _, kind := range []string{"config", "token"} {
					key := kind + "/" + theApp
					require.True(t, m.storage.sealed[key])
					generation := m.stored(key)["generation"].(string)
					require.Regexp(t, `^[0-9a-f]{32}$`, generation)
					written := strings.Replace(m.snapshot()[key], generation, c.generation, 1)
					if c.setAt == "" {
						written = strings.Replace(written, fmt.Sprintf(`"app_secret_set_at":%q,`, timestamp(time.Now())), "", 1)
					}
					require.Equal(t, golden(t, entryVersion, kind, name), written,
						"the stored form has changed: raise entryVersion, give it a directory of its own in testdata, "+
							"and keep reading the old one")
				}
			})
		})
	}
}

func TestStored_records_that_cannot_be_read_are_a_config_error_and_no_token_and_nothing_of_them_is_shown(t *testing.T) {
	present := goldenCases["default"].config(t)
	for name, spoil := range map[string]func(record string) string{
		"a later version": func(r string) string { return strings.Replace(r, `"version":1`, `"version":2`, 1) },
		"no version":      func(r string) string { return strings.Replace(r, `"version":1,`, ``, 1) },
		"a version that is a text, beside the secret": func(r string) string {
			return strings.Replace(r, `"version":1`, `"version":"`+theSecret+`"`, 1)
		},
		"cut short": func(r string) string { return r[:len(r)-10] },
		"not JSON":  func(string) string { return theSecret + goodToken },
		"a list":    func(r string) string { return "[" + r + "]" },
		"null":      func(string) string { return "null" },
		"empty":     func(string) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			config, stored := golden(t, 1, "config", "default"), golden(t, 1, "token", "default")
			c, tok, log, err := readStored(t, spoil(config), spoil(stored), present)
			require.Nil(t, c)
			require.ErrorContains(t, err, "configuration in storage: the entry ")
			if name == "a later version" {
				require.ErrorContains(t, err, "version 2")
			}
			require.Nil(t, tok)
			require.Contains(t, log, "the stored token is not used")
			require.Contains(t, log, "app=myapp")
			for _, secret := range []string{theSecret, goodToken, present.AppSecret.reveal(), goldenCases["default"].token} {
				require.NotContains(t, err.Error()+log, secret)
			}
		})
	}
}

func TestConfig_is_equal_to_another_where_every_field_is(t *testing.T) {
	entry := func() *appConfig { return goldenCases["organization"].config(t) }
	var none *appConfig
	require.True(t, none.equal(nil))
	require.False(t, none.equal(entry()))
	require.False(t, entry().equal(nil))
	require.True(t, entry().equal(entry()))
	for i := range reflect.TypeFor[appConfig]().NumField() {
		other := entry()
		reflect.ValueOf(other).Elem().Field(i).SetZero()
		require.False(t, entry().equal(other), reflect.TypeFor[appConfig]().Field(i).Name)
	}
}
