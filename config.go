// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is an app's configuration: its fields with their defaults and limits, how a write
// changes them, when a write starts a new generation, and the record in storage.

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/logical"
)

// The fields of config/<app>.
const (
	fieldAppKey           = "app_key"
	fieldAppSecret        = "app_secret"
	fieldCorpID           = "corp_id"
	fieldBaseURL          = "base_url"
	fieldRefreshBefore    = "refresh_before"
	fieldRequestTimeout   = "request_timeout"
	fieldLeased           = "leased"
	fieldVerifyConnection = "verify_connection"

	// fieldAppSecretSetAt is returned by a read only.
	fieldAppSecretSetAt = "app_secret_set_at"
)

const (
	defaultBaseURL        = "https://api.dingtalk.io"
	defaultRefreshBefore  = 200 * time.Second // of 7,200 s; DingTalk recommends to cache a token for 7,000 s
	defaultRequestTimeout = 10 * time.Second

	maxRefreshBefore  = time.Hour
	minRequestTimeout = time.Second
	maxRequestTimeout = 30 * time.Second

	maxNameLength       = 128
	maxCredentialLength = 512
	maxCorpIDLength     = 64

	configPrefix = "config/"

	// entryVersion is the format of the stored entries that this release writes.
	entryVersion = 1
)

// appConfig is an app as an operator configured it.
type appConfig struct {
	// Generation identifies one set of credentials: it changes with app_key, app_secret, corp_id
	// and base_url. It is random, since a counter would start over when an app is deleted and
	// created again.
	Generation string
	AppKey     string
	AppSecret  sensitive
	CorpID     string // "" for none
	BaseURL    string // canonical: one host has one spelling

	// AppSecretSetAt is when AppSecret got its value, in RFC 3339; "" in entries of version 0.1.0.
	AppSecretSetAt string

	RefreshBefore  time.Duration
	RequestTimeout time.Duration
	Leased         bool
}

// withoutSecret returns the part that is kept in memory.
func (c *appConfig) withoutSecret() *appConfig {
	bare := *c
	bare.AppSecret = sensitive{}
	return &bare
}

func (c *appConfig) credentials() credentials {
	return credentials{BaseURL: c.BaseURL, AppKey: c.AppKey, CorpID: c.CorpID, AppSecret: c.AppSecret}
}

// equal reports whether two configurations are the same. Either may be nil for none.
func (c *appConfig) equal(other *appConfig) bool {
	if c == nil || other == nil {
		return c == other
	}
	return c.AppSecret.reveal() == other.AppSecret.reveal() && *c.withoutSecret() == *other.withoutSecret()
}

// configChange is one write to config/<app>. A field that the write does not name is nil.
type configChange struct {
	appKey         *string
	appSecret      *sensitive
	corpID         *string
	baseURL        *string
	refreshBefore  *time.Duration
	requestTimeout *time.Duration
	leased         *bool

	// verify is not stored.
	verify *bool
}

// inputError is an invalid request. Its text says what is wrong and what is allowed. It never holds
// a secret.
type inputError struct{ text string }

func (e *inputError) Error() string { return e.text }

func badInput(format string, args ...any) error {
	return &inputError{text: fmt.Sprintf(format, args...)}
}

// parseChange reads the fields of a write to config/<app>.
func parseChange(raw map[string]any) (*configChange, error) {
	p := &parser{raw: raw}
	c := &configChange{}
	// A secret that is not a string must be refused before any error can repeat it.
	if secret := p.credential(fieldAppSecret, maxCredentialLength, "\n", "\r"); secret != nil {
		c.appSecret = &sensitive{text: secret}
	}
	c.appKey = p.credential(fieldAppKey, maxCredentialLength)
	c.corpID = p.corpID(fieldCorpID)
	if base := p.string(fieldBaseURL); base != nil {
		canonical, err := parseBaseURL(*base)
		c.baseURL, p.err = &canonical, cmp.Or(p.err, err)
	}
	c.refreshBefore = p.duration(fieldRefreshBefore, 0, maxRefreshBefore)
	c.requestTimeout = p.duration(fieldRequestTimeout, minRequestTimeout, maxRequestTimeout)
	c.leased = p.bool(fieldLeased)
	c.verify = p.bool(fieldVerifyConnection)
	return c, p.err
}

// parser reads fields from a request's raw data. The framework's own conversion takes "" and 500ms
// for 0, and its errors repeat what it cannot convert. Each method returns nil for a field that is
// not given or not valid; err is the first error.
type parser struct {
	raw map[string]any
	err error
}

