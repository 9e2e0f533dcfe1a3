// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// One run of every request, made right, wrong and broken, in a Vault that logs and audits all it
// can. Then the test searches every place that anybody can read for the app secrets and the tokens,
// in any encoding. Only the responses of creds/ may hold a token.

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/internal/subprocess"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// pieceLength is how much of a secret counts as the secret: its first and its last so many
// characters are looked for too, so that one that was cut is found.
const pieceLength = 16

// needle is one way to write a secret.
type needle struct {
	text []byte
	what string // what it is, and how it is written
}

// needlesOf are the ways to write a secret. The core is the part of it that nothing else in the run
// contains.
func needlesOf(what, secret, core string) []needle {
	forms := map[string]string{
		"as it is":           secret,
		"its beginning":      core[:pieceLength],
		"its end":            core[len(core)-pieceLength:],
		"in capitals":        strings.ToUpper(core),
		"as a query":         url.QueryEscape(secret),
		"as a path":          url.PathEscape(secret),
		"as HTML":            html.EscapeString(secret),
		"quoted":             strconv.QuoteToASCII(secret),
		"as hex":             hex.EncodeToString([]byte(core)),
		"as HEX":             strings.ToUpper(hex.EncodeToString([]byte(core))),
		"in bytes":           strings.Trim(fmt.Sprintf("%d", []byte(core)), "[]"),
		"in UTF-16":          string(inUTF16(core)),
		"as JSON":            inJSON(secret, true),
		"as plain JSON":      inJSON(secret, false),
		"as JSON in JSON":    inJSON(inJSON(secret, true), true),
		"as a query in JSON": inJSON(url.QueryEscape(secret), true),
	}
	// Base64 depends on where among other bytes the text begins: three ways, less what the neighbours
	// decide.
	for shift := range 3 {
		encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + core))
		forms[fmt.Sprintf("in base64, shifted by %d", shift)] = encoded[4 : len(encoded)/4*4-4]
	}
	var needles []needle
	seen := map[string]bool{}
	for _, how := range slices.Sorted(maps.Keys(forms)) {
		for _, text := range []string{
			forms[how], url.QueryEscape(forms[how]), strings.NewReplacer("+", "-", "/", "_").Replace(forms[how]),
			// base64 in a URL
		} {
			if !seen[text] {
				seen[text] = true
				needles = append(needles, needle{[]byte(text), what + ", " + how})
			}
		}
	}
	return needles
}

// runLength is how many characters of a secret in a row count as the secret in what the engine
// shows of a text of DingTalk's.
const runLength = 8

// runsOf are the ways to write each run of a secret, by itself or as a part of more. In a log,
// where identifiers in hex abound, there would be runs of a secret by chance.
func runsOf(what, secret string) []needle {
	all := func(text, format string) string {
		var out strings.Builder
		for _, c := range []byte(text) {
			fmt.Fprintf(&out, format, c)
		}
		return out.String()
	}
	var needles []needle
	for at := 0; at+runLength <= len(secret); at++ {
		run := secret[at : at+runLength]
		forms := []string{
			run, strings.ToLower(run), strings.ToUpper(run), inJSON(run, true), inJSON(run, false),
			strings.ReplaceAll(run, "/", `\/`), all(run, `\u%04x`), all(run, `\u%04X`), all(run, `\x%02x`),
			html.EscapeString(run), all(run, "&#%d;"), all(run, "&#x%x;"), all(run, "&#x%X;"),
			url.QueryEscape(run), url.PathEscape(run), all(run, "%%%02x"), all(run, "%%%02X"),
			hex.EncodeToString([]byte(run)), strings.ToUpper(hex.EncodeToString([]byte(run))),
		}
		for shift := range 3 {
			encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + run))
			inner := encoded[(4*shift+2)/3 : 4*(shift+runLength)/3] // without what the neighbours decide
			forms = append(forms, inner, strings.NewReplacer("+", "-", "/", "_").Replace(inner))
		}
		for _, form := range forms {
			needles = append(needles, needle{[]byte(form), fmt.Sprintf("%d characters of %s", runLength, what)})
		}
	}
	return needles
}

func inJSON(text string, escapeHTML bool) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(escapeHTML)
	_ = encoder.Encode(text) // a string always encodes
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(out.String()), `"`), `"`)
}

func inUTF16(text string) []byte {
	var out []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		out = append(out, byte(unit), byte(unit>>8))
	}
	return out
}

// keyLength is how many bytes of a needle lead to it. No needle is shorter.
const keyLength = 8

// leakSearch holds what must not be found. There are thousands of needles, and storage alone has
// tens of megabytes, so a text is gone through once.
type leakSearch struct {
	mu      sync.Mutex
	count   int
	needles map[uint64][]needle // by their first bytes
	maybe   [1 << 16]bool       // whether a needle may begin so, by a hash of these bytes
	known   map[string]bool
}

func hashOf(key uint64) uint16 { return uint16((key * 0x9e3779b97f4a7c15) >> 48) }

// appSecret makes one with all the characters that somebody may want to escape.
func (s *leakSearch) appSecret() string {
	core := harness.RandomHex(20)
	secret := "leak-" + core + `+/="\<&>%27;`
	s.add("an app secret", secret, core)
	return secret
}

// numericSecret is an app secret that lost its quotes on the way.
func (s *leakSearch) numericSecret() string {
	core := secretNumber() + "777"
	for len(core) < 2*pieceLength {
		core += core
	}
	s.add("an app secret", core, core)
	return core
}

func (s *leakSearch) add(what, secret, core string) {
	harness.NoteSecret(secret, what)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known, s.needles = map[string]bool{}, map[uint64][]needle{}
	}
	if secret == "" || s.known[secret] {
		return
	}
	s.known[secret] = true
	s.index(needlesOf(what, secret, core))
}

// runs adds the runs of a secret.
func (s *leakSearch) runs(what, secret string) {
	harness.NoteSecret(secret, what)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.needles == nil {
		s.known, s.needles = map[string]bool{}, map[uint64][]needle{}
	}
	s.index(runsOf(what, secret))
}

