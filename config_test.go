// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests an app's entry: the limits of each field, what a write makes of the present entry, when it starts a new
// generation, and the form in storage, which a later release must be able to read.

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"
)

func TestApp_base_url_is_stored_in_its_one_spelling(t *testing.T) {
	for given, want := range map[string]string{
		"https://api.dingtalk.io":                    "https://api.dingtalk.io",
		"https://api.dingtalk.com/":                  "https://api.dingtalk.com",
		"https://api.dingtalk.com:8443":              "https://api.dingtalk.com:8443",
		"https://api.dingtalk.com:":                  "https://api.dingtalk.com",
		"https://api.dingtalk.com:1/":                "https://api.dingtalk.com:1",
		"https://api.dingtalk.com:65535":             "https://api.dingtalk.com:65535",
		"HTTPS://API.DingTalk.COM":                   "https://api.dingtalk.com",
		"https://localhost":                          "https://localhost",
		"https://10.1.2.3:8443":                      "https://10.1.2.3:8443",
		"https://[2001:DB8::1]:8443":                 "https://[2001:db8::1]:8443",
		"https://my_proxy.corp-1.example":            "https://my_proxy.corp-1.example",
		"http://localhost:8080":                      "http://localhost:8080",
		"HTTP://LocalHost:8080/":                     "http://localhost:8080",
		"http://127.0.0.1":                           "http://127.0.0.1",
		"http://127.255.255.254:80":                  "http://127.255.255.254",
		"http://127.255.255.254:443":                 "http://127.255.255.254:443",
		"http://127.0.0.1:018300":                    "http://127.0.0.1:18300",
		"https://api.dingtalk.com:443":               "https://api.dingtalk.com",
		"https://api.dingtalk.com:0443/":             "https://api.dingtalk.com",
		"https://api.dingtalk.com:80":                "https://api.dingtalk.com:80",
		"https://[2001:0db8:0:0::0001]:00443":        "https://[2001:db8::1]",
		"https://[::ffff:192.0.2.1]":                 "https://192.0.2.1",
		"https://[::ffff:c000:201]":                  "https://192.0.2.1",
		"http://[::1]:8080":                          "http://[::1]:8080",
		"http://[0:0:0:0:0:0:0:1]":                   "http://[::1]",
		"https://" + strings.Repeat("a.", 100) + "a": "https://" + strings.Repeat("a.", 100) + "a",
	} {
		t.Run(given, func(t *testing.T) {
			got, err := parseBaseURL(given)
			require.NoError(t, err)
			require.Equal(t, want, got)
			again, err := parseBaseURL(got)
			require.NoError(t, err)
			require.Equal(t, got, again, "what is stored is its own normal form")
		})
	}
}

