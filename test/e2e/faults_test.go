// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Every way in which DingTalk, or a host in between, can respond badly: to a reader without a
// token, and to one whose token is due.

import (
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

const (
	// faultTimeout is the request_timeout of the apps here; a reader never waits longer than this, and
	// what a busy machine needs. That is well below the 10 s of an app that sets none.
	faultTimeout = time.Second
	faultBound   = faultTimeout + 3*time.Second

	// extraMemory is how much more memory the plugin may need for the worst of the responses.
	extraMemory = 16 << 20

	nextAttempt = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`
	requestID   = `(?i)request ?id\W+[0-9A-F]{8}-`
)

// faultCase is a fault and what a reader without a token gets from it.
type faultCase struct {
	name   string
	fault  simulator.Fault
	status int           // of the error; 0 is no error, since the response is good after all
	life   time.Duration // of the token of a good response
	says   []string      // regular expressions that the error must match
	banned bool          // the pause is the host's: only its end, or the end of the process, allows the next attempt
}

func faultCases() []faultCase {
	const denied = "Forbidden.AccessDenied."
	rejected := func(name string, fault simulator.Fault, says ...string) faultCase {
		return faultCase{name: name, fault: fault, status: http.StatusBadRequest, says: append(says, requestID)}
	}
	broken := func(name string, fault simulator.Fault, says ...string) faultCase {
		return faultCase{name: name, fault: fault, status: http.StatusBadGateway, says: append(says, nextAttempt)}
	}
	banned := func(name string, status int) faultCase {
		c := broken(name, simulator.Fault{Kind: simulator.FaultBanned, Status: status}, "(?i)ban", "(?i)egress IP")
		c.banned = true
		return c
	}
	throttled := func(code string) faultCase {
		return broken("throttled by "+code,
			simulator.Fault{Kind: simulator.FaultThrottledQPS, Code: denied + code}, "(?i)throttl", code, requestID)
	}
	expireIn := func(name, value string) faultCase {
		return broken(
			"expireIn "+name,
			simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: value},
			"(?i)not a token|malformed|expire",
		)
	}
	good := func(name, value string) faultCase {
		fault := simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: value}
		return faultCase{name: "expireIn " + name, fault: fault, life: day}
	}
	token := func(name, value string) faultCase {
		return broken("a token "+name, simulator.Fault{Kind: simulator.FaultToken, Token: value},
			"HTTP status 200", "accessToken is not 1 to 2048 visible ASCII characters")
	}
	const (
		tried    = ", 3 attempts"
		tooLong  = "the response is longer than 65536 bytes"
		tooSlow  = "no whole response within "
		notHTTP  = "the HTTP exchange failed, or the response is not HTTP" + tried
		okayHead = "HTTP/1.1 200 OK\r\n"
	)

	return []faultCase{
		rejected("rejected credentials", simulator.Fault{Kind: simulator.FaultRejectedCredentials},
			"invalidClientIdOrSecret", "无效的clientId或者clientSecret", "app_key", "app_secret", "base_url", "published"),
		rejected("rejected credentials in the gateway's spelling", simulator.Fault{Kind: simulator.FaultMixedCase},
			"invalidClientIdOrSecret", "无效的clientId或者clientSecret", "app_key"),
		rejected("invalid client", simulator.Fault{Kind: simulator.FaultInvalidClient},
			`DingTalk rejected the credentials.*invalid\.client`, "app_key", "base_url"),
		rejected("unauthorized client", simulator.Fault{Kind: simulator.FaultUnauthorizedClient},
			`DingTalk rejected the credentials.*unauthorized\.client`, "app_key", "base_url"),
		rejected("unauthorized client with 400", simulator.Fault{Kind: simulator.FaultUnauthorizedClient, Status: 400},
			`DingTalk rejected the credentials.*unauthorized\.client`),
		rejected("IP not allowed", simulator.Fault{Kind: simulator.FaultIPNotAllowed},
			denied+"IpNotInWhiteList", "访问ip不在白名单之中", "egress IP", "allow-list"),
		rejected("missing body", simulator.Fault{Kind: simulator.FaultMissingBody}, "Missingbody"),
		rejected(
			"permission denied",
			simulator.Fault{Kind: simulator.FaultPermissionDenied},
			denied+"AccessTokenPermissionDenied",
		),
		rejected("another 4xx", simulator.Fault{
			Kind: simulator.FaultError, Status: 409, Code: "conflict.somewhere", Message: "some conflict",
		}, `conflict\.somewhere`, "some conflict"),
		rejected(
			"an error that repeats the secrets",
			simulator.Fault{Kind: simulator.FaultEchoSecret},
			"invalidParameter",
		),

		throttled("QpsLimitForApi"),
		throttled("QpsLimitForAppkeyAndApi"),
		throttled("QpmLimitForAppkeyAndApi"),
		throttled("QpsLimitForSuitekeyAndOrgAndApi"),
		throttled("QpmLimitForSuitekeyAndOrgAndApi"),
		throttled("ApiCountLimitForOrg"),
		broken(
			"throttled by system.busy",
			simulator.Fault{Kind: simulator.FaultThrottledBusy},
			"(?i)throttl",
			`system\.busy`,
			requestID,
		),
		broken(
			"throttled by systemBusy",
			simulator.Fault{Kind: simulator.FaultThrottledBusy, Code: "systemBusy"},
			"(?i)throttl",
			"systemBusy",
		),
		broken("throttled by system.busy with 400",
			simulator.Fault{Kind: simulator.FaultThrottledBusy, Status: 400}, "(?i)throttl", `system\.busy`),
		broken(
			"throttled for some seconds",
			simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "3"},
			"(?i)throttl",
		),

		banned("banned", 0),
		banned("banned with 200", http.StatusOK),
		banned("banned with 503", http.StatusServiceUnavailable),

		broken("HTML page with 403", simulator.Fault{Kind: simulator.FaultHTML}, "HTML", "403", "(?i)ban"),
		broken("HTML page with 200", simulator.Fault{Kind: simulator.FaultHTML, Status: 200}, "HTML", "200"),
		broken("HTML page with 502", simulator.Fault{Kind: simulator.FaultHTML, Status: 502}, "502"),
		broken("unknownError",
			simulator.Fault{Kind: simulator.FaultUnavailableUnknown}, "500"+tried, "unknownError", requestID),
		broken("system.busy with 500", simulator.Fault{Kind: simulator.FaultUnavailableBusy},
			"could not serve the token request", "500"+tried, `system\.busy`, requestID),
		broken("server.error",
			simulator.Fault{Kind: simulator.FaultUnavailableServer}, "500"+tried, `server\.error`, requestID),
		broken("empty 503", simulator.Fault{Kind: simulator.FaultUnavailableEmpty}, "503"+tried),
		broken("empty 504", simulator.Fault{Kind: simulator.FaultUnavailableEmpty, Status: 504}, "504"),
		broken("503 for some seconds", simulator.Fault{Kind: simulator.FaultUnavailableEmpty, RetryAfter: "3"}, "503"),

		broken("truncated JSON", simulator.Fault{Kind: simulator.FaultTruncated}, "JSON"),
		broken("empty token", simulator.Fault{Kind: simulator.FaultEmptyToken}, "(?i)accessToken|empty"),
		broken("200 with errcode", simulator.Fault{Kind: simulator.FaultErrcode}, "404", "请求的URI地址不存在"),
		expireIn("missing", ""),
		expireIn("zero", "0"),
		expireIn("negative", "-1"),
		expireIn("the least of int64", strconv.FormatInt(math.MinInt64, 10)),
		expireIn("a string", `"7200"`),
		expireIn("null", "null"),
		expireIn("an object", "{}"),
		expireIn("over before it is here", "1"),
		good("the most of int64", strconv.FormatInt(math.MaxInt64, 10)),
		good("beyond int64", "9223372036854775808"),
		good("a float beyond everything", "1e300"),

		token("with a space", "two words"),
		token("with a line break", "a-token\nANOTHER_VARIABLE=1"),
		token("with a control character", "a-token\x1b[31m"),
		token("that is not ASCII", "钉钉"),
		token("of 2049 characters", strings.Repeat("t", 2049)),

		broken("a body of 100 MB", simulator.Fault{Kind: simulator.FaultHuge}, tooLong),
		broken("gzip bomb", simulator.Fault{Kind: simulator.FaultGzipBomb}, tooLong),
		broken("redirect", simulator.Fault{Kind: simulator.FaultRedirect}, "(?i)redirect"),
		broken("permanent redirect", simulator.Fault{Kind: simulator.FaultRedirect, Status: 308}, "(?i)redirect"),
		broken("no response", simulator.Fault{Kind: simulator.FaultHang}, tooSlow),
		broken("a response that is too late", simulator.Fault{Delay: 2 * faultBound}, tooSlow),
		broken("one byte a second", simulator.Fault{Kind: simulator.FaultTrickle}, tooSlow),
		broken("a reset connection", simulator.Fault{Kind: simulator.FaultReset}, "connection reset by peer"+tried),

		broken("101", simulator.Fault{Kind: simulator.FaultSwitchingProtocols}, "not a token: HTTP status 101"),
		broken("a status below 100", simulator.Fault{Kind: simulator.FaultStatus099}, "not a token: HTTP status 99"),
		broken("103 without end", simulator.Fault{Kind: simulator.FaultInformationalFlood}, notHTTP),
		broken("headers without end", simulator.Fault{Kind: simulator.FaultEndlessHeaders}, notHTTP),
		broken("a body without end", simulator.Fault{Kind: simulator.FaultEndlessBody}, tooLong),
		broken("a byte a second without end", simulator.Fault{Kind: simulator.FaultEndlessDrip}, tooSlow),
		broken("gzip without end", simulator.Fault{Kind: simulator.FaultEndlessGzip}, tooLong),
		broken("empty gzip members without end", simulator.Fault{Kind: simulator.FaultEndlessGzipEmpty}, tooLong),
		broken("a status line and silence", simulator.Fault{Kind: simulator.FaultRaw, Raw: okayHead}, tooSlow),
		broken("half a body and silence",
			simulator.Fault{Kind: simulator.FaultRaw, Raw: okayHead + "Content-Length: 100\r\n\r\n{"}, tooSlow),
		broken("chunks without end", simulator.Fault{
			Kind: simulator.FaultRaw, Raw: okayHead + "Transfer-Encoding: chunked\r\n\r\n", Repeat: "1\r\n \r\n",
		}, tooLong),
		broken("no HTTP, without end",
			simulator.Fault{Kind: simulator.FaultRaw, Raw: "SSH-2.0-OpenSSH_9.6\r\n", Repeat: "x"}, notHTTP),
		{name: "more than a response", fault: simulator.Fault{Kind: simulator.FaultSurplus}, life: harness.FullLifetime},
	}
}

// leadTo points a redirect to a host where nothing may ever arrive.
func (c *faultCase) leadTo(elsewhere *harness.DingTalk) {
	if c.fault.Kind == simulator.FaultRedirect {
		c.fault.Location = elsewhere.URL + simulator.TokenPath
	}
}

//nolint:tparallel // the subtests measure the memory of one process in turn
func TestFault_without_a_token_is_a_clear_error_and_then_a_token(t *testing.T) {
	t.Parallel()
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem, Audit: true})
	m := v.Enable(t)
	elsewhere := harness.StartDingTalk(t, harness.FullLifetime)

	for _, c := range faultCases() {
		c.leadTo(elsewhere)
		t.Run(c.name, func(t *testing.T) {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := m.NewApp(t, dt, harness.Fields{"request_timeout": faultTimeout.String()})
			dt.SetFault(a.Key, c.fault)
			require.Equal(t, "absent", a.Status(t)["state"])

			plugin := v.PluginPID(t)
			memory := newMemoryMeter(t, plugin)
			began := time.Now()
			secret, err := a.TryRead()
			took := time.Since(began)
			require.Less(t, took, faultBound)
			require.Less(t, memory.rise(t), int64(extraMemory), "bytes of extra memory")
			harness.NoteSecret(dt.LastToken(a.Key), "an access token")

			if c.status == 0 {
				require.NoError(t, err)
				harness.RequireSameToken(t, harness.TokenIn(secret), dt.LastToken(a.Key))
				require.InDelta(t, c.life.Seconds(), secret.LeaseDuration, 2, "a life beyond a day counts as a day")
				return
			}
			text := harness.Refused(t, err, c.status)
			require.Contains(t, text, a.Name)
			for _, words := range c.says {
				require.Regexp(t, words, text)
			}
			require.NotContains(t, text, "<html", "a body is never shown")
			calls := a.Calls()
			require.Positive(t, calls)
			require.LessOrEqual(t, calls, 3, "attempts within one fetch")

			// The next reader meets the remembered error at once.
			began = time.Now()
			_, err = a.TryRead()
			harness.Refused(t, err, c.status)
			require.Less(t, time.Since(began), faultBound)
			require.Equal(t, calls, a.Calls(), "no fetch for it")
			status := a.Status(t)
			require.Equal(t, "absent", status["state"])
			require.NotEmpty(t, status["last_error"])
			harness.AssertNoSecret(t, "the status", status["last_error"].(string))
			require.Equal(t, plugin, v.PluginPID(t), "the plugin's process lives")

			dt.ClearFaults()
			recoverFrom(t, c, a)
			harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key)) // the fault gone, there is a token
			require.Equal(t, calls+1, a.Calls())
			require.Equal(t, "fresh", a.Status(t)["state"])
		})
	}
	require.Zero(t, elsewhere.Requests("*"), "a redirect is never followed")
	require.NoError(t, v.FindLeaks())
	requireOneWarningEach(t, v)
}

// Several apps meet responses without an end, or nearly so, at once. What is read of it is bounded,
// so they take little memory together.
//
//nolint:tparallel // the subtests measure the memory of one process in turn
func TestFault_without_end_takes_little_memory(t *testing.T) {
	t.Parallel()
	const (
		appsAtOnce = 8
		most       = 64 << 20
	)
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	m := v.Enable(t)
	for _, kind := range []string{
		simulator.FaultHuge, simulator.FaultGzipBomb, simulator.FaultInformationalFlood,
		simulator.FaultEndlessHeaders, simulator.FaultEndlessBody, simulator.FaultEndlessDrip,
		simulator.FaultEndlessGzip, simulator.FaultEndlessGzipEmpty,
	} {
		t.Run(kind, func(t *testing.T) {
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			dt.SetFault(simulator.AnyApp, simulator.Fault{Kind: kind})
			memory := newMemoryMeter(t, v.PluginPID(t))
			var reading sync.WaitGroup
			for range appsAtOnce {
				a, client := m.NewApp(t, dt, harness.Fields{"request_timeout": faultTimeout.String()}), v.Client(t)
				reading.Go(func() {
					_, err := client.Logical().Read(a.CredsPath())
					var response *api.ResponseError
					if assert.ErrorAs(t, err, &response) {
						assert.Equal(t, http.StatusBadGateway, response.StatusCode, "%s", err)
					}
				})
			}
			reading.Wait()
			require.Less(t, memory.rise(t), int64(most), "bytes of extra memory")
			requireNoConnection(t, v.PluginPID(t), dt.URL)
		})
	}
}

// recoverFrom ends the wait for the next attempt as an operator would.
func recoverFrom(t *testing.T, c faultCase, a *harness.App) {
	t.Helper()
	calls := a.Calls()
	next := utcTime(t, a.Status(t)["next_attempt_at"])
	switch {
	case c.banned:
		require.InDelta(t, 300, time.Until(next).Seconds(), 10, "a ban lasts five minutes")
		other := a.Mount.NewApp(t, a.DingTalk, nil)
		_, err := other.TryRead()
		require.Regexp(t, "(?i)ban", harness.Refused(t, err, http.StatusBadGateway), "it hits every app on that host")
		tooSoon := a.RefreshNow(t)
		require.Regexp(t, "(?i)ban", strings.Join(tooSoon.Warnings, "\n"), "and refresh/ does not go past it")
		require.Equal(t, calls, a.DingTalk.Requests("*"))
		a.Mount.Reload(t)
	case c.fault.RetryAfter != "":
		require.NotEmpty(t, a.RefreshNow(t).Warnings)
		require.Equal(t, calls, a.Calls(), "refresh/ does not go past what DingTalk asked for")
		harness.WaitFor(t, 5*time.Second, "the time that DingTalk asked for is over", func() bool {
			return len(a.RefreshNow(t).Warnings) == 0
		})
	default:
		if c.status == http.StatusBadRequest {
			require.InDelta(t, 60, time.Until(next).Seconds(), 15, "what only a person can fix waits a minute")
		} else {
			require.InDelta(t, 5, time.Until(next).Seconds(), 5, "the first wait is about five seconds")
		}
		require.Equal(t, "fresh", a.RefreshNow(t).Data["state"], "refresh/ ignores the back-off")
	}
}

// requireOneWarningEach checks that the log reports once that an app's fetches
// fail.
func requireOneWarningEach(t *testing.T, v *harness.VaultServer) {
	t.Helper()
	data, err := os.ReadFile(v.LogPath())
	require.NoError(t, err)
	warnings := map[string]int{}
	for line := range strings.Lines(string(data)) {
		if !strings.Contains(line, "[WARN]") {
			continue
		}
		if _, after, found := strings.Cut(line, "app=app-"); found {
			name, _, _ := strings.Cut(after, " ")
			warnings[name]++
		}
	}
	require.NotEmpty(t, warnings)
	for name, count := range warnings {
		assert.Equal(t, 1, count, "warnings for app-%s", name)
	}
}

//nolint:tparallel // the subtests look at what one round of reads brought
func TestFault_with_a_due_token_serves_the_current_token(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	const window = lifetime / 4
	m := harness.NewMount(t)
	elsewhere := harness.StartDingTalk(t, harness.FullLifetime)

	type warm struct {
		faultCase
		*harness.App
		token string

		first, again       *api.Secret // the responses to two reads in a row
		firstErr, againErr error
		took, left         time.Duration // of the first read, and of the token after it
		tried              int           // calls upstream by then
	}
	var apps []*warm
	for _, c := range faultCases() {
		c.leadTo(elsewhere)
		// Without leases, as nothing refreshes a token then before it is due.
		a := m.NewApp(t, harness.StartDingTalk(t, lifetime), harness.Fields{
			"request_timeout": faultTimeout.String(), "leased": false,
		})
		apps = append(apps, &warm{faultCase: c, App: a})
	}
	var readers sync.WaitGroup
	for _, w := range apps { // all at once, so that they end together
		readers.Go(func() {
			if secret, err := w.TryRead(); assert.NoError(t, err) {
				w.token = harness.TokenIn(secret)
			}
		})
	}
	readers.Wait()
	for _, w := range apps {
		w.DingTalk.WaitForAge(t, w.token, window+900*time.Millisecond) // just due
	}

	for _, w := range apps {
		w.DingTalk.SetFault(w.Key, w.fault)
		readers.Go(func() {
			began := time.Now()
			w.first, w.firstErr = w.TryRead()
			w.took, w.left, w.tried = time.Since(began), w.DingTalk.Remaining(w.token), w.Calls()
			w.again, w.againErr = w.TryRead()
		})
	}
	readers.Wait()

	for _, w := range apps {
		t.Run(w.name, func(t *testing.T) {
			require.NoError(t, w.firstErr)
			require.Less(t, w.took, faultBound)
			harness.RequireSameToken(t, harness.TokenIn(w.first), w.token)
			require.Positive(t, w.left, "the token lives")
			require.Greater(t, w.tried, 1, "a refresh was tried")
			if w.status == 0 {
				require.Empty(t, w.first.Warnings)
				return
			}
			require.NotEmpty(t, w.first.Warnings, "the reader is warned")
			harness.AssertNoSecret(t, "a warning", strings.Join(w.first.Warnings, "\n"))
			require.LessOrEqual(t, harness.Seconds(t, w.first.Data["ttl"]), window)

			require.NoError(t, w.againErr)
			harness.RequireSameToken(t, harness.TokenIn(w.again), w.token)
			require.NotEmpty(t, w.again.Warnings)
			require.Equal(t, w.tried, w.Calls(), "the back-off holds")
		})
	}
	require.Zero(t, elsewhere.Requests("*"), "a redirect is never followed")
}
