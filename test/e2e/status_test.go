// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// What programs and the person on call learn: the status after failures, the log, and when a secret
// was last set.

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// failureFields are those of a status that are there only while fetches fail.
var failureFields = []string{
	"last_error", "last_error_at", "last_error_class", "last_error_code", "last_error_request_id",
	"failing_since", "consecutive_failures", "next_attempt_at",
}

func TestStatus_says_for_programs_what_fetches_fail_with_until_one_works(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)

	dt.SetFault(a.key, simulator.Fault{Kind: simulator.FaultThrottledQPS})
	_, err := a.tryRead()
	text := refused(t, err, http.StatusBadGateway)
	first := a.status(t)
	require.Equal(t, "throttled", first["last_error_class"])
	require.Equal(t, "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi", first["last_error_code"])
	require.NotEmpty(t, first["last_error_request_id"])
	require.Contains(t, text, first["last_error_request_id"], "as in the error")
	require.Equal(t, json.Number("1"), first["consecutive_failures"])
	require.Equal(t, first["last_error_at"], first["failing_since"])
	since := utcTime(t, first["failing_since"])
	waitFor(t, 5*time.Second, "the clock shows another second", func() bool {
		return time.Now().After(since.Add(time.Second))
	})

	dt.SetFault(a.key, simulator.Fault{Kind: simulator.FaultReset})
	_, err = a.m.v.root.Logical().Write(a.refreshPath(), nil) // goes past the back-off
	refused(t, err, http.StatusBadGateway)
	second := a.status(t)
	require.Equal(t, "unreachable", second["last_error_class"])
	require.NotContains(t, second, "last_error_code", "a connection has none")
	require.NotContains(t, second, "last_error_request_id")
	require.Equal(t, json.Number("2"), second["consecutive_failures"])
	require.Equal(t, first["failing_since"], second["failing_since"], "of the first failure")
	require.True(t, utcTime(t, second["last_error_at"]).After(since), "of the last failure")

	dt.ClearFaults()
	waitFor(t, 30*time.Second, "a fetch works", func() bool { return len(a.refreshNow(t).Warnings) == 0 })
	after := a.status(t)
	for _, field := range failureFields {
		require.NotContains(t, after, field)
	}
}

// The first failure is a warning, the next one only if it is of another kind; each says until when
// the current token serves.
func TestLog_warns_of_the_first_failure_and_of_another_class(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	without, with := m.newApp(t, dt, nil), m.newApp(t, dt, nil)
	with.read(t)

	dt.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultThrottledQPS})
	_, err := without.tryRead()
	refused(t, err, http.StatusBadGateway)
	calls := without.calls()
	waitFor(t, 30*time.Second, "a second fetch has failed in the same way", func() bool {
		_, err := without.tryRead()
		refused(t, err, http.StatusBadGateway)
		return without.calls() > calls
	})
	dt.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
	for _, a := range []*app{without, with} {
		_, err = m.v.root.Logical().Write(a.refreshPath(), nil)
		refused(t, err, http.StatusBadRequest)
	}

	require.Equal(t, []failureLine{
		{"WARN", "throttled", ""},
		{"DEBUG", "throttled", ""},
		{"WARN", "rejected_credentials", ""},
	}, without.failureLines(t))
	expires, _ := with.status(t)["expires_at"].(string)
	require.NotEmpty(t, expires)
	require.Equal(t, []failureLine{{"WARN", "rejected_credentials", expires}}, with.failureLines(t))
}

// failureLine is a line of the log about a failed fetch. Without a token it has no time.
type failureLine struct{ level, class, tokenExpiresAt string }

var (
	failureLevel   = regexp.MustCompile(`\[([A-Z]+)\] .*fetching a token failed: `)
	failureClass   = regexp.MustCompile(`\bclass=(\S+)`) // the order of what follows differs
	tokenExpiresAt = regexp.MustCompile(`\btoken_expires_at=([0-9TZ:-]+|\S)`)
)

// failureLines are the log's lines about the app's failed fetches, as many as its status counts.
func (a *app) failureLines(t *testing.T) (lines []failureLine) {
	t.Helper()
	want, err := a.status(t)["consecutive_failures"].(json.Number).Int64()
	require.NoError(t, err)
	waitFor(t, 10*time.Second, "the log has a line for each failure", func() bool {
		lines = nil
		for line := range strings.Lines(fileText(t, a.m.v.logPath())) {
			level := failureLevel.FindStringSubmatch(line)
			if level == nil || !strings.Contains(line, "app="+a.name) {
				continue
			}
			class, expires := failureClass.FindStringSubmatch(line), tokenExpiresAt.FindStringSubmatch(line)
			require.NotNil(t, class, line)
			require.NotNil(t, expires, line)
			if !strings.HasSuffix(expires[1], "Z") {
				expires[1] = ""
			}
			lines = append(lines, failureLine{level[1], class[1], expires[1]})
		}
		return len(lines) >= int(want)
	})
	return lines
}

// A status is for monitoring: of an app that nobody uses it tells what is stored.
func TestStatus_of_an_app_not_in_memory_sets_nothing_off_and_keeps_nothing(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := startDingTalk(t, lifetime)
	v := startVault(t, vaultOptions{storage: storageInmem})
	m := v.enable(t)
	a := m.newApp(t, dt, nil)
	token := a.token(t)
	require.Equal(t, json.Number("1"), a.status(t)["upstream_calls"])

	m.reload(t)
	stored := a.status(t)
	require.Equal(t, "fresh", stored["state"])
	require.Equal(t, json.Number("0"), stored["upstream_calls"], "since the app came into memory")
	waitFor(t, 2*lifetime, "the stored token has expired", func() bool {
		return dt.left(token) < 0 && a.status(t)["state"] == "expired"
	})
	require.Equal(t, 1, a.calls(), "no refresh ahead and no fetch")

	// If the app had been kept, its token would be in memory.
	mounted, err := v.root.Sys().GetMount(m.path)
	require.NoError(t, err)
	_, err = v.root.Logical().Delete("sys/raw/logical/" + mounted.UUID + "/token/" + a.name)
	require.NoError(t, err)
	require.Equal(t, "absent", a.status(t)["state"])
}

func TestConfig_app_secret_set_at_moves_with_another_secret_alone(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	m := newMount(t)
	a := m.newApp(t, dt, nil)
	setAt := func() time.Time { return utcTime(t, m.readData(t, a.configPath())["app_secret_set_at"]) }
	created := setAt()
	waitFor(t, 5*time.Second, "the clock shows another second", func() bool {
		return time.Now().After(created.Add(time.Second))
	})

	elsewhere := startDingTalk(t, fullLifetime)
	for _, changes := range []fields{
		{"refresh_before": "5m", "leased": false},
		a.rotation(a.secret),
		{"corp_id": simulator.DefaultCorpID},
		{"app_secret": a.secret, "base_url": elsewhere.url, "verify_connection": false},
		a.config(),
	} {
		a.update(t, changes)
		require.Equal(t, created, setAt(), "the secret is the same")
	}

	wrong := a.rotation(newSecret())
	_, err := m.v.root.Logical().Write(a.configPath(), wrong)
	refused(t, err, http.StatusBadRequest)
	require.Equal(t, created, setAt(), "nothing was stored")

	before := time.Now().Truncate(time.Second)
	fresh := newSecret()
	dt.SetApp(a.key, fresh)
	a.update(t, a.rotation(fresh))
	require.WithinRange(t, setAt(), before, time.Now())
}
