// SPDX-License-Identifier: MPL-2.0

package dingtalk

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
)

func TestSensitive_never_shows_its_text(t *testing.T) {
	type outer struct {
		Shown  sensitive
		hidden sensitive
	}
	s := newSensitive(theSecret)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{
			s, &s,
			outer{s, s},
			&outer{s, s},
			[]sensitive{s},
			map[string]sensitive{"k": s},
			&token{Value: s},
			credentials{AppSecret: s},
			&appConfig{AppSecret: s},
		} {
			printed := fmt.Sprintf(verb, v)
			require.NotContains(t, printed, theSecret)
			require.NotContains(t, printed, fmt.Sprintf("%x", theSecret))
		}
	}
	encoded, err := json.Marshal(outer{s, s})
	require.NoError(t, err)
	require.JSONEq(t, `{"Shown":"[redacted]"}`, string(encoded))

	var log strings.Builder
	logger := hclog.New(&hclog.LoggerOptions{Output: &log, JSONFormat: true})
	logger.Info("message", "secret", s, "entry", &appConfig{AppSecret: s})
	require.NotContains(t, log.String(), theSecret)
	require.Equal(t, theSecret, s.reveal())
}

func TestShown_text_is_stripped_and_cut(t *testing.T) {
	for _, c := range []struct{ name, given, want string }{
		{"nothing", "", ""},
		{"Chinese", "无效的clientId或者clientSecret。", "无效的clientId或者clientSecret。"},
		{"control characters", "a\x00b\x1b[31mc\r\nd\te\u0085f\x7f", "ab[31mcdef"},
		{"wide spaces", "a\u00a0b\u3000c", "a b c"},
		{"direction marks", "a\u202eb\u2066c", "abc"},
		{"not UTF-8", "a\xffb\xc3", "ab"},
		{"long", strings.Repeat("x", 300), strings.Repeat("x", 256)},
		{"cut at a rune", strings.Repeat("无", 100), strings.Repeat("无", 85)},
		{"an API's name", "AccessTokenPermissionDeniedForSuitekeyAndOrg", "AccessTokenPermissionDeniedForSuitekeyAndOrg"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := showText(c.given, []sensitive{{}, newSensitive(""), newSensitive(theSecret)})
			require.Equal(t, c.want, got)
			require.True(t, utf8.ValidString(got))
		})
	}
}