// index is called with s.mu held.
func (s *leakSearch) index(needles []needle) {
	for _, n := range needles {
		key := binary.LittleEndian.Uint64(n.text)
		s.needles[key] = append(s.needles[key], n)
		s.maybe[hashOf(key)] = true
		s.count++
	}
}

// token adds an access token, which the simulator makes of 32 hex digits.
func (s *leakSearch) token(value string) {
	if value != "" {
		s.add("an access token", value, value)
	}
}

// in reports what is found in a text, without showing it.
func (s *leakSearch) in(where string, text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []error
	for at := 0; at+keyLength <= len(text) && len(found) < 5; at++ {
		key := binary.LittleEndian.Uint64(text[at:])
		if !s.maybe[hashOf(key)] {
			continue
		}
		for _, n := range s.needles[key] {
			if bytes.HasPrefix(text[at:], n.text) {
				from := bytes.LastIndexByte(text[:at], '\n') + 1
				before := harness.Mask(string(text[max(from, at-160):at]))
				found = append(found, fmt.Errorf("%s holds %s, at byte %d, after %q", where, n.what, at, before))
				break // one of several ways to write it that are the same here
			}
		}
	}
	return errors.Join(found...)
}

// search fails the test where something is found, and continues.
func (s *leakSearch) search(t *testing.T, where string, text []byte) (clean bool) {
	t.Helper()
	err := s.in(where, text)
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

func TestLeak_search_finds_a_secret_however_it_is_written(t *testing.T) {
	t.Parallel()
	var s leakSearch
	secret := s.appSecret()
	token := harness.RandomHex(16)
	s.token(token)
	twice, err := json.Marshal(map[string]string{"request": fmt.Sprintf(`{"appSecret":%q}`, secret)})
	require.NoError(t, err)
	body, err := json.Marshal(map[string]string{"appSecret": secret})
	require.NoError(t, err)
	for name, text := range map[string]string{
		"as it is":        secret,
		"in a struct":     fmt.Sprintf("%+v", struct{ AppSecret string }{secret}),
		"quoted":          fmt.Sprintf("%q", secret),
		"in bytes":        fmt.Sprintf("%d", []byte(secret)),
		"in hex":          fmt.Sprintf("%x", secret),
		"in HEX":          fmt.Sprintf("%X", secret),
		"in JSON":         string(body),
		"in JSON in JSON": string(twice),
		"in a query":      url.Values{"app_secret": {secret}}.Encode(),
		"in a path":       (&url.URL{Path: "/config/" + secret}).String(),
		"cut":             secret[:30],
		"its end":         secret[25:],
		"in base64 0":     base64.StdEncoding.EncodeToString(body),
		"in base64 1":     base64.StdEncoding.EncodeToString(append([]byte("1"), body...)),
		"in base64 2":     base64.RawURLEncoding.EncodeToString(append([]byte("12"), body...)),
		"token":           `{"access_token":"` + token + `"}`,
		"token in base64": base64.StdEncoding.EncodeToString([]byte("a token: " + token)),
		"half a token":    token[:pieceLength] + "…",
		"token in UTF-16": string(inUTF16(token)),
	} {
		if s.in(name, []byte("what is before "+text+" and after")) == nil {
			t.Errorf("not found: %s", name)
		}
	}
	require.NoError(t, s.in("something else", []byte("leak- and "+harness.RandomHex(4096))))
}

func TestLeak_search_finds_a_run_however_it_is_written(t *testing.T) {
	t.Parallel()
	secret := harness.RandomHex(4) + `+/="\<&>%27;` + harness.RandomHex(8)
	var s leakSearch
	s.runs("a secret", secret)
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	dt.SetApp("dingkey", secret)
	for _, encoding := range simulator.Encodings() {
		dt.SetFault("dingkey", simulator.Fault{Kind: simulator.FaultEchoRequest, Encoding: encoding})
		body := jsonOf(t, map[string]string{"appKey": "dingkey", "appSecret": secret})
		request, err := http.NewRequestWithContext(
			t.Context(),
			http.MethodPost,
			dt.URL+simulator.TokenPath,
			strings.NewReader(body),
		)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		echoed, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Error(t, s.in("the echo", echoed), "the whole in %s", encoding)
		var decoded struct{ Message string }
		harness.DecodeJSON(t, string(echoed), &decoded)
		require.Error(t, s.in("the message", []byte(decoded.Message)), "the whole in %s, decoded", encoding)
	}
	for at := 0; at+runLength <= len(secret); at++ {
		run := secret[at : at+runLength]
		for name, text := range map[string]string{
			"as it is": run, "in HEX": strings.ToUpper(hex.EncodeToString([]byte(run))),
			"in base64": base64.StdEncoding.EncodeToString([]byte("xyz" + run + "x")), "percent": url.QueryEscape(run),
		} {
			require.Error(t, s.in("a text", []byte("before "+text+" after")), "%s at %d", name, at)
		}
	}
	less := secret[:runLength-1]
	require.NoError(t, s.in("something else", []byte(less+" "+less+" "+harness.RandomHex(512))))
}

// A host that repeats what it was sent, or the token that it gave, in any form: what the engine
// shows of its response holds no eight characters of them.
//
//nolint:tparallel // what all of them said is searched in the end
func TestLeak_a_response_that_repeats_the_request_is_withheld(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem, Audit: true})
	m, dt := v.Enable(t), harness.StartDingTalk(t, harness.FullLifetime)
	var searches sync.Map // by the app's name
	meet := func(t *testing.T, fault simulator.Fault, corpID string) {
		t.Helper()
		a := m.UnstoredApp(dt)
		searches.Store(a.Name, meetEcho(t, a, fault, corpID))
	}
	encodings := append(simulator.Encodings(),
		"json-all,json", "json-html,json", "html-hex,percent-all", "base64,percent", "hex,base64",
		"percent,json-all,json")

	t.Run("all at once", func(t *testing.T) {
		for _, part := range []string{simulator.PartBody, simulator.PartSecret, simulator.PartToken} {
			for i, encoding := range encodings {
				t.Run(part+" in "+encoding, func(t *testing.T) {
					t.Parallel()
					status := []int{400, 403, 400, 403, 400, 500}[i%6] // a 500 is tried three times
					fault := simulator.Fault{
						Kind: simulator.FaultEchoRequest, Part: part, Encoding: encoding, Status: status,
					}
					corpID := []string{"", "", simulator.DefaultCorpID, simulator.DefaultCorpID}[i%4]
					meet(t, fault, corpID) // in code, message and request id
					fault.Code = "invalidParameter"
					meet(t, fault, corpID) // in message and request id
					fault.Code, fault.Message = "", "bad request"
					meet(t, fault, corpID) // in code and request id
				})
			}
		}
	})

	name := regexp.MustCompile(`app-[0-9a-f]{8}`)
	searchIn := func(where, text string) {
		if s, known := searches.Load(name.FindString(text)); assert.True(t, known, "the app in %s", harness.Mask(text)) {
			s.(*leakSearch).search(t, where, []byte(text))
		}
	}
	lines, audited := 0, 0
	for line := range strings.Lines(harness.FileText(t, v.LogPath())) {
		if strings.Contains(line, "fetching a token failed") || strings.Contains(line, "verifying credentials failed") {
			lines++
			searchIn("Vault's log", line)
		}
	}
	for line := range strings.Lines(harness.FileText(t, v.AuditPath())) {
		var entry struct{ Error string }
		harness.DecodeJSON(t, line, &entry)
		if entry.Error != "" {
			audited++
			searchIn("an error in the audit log", entry.Error)
		}
	}
	require.Greater(t, lines, 6*len(encodings))
	require.Greater(t, audited, 6*len(encodings))
}