func (p *parser) refuse(field, format string, args ...any) {
	p.err = cmp.Or(p.err, badInput("%s: "+format, append([]any{field}, args...)...))
}

// string never shows the value: what is not a string may be a secret in the wrong place.
func (p *parser) string(field string) *string {
	v, given := p.raw[field]
	if !given {
		return nil
	}
	s, ok := v.(string)
	if !ok {
		p.refuse(field, "expected one string, got %s", kindOf(v))
		return nil
	}
	return &s
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case []any, []string:
		return "a list (is the field given more than once?)"
	case map[string]any:
		return "an object"
	default:
		return "a number"
	}
}

// credential reads a key, a secret or a token, and cuts each of the endings once.
func (p *parser) credential(field string, longest int, endings ...string) *string {
	given := p.string(field)
	if given == nil {
		return nil
	}
	value := *given
	for _, ending := range endings {
		value = strings.TrimSuffix(value, ending)
	}
	allowed := fmt.Sprintf("allowed are 1 to %d printable ASCII characters without spaces", longest)
	bad := strings.IndexFunc(value, func(r rune) bool { return r <= ' ' || r > '~' })
	switch {
	case value == "":
		p.refuse(field, "empty; %s", allowed)
	case len(value) > longest:
		p.refuse(field, "%d bytes long; %s", len(value), allowed)
	case bad >= 0:
		p.refuse(field, "the byte at position %d is a space, a control character or not ASCII; %s", bad+1, allowed)
	}
	return &value
}

// corpID reads the id of an organization, or "" for none.
func (p *parser) corpID(field string) *string {
	given := p.string(field)
	if given != nil && (len(*given) > maxCorpIDLength || strings.ContainsFunc(*given, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9')
	})) {
		p.refuse(field, "%s given; allowed are 1 to 64 letters and digits, or an empty string for none", p.shown(*given))
	}
	return given
}

// longestDuration is the longest time.Duration in whole seconds: 292 years.
const longestDuration = math.MaxInt64 - math.MaxInt64%time.Second

// scalar returns a string, a number or a boolean as a string. given is false if the field is absent
// or of another type.
func (p *parser) scalar(field, allowed string) (text string, given bool) {
	v, given := p.raw[field]
	switch v := v.(type) {
	case nil, []any, []string, map[string]any:
		if given {
			p.refuse(field, "got %s; %s", kindOf(v), allowed)
		}
		return "", false
	case float64: // as Vault passes a JSON number
		return strconv.FormatFloat(v, 'f', -1, 64), true
	default:
		return fmt.Sprint(v), true
	}
}

// duration reads a duration of whole seconds: a number, or a string in Vault's usual format (200,
// 200s, 5m).
func (p *parser) duration(field string, least, most time.Duration) *time.Duration {
	end, example := "to "+short(most), short(most)
	if most == longestDuration {
		end, example = "on", "30m"
	}
	allowed := fmt.Sprintf("allowed is a duration of whole seconds from %s %s, such as %q", short(least), end, example)
	text, given := p.scalar(field, allowed)
	if !given {
		return nil
	}
	d, err := parseutil.ParseDurationSecond(text)
	if n, nan := strconv.ParseFloat(text, 64); nan == nil && math.Abs(n) > longestDuration.Seconds() {
		err = strconv.ErrRange // the library does not check for an overflow
	}
	if text == "" || err != nil || d%time.Second != 0 || d < least || d > most {
		p.refuse(field, "%s given; %s", p.shown(text), allowed)
	}
	return &d
}

// bool reads a boolean, or a string or a number in Vault's usual format ("true", 0).
func (p *parser) bool(field string) *bool {
	const allowed = "allowed are true and false"
	text, given := p.scalar(field, allowed)
	if !given {
		return nil
	}
	b, err := strconv.ParseBool(text)
	if err != nil {
		p.refuse(field, "%s given; %s", p.shown(text), allowed)
	}
	return &b
}

// shown returns a refused value for an error. A value that is as long as a secret may be one in the
// wrong field, and Vault writes errors in clear to its audit log.
func (p *parser) shown(text string) string {
	const longest = 24
	secret, _ := p.raw[fieldAppSecret].(string)
	if len(text) > longest || text != "" && strings.TrimSpace(text) == strings.TrimSpace(secret) {
		return fmt.Sprintf("a value of %d bytes", len(text))
	}
	return strconv.Quote(text)
}

