// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file is what is stored of an app: its fields with their defaults and limits, how a write
// changes them, when a write starts a new generation, and the record.

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
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
	fieldBaseURL          = "base_url"
	fieldRefreshBefore    = "refresh_before"
	fieldRequestTimeout   = "request_timeout"
	fieldLeased           = "leased"
	fieldVerifyConnection = "verify_connection"
)

const (
	defaultBaseURL        = "https://api.dingtalk.io"
	defaultRefreshBefore  = 200 * time.Second // 7,200 s minus the 7,000 s that DingTalk advises to cache a token for
	defaultRequestTimeout = 10 * time.Second

	maxRefreshBefore  = time.Hour
	minRequestTimeout = time.Second
	maxRequestTimeout = 30 * time.Second

	maxNameLength       = 128
	maxCredentialLength = 512

	configPrefix = "config/"

	// entryVersion is the form of stored entries that this release writes.
	entryVersion = 1
)

// appConfig is an app as an operator configured it.
type appConfig struct {
	// Generation stands for one set of credentials: it changes with app_key, app_secret and
	// base_url. It is random, since a counter would start over when an app is deleted and made
	// again.
	Generation string
	AppKey     string
	AppSecret  sensitive
	BaseURL    string // canonical: one host has one spelling

	RefreshBefore  time.Duration
	RequestTimeout time.Duration
	Leased         bool
}

// withoutSecret is what memory holds of it.
func (c *appConfig) withoutSecret() *appConfig {
	bare := *c
	bare.AppSecret = sensitive{}
	return &bare
}

func (c *appConfig) credentials() credentials {
	return credentials{BaseURL: c.BaseURL, AppKey: c.AppKey, AppSecret: c.AppSecret}
}

// equal reports whether two configurations, either of which may be nil for none, are the same.
func (c *appConfig) equal(other *appConfig) bool {
	if c == nil || other == nil {
		return c == other
	}
	return c.AppSecret.reveal() == other.AppSecret.reveal() && *c.withoutSecret() == *other.withoutSecret()
}

// configChange is what one write to config/<app> asks for; nil is a field that it does not name.
type configChange struct {
	appKey         *string
	appSecret      *sensitive
	baseURL        *string
	refreshBefore  *time.Duration
	requestTimeout *time.Duration
	leased         *bool

	// verify is of the request only.
	verify *bool
}

// inputError is a request that cannot be met as it stands. Its text names what is wrong and what is
// allowed, never a secret.
type inputError struct{ text string }

func (e *inputError) Error() string { return e.text }

func badInput(format string, args ...any) error {
	return &inputError{text: fmt.Sprintf(format, args...)}
}

// parseChange reads the fields of a write to config/<app>. It works on the request's raw data,
// since the framework's own conversion takes "" and 500ms for 0 and repeats in its error what it
// cannot convert.
func parseChange(raw map[string]any) (*configChange, error) {
	c := &configChange{}
	// A secret that is not a string must be refused before anything can repeat it.
	secret, err := credentialField(raw, fieldAppSecret, "\n", "\r")
	if err != nil {
		return nil, err
	}
	if secret != nil {
		c.appSecret = &sensitive{text: secret}
	}
	if c.appKey, err = credentialField(raw, fieldAppKey); err != nil {
		return nil, err
	}
	if base, given, err := stringField(raw, fieldBaseURL); err != nil {
		return nil, err
	} else if given {
		base, err := parseBaseURL(base)
		if err != nil {
			return nil, err
		}
		c.baseURL = &base
	}
	if c.refreshBefore, err = durationField(raw, fieldRefreshBefore, 0, maxRefreshBefore); err != nil {
		return nil, err
	}
	if c.requestTimeout, err = durationField(raw, fieldRequestTimeout, minRequestTimeout, maxRequestTimeout); err != nil {
		return nil, err
	}
	if c.leased, err = boolField(raw, fieldLeased); err != nil {
		return nil, err
	}
	if c.verify, err = boolField(raw, fieldVerifyConnection); err != nil {
		return nil, err
	}
	return c, nil
}