func TestApp_base_url_is_refused(t *testing.T) {
	for name, given := range map[string]string{
		"empty":                           "",
		"a space":                         " ",
		"without a scheme":                "api.dingtalk.com",
		"without a scheme, with a port":   "api.dingtalk.com:443",
		"without a scheme, with slashes":  "//api.dingtalk.com",
		"opaque":                          "https:api.dingtalk.com",
		"a trailing dot":                  "https://api.dingtalk.com.",
		"a trailing dot, with a port":     "https://api.dingtalk.com.:443",
		"an address with a trailing dot":  "https://192.0.2.1.",
		"an address with fewer parts":     "https://127.1",
		"an address as a number":          "https://2130706433",
		"an address in hexadecimal":       "https://0x7f.0.0.1",
		"an address with leading zeros":   "https://127.0.0.01",
		"plain HTTP, IPv4 as IPv6":        "http://[::ffff:127.0.0.1]",
		"one slash":                       "https:/api.dingtalk.com",
		"without a host":                  "https://",
		"without a host, with a path":     "https:///v1.0",
		"without a host, with a port":     "https://:443",
		"another scheme":                  "ftp://api.dingtalk.com",
		"a file":                          "file:///etc/passwd",
		"a socket":                        "unix:///run/x",
		"a path":                          "https://api.dingtalk.com/v1.0",
		"a path of slashes":               "https://api.dingtalk.com//",
		"a dot":                           "https://api.dingtalk.com/.",
		"a query":                         "https://api.dingtalk.com?x=1",
		"an empty query":                  "https://api.dingtalk.com/?",
		"a fragment":                      "https://api.dingtalk.com#x",
		"an empty fragment":               "https://api.dingtalk.com/#",
		"a user":                          "https://user@api.dingtalk.com",
		"a user and a password":           "https://user:hunter2@api.dingtalk.com",
		"an empty user":                   "https://@api.dingtalk.com",
		"a backslash":                     `https://api.dingtalk.com\`,
		"a backslash before a host":       `https:\\api.dingtalk.com`,
		"a backslash and a second host":   `https://evil.example\.api.dingtalk.com`,
		"an escape in the host":           "https://api%2edingtalk.com",
		"an escape in the path":           "https://api.dingtalk.com/%2f",
		"a zone":                          "https://[fe80::1%25eth0]",
		"a space before":                  " https://api.dingtalk.com",
		"a space after":                   "https://api.dingtalk.com ",
		"a space inside":                  "https://api.ding talk.com",
		"a line break":                    "https://api.dingtalk.com\n",
		"a NUL":                           "https://api.dingtalk.com\x00",
		"not ASCII":                       "https://钉钉.example",
		"a look-alike dot":                "https://api。dingtalk.com",
		"port 0":                          "https://api.dingtalk.com:0",
		"port 65536":                      "https://api.dingtalk.com:65536",
		"a huge port":                     "https://api.dingtalk.com:99999999999999999999",
		"a negative port":                 "https://api.dingtalk.com:-1",
		"a port that is no number":        "https://api.dingtalk.com:https",
		"two ports":                       "https://api.dingtalk.com:1:2",
		"a leading dot":                   "https://.dingtalk.com",
		"two dots":                        "https://api..com",
		"other characters":                "https://api.ding!talk.com",
		"a comma":                         "https://a.example,b.example",
		"half brackets":                   "https://[::1",
		"IPv6 without brackets":           "https://::1",
		"a name in brackets":              "https://[localhost]",
		"IPv4 in brackets":                "https://[127.0.0.1]",
		"too long":                        "https://" + strings.Repeat("a.", 300) + "example",
		"http to a name":                  "http://api.dingtalk.com",
		"http to an address":              "http://10.0.0.1",
		"http to any address":             "http://0.0.0.0",
		"http to any address, IPv6":       "http://[::]",
		"http to IPv4 written as IPv6":    "http://[::ffff:127.0.0.1]",
		"http to a short loopback":        "http://127.1",
		"http to a decimal loopback":      "http://2130706433",
		"http to an octal loopback":       "http://0177.0.0.1",
		"http to a name like loopback":    "http://127.0.0.1.example.com",
		"http to a name below localhost":  "http://x.localhost",
		"http to localhost with a dot":    "http://localhost.",
		"http to a name after localhost":  "http://localhost.example.com",
		"http to another IPv6 loopback":   "http://[::1:1]",
		"http to a name with a long port": "http://localhost:080808080",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseBaseURL(given)
			require.Error(t, err, got)
			require.ErrorContains(t, err, "base_url: ")
			require.ErrorContains(t, err, "allowed is https://host[:port]")
			require.NotContains(t, err.Error(), "hunter2")
			require.Less(t, len(err.Error()), 512)
		})
	}
}