var zeroParts = regexp.MustCompile(`([hm])(0m)?0s$`)

// short prints a duration without its zero parts: 1h, not 1h0m0s.
func short(d time.Duration) string { return zeroParts.ReplaceAllString(d.String(), "$1") }

var (
	baseURLPattern = regexp.MustCompile(`^([A-Za-z]+)://(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::([0-9]*))?/?$`)

	// numberLabel is a last label that some resolvers take for part of an IPv4 address.
	numberLabel = regexp.MustCompile(`(^|\.)(0x[0-9a-f]*|[0-9]+)$`)
)

// parseBaseURL returns the canonical form of a base URL, so that a ban finds all apps of a host:
// scheme and host in lower case, the port without leading zeros and without the scheme's default,
// IPv6 in its shortest form, no path.
func parseBaseURL(given string) (string, error) {
	refuse := func(why string) (string, error) {
		shown := strconv.Quote(given)
		switch end := strings.IndexAny(given, "?#"); {
		case given != "" && !strings.Contains(given, "://"), strings.Contains(given, "@"):
			shown = "a value that may hold a secret"
		case len(shown) > maxShownText:
			shown = fmt.Sprintf("a value of %d bytes", len(given))
		case end >= 0:
			shown = strconv.Quote(given[:end] + "…")
		}
		return "", badInput("%s: %s given: %s; allowed is https://host[:port] without a path, user info, query or fragment; "+
			"http:// only for localhost, 127.0.0.0/8 and [::1]", fieldBaseURL, shown, why)
	}
	parts := baseURLPattern.FindStringSubmatch(given)
	if parts == nil {
		return refuse("it is not of that form")
	}
	scheme, host, port := strings.ToLower(parts[1]), strings.ToLower(parts[2]), parts[3]
	address, notAnAddress := netip.ParseAddr(strings.Trim(host, "[]"))
	n, err := strconv.Atoi(cmp.Or(port, "443"))
	switch {
	case scheme != "https" && scheme != "http":
		return refuse("its scheme is not https")
	case scheme == "http" && host != "localhost" && (!address.IsLoopback() || address.Is4In6()):
		return refuse("http:// would send the secret in clear text")
	case strings.HasSuffix(host, "."):
		return refuse("its host ends in a dot")
	case strings.HasPrefix(host, "[") != address.Is6(), notAnAddress != nil && !isHostName(host):
		return refuse("its host is not a name or an address")
	case err != nil || n < 1 || n > 65535:
		return refuse("its port is not one of 1 to 65535")
	}
	switch {
	case address.Unmap().Is6():
		host = "[" + address.String() + "]"
	case notAnAddress == nil:
		host = address.Unmap().String()
	}
	if port != "" && n != map[string]int{"http": 80, "https": 443}[scheme] {
		host = fmt.Sprintf("%s:%d", host, n)
	}
	return scheme + "://" + host, nil
}

// isHostName reports whether a host of letters, digits, dots, hyphens and underscores is a host
// name.
func isHostName(host string) bool {
	return len(host) <= 253 && !strings.HasPrefix(host, ".") && !strings.Contains(host, "..") &&
		!numberLabel.MatchString(host)
}