// stringField never repeats the value in its error: what is not a string may be a secret in the
// wrong place.
func stringField(raw map[string]any, field string) (value string, given bool, err error) {
	v, given := raw[field]
	if !given {
		return "", false, nil
	}
	value, ok := v.(string)
	if !ok {
		return "", false, badInput("%s: expected one string, got %s", field, kindOf(v))
	}
	return value, true, nil
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

// credentialField reads app_key or app_secret, of which each of the endings is cut once.
func credentialField(raw map[string]any, field string, endings ...string) (*string, error) {
	value, given, err := stringField(raw, field)
	if err != nil || !given {
		return nil, err
	}
	for _, ending := range endings {
		value = strings.TrimSuffix(value, ending)
	}
	const allowed = "allowed are 1 to 512 printable ASCII characters without spaces"
	switch {
	case value == "":
		return nil, badInput("%s: empty; %s", field, allowed)
	case len(value) > maxCredentialLength:
		return nil, badInput("%s: %d bytes long; %s", field, len(value), allowed)
	}
	for i := range len(value) {
		if value[i] <= ' ' || value[i] > '~' {
			return nil, badInput("%s: the byte at position %d is a space, a control character or not ASCII; %s",
				field, i+1, allowed)
		}
	}
	return &value, nil
}

// longestDuration is the longest that there is in whole seconds: 292 years.
const longestDuration = math.MaxInt64 - math.MaxInt64%time.Second

// durationField reads a duration of whole seconds: a number, or a string as Vault takes them
// everywhere (200, 200s, 5m).
func durationField(raw map[string]any, field string, least, most time.Duration) (*time.Duration, error) {
	v, given := raw[field]
	if !given {
		return nil, nil //nolint:nilnil // not given is not an error
	}
	end, example := "to "+short(most), short(most)
	if most == longestDuration {
		end, example = "on", "30m"
	}
	allowed := fmt.Sprintf("allowed is a duration of whole seconds from %s %s, such as %q",
		short(least), end, example)
	var shown string
	switch v := v.(type) {
	case nil, bool, []any, []string, map[string]any:
		return nil, badInput("%s: got %s; %s", field, kindOf(v), allowed)
	case float64: // what a JSON number is on its way through Vault
		shown = strconv.FormatFloat(v, 'f', -1, 64)
	default:
		shown = fmt.Sprint(v)
	}
	d, err := parseutil.ParseDurationSecond(shown)
	if n, nan := strconv.ParseFloat(shown, 64); nan == nil && math.Abs(n) > longestDuration.Seconds() {
		err = strconv.ErrRange // which the library multiplies without a look
	}
	if shown == "" || err != nil || d%time.Second != 0 || d < least || d > most {
		return nil, badInput("%s: %s given; %s", field, refused(raw, shown), allowed)
	}
	return &d, nil
}

// short prints a duration without its zero parts: 1h, not 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// refused is a value as the error that refuses it shows it. What is as long as a secret may be one
// in the wrong field, and Vault writes errors in clear to its audit log.
func refused(raw map[string]any, value string) string {
	const longest = 24
	secret, _ := raw[fieldAppSecret].(string)
	if len(value) > longest || value != "" && strings.TrimSpace(value) == strings.TrimSpace(secret) {
		return fmt.Sprintf("a value of %d bytes", len(value))
	}
	return strconv.Quote(value)
}

func boolField(raw map[string]any, field string) (*bool, error) {
	v, given := raw[field]
	if !given {
		return nil, nil //nolint:nilnil // not given is not an error
	}
	const allowed = "allowed are true and false"
	switch v := v.(type) {
	case bool:
		return &v, nil
	case string, json.Number, float64, int:
		shown := fmt.Sprint(v)
		b, err := strconv.ParseBool(shown)
		if err != nil {
			return nil, badInput("%s: %s given; %s", field, refused(raw, shown), allowed)
		}
		return &b, nil
	default:
		return nil, badInput("%s: got %s; %s", field, kindOf(v), allowed)
	}
}

// parseBaseURL returns the canonical form of a base URL, so that one host is one host to a ban:
// scheme and host in lower case, the port without leading zeros and left out where it is the
// scheme's own, IPv6 in its shortest form, no path.
func parseBaseURL(given string) (string, error) {
	const allowed = "allowed is https://host[:port] without a path, user info, query or fragment; " +
		"http:// only for localhost, 127.0.0.0/8 and [::1]"
	refuse := func(why string) (string, error) {
		shown := strconv.Quote(given)
		switch end := strings.IndexAny(given, "?#"); {
		case given != "" && !strings.Contains(given, "://"), strings.Contains(given, "@"):
			shown = "a value that may hold a secret"
		case end >= 0:
			shown = strconv.Quote(given[:end] + "…")
		}
		if len(shown) > maxShownText {
			shown = fmt.Sprintf("a value of %d bytes", len(given))
		}
		return "", badInput("%s: %s given: %s; %s", fieldBaseURL, shown, why, allowed)
	}
	switch {
	case given == "":
		return refuse("it is empty")
	case len(given) > maxCredentialLength:
		return refuse(fmt.Sprintf("it is longer than %d bytes", maxCredentialLength))
	case strings.ContainsFunc(given, func(r rune) bool { return r <= ' ' || r > '~' }):
		return refuse("it has a space, a control character or a character that is not ASCII")
	case strings.ContainsAny(given, `\%?#@`):
		return refuse(`it has one of the characters \ % ? # @`)
	}
	u, err := url.Parse(given)
	if err != nil {
		return refuse("it is not a URL")
	}
	host := strings.ToLower(u.Hostname())
	address, notAnAddress := netip.ParseAddr(host)
	switch {
	case u.Opaque != "" || host == "":
		return refuse("it has no host")
	case strings.Contains(host, ":") != strings.HasPrefix(u.Host, "["):
		return refuse("an IPv6 address needs brackets")
	case u.Path != "" && u.Path != "/":
		return refuse("it has a path")
	case u.Scheme != "https" && u.Scheme != "http":
		return refuse("its scheme is not https")
	case u.Scheme == "http" && host != "localhost" && (!address.IsLoopback() || address.Is4In6()):
		return refuse("http:// would send the secret in clear text")
	case strings.HasSuffix(host, "."):
		return refuse("its host ends in a dot")
	case notAnAddress != nil && !isHostName(host):
		return refuse("its host is not a name or an address")
	}
	if notAnAddress == nil {
		host = address.Unmap().String()
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := u.Port(); port != "" {
		n, err := strconv.Atoi(port)
		if err != nil || n < 1 || n > 65535 {
			return refuse("its port is not one of 1 to 65535")
		}
		if n != map[string]int{"http": 80, "https": 443}[u.Scheme] {
			host = fmt.Sprintf("%s:%d", host, n)
		}
	}
	return u.Scheme + "://" + host, nil
}

// numberLabel is a last label that makes a host an IPv4 address to some resolvers, in a spelling of
// its own.
var numberLabel = regexp.MustCompile(`(^|\.)(0x[0-9a-f]*|[0-9]+)$`)

// isHostName allows letters, digits, dots, hyphens and underscores.
func isHostName(host string) bool {
	return len(host) <= 253 && !strings.HasPrefix(host, ".") && !strings.Contains(host, "..") &&
		!numberLabel.MatchString(host) && !strings.ContainsFunc(host, func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '.' || r == '-' || r == '_')
	})
}