// meetEcho lets an app meet a fault on every way to DingTalk and searches the texts that come back.
func meetEcho(t *testing.T, a *harness.App, fault simulator.Fault, corpID string) *leakSearch {
	t.Helper()
	v, s := a.Mount.Vault, &leakSearch{}
	secret := func() string {
		value := "leak-" + harness.RandomHex(12) + `+/="\<&>%27;`
		s.runs("an app secret", value)
		return value
	}
	a.Secret = secret()
	a.DingTalk.SetApp(a.Key, a.Secret)
	config := a.Config()
	config["corp_id"] = corpID
	require.Equal(t, http.StatusNoContent, v.HTTP(t, "POST", a.ConfigPath(), "", jsonOf(t, config)).Status)
	s.runs("an access token", a.DingTalk.LastToken(a.Key))
	a.DingTalk.SetFault(a.Key, fault)

	other := secret()
	replies := map[string]harness.Response{
		"a write":   v.HTTP(t, "POST", a.ConfigPath(), "", jsonOf(t, a.Rotation(other))),
		"a refresh": v.HTTP(t, "POST", a.RefreshPath(), "", ""),
		"a status":  v.HTTP(t, "GET", a.StatusPath(), "", ""),
	}
	if fault.Part != simulator.PartToken { // which the engine no longer knows then
		unverified := a.Rotation(other)
		unverified["verify_connection"] = false
		require.Equal(t, http.StatusNoContent, v.HTTP(t, "POST", a.ConfigPath(), "", jsonOf(t, unverified)).Status)
		replies["a read"] = v.HTTP(t, "GET", a.CredsPath(), "", "")
	}
	for what, reply := range replies {
		var said struct {
			Errors []string
			Data   struct {
				LastError string `json:"last_error"`
			}
		}
		harness.DecodeJSON(t, reply.Body, &said)
		texts := strings.Join(append(said.Errors, said.Data.LastError), "\n")
		require.Contains(t, texts, a.Name, "%s: what the engine says", what)
		s.search(t, what, []byte(texts))
		require.NotContains(t, texts, ", request id ", what)
		switch {
		case fault.Code != "":
			require.Contains(t, texts, "code "+fault.Code, what)
		default:
			require.NotContains(t, texts, "code ", what)
		}
		switch {
		case fault.Message != "":
			require.Contains(t, texts, fmt.Sprintf("message %q", fault.Message), what)
		case fault.Part != simulator.PartBody: // where an encoding can make the app key fill what is shown
			require.Contains(t, texts, "message withheld: it repeats the request", what)
		}
	}
	return s
}

// leakRun is the run: it asks Vault and keeps every response but the tokens in creds/.
type leakRun struct {
	*leakSearch
	v *harness.VaultServer
	m *harness.Mount

	answersMu sync.Mutex
	responses []keptResponse
	credsRead int
}

type keptResponse struct{ to, text string }

// ask sends a request as it is and keeps the response, headers included. Where the response is that
// of creds/, the token is taken out first: it is what the response is for.
func (r *leakRun) ask(t *testing.T, method, path, contentType, body string, headers ...string) harness.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, r.v.Addr+"/v1/"+path, strings.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("X-Vault-Token", r.v.RootToken)
	request.Header.Set("X-Vault-Request", "true")
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	for pair := range slices.Chunk(headers, 2) {
		request.Header.Set(pair[0], pair[1])
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	text := string(raw)

	gives := strings.Contains(path, "/creds/") || path == "sys/wrapping/unwrap"
	if gives && response.StatusCode == http.StatusOK {
		var secret struct {
			Data struct {
				Token string `json:"access_token"`
			}
		}
		harness.DecodeJSON(t, text, &secret)
		if token := secret.Data.Token; token != "" {
			r.token(token)
			require.Equal(t, 1, strings.Count(text, token), "the token is in the response once")
			text = strings.Replace(text, token, "", 1)
			r.answersMu.Lock()
			r.credsRead++
			r.answersMu.Unlock()
		}
	}
	r.keep(method+" "+path+" "+strconv.Itoa(response.StatusCode), fmt.Sprint(response.Header)+"\n"+text)
	return harness.Response{Status: response.StatusCode, Body: string(raw)}
}

func (r *leakRun) keep(to, text string) {
	r.answersMu.Lock()
	defer r.answersMu.Unlock()
	r.responses = append(r.responses, keptResponse{to, text})
}

// newApp makes an app at a DingTalk of its own, with a secret that is easily mangled.
func (r *leakRun) newApp(dt *harness.DingTalk) *harness.App {
	a := r.m.UnstoredApp(dt)
	a.Secret = r.appSecret()
	dt.SetApp(a.Key, a.Secret)
	return a
}