func TestApp_credentials_are_1_to_512_printable_ASCII_characters_without_spaces(t *testing.T) {
	for _, field := range []string{"app_key", "app_secret"} {
		for name, c := range map[string]struct{ given, want string }{
			"1":                        {"x", "x"},
			"512":                      {strings.Repeat("x", 512), strings.Repeat("x", 512)},
			"every printable":          {`!"#$%&'()*+,-./09:;<=>?@AZ[\]^_az{|}~`, `!"#$%&'()*+,-./09:;<=>?@AZ[\]^_az{|}~`},
			"0":                        {given: ""},
			"513":                      {given: strings.Repeat("x", 513)},
			"a space":                  {given: "pri vate"},
			"a space before":           {given: " private"},
			"a space after":            {given: "private "},
			"a tab":                    {given: "private\t"},
			"a NUL":                    {given: "private\x00"},
			"a DEL":                    {given: "private\x7f"},
			"not ASCII":                {given: "privaté"},
			"not UTF-8":                {given: "privat\xe9"},
			"a no-break space":         {given: "private\u00a0"},
			"a line break inside":      {given: "pri\nvate"},
			"a line break before":      {given: "\nprivate"},
			"two line breaks after":    {given: "private\n\n"},
			"two CR LF after":          {given: "private\r\n\r\n"},
			"a line break alone":       {given: "\n"},
			"513 and a line break":     {given: strings.Repeat("x", 513) + "\n"},
			"a line break, the wrong ": {given: "private\n\r"},
		} {
			t.Run(field+"/"+name, func(t *testing.T) {
				change, err := parseChange(map[string]any{field: c.given})
				if c.want == "" {
					require.ErrorContains(t, err, field+": ")
					require.ErrorContains(t, err, "allowed are 1 to 512 printable ASCII characters without spaces")
					require.NotContains(t, err.Error(), "priva")
					return
				}
				require.NoError(t, err)
				if field == "app_key" {
					require.Equal(t, c.want, *change.appKey)
				} else {
					require.Equal(t, c.want, change.appSecret.reveal())
				}
			})
		}
	}
}

func TestApp_one_trailing_line_break_of_the_secret_is_cut_and_none_of_the_key(t *testing.T) {
	for _, end := range []string{"\n", "\r\n"} {
		change, err := parseChange(map[string]any{"app_secret": theSecret + end})
		require.NoError(t, err)
		require.Equal(t, theSecret, change.appSecret.reveal())
		change, err = parseChange(map[string]any{"app_secret": strings.Repeat("x", 512) + end})
		require.NoError(t, err)
		require.Len(t, change.appSecret.reveal(), 512)
		_, err = parseChange(map[string]any{"app_key": theKey + end})
		require.ErrorContains(t, err, "app_key: ")
	}
}

func TestApp_durations(t *testing.T) {
	for _, c := range []struct {
		field string
		given any
		want  time.Duration
	}{
		{"refresh_before", 0, 0},
		{"refresh_before", "0", 0},
		{"refresh_before", "0s", 0},
		{"refresh_before", 200, 200 * time.Second},
		{"refresh_before", int64(200), 200 * time.Second},
		{"refresh_before", float64(200), 200 * time.Second},
		{"refresh_before", json.Number("200"), 200 * time.Second},
		{"refresh_before", "200", 200 * time.Second},
		{"refresh_before", "200s", 200 * time.Second},
		{"refresh_before", "5m", 5 * time.Minute},
		{"refresh_before", "1m30s", 90 * time.Second},
		{"refresh_before", "0.5h", 30 * time.Minute},
		{"refresh_before", "1000ms", time.Second},
		{"refresh_before", "1h", time.Hour},
		{"refresh_before", 3600, time.Hour},
		{"request_timeout", 1, time.Second},
		{"request_timeout", "1s", time.Second},
		{"request_timeout", "30s", 30 * time.Second},
		{"request_timeout", json.Number("30"), 30 * time.Second},
	} {
		t.Run(fmt.Sprintf("%s %v (%[2]T)", c.field, c.given), func(t *testing.T) {
			change, err := parseChange(map[string]any{c.field: c.given})
			require.NoError(t, err)
			got := change.refreshBefore
			if c.field == "request_timeout" {
				got = change.requestTimeout
			}
			require.Equal(t, c.want, *got)
		})
	}
}

