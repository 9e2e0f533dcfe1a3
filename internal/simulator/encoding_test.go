// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// oddSecret has characters that each encoding writes otherwise.
const oddSecret = `G-s&<>/"\+ é`

// echoes are what the message is on the wire, for an error that repeats oddSecret.
var echoes = map[string]string{
	"":            `G-s&<>/\"\\+ é`,
	"plain":       `G-s&<>/\"\\+ é`,
	"json":        `G-s&<>/\"\\+ é`,
	"json-html":   `G-s\u0026\u003c\u003e/\"\\+ é`,
	"json-slash":  `G-s&<>\/\"\\+ é`,
	"json-all":    `\u0047\u002d\u0073\u0026\u003c\u003e\u002f\u0022\u005c\u002b\u0020\u00e9`,
	"html-named":  `G-s&amp;&lt;&gt;&sol;&quot;&bsol;&plus; é`,
	"html-hex":    `&#x47;&#x2D;&#x73;&#x26;&#x3C;&#x3E;&#x2F;&#x22;&#x5C;&#x2B;&#x20;&#xE9;`,
	"percent":     `G-s%26%3C%3E%2F%22%5C%2B%20%C3%A9`,
	"percent-all": `%47%2D%73%26%3C%3E%2F%22%5C%2B%20%C3%A9`,
	"base64":      `Ry1zJjw+LyJcKyDDqQ==`,
	"base64-url":  `Ry1zJjw-LyJcKyDDqQ==`,
	"hex":         `472d73263c3e2f225c2b20c3a9`,

	"html-decimal":    `&#71;&#45;&#115;&#38;&#60;&#62;&#47;&#34;&#92;&#43;&#32;&#233;`,
	"json-html,json":  `G-s\\u0026\\u003c\\u003e/\\\"\\\\+ é`,
	"json-slash,json": `G-s&<>\\/\\\"\\\\+ é`,
	"hex,json-all": `\u0034\u0037\u0032\u0064\u0037\u0033\u0032\u0036\u0033\u0063\u0033\u0065\u0032` +
		`\u0066\u0032\u0032\u0035\u0063\u0032\u0062\u0032\u0030\u0063\u0033\u0061\u0039`,
}

func TestFault_echo_request_repeats_the_secret_to_the_letter(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.SetApp("dingodd", oddSecret)
	body := `{"appKey":"dingodd","appSecret":` + quoted(t, oddSecret) + `}`

	for encoding, want := range echoes {
		c.set(t, "dingodd", simulator.Fault{
			Kind: simulator.FaultEchoRequest, Part: simulator.PartSecret, Encoding: encoding,
		})
		res := c.post(t, body)
		assert.Equal(t, 400, res.status)
		assert.Equal(t, "application/json", res.header.Get("Content-Type"))
		assert.Equal(t, `{"requestid":"`+want+`","code":"`+want+`","message":"`+want+`"}`, res.body, encoding)
	}
	for _, encoding := range simulator.Encodings() {
		assert.Contains(t, echoes, encoding)
	}
}

func TestFault_echo_request_can_be_decoded(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	unescape := func(text string) (string, error) {
		var plain string
		err := json.Unmarshal([]byte(`"`+text+`"`), &plain)
		return plain, err
	}
	plain := func(text string) (string, error) { return text, nil }
	for encoding, decode := range map[string]func(string) (string, error){
		"plain": plain, "json": plain, "json-html": plain, "json-slash": plain, "json-all": plain,
		"json-html,json": unescape, "json-slash,json": unescape,
		"json-all,json": unescape, "json-all,json-all": unescape,
		"html-named":   func(text string) (string, error) { return html.UnescapeString(text), nil },
		"html-decimal": func(text string) (string, error) { return html.UnescapeString(text), nil },
		"html-hex":     func(text string) (string, error) { return html.UnescapeString(text), nil },
		"percent":      url.PathUnescape, "percent-all": url.PathUnescape,
		"base64": func(text string) (string, error) {
			b, err := base64.StdEncoding.DecodeString(text)
			return string(b), err
		},
		"base64-url": func(text string) (string, error) {
			b, err := base64.URLEncoding.DecodeString(text)
			return string(b), err
		},
		"hex": func(text string) (string, error) {
			b, err := hex.DecodeString(text)
			return string(b), err
		},
	} {
		// All of it is repeated, whatever it is: a line break, punctuation, characters beyond the
		// BMP.
		const body = "not JSON\n !\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~ 密\U0001F511"
		c.set(t, simulator.AnyApp, simulator.Fault{Kind: simulator.FaultEchoRequest, Encoding: encoding})
		var got struct{ RequestID, Code, Message string }
		require.NoError(t, json.Unmarshal([]byte(c.post(t, body).body), &got), encoding)
		assert.Equal(t, got.RequestID, got.Code)
		assert.Equal(t, got.RequestID, got.Message)
		decoded, err := decode(got.Message)
		require.NoError(t, err, encoding)
		assert.Equal(t, body, decoded, encoding)
	}
}

func TestFault_echo_request_can_repeat_the_token_and_have_a_code_of_its_own(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	token, _ := c.token(t)
	c.set(t, appKey, simulator.Fault{
		Kind: simulator.FaultEchoRequest, Part: simulator.PartToken, Status: 500, Code: `a&"b`, Message: "m",
	})
	res := c.ask(t)
	assert.Equal(t, 500, res.status)
	assert.Equal(t, `{"requestid":"`+token+`","code":"a&\"b","message":"m"}`, res.body)
}

func quoted(t *testing.T, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	require.NoError(t, err)
	return string(b)
}