func jsonOf(t *testing.T, value any) string {
	t.Helper()
	raw, err := json.Marshal(value)
	require.NoError(t, err)
	return string(raw)
}

func (r *leakRun) store(t *testing.T, a *harness.App, tune harness.Fields) harness.Response {
	t.Helper()
	body := a.Config()
	maps.Copy(body, tune)
	return r.ask(t, "POST", a.ConfigPath(), "", jsonOf(t, body))
}

// learn adds every token that the app ever got to the search, also one that nobody received.
func (r *leakRun) learn(a *harness.App) { r.token(a.DingTalk.LastToken(a.Key)) }

//nolint:tparallel // the steps follow one another
func TestLeak_secrets_and_tokens_are_in_the_responses_of_creds_alone(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageRaft, Audit: true})
	r := &leakRun{leakSearch: &leakSearch{}, v: v, m: v.Enable(t)}
	watch := watchProcesses(t, v)

	t.Run("all at once", func(t *testing.T) {
		for _, fault := range leakFaults() {
			t.Run(strings.TrimSpace(fmt.Sprint(fault.Kind, " ", fault.Status, " ", fault.Code)), func(t *testing.T) {
				t.Parallel()
				r.liveThroughFault(t, fault)
			})
		}
		for _, fault := range []simulator.Fault{
			{Kind: simulator.FaultEchoSecret, Status: 400},
			{Kind: simulator.FaultEchoSecret, Status: 403},
			{Kind: simulator.FaultEchoSecret, Status: 500},
			{Kind: simulator.FaultEchoRequest, Part: simulator.PartSecret, Encoding: "json-all,json"},
			{Kind: simulator.FaultEchoRequest, Part: simulator.PartToken, Encoding: "html-hex,percent-all"},
		} {
			t.Run(fmt.Sprint("an ageing token and ", fault.Kind, " ", fault.Status, fault.Part), func(t *testing.T) {
				t.Parallel()
				r.ageUnderFault(t, fault)
			})
		}
		t.Run("writes", func(t *testing.T) {
			t.Parallel()
			r.writeConfigs(t)
		})
		t.Run("CLI", func(t *testing.T) {
			t.Parallel()
			r.useCLI(t)
		})
	})
	t.Run("the plugin ends", r.breakThePlugin)
	var leased, unleased *harness.App
	t.Run("ordinary life", func(t *testing.T) { leased, unleased = r.ordinaryLife(t) })
	if t.Failed() {
		return
	}

	t.Run("processes", func(t *testing.T) { watch.search(t, r.leakSearch) })
	t.Run("responses", r.searchResponses)
	t.Run("logs", r.searchLogs)
	t.Run("HMAC", func(t *testing.T) { r.requireHashed(t, leased, unleased) })
	t.Run("files", r.searchFiles)
	require.NoError(t, v.Stop()) // which writes whatever was not yet on disk
	t.Run("files afterwards", r.searchFiles)
}

// leakFaults are all of the simulator's ways to fail; those that repeat what they were sent, with
// every status that is read otherwise.
func leakFaults() []simulator.Fault {
	var faults []simulator.Fault
	for _, kind := range simulator.FaultKinds() {
		f := simulator.Fault{Kind: kind}
		if kind == simulator.FaultExpireIn {
			f.ExpireIn = "0"
		}
		faults = append(faults, f)
	}
	for _, status := range []int{200, 302, 403, 404, 429, 500, 503} {
		faults = append(faults, simulator.Fault{Kind: simulator.FaultEchoSecret, Status: status})
	}
	for _, code := range []string{"Forbidden.AccessDenied.IpNotInWhiteList", "invalidClientIdOrSecret", "system.busy"} {
		faults = append(faults, simulator.Fault{Kind: simulator.FaultEchoSecret, Status: 403, Code: code})
	}
	return faults
}

// liveThroughFault makes an app meet a fault without a token, with a cached one, on a write, a
// refresh and a renewal.
func (r *leakRun) liveThroughFault(t *testing.T, fault simulator.Fault) {
	t.Helper()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := r.newApp(dt)
	config, creds := a.ConfigPath(), a.CredsPath()
	const quickly = "1s"

	dt.SetFault(a.Key, fault)
	r.store(t, a, harness.Fields{"request_timeout": quickly}) // verified, and mostly refused
	r.store(t, a, harness.Fields{"request_timeout": quickly, "verify_connection": false})
	for range 2 {
		r.ask(t, "GET", creds, "", "")
		r.ask(t, "GET", a.StatusPath(), "", "")
	}
	dt.ClearFaults()
	r.ask(t, "DELETE", config, "", "") // ends the back-off
	forgetBan(a)
	require.Equal(
		t,
		http.StatusNoContent,
		r.store(t, a, harness.Fields{"request_timeout": quickly}).Status,
		"fault %s is over",
		fault.Kind,
	)
	r.learn(a)
	reply := r.ask(t, "GET", creds, "", "")
	require.Equal(t, http.StatusOK, reply.Status)
	var lease struct {
		ID string `json:"lease_id"`
	}
	harness.DecodeJSON(t, reply.Body, &lease)

	// The fault's own responses now hold a token that is in use.
	dt.SetFault(a.Key, fault)
	r.ask(t, "POST", a.RefreshPath(), "", "")
	r.ask(t, "POST", a.RefreshPath(), "", jsonOf(t, harness.Fields{"rejected_token": dt.LastToken(a.Key)}))
	r.ask(t, "GET", creds+"?min_ttl=24h", "", "")
	r.ask(t, "GET", a.StatusPath(), "", "")
	r.ask(t, "POST", "sys/leases/renew", "", jsonOf(t, harness.Fields{"lease_id": lease.ID}))
	r.ask(t, "POST", config, "", jsonOf(t, harness.Fields{"verify_connection": true}))
	r.ask(t, "POST", config, "", jsonOf(t, harness.Fields{"app_secret": r.appSecret()})) // refused: it names no base_url
	r.ask(t, "POST", config, "", jsonOf(t, a.Rotation(r.appSecret())))
	again := a.Rotation(a.Secret)
	again["verify_connection"] = true
	r.ask(t, "PATCH", config, patchType, jsonOf(t, again))
	r.ask(t, "GET", config, "", "")
	r.ask(t, "GET", creds, "", "")
	r.ask(t, "POST", "sys/leases/lookup", "", jsonOf(t, harness.Fields{"lease_id": lease.ID}))
	r.ask(t, "POST", "sys/leases/revoke", "", jsonOf(t, harness.Fields{"lease_id": lease.ID, "sync": true}))
	r.learn(a)
}