func TestApp_durations_are_refused(t *testing.T) {
	for _, given := range []any{
		nil, true, false,
		[]any{1},
		[]string{"1s"},
		map[string]any{"s": 1},
		"", " ", "soon", "s", "1x", "-1", "-1s", "-0.5s", "500ms", "1.5s", "1s1ms", "1.5", "1e1", "0x10", "1d", "2h", "1h1s", "1 h",
		-1, 3601, 1.5, -0.5, 1e30, 18446744074, int64(9223372036854775807), uint64(18446744073709551615), "18446744074", "9223372036854775808",
		json.Number("1.5"), json.Number("1e30"), json.Number("18446744074"), json.Number("-1"), "1\n2", strings.Repeat("9", 1000),
		"NaN", "Inf",
	} {
		for _, field := range []string{"refresh_before", "request_timeout"} {
			t.Run(fmt.Sprintf("%s %.20v (%[2]T)", field, given), func(t *testing.T) {
				_, err := parseChange(map[string]any{field: given})
				require.ErrorContains(t, err, field+": ")
				require.ErrorContains(t, err, "allowed is a duration of whole seconds from ")
				require.Less(t, len(err.Error()), 300)
				require.NotContains(t, err.Error(), "\n")
			})
		}
	}
	for _, given := range []any{0, "0", "0s", 31, "31s", "1m"} {
		_, err := parseChange(map[string]any{"request_timeout": given})
		require.ErrorContains(t, err, "from 1s to 30s")
	}
	_, err := parseChange(map[string]any{"refresh_before": "61m"})
	require.ErrorContains(t, err, `"61m" given`)
	require.ErrorContains(t, err, "from 0s to 1h")
}

func TestApp_booleans(t *testing.T) {
	for _, field := range []string{"leased", "verify_connection"} {
		for _, c := range []struct {
			given any
			want  bool
		}{
			{true, true},
			{false, false},
			{"true", true},
			{"false", false},
			{"TRUE", true},
			{"1", true},
			{"0", false},
			{1, true},
			{json.Number("0"), false},
		} {
			change, err := parseChange(map[string]any{field: c.given})
			require.NoError(t, err, "%v", c.given)
			got := change.leased
			if field == "verify_connection" {
				got = change.verify
			}
			require.Equal(t, c.want, *got, "%v", c.given)
		}
		for _, given := range []any{nil, "", " ", "yes", "on", "2", 2, -1, json.Number("1.0"), 1.5, []any{true}, map[string]any{}} {
			_, err := parseChange(map[string]any{field: given})
			require.ErrorContains(t, err, field+": ", "%v", given)
			require.ErrorContains(t, err, "allowed are true and false", "%v", given)
		}
	}
}

func TestApp_what_is_not_a_string_is_not_repeated(t *testing.T) {
	for _, field := range []string{"app_key", "app_secret", "base_url"} {
		for _, given := range []any{nil, true, 17, 1.5, json.Number("17"), []any{theSecret}, []string{theSecret}, map[string]any{theSecret: theSecret}} {
			_, err := parseChange(map[string]any{field: given})
			require.ErrorContains(t, err, field+": expected one string, got ")
			require.NotContains(t, err.Error(), theSecret)
			require.NotContains(t, err.Error(), "17")
		}
	}
}

// written is the change of a write with these fields.
func written(t *testing.T, fields map[string]any) *configChange {
	t.Helper()
	change, err := parseChange(fields)
	require.NoError(t, err)
	return change
}

func TestApp_create_needs_key_and_secret_and_fills_in_the_defaults(t *testing.T) {
	for _, fields := range []map[string]any{
		{},
		{"app_key": theKey},
		{"app_secret": theSecret},
		{"base_url": theURL, "leased": false},
	} {
		_, _, err := written(t, fields).apply(theApp, nil)
		require.ErrorContains(t, err, "app_key and app_secret are required")
		require.ErrorContains(t, err, theApp)
	}
	entry, newGeneration, err := written(t, map[string]any{"app_key": theKey, "app_secret": theSecret}).apply(theApp, nil)
	require.NoError(t, err)
	require.True(t, newGeneration)
	require.Regexp(t, `^[0-9a-f]{32}$`, entry.Generation)
	require.True(t, entry.equal(&appConfig{
		Generation:     entry.Generation,
		AppKey:         theKey,
		AppSecret:      newSensitive(theSecret),
		BaseURL:        "https://api.dingtalk.io",
		RefreshBefore:  200 * time.Second,
		RequestTimeout: 10 * time.Second,
		Leased:         true,
	}))
}

