// SPDX-License-Identifier: MPL-2.0

// Package fidelity compares a token API with what is known of DingTalk's. One table of checks runs
// against any base URL: against the simulator in the unit tests, so that it stays what it claims to
// be, and against DingTalk itself for whoever has an app to ask with. What came is shown next to
// what was expected, with every token and secret masked.
//
// This file runs the table and masks what it met; the table is in checks.go.
package fidelity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// pace is the pause before a call. DingTalk allows 20 calls a second for an app.
	pace = 500 * time.Millisecond

	// callTimeout bounds one call.
	callTimeout = 15 * time.Second

	// maxResponse bounds what is read of a response, in bytes.
	maxResponse = 64 << 10

	// maxShown bounds each text of a response that is shown, in bytes.
	maxShown = 120
)

// API is where to ask, and the app to ask with.
type API struct {
	// BaseURL is https://host[:port]; http:// is for loopback addresses only, since the secret is
	// sent there.
	BaseURL string
	// AppKey and AppSecret are the credentials of an internal app.
	AppKey, AppSecret string
	// CorpID is the corpId of the app's organization. Without it the unified call is left out.
	CorpID string
	// Transport makes the calls; nil is one of the package's own, with certificates verified and
	// the environment's proxy.
	Transport http.RoundTripper
}

// Row is the outcome of one check. Its texts hold no token and no secret.
type Row struct {
	// Call says what was sent, and Check what was looked at in the response.
	Call, Check string
	// Source says how the expectation is known; see the constants.
	Source Source
	// Want is what was expected, Got what came. They are the same text where all is well.
	Want, Got string
	// Detail is what else is worth knowing of what came, such as the request id.
	Detail string
}

// OK reports whether what came is what was expected.
func (r Row) OK() bool { return r.Want == r.Got }