// ageUnderFault lets a token go through all of its life while DingTalk responds with the token and
// the secret in its errors: warnings of reads and renewals, the status, and in the end the error.
func (r *leakRun) ageUnderFault(t *testing.T, fault simulator.Fault) {
	t.Helper()
	dt := harness.StartDingTalk(t, 10*time.Second)
	a := r.newApp(dt)
	require.Equal(t, http.StatusNoContent, r.store(t, a, harness.Fields{"request_timeout": "1s"}).Status)
	r.learn(a)
	var lease struct {
		ID string `json:"lease_id"`
	}
	harness.DecodeJSON(t, r.ask(t, "GET", a.CredsPath(), "", "").Body, &lease)
	dt.SetFault(a.Key, fault)
	warned := map[string]bool{}
	harness.WaitFor(t, 30*time.Second, "the token has expired", func() bool {
		read := r.ask(t, "GET", a.CredsPath(), "", "")
		renewal := r.ask(t, "POST", "sys/leases/renew", "", jsonOf(t, harness.Fields{"lease_id": lease.ID}))
		r.ask(t, "GET", a.StatusPath(), "", "")
		warned["read"] = warned["read"] || strings.Contains(read.Body, "could not be refreshed")
		warned["renewal"] = warned["renewal"] || strings.Contains(renewal.Body, "could not be refreshed")
		return read.Status != http.StatusOK
	})
	require.Equal(t, map[string]bool{"read": true, "renewal": true}, warned)
	require.Equal(t, 1, strings.Count(r.ask(t, "GET", a.StatusPath(), "", "").Body, "last_error\""))
}

// forgetBan moves the app to a host that is not banned: a ban is the host's, and lasts.
func forgetBan(a *harness.App) {
	address := strings.Replace(a.DingTalk.URL, "127.0.0.1", "localhost", 1)
	a.DingTalk = &harness.DingTalk{Server: a.DingTalk.Server, URL: address}
}

// writeConfigs sends the secret in every wrong form, and to every wrong place.
func (r *leakRun) writeConfigs(t *testing.T) {
	t.Helper()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	present, absent := r.newApp(dt), r.newApp(dt)
	require.Equal(t, http.StatusNoContent, r.store(t, present, nil).Status)
	r.learn(present)
	quoted := func(secret string) string { return jsonOf(t, secret) }

	for _, a := range []*harness.App{present, absent} {
		whole := a.Config()
		delete(whole, "app_secret")
		rest := strings.TrimSuffix(jsonOf(t, whole), "}")
		for _, value := range []string{
			"[" + quoted(r.appSecret()) + "," + quoted(r.appSecret()) + "]",
			"[" + quoted(r.appSecret()) + "]",
			`{"value":` + quoted(r.appSecret()) + `}`,
			`[{"deep":[` + quoted(r.appSecret()) + `]}]`,
			r.numericSecret(), "-" + r.numericSecret(), "0." + r.numericSecret(),
			`"` + r.numericSecret() + ` "`,
			quoted(r.appSecret() + " "), quoted(" " + r.appSecret()), quoted(r.appSecret() + "\n\n"),
			quoted(r.appSecret() + "\x00"),
			quoted(r.appSecret() + "密"), quoted(r.appSecret() + strings.Repeat("x", 512)),
			quoted(r.appSecret()), // well formed, and wrong
		} {
			for _, method := range []string{"POST", "PUT", "PATCH"} {
				contentType := ""
				if method == "PATCH" {
					contentType = patchType
				}
				body := rest + `,"app_secret":` + value + "}"
				reply := r.ask(t, method, a.ConfigPath(), contentType, body)
				require.Contains(
					t,
					[]int{http.StatusBadRequest, http.StatusNotFound},
					reply.Status,
					"%s %s",
					method,
					harness.Mask(reply.Body),
				)
			}
		}
		// Broken JSON, the secret twice, a form, and no JSON at all.
		one, two := quoted(r.appSecret()), quoted(r.appSecret())
		r.ask(t, "POST", a.ConfigPath(), "", `{"app_secret":`+one+`,"app_secret":`+two+`,"leased":"maybe"}`)
		r.ask(t, "POST", a.ConfigPath(), "", `{"app_secret":`+one)
		r.ask(t, "POST", a.ConfigPath(), "", one)
		r.ask(t, "POST", a.ConfigPath(), "", "app_secret="+r.appSecret())
		r.ask(t, "POST", a.ConfigPath(), "application/x-www-form-urlencoded",
			url.Values{"app_key": {a.Key}, "app_secret": {r.appSecret(), r.appSecret()}}.Encode())
		r.ask(t, "PATCH", a.ConfigPath(), "", `{"app_secret":`+one+`}`)
		r.ask(t, "PATCH", a.ConfigPath(), patchType, `{"app_secret":{"$secret":`+two+`}}`)
		r.ask(t, "POST", a.ConfigPath()+"?app_secret="+url.QueryEscape(r.appSecret()), "", jsonOf(t, whole))

		// The wrong place, with and without the right one.
		for _, field := range []string{
			"app_key", "app_secrets", "secret", "corp_id", "verify_connection", "leased", "refresh_before",
			"request_timeout", "base_url", "rejected_token",
		} {
			misplaced := r.appSecret()
			for _, body := range []harness.Fields{
				{field: misplaced},
				{"app_key": a.Key, "app_secret": misplaced, "base_url": dt.URL, field: misplaced},
				{"app_key": a.Key, "app_secret": misplaced, "base_url": dt.URL, field: []string{misplaced, misplaced}},
				{"app_key": a.Key, "app_secret": misplaced, "base_url": dt.URL, field: harness.Fields{"value": misplaced}},
				{"app_key": misplaced, "app_secret": a.Key, "base_url": dt.URL},
			} {
				r.ask(t, "POST", a.ConfigPath(), "", jsonOf(t, body))
				r.ask(t, "PATCH", a.ConfigPath(), patchType, jsonOf(t, body))
			}
		}
		for _, base := range []string{
			"https://user:%s@api.dingtalk.io", "https://%s@api.dingtalk.io", "https://user:%s@127.0.0.1:1", "user:%s@host",
			"https://u:%s@h/%%zz",
		} {
			secret := r.appSecret()
			for _, written := range []string{secret, url.QueryEscape(secret)} {
				reply := r.ask(t, "POST", a.ConfigPath(), "", jsonOf(t, harness.Fields{
					"app_key": a.Key, "app_secret": a.Secret, "base_url": fmt.Sprintf(base, written),
				}))
				require.Equal(t, http.StatusBadRequest, reply.Status)
			}
		}
		r.queries(t, a)
	}
	require.Equal(
		t,
		http.StatusNotFound,
		r.ask(t, "GET", absent.ConfigPath(), "", "").Status,
		"nothing of it was stored",
	)
	require.Equal(t, http.StatusOK, r.ask(t, "GET", present.CredsPath(), "", "").Status, "nothing of it did harm")
}