func TestApp_a_change_of_key_secret_or_host_starts_a_generation_and_nothing_else_does(t *testing.T) {
	present := appConfig{
		Generation: "0123456789abcdef0123456789abcdef", AppKey: theKey, AppSecret: newSensitive(theSecret), BaseURL: theURL,
		RefreshBefore: time.Minute, RequestTimeout: 5 * time.Second, Leased: true,
	}
	for _, c := range []struct {
		name   string
		fields map[string]any
		starts bool
	}{
		{"nothing", map[string]any{}, false},
		{"the same values", map[string]any{"app_key": theKey, "app_secret": theSecret, "base_url": theURL}, false},
		{"the same secret with a line break", map[string]any{"app_secret": theSecret + "\n", "base_url": theURL}, false},
		{"the same host written otherwise", map[string]any{"base_url": "HTTP://127.0.0.1:80/"}, false},
		{"tuning", map[string]any{"refresh_before": "2m", "request_timeout": "7s", "leased": false, "verify_connection": true}, false},
		{"another secret", map[string]any{"app_secret": "another", "base_url": theURL}, true},
		{"another key", map[string]any{"app_key": "another", "app_secret": theSecret, "base_url": theURL}, true},
		{"another host", map[string]any{"base_url": "https://api.dingtalk.com", "app_secret": theSecret}, true},
		{"another port", map[string]any{"base_url": "http://127.0.0.1:81", "app_secret": theSecret}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := present
			next, newGeneration, err := written(t, c.fields).apply(theApp, &present)
			require.NoError(t, err)
			require.Equal(t, c.starts, newGeneration)
			require.Equal(t, c.starts, next.Generation != present.Generation)
			require.True(t, before.equal(&present), "the present entry is not touched")
			for field, got := range map[string]any{"app_key": next.AppKey, "leased": next.Leased, "refresh_before": short(next.RefreshBefore), "request_timeout": short(next.RequestTimeout)} {
				want := map[string]any{"app_key": theKey, "leased": true, "refresh_before": "1m", "request_timeout": "5s"}[field]
				if given, ok := c.fields[field]; ok {
					want = given
				}
				require.Equal(t, want, got, field)
			}
		})
	}
}

func TestApp_a_secret_for_a_host_that_is_not_DingTalks_needs_the_host_named(t *testing.T) {
	for stored, needed := range map[string]bool{
		"https://api.dingtalk.io":        false,
		"https://api.dingtalk.com":       false,
		"https://api.dingtalk.com:8443":  true,
		"https://api.dingtalk.com.evil":  true,
		"https://dedicated.example:8443": true,
		theURL:                           true,
	} {
		present := &appConfig{AppKey: theKey, AppSecret: newSensitive("junk"), BaseURL: stored}
		for _, fields := range []map[string]any{
			{"app_secret": theSecret},
			{"app_secret": "junk"},
			{"app_secret": theSecret, "app_key": "another", "leased": false},
		} {
			_, _, err := written(t, fields).apply(theApp, present)
			if !needed {
				require.NoError(t, err)
				continue
			}
			require.ErrorContains(t, err, "base_url")
			require.ErrorContains(t, err, stored, "the host that is stored")
			require.NotContains(t, err.Error(), theSecret)
			fields["base_url"] = stored
			_, _, err = written(t, fields).apply(theApp, present)
			require.NoError(t, err)
			fields["base_url"] = "https://api.dingtalk.com"
			next, _, err := written(t, fields).apply(theApp, present)
			require.NoError(t, err)
			require.Equal(t, "https://api.dingtalk.com", next.BaseURL)
		}
		_, _, err := written(t, map[string]any{"leased": false}).apply(theApp, present)
		require.NoError(t, err, "without a secret")
	}
}