// Run makes every call of the table once, in order and spaced, and returns a row for each check. A
// call without a response fails its checks and does not end the run. The error says what is wrong
// with the API's fields, or that the context ended.
func Run(ctx context.Context, api API) ([]Row, error) {
	base, err := checkAPI(api)
	if err != nil {
		return nil, err
	}
	transport := api.Transport
	if transport == nil {
		own := http.DefaultTransport.(*http.Transport).Clone()
		defer own.CloseIdleConnections()
		transport = own
	}
	r := &run{
		base:  base,
		api:   api,
		first: make(map[names]issued),
		http: &http.Client{
			Transport:     transport,
			Timeout:       callTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	r.hide(api.AppSecret, "<app secret>")
	r.hide(wrongSecret, "<wrong secret>")
	var rows []Row
	for i, c := range table(api) {
		if err := pause(ctx, i, c.after); err != nil {
			return rows, err
		}
		rows = append(rows, r.make(ctx, c)...)
	}
	return rows, nil
}

// corpIDForm keeps the path what it is.
var corpIDForm = regexp.MustCompile(`^[0-9A-Za-z]*$`)

func checkAPI(api API) (base string, err error) {
	var missing []string
	for _, field := range []struct{ name, value string }{
		{"BaseURL", api.BaseURL}, {"AppKey", api.AppKey}, {"AppSecret", api.AppSecret},
	} {
		if field.value == "" {
			missing = append(missing, field.name)
		}
	}
	if missing != nil {
		return "", fmt.Errorf("not given: %s", strings.Join(missing, ", "))
	}
	u, err := url.Parse(api.BaseURL)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" {
		return "", errors.New("the base URL is not https://host[:port]") // not shown: it may hold a password
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && !(u.Scheme == "http" && loopback) {
		return "", errors.New("the base URL is not https://host[:port]; the secret is not sent in clear text")
	}
	if !corpIDForm.MatchString(api.CorpID) {
		return "", errors.New("the CorpID is not letters and digits")
	}
	return u.Scheme + "://" + u.Host, nil
}

type run struct {
	base string
	api  API
	http *http.Client

	hidden    []hiddenText
	first     map[names]issued // the first good response of each call
	requestID []string         // of every response that had one
}

// names are those of the fields of a good response, by which the two calls are told apart.
type names struct{ token, lifetime string }

var (
	olderNames   = names{"accessToken", "expireIn"}
	unifiedNames = names{"access_token", "expires_in"}
	bothNames    = []names{olderNames, unifiedNames}
)

// issued is a token, and its lifetime as it was written.
type issued struct{ token, lifetime string }

type hiddenText struct{ form, name string }

// hide keeps a text out of every row, also where it is written in another way.
func (r *run) hide(text, name string) {
	if text == "" {
		return
	}
	plain, _ := json.Marshal(text)
	quoted := strconv.Quote(text)
	for _, form := range []string{
		text, url.QueryEscape(text), url.PathEscape(text), string(plain[1 : len(plain)-1]), quoted[1 : len(quoted)-1],
		base64.StdEncoding.EncodeToString([]byte(text)), base64.RawURLEncoding.EncodeToString([]byte(text)),
	} {
		r.hidden = append(r.hidden, hiddenText{form, name})
	}
	slices.SortStableFunc(r.hidden, func(a, b hiddenText) int { return len(b.form) - len(a.form) })
}

// show makes a text of a response fit to be printed: without what is hidden, in one line, and not
// too long.
func (r *run) show(text string) string {
	text = strings.Map(func(c rune) rune {
		switch {
		case c == utf8.RuneError:
			return -1
		case unicode.IsPrint(c):
			return c
		case unicode.IsSpace(c):
			return ' '
		}
		return -1
	}, text)
	for _, h := range r.hidden {
		text = strings.ReplaceAll(text, h.form, h.name)
	}
	if len(text) > maxShown {
		cut := maxShown
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "…"
	}
	return text
}

// pause waits before the call of the given number; the first needs no pause.
func pause(ctx context.Context, number int, after time.Duration) error {
	if number == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(max(pace, after))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// response is what one call brought.
type response struct {
	status int
	header http.Header
	size   int
	fields map[string]json.RawMessage // nil where the body is no JSON object
}

// text is a field's string, or its JSON where it is none; "" where there is no such field.
func (a *response) text(field string) string {
	var s string
	if json.Unmarshal(a.fields[field], &s) == nil {
		return s
	}
	return string(a.fields[field])
}

func (r *run) make(ctx context.Context, c call) []Row {
	a, err := r.ask(ctx, c)
	rows := make([]Row, 0, len(c.checks))
	for _, k := range c.checks {
		row := Row{Call: c.name, Check: k.name, Source: k.source, Want: k.want}
		if err != nil {
			row.Got = "no response: " + r.show(err.Error())
		} else {
			row.Got, row.Detail = k.look(r, a)
			row.Got, row.Detail = r.show(row.Got), r.show(row.Detail)
		}
		rows = append(rows, row)
	}
	if err == nil {
		r.remember(a)
	}
	return rows
}

func (r *run) ask(ctx context.Context, c call) (*response, error) {
	method, path := http.MethodPost, tokenPath
	if c.method != "" {
		method = c.method
	}
	if c.path != "" {
		path = c.path
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, strings.NewReader(c.body(r.api)))
	if err != nil {
		return nil, errors.New("the request cannot be made")
	}
	if c.contentType != "" {
		req.Header.Set("Content-Type", c.contentType)
	}
	res, err := r.http.Do(req)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // without the URL
		}
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxResponse))
	if err != nil {
		return nil, fmt.Errorf("the response broke off: %w", err)
	}
	a := &response{status: res.StatusCode, header: res.Header, size: len(body)}
	if json.Unmarshal(body, &a.fields) != nil {
		a.fields = nil
	}
	// Whatever holds a token is hidden before anything of the response is shown.
	for _, n := range bothNames {
		r.hide(a.text(n.token), "<token>")
	}
	return a, nil
}

func (r *run) remember(a *response) {
	for _, n := range bothNames {
		if token := a.text(n.token); r.first[n].token == "" && token != "" {
			r.first[n] = issued{token, string(a.fields[n.lifetime])}
		}
	}
	if id := a.text("requestid"); id != "" {
		r.requestID = append(r.requestID, id)
	}
}

// Fprint writes the rows as a table, those that differ marked, and a line that counts them.
func Fprint(w io.Writer, rows []Row) error {
	columns := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(columns, "\tCALL\tCHECK\tKNOWN FROM\tEXPECTED\tCAME")
	differ := 0
	for _, r := range rows {
		mark, came := "ok", r.Got
		if !r.OK() {
			mark = "DIFFERS"
			differ++
		}
		if r.Detail != "" {
			came += " (" + r.Detail + ")"
		}
		fmt.Fprintf(columns, "%s\t%s\t%s\t%s\t%s\t%s\n", mark, r.Call, r.Check, r.Source, r.Want, came)
	}
	if err := columns.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d checks, %d differ\n", len(rows), differ)
	return err
}