// queries puts the secret into the query of what is only read.
func (r *leakRun) queries(t *testing.T, a *harness.App) {
	t.Helper()
	one, two := url.QueryEscape(r.appSecret()), url.QueryEscape(r.appSecret())
	for _, query := range []string{
		"?app_secret=" + one, "?app_secret=" + one + "&app_secret=" + two, "?secret=" + one,
		"?app_key=" + one + "&app_key=" + two,
		"?base_url=https://u:" + one + "@h", "?app=" + one,
	} {
		for _, path := range []string{a.ConfigPath(), a.CredsPath(), a.StatusPath()} {
			r.ask(t, "GET", path+query, "", "")
		}
		r.ask(t, "LIST", r.m.Path+"/config/"+query, "", "")
		r.ask(t, "POST", a.RefreshPath()+query, "", "")
		r.ask(t, "DELETE", r.m.Path+"/config/nobody"+query, "", "")
		r.ask(t, "GET", a.CredsPath()+query+"&help=1", "", "")
	}
	for _, body := range []harness.Fields{
		{"app_secret": r.appSecret()},
		{"app_secret": []string{r.appSecret(), r.appSecret()}},
		{"rejected_token": r.appSecret()},
		{"rejected_token": r.appSecret() + " "},
		{"rejected_token": r.appSecret() + strings.Repeat("x", 2048)},
		{"rejected_token": []string{r.appSecret(), r.appSecret()}},
		{"rejected_token": harness.Fields{"value": r.appSecret()}},
		{"rejected_token": json.Number(r.numericSecret())},
		{"x": r.appSecret()},
	} {
		r.ask(t, "POST", a.RefreshPath(), "", jsonOf(t, body))
		r.ask(t, "POST", a.StatusPath(), "", jsonOf(t, body))
		r.ask(t, "POST", a.CredsPath(), "", jsonOf(t, body))
		r.ask(t, "PUT", r.m.Path+"/nowhere/"+a.Name, "", jsonOf(t, body))
	}
}

// useCLI does with the vault binary what a person would; no secret is on its command line.
func (r *leakRun) useCLI(t *testing.T) {
	t.Helper()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := r.newApp(dt)
	run := func(input string, args ...string) harness.CLIResult {
		result := r.v.CLIWithInput(t, input, args...)
		r.learn(a)
		r.keep("vault "+strings.Join(args, " "), result.Stdout+result.Stderr)
		return result
	}
	run(r.appSecret(), "write", a.ConfigPath(), "app_key="+a.Key, "app_secret=-", "base_url="+dt.URL)
	run(a.Secret+"\n", "write", a.ConfigPath(), "app_key="+a.Key, "app_secret=-", "base_url="+dt.URL).Succeeded(t)
	run(
		jsonOf(t, harness.Fields{"app_key": a.Key, "app_secret": []string{r.appSecret(), r.appSecret()}}),
		"write",
		a.ConfigPath(),
		"-",
	)
	nested := harness.Fields{"app_key": a.Key, "app_secret": harness.Fields{"v": r.appSecret()}}
	run(jsonOf(t, nested), "write", a.ConfigPath(), "-")
	run(a.Secret, "patch", a.ConfigPath(), "app_secret=-", "base_url="+dt.URL, "leased=maybe")
	run("", "read", a.ConfigPath()).Succeeded(t)
	run("", "read", a.StatusPath()).Succeeded(t)
	run("", "write", "-f", a.RefreshPath()).Succeeded(t)
	run(dt.LastToken(a.Key)+"\n", "write", a.RefreshPath(), "rejected_token=-").Succeeded(t)
	run(jsonOf(t, harness.Fields{"rejected_token": []string{r.appSecret()}}), "write", a.RefreshPath(), "-")
	run("", "list", r.m.Path+"/config").Succeeded(t)
	run("", "path-help", a.CredsPath()).Succeeded(t)
	run("", "plugin", "list", "-detailed", "secret").Succeeded(t)
	run("", "secrets", "list", "-detailed").Succeeded(t)

	// The responses of creds/ hold the token, once.
	for _, args := range [][]string{
		{"read", "-format=json", a.CredsPath()}, {"read", a.CredsPath()}, {"read", "-field=access_token", a.CredsPath()},
	} {
		out := r.v.MustCLI(t, args...)
		token := dt.LastToken(a.Key)
		r.token(token)
		require.Equal(t, 1, strings.Count(out, token))
		r.keep("vault "+strings.Join(args, " "), strings.Replace(out, token, "", 1))
	}
}