func TestApp_a_change_of_key_or_host_requires_the_secret(t *testing.T) {
	present := appConfig{Generation: "g", AppKey: theKey, AppSecret: newSensitive(theSecret), BaseURL: theURL}
	for _, fields := range []map[string]any{
		{"base_url": "https://evil.example"},
		{"base_url": "http://127.0.0.1:81"},
		{"app_key": "another"},
		{"app_key": "another", "base_url": "https://evil.example", "leased": false},
	} {
		_, _, err := written(t, fields).apply(theApp, &present)
		require.ErrorContains(t, err, "requires app_secret in the same request")
	}
}

func TestApp_a_generation_is_never_used_again(t *testing.T) {
	change := written(t, map[string]any{"app_key": theKey, "app_secret": theSecret})
	seen := map[string]bool{}
	for range 1000 {
		entry, _, err := change.apply(theApp, nil)
		require.NoError(t, err)
		require.False(t, seen[entry.Generation])
		seen[entry.Generation] = true
	}
}

const (
	storedConfig = `{"version":1,"generation":"0123456789abcdef0123456789abcdef","app_key":"dingtestkey","app_secret":"test-secret-GT-lsu-taDAxxxsTsxxxx",` +
		`"base_url":"https://api.dingtalk.com","refresh_before":120,"request_timeout":7,"leased":false}`
	storedToken = `{"version":1,"generation":"0123456789abcdef0123456789abcdef","access_token":"fw8ef8we8f76e6f7s8dxxxx",` +
		`"expires_at":"2026-01-02T05:04:05.25Z","fetched_at":"2026-01-02T03:04:05.25Z"}`
)

// loneRegistry is one without an engine.
func loneRegistry(log hclog.Logger) *registry {
	return newRegistry(newClient(newTransport(), log), log)
}

func storedEntry() *appConfig {
	return &appConfig{
		Generation: "0123456789abcdef0123456789abcdef", AppKey: theKey, AppSecret: newSensitive(theSecret), BaseURL: "https://api.dingtalk.com",
		RefreshBefore: 2 * time.Minute, RequestTimeout: 7 * time.Second, Leased: false,
	}
}

// putRaw puts bytes into storage.
func putRaw(t *testing.T, s logical.Storage, key, value string) {
	t.Helper()
	require.NoError(t, s.Put(t.Context(), &logical.StorageEntry{Key: key, Value: []byte(value)}))
}

// sealedStorage notes which keys are put to be seal-wrapped.
type sealedStorage struct {
	logical.InmemStorage
	sealed map[string]bool
}

func (s *sealedStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	s.sealed[e.Key] = e.SealWrap
	return s.InmemStorage.Put(ctx, e)
}

func TestApp_the_stored_form_of_a_config_is_fixed(t *testing.T) {
	s := &sealedStorage{sealed: map[string]bool{}}
	require.NoError(t, writeConfig(t.Context(), s, theApp, storedEntry()))
	stored, err := s.Get(t.Context(), "config/myapp")
	require.NoError(t, err)
	require.Equal(t, storedConfig, string(stored.Value)) //nolint:testifylint // the bytes matter
	require.True(t, s.sealed["config/myapp"])

	read, err := readConfig(t.Context(), s, theApp)
	require.NoError(t, err)
	require.True(t, read.equal(storedEntry()))
}

func TestApp_the_stored_form_of_a_token_is_fixed(t *testing.T) {
	s := &sealedStorage{sealed: map[string]bool{}}
	r := loneRegistry(hclog.NewNullLogger())
	inShanghai := time.Date(2026, 1, 2, 11, 4, 5, 250_000_000, time.FixedZone("CST", 8*3600))
	tok := newToken(newSensitive(goodToken), inShanghai, 2*time.Hour)
	require.NoError(t, r.newApp(theApp, storedEntry()).writeToken(t.Context(), s, tok))
	stored, err := s.Get(t.Context(), "token/myapp")
	require.NoError(t, err)
	require.Equal(t, storedToken, string(stored.Value)) //nolint:testifylint // the bytes matter
	require.True(t, s.sealed["token/myapp"])

	read, err := r.newApp(theApp, storedEntry()).readToken(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, goodToken, read.Value.reveal())
	require.True(t, read.fetchedAt.Equal(tok.fetchedAt))
	require.WithinDuration(t, tok.expiresAt, read.expiresAt, time.Second)
	require.Equal(t, 2*time.Hour, read.lifetime)
}