// apply returns what the change makes of the present configuration, nil for a new app, and whether
// that starts a new generation.
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
		// Otherwise whoever may write config/ could move the app to a host of theirs, with a junk
		// secret, and be sent the next real one by the operator who rotates it.
		return nil, false, badInput("app %q: a write with %s must name %s too, since the stored one, %s, is not "+
			"one of DingTalk's hosts", name, fieldAppSecret, fieldBaseURL, present.BaseURL)
	default:
		*next = *present
	}
	set(&next.AppKey, c.appKey)
	set(&next.AppSecret, c.appSecret)
	set(&next.BaseURL, c.baseURL)
	set(&next.RefreshBefore, c.refreshBefore)
	set(&next.RequestTimeout, c.requestTimeout)
	set(&next.Leased, c.leased)

	if present != nil {
		moved := next.BaseURL != present.BaseURL || next.AppKey != present.AppKey
		if moved && c.appSecret == nil {
			// Otherwise whoever may write config/ could have the stored secret sent to a host of
			// theirs.
			return nil, false, badInput("app %q: changing %s or %s requires %s in the same request",
				name, fieldBaseURL, fieldAppKey, fieldAppSecret)
		}
		if !moved && next.AppSecret.reveal() == present.AppSecret.reveal() {
			return next, false, nil
		}
	}
	next.Generation, err = newGeneration()
	return next, true, err
}

func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

func newGeneration() (string, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	return hex.EncodeToString(id), nil
}

// configRecord is config/<app> in storage. Durations are whole seconds.
type configRecord struct {
	Version        int    `json:"version"`
	Generation     string `json:"generation"`
	AppKey         string `json:"app_key"`
	AppSecret      string `json:"app_secret"`
	BaseURL        string `json:"base_url"`
	RefreshBefore  int64  `json:"refresh_before"`
	RequestTimeout int64  `json:"request_timeout"`
	Leased         bool   `json:"leased"`
}

// readConfig reads an app's configuration; nil without an error is an app that does not exist.
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
	if canonical, err := parseBaseURL(r.BaseURL); err == nil { // which earlier releases did not store
		r.BaseURL = canonical
	}
	return &appConfig{
		Generation:     r.Generation,
		AppKey:         r.AppKey,
		AppSecret:      newSensitive(r.AppSecret),
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

// knownVersions are the forms of stored entries that this release reads.
var knownVersions = []int{1}

// decodeRecord reads a stored record. Its errors hold nothing of the content.
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