// breakThePlugin ends the plugin's process under load: by SIGKILL, and by a signal that makes it
// print what it was doing.
func (r *leakRun) breakThePlugin(t *testing.T) {
	t.Helper()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGQUIT, syscall.SIGABRT} {
		dt.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultHang})
		a := r.newApp(dt)
		r.store(t, a, harness.Fields{"verify_connection": false, "request_timeout": "10s"})
		var waiting sync.WaitGroup
		waiting.Go(func() { r.ask(t, "GET", a.CredsPath(), "", "") })
		waiting.Go(func() {
			r.ask(t, "POST", a.ConfigPath(), "", jsonOf(t, a.Rotation(r.appSecret())))
		})
		harness.WaitFor(t, 10*time.Second, "both calls upstream hang", func() bool { return a.Calls() == 2 })
		pid := r.v.PluginPID(t)
		dt.ClearFaults() // Vault asks the new process once more
		require.NoError(t, syscall.Kill(pid, signal))
		waiting.Wait()
		harness.WaitFor(t, 20*time.Second, "Vault sees the end of the plugin's process", func() bool {
			log, err := os.ReadFile(r.v.LogPath())
			require.NoError(t, err)
			return bytes.Contains(log, fmt.Appendf(nil, " id=%d", pid)) && !processLives(pid)
		})
		harness.WaitFor(t, 20*time.Second, "the plugin runs again", func() bool {
			return r.ask(t, "GET", a.ConfigPath(), "", "").Status == http.StatusOK
		})
	}
}

func processLives(pid int) bool { return syscall.Kill(pid, 0) == nil }

// ordinaryLife is what an app's days are made of. It returns the app and its last token's app; both
// have been handed out.
func (r *leakRun) ordinaryLife(t *testing.T) (leased, unleased *harness.App) {
	t.Helper()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	leased, unleased = r.newApp(dt), r.newApp(dt)
	require.Equal(t, http.StatusNoContent, r.store(t, leased, nil).Status)
	require.Equal(t, http.StatusNoContent, r.store(t, unleased, harness.Fields{"leased": false}).Status)
	for _, a := range []*harness.App{leased, unleased} {
		r.learn(a)
		require.Equal(t, http.StatusOK, r.ask(t, "GET", a.CredsPath(), "", "").Status)
		require.Equal(t, http.StatusOK, r.ask(t, "GET", a.CredsPath()+"?min_ttl=10m", "", "").Status)
		r.ask(t, "GET", a.StatusPath(), "", "")
		dt.RotateTokens(a.Key, true)
		require.Equal(t, http.StatusOK, r.ask(t, "POST", a.RefreshPath(), "", "").Status)
		r.learn(a)
		rejected := jsonOf(t, harness.Fields{"rejected_token": dt.LastToken(a.Key)})
		require.Equal(t, http.StatusOK, r.ask(t, "POST", a.RefreshPath(), "", rejected).Status)
		require.Equal(t, http.StatusOK, r.ask(t, "GET", a.CredsPath(), "", "").Status)

		wrapped := r.ask(t, "GET", a.CredsPath(), "", "", "X-Vault-Wrap-TTL", "60s")
		var wrap struct {
			Info struct{ Token string } `json:"wrap_info"`
		}
		harness.DecodeJSON(t, wrapped.Body, &wrap)
		harness.NoteSecret(wrap.Info.Token, "a wrapping token")
		require.Equal(
			t,
			http.StatusOK,
			r.ask(t, "POST", "sys/wrapping/lookup", "", jsonOf(t, harness.Fields{"token": wrap.Info.Token})).Status,
		)
		require.Equal(
			t,
			http.StatusOK,
			r.ask(t, "POST", "sys/wrapping/unwrap", "", jsonOf(t, harness.Fields{"token": wrap.Info.Token})).Status,
		)
	}
	reply := r.ask(t, "GET", leased.CredsPath(), "", "")
	var lease struct {
		ID string `json:"lease_id"`
	}
	harness.DecodeJSON(t, reply.Body, &lease)
	for _, path := range []string{"renew", "lookup", "revoke"} {
		reply := r.ask(t, "POST", "sys/leases/"+path, "", jsonOf(t, harness.Fields{"lease_id": lease.ID, "increment": 60}))
		require.Contains(t, []int{http.StatusOK, http.StatusNoContent}, reply.Status)
	}
	require.Equal(t, http.StatusOK, r.ask(t, "LIST", "sys/leases/lookup/"+leased.CredsPath(), "", "").Status)

	reply = r.ask(t, "POST", "sys/plugins/reload/backend", "", jsonOf(t, harness.Fields{"mounts": []string{r.m.Path}}))
	require.Equal(t, http.StatusOK, reply.Status, harness.Mask(reply.Body))
	for _, a := range []*harness.App{leased, unleased} {
		require.Equal(t, http.StatusOK, r.ask(t, "GET", a.CredsPath(), "", "").Status)
		r.learn(a)
	}
	r.ask(t, "GET", "sys/mounts", "", "")
	r.ask(t, "GET", "sys/mounts/"+r.m.Path, "", "")
	r.ask(t, "GET", "sys/internal/specs/openapi", "", "")
	r.ask(t, "GET", "sys/metrics?format=prometheus", "", "")
	r.ask(t, "GET", "sys/in-flight-req", "", "")
	r.ask(t, "GET", "sys/pprof/goroutine?debug=2", "", "")
	return leased, unleased
}

// processWatch keeps what the machine shows of its processes: the command lines of all, and the
// environment of Vault and its plugin.
type processWatch struct {
	v      *harness.VaultServer
	stop   func()
	seen   map[string]string // the text, and where it was
	rounds int
}

// watchProcesses looks again and again until it is stopped; what it saw is searched at the end,
// when all secrets are known.
func watchProcesses(t *testing.T, v *harness.VaultServer) *processWatch {
	t.Helper()
	w := &processWatch{v: v, seen: map[string]string{}}
	quit := make(chan struct{})
	server := v.Proc.PID()
	var loop sync.WaitGroup
	loop.Go(func() {
		for {
			w.look(server)
			select {
			case <-quit:
				return
			case <-time.After(50 * time.Millisecond): // a command of the CLI takes longer
			}
		}
	})
	w.stop = sync.OnceFunc(func() {
		close(quit)
		loop.Wait()
	})
	t.Cleanup(w.stop)
	return w
}

func (w *processWatch) look(server int) {
	w.rounds++
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	files = append(files, fmt.Sprintf("/proc/%d/environ", server))
	plugins, _ := subprocess.Children(server, w.v.PluginPath)
	for _, pid := range plugins {
		files = append(files, fmt.Sprintf("/proc/%d/environ", pid))
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil { // otherwise it has ended meanwhile
			w.seen[string(text)] = file
		}
	}
}