func TestApp_unknown_extra_fields_in_storage_are_tolerated(t *testing.T) {
	s := &logical.InmemStorage{}
	extra := func(record string) string {
		return strings.TrimSuffix(record, "}") + `,"of_a_later_release":{"a":[1]}}`
	}
	putRaw(t, s, "config/myapp", extra(storedConfig))
	putRaw(t, s, "token/myapp", extra(storedToken))
	entry, err := readConfig(t.Context(), s, theApp)
	require.NoError(t, err)
	require.True(t, entry.equal(storedEntry()))
	tok, err := loneRegistry(hclog.NewNullLogger()).newApp(theApp, entry).readToken(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, goodToken, tok.Value.reveal())
}

// unreadable are records that no release up to this one has written.
func unreadable(record string) map[string]string {
	return map[string]string{
		"a later version": strings.Replace(record, `"version":1`, `"version":2`, 1),
		"no version":      strings.Replace(record, `"version":1,`, ``, 1),
		"a version that is a text, beside the secret": strings.Replace(record, `"version":1`, `"version":"`+theSecret+`"`, 1),
		"cut short": record[:len(record)-10],
		"not JSON":  theSecret + goodToken,
		"a list":    "[" + record + "]",
		"null":      "null",
		"empty":     "",
	}
}

func TestApp_a_config_in_storage_that_cannot_be_read_is_a_clear_error_without_its_content(t *testing.T) {
	for name, record := range unreadable(storedConfig) {
		t.Run(name, func(t *testing.T) {
			s := &logical.InmemStorage{}
			putRaw(t, s, "config/myapp", record)
			entry, err := readConfig(t.Context(), s, theApp)
			require.Nil(t, entry)
			require.ErrorContains(t, err, "configuration in storage: the entry ")
			require.NotContains(t, err.Error(), theSecret)
			if name == "a later version" {
				require.ErrorContains(t, err, "version 2")
			}
		})
	}
}

func TestApp_a_token_in_storage_that_cannot_be_read_is_ignored_with_a_line_in_the_log(t *testing.T) {
	for name, record := range unreadable(storedToken) {
		t.Run(name, func(t *testing.T) {
			s, log := &logical.InmemStorage{}, &safeBuffer{}
			putRaw(t, s, "token/myapp", record)
			r := loneRegistry(hclog.New(&hclog.LoggerOptions{Output: log}))
			tok, err := r.newApp(theApp, storedEntry()).readToken(t.Context(), s)
			require.NoError(t, err)
			require.Nil(t, tok)
			require.Contains(t, log.String(), "the stored token is not used")
			require.Contains(t, log.String(), "app=myapp")
			require.NotContains(t, log.String(), goodToken)
			require.NotContains(t, log.String(), theSecret)
		})
	}
}

func TestApp_entries_are_equal_where_every_field_is(t *testing.T) {
	var none *appConfig
	require.True(t, none.equal(nil))
	require.False(t, none.equal(storedEntry()))
	require.False(t, storedEntry().equal(nil))
	require.True(t, storedEntry().equal(storedEntry()))
	for name, change := range map[string]func(*appConfig){
		"generation": func(e *appConfig) { e.Generation = "x" },
		"key":        func(e *appConfig) { e.AppKey = "x" },
		"secret":     func(e *appConfig) { e.AppSecret = newSensitive("x") },
		"host":       func(e *appConfig) { e.BaseURL = "x" },
		"before":     func(e *appConfig) { e.RefreshBefore++ },
		"timeout":    func(e *appConfig) { e.RequestTimeout++ },
		"leased":     func(e *appConfig) { e.Leased = true },
	} {
		other := storedEntry()
		change(other)
		require.False(t, storedEntry().equal(other), name)
		require.NotEmpty(t, other.AppSecret.reveal(), "comparing changes nothing")
	}
}