// apply applies the change to the present configuration, which is nil for a new app. It reports
// whether that starts a new generation.
func (c *configChange) apply(name string, present *appConfig) (next *appConfig, starts bool, err error) {
	next = &appConfig{
		BaseURL:        defaultBaseURL,
		RefreshBefore:  defaultRefreshBefore,
		RequestTimeout: defaultRequestTimeout,
		Leased:         true,
	}
	switch {
	case present == nil && (c.appKey == nil || c.appSecret == nil):
		return nil, false, badInput("app %q does not exist yet: to create it, %s and %s are required",
			name, fieldAppKey, fieldAppSecret)
	case present == nil:
	case c.appSecret != nil && c.baseURL == nil && !isDingTalk(present.BaseURL):
		// This keeps someone who may write config/ from moving the app to a host they control, with
		// a made-up secret, and receiving the next real one from the operator who rotates it.
		return nil, false, badInput("app %q: a write with %s must name %s too, since the stored one, %s, is not "+
			"one of DingTalk's hosts", name, fieldAppSecret, fieldBaseURL, present.BaseURL)
	default:
		*next = *present
	}
	set(&next.AppKey, c.appKey)
	set(&next.AppSecret, c.appSecret)
	set(&next.CorpID, c.corpID)
	set(&next.BaseURL, c.baseURL)
	set(&next.RefreshBefore, c.refreshBefore)
	set(&next.RequestTimeout, c.requestTimeout)
	set(&next.Leased, c.leased)

	sameSecret := present != nil && next.AppSecret.reveal() == present.AppSecret.reveal()
	if !sameSecret {
		next.AppSecretSetAt = timestamp(time.Now())
	}
	if present != nil {
		moved := next.BaseURL != present.BaseURL || next.AppKey != present.AppKey
		if moved && c.appSecret == nil {
			// This keeps someone who doesn't know the secret from sending it to a host they
			// control.
			return nil, false, badInput("app %q: changing %s or %s requires %s in the same request",
				name, fieldBaseURL, fieldAppKey, fieldAppSecret)
		}
		if !moved && sameSecret && next.CorpID == present.CorpID {
			return next, false, nil
		}
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	next.Generation = hex.EncodeToString(id)
	return next, true, nil
}

func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

// configRecord is config/<app> in storage. Durations are whole seconds.
type configRecord struct {
	Version        int    `json:"version"`
	Generation     string `json:"generation"`
	AppKey         string `json:"app_key"`
	AppSecret      string `json:"app_secret"`
	AppSecretSetAt string `json:"app_secret_set_at,omitempty"`
	CorpID         string `json:"corp_id,omitempty"`
	BaseURL        string `json:"base_url"`
	RefreshBefore  int64  `json:"refresh_before"`
	RequestTimeout int64  `json:"request_timeout"`
	Leased         bool   `json:"leased"`
}

// readConfig returns an app's configuration, or nil if the app does not exist.
func readConfig(ctx context.Context, s logical.Storage, name string) (*appConfig, error) {
	stored, err := s.Get(ctx, configPrefix+name)
	if err != nil {
		return nil, fmt.Errorf("app %q: reading its configuration from storage: %w", name, err)
	}
	if stored == nil {
		return nil, nil //nolint:nilnil // documented above
	}
	var r configRecord
	if err := decodeRecord(stored, &r, &r.Version); err != nil {
		return nil, fmt.Errorf("app %q: its configuration in storage: %w", name, err)
	}
	if canonical, err := parseBaseURL(r.BaseURL); err == nil { // version 0.1.0 stored it as given
		r.BaseURL = canonical
	}
	return &appConfig{
		Generation:     r.Generation,
		AppKey:         r.AppKey,
		AppSecret:      newSensitive(r.AppSecret),
		AppSecretSetAt: r.AppSecretSetAt,
		CorpID:         r.CorpID,
		BaseURL:        r.BaseURL,
		RefreshBefore:  time.Duration(r.RefreshBefore) * time.Second,
		RequestTimeout: time.Duration(r.RequestTimeout) * time.Second,
		Leased:         r.Leased,
	}, nil
}

func writeConfig(ctx context.Context, s logical.Storage, name string, c *appConfig) error {
	err := putRecord(ctx, s, configPrefix+name, configRecord{
		Version:        entryVersion,
		Generation:     c.Generation,
		AppKey:         c.AppKey,
		AppSecret:      c.AppSecret.reveal(),
		AppSecretSetAt: c.AppSecretSetAt,
		CorpID:         c.CorpID,
		BaseURL:        c.BaseURL,
		RefreshBefore:  int64(c.RefreshBefore / time.Second),
		RequestTimeout: int64(c.RequestTimeout / time.Second),
		Leased:         c.Leased,
	})
	if err != nil {
		return fmt.Errorf("app %q: writing its configuration to storage: %w", name, err)
	}
	return nil
}

// knownVersions are the formats of stored entries that this release reads.
var knownVersions = []int{1}

// decodeRecord decodes a stored record. Its errors never show the content.
func decodeRecord(stored *logical.StorageEntry, into any, version *int) error {
	if err := json.Unmarshal(stored.Value, into); err != nil {
		return errors.New("the entry is not readable: it is not what this engine writes")
	}
	if !slices.Contains(knownVersions, *version) {
		return fmt.Errorf("the entry has version %d, this release reads %v: it was written by a later release, "+
			"or not by this engine", *version, knownVersions)
	}
	return nil
}

func putRecord(ctx context.Context, s logical.Storage, key string, record any) error {
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return s.Put(ctx, &logical.StorageEntry{Key: key, Value: value, SealWrap: true})
}