func (w *processWatch) search(t *testing.T, s *leakSearch) {
	t.Helper()
	w.stop()
	var all strings.Builder
	for text, where := range w.seen {
		all.WriteString(strings.ReplaceAll(text, "\x00", " ") + "\n")
		s.search(t, where, []byte(text))
	}
	for _, there := range []string{
		harness.VaultBin + " server", w.v.PluginPath, harness.VaultBin + " write", "VAULT_ADDR=" + w.v.Addr,
		"VAULT_PLUGIN_",
	} {
		assert.Contains(t, harness.Mask(all.String()), there, "what was seen")
	}
	assert.Greater(t, w.rounds, 10)
	t.Logf("%d command lines and environments searched, collected in %d rounds", len(w.seen), w.rounds)
}

func (r *leakRun) searchResponses(t *testing.T) {
	t.Helper()
	require.Greater(t, r.credsRead, 50, "responses of creds/ with a token")
	require.Greater(t, len(r.responses), 500)
	leaks := 0
	for _, a := range r.responses {
		if leaks < 10 && !r.search(t, "the response to "+a.to, []byte(a.text)) {
			leaks++
		}
	}
	t.Logf("%d responses searched for %d forms of %d secrets and tokens", len(r.responses), r.count, len(r.known))
}

// searchLogs searches Vault's log, which has the plugin's in it, and the audit log, and checks that
// they hold what they are searched for.
func (r *leakRun) searchLogs(t *testing.T) {
	t.Helper()
	log, err := os.ReadFile(r.v.LogPath())
	require.NoError(t, err)
	for _, there := range []string{
		"[TRACE]", "[DEBUG]", "fetched a token", "[WARN]", "plugin process exited", "goroutine ", "handle request",
		r.m.Path, "invalidParameter",
	} {
		require.Contains(t, string(log), there, "Vault's log")
	}
	r.search(t, "Vault's log", log)
	require.NotContains(t, string(log), "Unsolicited response", "what net/http says of surplus bytes, and repeats")

	audit, err := os.ReadFile(r.v.AuditPath())
	require.NoError(t, err)
	require.Greater(t, bytes.Count(audit, []byte("\n")), len(r.responses))
	r.search(t, "the audit log", withoutQueries(t, audit))
	t.Logf(
		"%d lines of log and %d audit entries searched",
		bytes.Count(log, []byte("\n")),
		bytes.Count(audit, []byte("\n")),
	)
}

// withoutQueries leaves the URL of each request out of an audit log: Vault writes it there as it
// came, query included, whatever an engine does. Keys of objects are not hashed either, so no test
// makes a secret one.
func withoutQueries(t *testing.T, audit []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for line := range bytes.Lines(audit) {
		var entry map[string]any
		harness.DecodeJSON(t, string(line), &entry)
		request, ok := entry["request"].(map[string]any)
		require.True(t, ok, "an audit entry has a request")
		delete(request, "request_uri")
		out.WriteString(jsonOf(t, entry) + "\n")
	}
	return out.Bytes()
}

// requireHashed checks that the audit log has the tokens and secrets of these apps as Vault hashes
// them.
func (r *leakRun) requireHashed(t *testing.T, apps ...*harness.App) {
	t.Helper()
	for _, a := range apps {
		token, secret := r.auditHash(t, a.DingTalk.LastToken(a.Key)), r.auditHash(t, a.Secret)
		var given, taken, rejected, shown int
		audit, err := os.ReadFile(r.v.AuditPath())
		require.NoError(t, err)
		for line := range bytes.Lines(audit) {
			var entry struct {
				Type    string
				Request struct {
					Path string
					Data map[string]any
				}
				Response struct{ Data map[string]any }
			}
			harness.DecodeJSON(t, string(line), &entry)
			switch {
			case entry.Type == "response" && entry.Response.Data["access_token"] == token:
				require.Contains(t, []string{a.CredsPath(), "sys/wrapping/unwrap"}, entry.Request.Path)
				given++
			case entry.Request.Data["app_secret"] == secret:
				require.Equal(t, a.ConfigPath(), entry.Request.Path)
				taken++
			case entry.Request.Data["rejected_token"] == token:
				require.Equal(t, a.RefreshPath(), entry.Request.Path)
				rejected++
			case strings.HasPrefix(entry.Request.Path, "sys/audit-hash/"): // from here
			case bytes.Contains(line, []byte(token)) || bytes.Contains(line, []byte(secret)):
				shown++
			}
		}
		require.GreaterOrEqual(t, given, 3, "responses of %s with the token's HMAC", a.CredsPath())
		require.GreaterOrEqual(t, taken, 2, "the request that stored the app, and its response, with the secret's HMAC")
		require.GreaterOrEqual(t, rejected, 2, "the request that rejects the token, and its response, with its HMAC")
		require.Zero(t, shown, "the HMACs stand nowhere else")
	}
}

func (r *leakRun) auditHash(t *testing.T, value string) string {
	t.Helper()
	secret, err := r.v.Root.Sys().AuditHash("file", value)
	require.NoError(t, err)
	require.Regexp(t, "^hmac-sha256:", secret)
	return secret
}

// searchFiles searches everything that Vault has on disk: its storage, logs and configuration.
func (r *leakRun) searchFiles(t *testing.T) {
	t.Helper()
	var files, size int
	err := filepath.WalkDir(r.v.Dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && (!entry.Type().IsRegular() || path == r.v.PluginPath) {
			return nil // gone meanwhile, or not a file of Vault's
		}
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if strings.HasPrefix(path, filepath.Join(r.v.Dir, "data")+"/") {
			files++
			size += len(content)
		}
		if path == r.v.AuditPath() {
			content = withoutQueries(t, content)
		}
		r.search(t, path, content)
		return nil
	})
	require.NoError(t, err)
	require.Positive(t, files, "files of storage")
	require.Greater(t, size, 50<<10, "bytes of storage")
	t.Logf("%d files of storage with %d bytes searched", files, size)
}
