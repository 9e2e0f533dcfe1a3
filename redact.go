// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file keeps secrets out of what people read: the type that holds one, and the rules for
// showing text that a stranger chose.

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"html"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxShownText  = 256 // bytes that are shown of each text of DingTalk's
	maxIdentifier = 128 // bytes of a code or a request id: DingTalk's have up to 55
	secretRun     = 8   // how many consecutive characters of a secret give it away
	maxDecodings  = 64  // decodings of one text: DingTalk's have fewer than ten

	withheld = "withheld: it repeats the request"
)

// sensitive holds an app secret or a token. It never shows its text, however it is printed, logged
// or encoded, even inside another value. reveal is the only way to it.
type sensitive struct{ text *string }

func newSensitive(s string) sensitive { return sensitive{text: &s} }

func (s sensitive) reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Format implements fmt.Formatter for every verb.
func (sensitive) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// MarshalText implements encoding.TextMarshaler, which a JSON log would use.
func (sensitive) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

var (
	identifierPattern = regexp.MustCompile(`^[0-9A-Za-z._-]+$`)

	// tokenPattern is what a token looks like that the engine does not know. A request id has
	// hyphens.
	tokenPattern = regexp.MustCompile(`[0-9A-Za-z]{32,}`)
)

// showIdentifier returns a code or a request id of DingTalk's if its characters and its length are
// those of one, and it repeats no secret. Otherwise it returns "".
func showIdentifier(s string, secrets []sensitive) string {
	if len(s) > maxIdentifier || !identifierPattern.MatchString(s) || repeats(s, secrets) {
		return ""
	}
	return strings.Clone(s)
}

// showText returns a stranger's text in a form that can be shown: at most maxShownText bytes,
// without control or invisible characters. A text that repeats a secret is withheld as a whole.
func showText(s string, secrets []sensitive) string {
	s = cut(visible(s[:min(len(s), 4*maxShownText)]), maxShownText)
	if looksLikeToken(s) || repeats(s, secrets) {
		return withheld
	}
	return strings.Clone(s)
}

func looksLikeToken(s string) bool {
	return slices.ContainsFunc(tokenPattern.FindAllString(s, -1), func(word string) bool {
		return strings.ContainsAny(word, "0123456789") && strings.ContainsFunc(word, unicode.IsLetter)
	})
}

// repeats reports whether a short text holds a secret, or secretRun consecutive characters of it,
// in any case and in any usual encoding, even nested.
func repeats(text string, secrets []sensitive) bool {
	readings, all := decodings(text)
	folded := strings.ToLower(strings.Join(readings, "\n")) // which no secret has
	for _, s := range secrets {
		secret := strings.ToLower(s.reveal())
		run := min(secretRun, len(secret))
		for at := 0; run > 0 && at+run <= len(secret); at++ {
			if strings.Contains(folded, secret[at:at+run]) {
				return true
			}
		}
	}
	return !all
}

// decodings returns the text and everything that repeated decoding makes of it. all is false if
// that exceeds maxDecodings.
func decodings(text string) (readings []string, all bool) {
	seen := map[string]struct{}{text: {}}
	readings = []string{text}
	for next := 0; next < len(readings); next++ {
		for _, decode := range decoders {
			decoded := visible(decode(readings[next]))
			if _, known := seen[decoded]; known {
				continue
			}
			if len(readings) == maxDecodings {
				return readings, false
			}
			seen[decoded] = struct{}{}
			readings = append(readings, decoded)
		}
	}
	return readings, true
}

// decoders undo one encoding each, wherever it occurs in a text. Base64 and hexadecimal digits may
// begin before the secret does, so they are decoded from each possible start.
var decoders = []func(string) string{
	html.UnescapeString,
	func(s string) string { return backslashPattern.ReplaceAllStringFunc(s, decodeBackslash) },
	func(s string) string { return percentPattern.ReplaceAllStringFunc(s, decodePercent) },
	decodeRuns(base64Pattern, decodeBase64, 0), decodeRuns(base64Pattern, decodeBase64, 1),
	decodeRuns(base64Pattern, decodeBase64, 2), decodeRuns(base64Pattern, decodeBase64, 3),
	decodeRuns(hexPattern, decodeHex, 0), decodeRuns(hexPattern, decodeHex, 1),
}

var (
	backslashPattern = regexp.MustCompile(`\\(u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|.)`)
	percentPattern   = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	base64Pattern    = regexp.MustCompile(`[0-9A-Za-z+/_-]{8,}`)
	hexPattern       = regexp.MustCompile(`[0-9A-Fa-f]{12,}`)
)

func decodeBackslash(escape string) string {
	if n, err := strconv.ParseInt(escape[2:], 16, 32); err == nil {
		return string(rune(n))
	}
	return escape[1:]
}

func decodePercent(escape string) string {
	n, _ := strconv.ParseUint(escape[1:], 16, 8) // the pattern matches valid digits only
	return string([]byte{byte(n)})
}

// decodeRuns decodes each match in a text, without its first skip characters, and leaves the rest
// as it is.
func decodeRuns(pattern *regexp.Regexp, decode func(string) string, skip int) func(string) string {
	return func(s string) string {
		return pattern.ReplaceAllStringFunc(s, func(run string) string { return decode(run[skip:]) })
	}
}

func decodeBase64(run string) string {
	run = strings.NewReplacer("-", "+", "_", "/").Replace(run)
	if len(run)%4 == 1 { // no encoding has this length: the last character is not part of it
		run = run[:len(run)-1]
	}
	decoded, _ := base64.RawStdEncoding.DecodeString(run) // the pattern matches valid digits only
	return string(decoded)
}

func decodeHex(run string) string {
	decoded, _ := hex.DecodeString(run[:len(run)/2*2]) // the pattern matches valid digits only
	return string(decoded)
}

// cut shortens a text to at most that many bytes, at a rune.
func cut(s string, most int) string {
	return strings.TrimSpace(strings.ToValidUTF8(s[:min(len(s), most)], ""))
}

// visible strips control and invisible characters.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.Zs, r):
			return ' '
		case r == utf8.RuneError, !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
}