// spellings are the encodings in which a host could repeat a text.
var spellings = map[string]func(string) string{
	"plain":                 func(s string) string { return s },
	"in upper case":         strings.ToUpper,
	"as in a query":         url.QueryEscape,
	"as in a path":          url.PathEscape,
	"percent, every byte":   func(s string) string { return eachByte(s, "%%%02x") },
	"percent, in capitals":  func(s string) string { return eachByte(s, "%%%02X") },
	"percent, twice":        func(s string) string { return eachByte(eachByte(s, "%%%02x"), "%%%02x") },
	"JSON, as Go writes it": func(s string) string { b, _ := json.Marshal(s); return string(b[1 : len(b)-1]) },
	"JSON, every character": func(s string) string { return eachByte(s, `\u%04x`) },
	"JSON, in capitals":     func(s string) string { return eachByte(s, `\u%04X`) },
	"JSON, escaped slashes": func(s string) string { return strings.ReplaceAll(s, "/", `\/`) },
	"backslashes":           func(s string) string { return strings.ReplaceAll(s, "", `\`)[:2*len(s)] },
	"bytes escaped":         func(s string) string { return eachByte(s, `\x%02x`) },
	"HTML, as Go writes it": html.EscapeString,
	"HTML, decimal":         func(s string) string { return eachByte(s, "&#%d;") },
	"HTML, hexadecimal":     func(s string) string { return eachByte(s, "&#x%x;") },
	"base64":                func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"base64, one byte on":   func(s string) string { return base64.StdEncoding.EncodeToString([]byte("x" + s)) },
	"base64, two bytes on":  func(s string) string { return base64.RawStdEncoding.EncodeToString([]byte("xy" + s)) },
	"base64 of a URL":       func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
	"hexadecimal":           func(s string) string { return hex.EncodeToString([]byte(s)) },
	"hexadecimal, halfway":  func(s string) string { return "0" + strings.ToUpper(hex.EncodeToString([]byte(s))) },
	"base64 of percent":     func(s string) string { return base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(s))) },
	"percent of HTML":       func(s string) string { return url.QueryEscape(html.EscapeString(s)) },
	"HTML of JSON":          func(s string) string { return html.EscapeString(eachByte(s, `\u%04x`)) },
	"control characters":    func(s string) string { return strings.ReplaceAll(s, "", "\x01") },
	"line breaks":           func(s string) string { return strings.ReplaceAll(s, "", "\n") },
	"zero-width spaces":     func(s string) string { return strings.ReplaceAll(s, "", "\u200b") },
	"byte order marks":      func(s string) string { return strings.ReplaceAll(s, "", "\ufeff") },
	"soft hyphens":          func(s string) string { return strings.ReplaceAll(s, "", "\u00ad") },
	"bytes not UTF-8":       func(s string) string { return strings.ReplaceAll(s, "", "\xff") },
}

func eachByte(s, format string) string {
	var out strings.Builder
	for _, b := range []byte(s) {
		fmt.Fprintf(&out, format, b)
	}
	return out.String()
}

func TestShown_text_that_repeats_a_secret_in_any_spelling_is_withheld_whole(t *testing.T) {
	const secret, tok = `p4ss&word<9/"q\u0026+=%41`, "fw8ef8we8f76e6f7s8d"
	secrets := []sensitive{newSensitive(secret), newSensitive(tok)}
	for name, spell := range spellings {
		t.Run(name, func(t *testing.T) {
			for what, text := range map[string]string{
				"secret":          secret,
				"token":           tok,
				"part of secret":  secret[5:13],
				"part of token":   tok[3:11],
				"end of a secret": secret[len(secret)-8:],
			} {
				message := "the value " + spell(text) + " is wrong"
				require.Equal(t, withheld, showText(message, secrets), "%s: %s", what, message)
			}
		})
	}
	for what, text := range map[string]string{
		"seven characters of a secret": secret[:7], "seven of a token": tok[:7],
		"another text in base64": base64.StdEncoding.EncodeToString([]byte("no secret here")),
	} {
		require.Equal(t, text, showText(text, secrets), what)
	}
}

func TestShown_text_with_a_short_secret_is_withheld(t *testing.T) {
	require.Equal(t, withheld, showText("the key e5x is wrong", []sensitive{newSensitive("e5x")}))
	require.Equal(t, withheld, showText("the key &#101;5x is wrong", []sensitive{newSensitive("e5x")}))
	require.Equal(t, "the key is wrong", showText("the key is wrong", []sensitive{newSensitive("e5x")}))
}

func TestShown_identifiers_are_identifiers(t *testing.T) {
	secrets := []sensitive{newSensitive(theSecret)}
	for _, good := range []string{
		"invalidClientIdOrSecret", "Forbidden.AccessDenied.QpmLimitForSuitekeyAndOrgAndApi", "40014", "system.busy",
		"01A08FE7-1234-5678-9ABC-DEF012345678", "Missing_body",
	} {
		require.Equal(t, good, showIdentifier(good, secrets))
	}
	for name, bad := range map[string]string{
		"empty":                   "",
		"a space":                 "invalid client",
		"an escape":               `p4ss\u0026word`,
		"an ampersand":            "p4ss&amp;word",
		"a percent sign":          "p4ss%26word",
		"Chinese":                 "无效",
		"a line break at the end": "invalid\n",
		"long":                    strings.Repeat("x", 129),
		"the secret":              theSecret,
		"part of the secret":      "code-" + theSecret[4:12],
		"the secret in base64":    base64.RawURLEncoding.EncodeToString([]byte(theSecret)),
		"the secret in hex":       hex.EncodeToString([]byte(theSecret)),
	} {
		require.Empty(t, showIdentifier(bad, secrets), name)
	}
}

func TestShown_errors_say_what_was_withheld_and_whose_turn_it_is(t *testing.T) {
	body := fmt.Sprintf(`{"accessToken":%q,"code":"c-%[1]s","message":"token %[1]s","requestid":"r-%[1]s"}`, goodToken)
	for _, status := range []int{200, 400, 403, 500} {
		_, err := readResponse(status, http.Header{}, []byte(body))
		require.NotNil(t, err)
		requireTellsNothing(t, err)
		require.Contains(t, err.describe(theApp, theURL), fmt.Sprintf("HTTP status %d", status))
		require.Contains(t, err.describe(theApp, theURL), "message withheld: it repeats the request")
	}
}

func TestShown_text_that_looks_like_a_token_is_withheld(t *testing.T) {
	const lost = "0123456789abcdef0123456789abcdef" // one that never arrived here, so is not known
	_, err := readResponse(http.StatusBadRequest, http.Header{}, []byte(
		`{"code":"invalidParameter","requestid":"01A08FE7-1234-5678-9ABC-DEF012345678","message":"token `+lost+`"}`))
	require.NotNil(t, err)
	require.Equal(t, withheld, err.message)
	require.Equal(t, "01A08FE7-1234-5678-9ABC-DEF012345678", err.requestID)
}

// Time and memory of what is shown must not grow with what a host sends beyond the response itself.
func TestShown_text_costs_little_whatever_a_host_sends(t *testing.T) {
	for name, c := range map[string]struct{ secret, body string }{
		"a secret of one character": {"e", fmt.Sprintf(`{"code":"x","message":%q}`, strings.Repeat("e", 65000))},
		"a token that multiplies":   {theSecret, fmt.Sprintf(`{"code":"x","accessToken":"[","message":%q}`, strings.Repeat("[", 65000))},
		"a token like its surroundings": {theSecret, fmt.Sprintf(`{"code":"x","accessToken":%q,"message":%q}`,
			strings.Repeat("a1", 8000), strings.Repeat("a1", 22000)+"x")},
		"escapes of escapes": {theSecret, fmt.Sprintf(`{"code":"x","message":%q}`, "%"+strings.Repeat("25", 30000))},
		"many readings":      {theSecret, fmt.Sprintf(`{"code":"x","message":%q}`, strings.Repeat("%41&#66;QUJDREVG", 4000))},
	} {
		t.Run(name, func(t *testing.T) {
			require.Less(t, len(c.body), maxResponse)
			spent := allocated(func() {
				_, err := readResponse(400, http.Header{}, []byte(c.body), newSensitive(c.secret))
				require.LessOrEqual(t, len(err.message), 256)
			})
			require.Less(t, spent, uint64(8<<20))
		})
	}
}

// allocated is how many bytes a function allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestShown_text_keeps_no_response_alive(t *testing.T) {
	body := fmt.Appendf(nil, `{"code":"x","message":%q}`, strings.Repeat("message ", 8000))
	kept := make([]*fetchError, 500)
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := inUse()
	for i := range kept {
		_, kept[i] = readResponse(400, http.Header{}, body)
	}
	require.Less(t, inUse(), before+4<<20, "500 responses of 64 KB are 32 MB")
	runtime.KeepAlive(kept)
}
