// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests what is shown of a stranger's text, and that no secret is.

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
	var log strings.Builder
	logger := hclog.New(&hclog.LoggerOptions{Output: &log, JSONFormat: true})
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
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			printed := fmt.Sprintf(verb, v)
			require.NotContains(t, printed, theSecret)
			require.NotContains(t, printed, fmt.Sprintf("%x", theSecret))
		}
		logger.Info("message", "value", v)
	}
	require.NotContains(t, log.String(), theSecret)
	encoded, err := json.Marshal(outer{s, s})
	require.NoError(t, err)
	require.JSONEq(t, `{"Shown":"[redacted]"}`, string(encoded))
	require.Equal(t, theSecret, s.reveal())
}

func TestShown_text_is_stripped_and_cut(t *testing.T) {
	for given, want := range map[string]string{
		"":                                   "",
		"无效的clientId或者clientSecret。":         "无效的clientId或者clientSecret。",
		"a\x00b\x1b[31mc\r\nd\te\u0085f\x7f": "ab[31mcdef",
		"a\u00a0b\u3000c":                    "a b c",
		"a\u202eb\u2066c":                    "abc", // direction marks
		"a\xffb\xc3":                         "ab",
		strings.Repeat("x", 300):             strings.Repeat("x", 256),
		strings.Repeat("无", 100):             strings.Repeat("无", 85),
		"AccessTokenPermissionDeniedForSuitekeyAndOrg": "AccessTokenPermissionDeniedForSuitekeyAndOrg",
	} {
		got := showText(given, []sensitive{{}, newSensitive(""), newSensitive(theSecret)})
		require.Equal(t, want, got)
		require.True(t, utf8.ValidString(got))
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
	"base64":                spellBase64,
	"base64, one byte on":   func(s string) string { return base64.StdEncoding.EncodeToString([]byte("x" + s)) },
	"base64, two bytes on":  func(s string) string { return base64.RawStdEncoding.EncodeToString([]byte("xy" + s)) },
	"base64 of a URL":       func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
	"hexadecimal":           func(s string) string { return hex.EncodeToString([]byte(s)) },
	"hexadecimal, halfway":  func(s string) string { return "0" + strings.ToUpper(hex.EncodeToString([]byte(s))) },
	"base64 of percent":     func(s string) string { return spellBase64(url.QueryEscape(s)) },
	"percent of HTML":       func(s string) string { return url.QueryEscape(html.EscapeString(s)) },
	"HTML of JSON":          func(s string) string { return html.EscapeString(eachByte(s, `\u%04x`)) },
	"control characters":    func(s string) string { return strings.ReplaceAll(s, "", "\x01") },
	"line breaks":           func(s string) string { return strings.ReplaceAll(s, "", "\n") },
	"zero-width spaces":     func(s string) string { return strings.ReplaceAll(s, "", "\u200b") },
	"byte order marks":      func(s string) string { return strings.ReplaceAll(s, "", "\ufeff") },
	"soft hyphens":          func(s string) string { return strings.ReplaceAll(s, "", "\u00ad") },
	"bytes not UTF-8":       func(s string) string { return strings.ReplaceAll(s, "", "\xff") },
}

func spellBase64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func eachByte(s, format string) string {
	var out strings.Builder
	for _, b := range []byte(s) {
		fmt.Fprintf(&out, format, b)
	}
	return out.String()
}

func TestShown_text_that_repeats_a_secret_in_any_spelling_is_withheld_whole(t *testing.T) {
	const secret, tok, short = `p4ss&word<9/"q\u0026+=%41`, "fw8ef8we8f76e6f7s8d", "e5x"
	secrets := []sensitive{newSensitive(secret), newSensitive(tok), newSensitive(short)}
	for name, spell := range spellings {
		for _, part := range []string{secret, tok, secret[5:13], tok[3:11], secret[len(secret)-8:]} {
			message := "the value " + spell(part) + " is wrong"
			require.Equal(t, withheld, showText(message, secrets), "%s: %s", name, message)
		}
	}
	for _, message := range []string{"the key e5x is wrong", "the key &#101;5x is wrong"} {
		require.Equal(t, withheld, showText(message, secrets))
	}
	for _, harmless := range []string{
		secret[:7], tok[:7], base64.StdEncoding.EncodeToString([]byte("no secret here")), "the key is wrong",
	} {
		require.Equal(t, harmless, showText(harmless, secrets))
	}
}

func TestShown_identifiers_are_identifiers_and_repeat_no_secret(t *testing.T) {
	secrets := []sensitive{newSensitive(theSecret)}
	for _, good := range []string{
		"invalidClientIdOrSecret", "Forbidden.AccessDenied.QpmLimitForSuitekeyAndOrgAndApi", "40014", "system.busy",
		"01A08FE7-1234-5678-9ABC-DEF012345678", "Missing_body", strings.Repeat("x", 128),
	} {
		require.Equal(t, good, showIdentifier(good, secrets))
	}
	for _, bad := range []string{
		"", "invalid client", `p4ss\u0026word`, "p4ss&amp;word", "p4ss%26word", "无效", "invalid\n",
		strings.Repeat("x", 129), theSecret, "code-" + theSecret[4:12],
		base64.RawURLEncoding.EncodeToString([]byte(theSecret)), hex.EncodeToString([]byte(theSecret)),
	} {
		require.Empty(t, showIdentifier(bad, secrets), bad)
	}
}

func TestShown_errors_withhold_the_token_that_came_and_what_looks_like_one(t *testing.T) {
	body := fmt.Sprintf(`{"accessToken":%q,"code":"c-%[1]s","message":"token %[1]s","requestid":"r-%[1]s"}`, goodToken)
	for _, status := range []int{200, 400, 403, 500} {
		_, err := readResponse(status, http.Header{}, []byte(body))
		requireTellsNothing(t, err)
		require.Contains(t, err.describe(theApp, theConfig), fmt.Sprintf("HTTP status %d", status))
		require.Contains(t, err.describe(theApp, theConfig), "message withheld: it repeats the request")
	}
	const lost, id = "0123456789abcdef0123456789abcdef", "01A08FE7-1234-5678-9ABC-DEF012345678"
	_, err := readResponse(400, http.Header{}, []byte(
		`{"code":"invalidParameter","requestid":"`+id+`","message":"token `+lost+`"}`))
	require.Equal(t, withheld, err.message, "it never arrived here, so is not known")
	require.Equal(t, id, err.requestID)
}

// Time and memory of what is shown must not grow with what a host sends beyond the response itself.
func TestShown_text_costs_little_whatever_a_host_sends(t *testing.T) {
	saying := func(message string) string { return fmt.Sprintf(`{"code":"x","message":%q}`, message) }
	for name, c := range map[string]struct{ secret, body string }{
		"a secret of one character": {"e", saying(strings.Repeat("e", 65000))},
		"a token that multiplies": {theSecret, strings.Replace(saying(strings.Repeat("[", 65000)),
			`{`, `{"accessToken":"[",`, 1)},
		"a token like its surroundings": {theSecret, strings.Replace(saying(strings.Repeat("a1", 22000)+"x"),
			`{`, `{"accessToken":"`+strings.Repeat("a1", 8000)+`",`, 1)},
		"escapes of escapes": {theSecret, saying("%" + strings.Repeat("25", 30000))},
		"many readings":      {theSecret, saying(strings.Repeat("%41&#66;QUJDREVG", 4000))},
	} {
		t.Run(name, func(t *testing.T) {
			require.Less(t, len(c.body), maxResponse)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := readResponse(400, http.Header{}, []byte(c.body), newSensitive(c.secret))
			runtime.ReadMemStats(&after)
			require.LessOrEqual(t, len(err.message), 256)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(16<<20))
		})
	}
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
