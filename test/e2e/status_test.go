// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// What monitoring and operators learn: the status after failures, the log, and when a secret
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
	"vault-plugin-secrets-dingtalk/test/harness"
)

// failureFields are those of a status that are there only while fetches fail.
var failureFields = []string{
	"last_error", "last_error_at", "last_error_class", "last_error_code", "last_error_request_id",
	"failing_since", "consecutive_failures", "next_attempt_at",
}

func TestStatus_says_for_programs_what_fetches_fail_with_until_one_works(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)

	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultThrottledQPS})
	_, err := a.TryRead()
	text := harness.Refused(t, err, http.StatusBadGateway)
	first := a.Status(t)
	require.Equal(t, "throttled", first["last_error_class"])
	require.Equal(t, "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi", first["last_error_code"])
	require.NotEmpty(t, first["last_error_request_id"])
	require.Contains(t, text, first["last_error_request_id"], "as in the error")
	require.Equal(t, json.Number("1"), first["consecutive_failures"])
	require.Equal(t, first["last_error_at"], first["failing_since"])
	since := utcTime(t, first["failing_since"])
	harness.WaitFor(t, 5*time.Second, "the clock shows another second", func() bool {
		return time.Now().After(since.Add(time.Second))
	})

	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultReset})
	_, err = a.Mount.Vault.Root.Logical().Write(a.RefreshPath(), nil) // ignores the back-off
	harness.Refused(t, err, http.StatusBadGateway)
	second := a.Status(t)
	require.Equal(t, "unreachable", second["last_error_class"])
	require.NotContains(t, second, "last_error_code", "a connection has none")
	require.NotContains(t, second, "last_error_request_id")
	require.Equal(t, json.Number("2"), second["consecutive_failures"])
	require.Equal(t, first["failing_since"], second["failing_since"], "of the first failure")
	require.True(t, utcTime(t, second["last_error_at"]).After(since), "of the last failure")

	dt.ClearFaults()
	harness.WaitFor(t, 30*time.Second, "a fetch works", func() bool { return len(a.RefreshNow(t).Warnings) == 0 })
	after := a.Status(t)
	for _, field := range failureFields {
		require.NotContains(t, after, field)
	}
}

// The first failure is a warning, the next one only if it is of another kind; each says until when
// the current token serves.
func TestLog_warns_of_the_first_failure_and_of_another_class(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	without, with := m.NewApp(t, dt, nil), m.NewApp(t, dt, nil)
	with.Read(t)

	dt.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultThrottledQPS})
	_, err := without.TryRead()
	harness.Refused(t, err, http.StatusBadGateway)
	calls := without.Calls()
	harness.WaitFor(t, 30*time.Second, "a second fetch has failed in the same way", func() bool {
		_, err := without.TryRead()
		harness.Refused(t, err, http.StatusBadGateway)
		return without.Calls() > calls
	})
	dt.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
	for _, a := range []*harness.App{without, with} {
		_, err = m.Vault.Root.Logical().Write(a.RefreshPath(), nil)
		harness.Refused(t, err, http.StatusBadRequest)
	}

	require.Equal(t, []failureLine{
		{"WARN", "throttled", ""},
		{"DEBUG", "throttled", ""},
		{"WARN", "rejected_credentials", ""},
	}, failureLines(t, without))
	expires, _ := with.Status(t)["expires_at"].(string)
	require.NotEmpty(t, expires)
	require.Equal(t, []failureLine{{"WARN", "rejected_credentials", expires}}, failureLines(t, with))
}

// failureLine is a line of the log about a failed fetch. Without a token it has no time.
type failureLine struct{ level, class, tokenExpiresAt string }

var (
	failureLevel   = regexp.MustCompile(`\[([A-Z]+)\] .*fetching a token failed: `)
	failureClass   = regexp.MustCompile(`\bclass=(\S+)`) // the order of what follows differs
	tokenExpiresAt = regexp.MustCompile(`\btoken_expires_at=([0-9TZ:-]+|\S)`)
)

// failureLines are the log's lines about the app's failed fetches, as many as its status counts.
func failureLines(t *testing.T, a *harness.App) (lines []failureLine) {
	t.Helper()
	want, err := a.Status(t)["consecutive_failures"].(json.Number).Int64()
	require.NoError(t, err)
	harness.WaitFor(t, 10*time.Second, "the log has a line for each failure", func() bool {
		lines = nil
		for line := range strings.Lines(harness.FileText(t, a.Mount.Vault.LogPath())) {
			level := failureLevel.FindStringSubmatch(line)
			if level == nil || !strings.Contains(line, "app="+a.Name) {
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

// A status is for monitoring: for an app that nobody uses it shows what is stored.
func TestStatus_of_an_app_not_in_memory_sets_nothing_off_and_keeps_nothing(t *testing.T) {
	t.Parallel()
	const lifetime = 20 * time.Second
	dt := harness.StartDingTalk(t, lifetime)
	v := harness.StartVault(t, harness.VaultOptions{Storage: harness.StorageInmem})
	m := v.Enable(t)
	a := m.NewApp(t, dt, nil)
	token := a.Token(t)
	require.Equal(t, json.Number("1"), a.Status(t)["upstream_calls"])

	m.Reload(t)
	stored := a.Status(t)
	require.Equal(t, "fresh", stored["state"])
	require.Equal(t, json.Number("0"), stored["upstream_calls"], "since the app came into memory")
	harness.WaitFor(t, 2*lifetime, "the stored token has expired", func() bool {
		return dt.Remaining(token) < 0 && a.Status(t)["state"] == "expired"
	})
	require.Equal(t, 1, a.Calls(), "no refresh ahead and no fetch")

	// If the app had been kept, its token would be in memory.
	mounted, err := v.Root.Sys().GetMount(m.Path)
	require.NoError(t, err)
	_, err = v.Root.Logical().Delete("sys/raw/logical/" + mounted.UUID + "/token/" + a.Name)
	require.NoError(t, err)
	require.Equal(t, "absent", a.Status(t)["state"])
}

func TestConfig_app_secret_set_at_moves_with_another_secret_alone(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	a := m.NewApp(t, dt, nil)
	setAt := func() time.Time { return utcTime(t, m.ReadData(t, a.ConfigPath())["app_secret_set_at"]) }
	created := setAt()
	harness.WaitFor(t, 5*time.Second, "the clock shows another second", func() bool {
		return time.Now().After(created.Add(time.Second))
	})

	elsewhere := harness.StartDingTalk(t, harness.FullLifetime)
	for _, changes := range []harness.Fields{
		{"refresh_before": "5m", "leased": false},
		a.Rotation(a.Secret),
		{"corp_id": simulator.DefaultCorpID},
		{"app_secret": a.Secret, "base_url": elsewhere.URL, "verify_connection": false},
		a.Config(),
	} {
		a.Update(t, changes)
		require.Equal(t, created, setAt(), "the secret is the same")
	}

	wrong := a.Rotation(harness.NewSecret())
	_, err := m.Vault.Root.Logical().Write(a.ConfigPath(), wrong)
	harness.Refused(t, err, http.StatusBadRequest)
	require.Equal(t, created, setAt(), "nothing was stored")

	before := time.Now().Truncate(time.Second)
	fresh := harness.NewSecret()
	dt.SetApp(a.Key, fresh)
	a.Update(t, a.Rotation(fresh))
	require.WithinRange(t, setAt(), before, time.Now())
}
