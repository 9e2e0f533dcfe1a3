// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf16"
)

// This file holds the forms in which FaultEchoRequest writes what it repeats. A client that looks
// for its secret in a response has to know all of them.

// The encodings of [Fault.Encoding].
const (
	// EncodingPlain changes nothing.
	EncodingPlain = "plain"

	// EncodingJSON escapes what JSON requires and nothing else. After another JSON encoding it
	// escapes that one's backslashes, so that its escapes are still there once the response is
	// decoded.
	EncodingJSON = "json"
	// EncodingJSONHTML also writes &, < and > as \u0026, \u003c and \u003e.
	EncodingJSONHTML = "json-html"
	// EncodingJSONSlash also writes / as \/.
	EncodingJSONSlash = "json-slash"
	// EncodingJSONAll writes every character as \uXXXX.
	EncodingJSONAll = "json-all"

	// EncodingHTMLNamed writes ASCII punctuation as entities with a name, where HTML has one.
	EncodingHTMLNamed = "html-named"
	// EncodingHTMLDecimal writes every character as an entity such as &#71;.
	EncodingHTMLDecimal = "html-decimal"
	// EncodingHTMLHex writes every character as an entity such as &#x47;.
	EncodingHTMLHex = "html-hex"

	// EncodingPercent is percent-encoding of all but letters, digits and -_.~.
	EncodingPercent = "percent"
	// EncodingPercentAll is percent-encoding of every byte.
	EncodingPercentAll = "percent-all"
	// EncodingBase64 is the standard one, padded.
	EncodingBase64 = "base64"
	// EncodingBase64URL is the one for URLs, padded.
	EncodingBase64URL = "base64-url"
	// EncodingHex is in lower case.
	EncodingHex = "hex"
)

// Encodings lists every encoding, in the order of the constants.
func Encodings() []string {
	return []string{
		EncodingPlain, EncodingJSON, EncodingJSONHTML, EncodingJSONSlash, EncodingJSONAll,
		EncodingHTMLNamed, EncodingHTMLDecimal, EncodingHTMLHex,
		EncodingPercent, EncodingPercentAll, EncodingBase64, EncodingBase64URL, EncodingHex,
	}
}

var encoders = map[string]func(string) string{
	EncodingPlain: func(text string) string { return text },
	EncodingJSON:  escapeJSON,
	EncodingJSONHTML: func(text string) string {
		return strings.NewReplacer("&", `\u0026`, "<", `\u003c`, ">", `\u003e`).Replace(escapeJSON(text))
	},
	EncodingJSONSlash: func(text string) string { return strings.ReplaceAll(escapeJSON(text), "/", `\/`) },
	EncodingJSONAll: func(text string) string {
		return each(utf16.Encode([]rune(text)), `\u%04x`)
	},
	EncodingHTMLNamed:   htmlNames.Replace,
	EncodingHTMLDecimal: func(text string) string { return each([]rune(text), "&#%d;") },
	EncodingHTMLHex:     func(text string) string { return each([]rune(text), "&#x%X;") },
	EncodingPercent:     func(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") },
	EncodingPercentAll:  func(text string) string { return each([]byte(text), "%%%02X") },
	EncodingBase64:      func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) },
	EncodingBase64URL:   func(text string) string { return base64.URLEncoding.EncodeToString([]byte(text)) },
	EncodingHex:         func(text string) string { return hex.EncodeToString([]byte(text)) },
}

// htmlNames has no name for the hyphen: HTML's are those of other characters.
var htmlNames = strings.NewReplacer(
	"!", "&excl;", `"`, "&quot;", "#", "&num;", "$", "&dollar;", "%", "&percnt;", "&", "&amp;", "'", "&apos;",
	"(", "&lpar;", ")", "&rpar;", "*", "&ast;", "+", "&plus;", ",", "&comma;", ".", "&period;", "/", "&sol;",
	":", "&colon;", ";", "&semi;", "<", "&lt;", "=", "&equals;", ">", "&gt;", "?", "&quest;", "@", "&commat;",
	"[", "&lsqb;", `\`, "&bsol;", "]", "&rsqb;", "^", "&Hat;", "_", "&lowbar;", "`", "&grave;",
	"{", "&lcub;", "|", "&verbar;", "}", "&rcub;",
)

// checkEncoding reports what is wrong with a list of encodings, if anything.
func checkEncoding(list string) error {
	for name := range strings.SplitSeq(list, ",") {
		if _, known := encoders[name]; !known && list != "" {
			return fmt.Errorf("unknown encoding %q; the encodings are %s", name, strings.Join(Encodings(), ", "))
		}
	}
	return nil
}

// jsonString is the text as a JSON string, encoded by a list that checkEncoding accepts. The
// escapes of a JSON encoding at the end of the list are those of the string itself.
func jsonString(text, list string) string {
	isJSON := false
	for name := range strings.SplitSeq(list, ",") {
		if encoder := encoders[name]; encoder != nil {
			text = encoder(text)
		}
		isJSON = strings.HasPrefix(name, EncodingJSON)
	}
	if !isJSON {
		text = escapeJSON(text)
	}
	return `"` + text + `"`
}

// escapeJSON leaves bytes that are no UTF-8 as they are, where encoding/json would replace them.
func escapeJSON(text string) string {
	var b strings.Builder
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ':
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func each[T byte | uint16 | rune](units []T, format string) string {
	var b strings.Builder
	for _, unit := range units {
		fmt.Fprintf(&b, format, unit)
	}
	return b.String()
}
