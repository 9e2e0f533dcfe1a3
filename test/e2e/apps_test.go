// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The apps in examples/, in Go, Python and shell, as they are: each logs in to a real Vault by
// AppRole with the policy beside the app in Go, or asks a real Vault Proxy, and calls the
// simulator's API with the token. The simulator refuses a token as DingTalk does, and counts.

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	// appsLifetime is of tokens that apps keep alive. It is long enough for the engine, which extends
	// one at most once in 10 s.
	appsLifetime = 18 * time.Second

	// refreshInterval is how often the engine asks DingTalk for an app's token because it is told to.
	refreshInterval = 10 * time.Second

	saysLoggedIn = "logged in to Vault"
	saysRead     = "read the token at "
	saysRefused  = "DingTalk refused the token"
)

func exampleFile(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(examplesDir, name))
	require.NoError(t, err)
	return path
}

var goApp struct {
	once sync.Once
	err  error
}

// builtGoApp builds the app in Go as its module has it.
func builtGoApp(t *testing.T) string {
	t.Helper()
	program := filepath.Join(workRoot, "go-app")
	goApp.once.Do(func() {
		args := []string{"build", "-trimpath", "-buildvcs=false", "-o", program, "."}
		build := exec.Command("go", args...) //nolint:noctx // for all tests, not for this one
		build.Dir = filepath.Join(examplesDir, "go-app")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := build.CombinedOutput(); err != nil {
			goApp.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	require.NoError(t, goApp.err, "build the app in Go")
	return program
}

// appCase is one way to run an example app.
type appCase struct {
	language string
	leased   bool
	proxied  bool // behind a Vault Proxy, which logs in
}

func (c appCase) String() string {
	name := c.language
	if !c.leased {
		name += " without leases"
	}
	if c.proxied {
		name += " behind a Proxy"
	}
	return name
}

// appLanguages are those of the example apps.
var appLanguages = []string{"Go", "Python", "shell"}

// program is the app that is run.
func (c appCase) program(t *testing.T) string {
	t.Helper()
	switch c.language {
	case "Python":
		return exampleFile(t, "python-app/app.py")
	case "shell":
		return exampleFile(t, "shell-app/app.sh")
	default:
		return builtGoApp(t)
	}
}

// everyApp is each app with and without leases, and behind a Proxy.
func everyApp() []appCase {
	var cases []appCase
	for _, language := range appLanguages {
		cases = append(
			cases,
			appCase{language, true, false},
			appCase{language, false, false},
			appCase{language, true, true},
		)
	}
	return cases
}

// environment is all that an example app is given which talks to Vault itself. It has logged in
// nowhere yet.
func environment(t *testing.T, a *app) []string {
	t.Helper()
	dir := t.TempDir()
	a.m.v.newRole(t, dir, runnableExample(t, "go-app/policy.hcl", map[string]string{
		exampleCreds: a.credsPath(), "dingtalk/refresh/myapp": a.refreshPath(),
	}))
	return append(commonEnvironment(t, a), "VAULT_ADDR="+a.m.v.addr,
		"VAULT_ROLE_ID_FILE="+filepath.Join(dir, "role-id"), "VAULT_SECRET_ID_FILE="+filepath.Join(dir, "secret-id"))
}

// environmentBehind is that of an app behind a Proxy.
func environmentBehind(t *testing.T, p *cachingProxy) []string {
	t.Helper()
	return append(commonEnvironment(t, p.a), "VAULT_AGENT_ADDR=http://"+p.address)
}

func commonEnvironment(t *testing.T, a *app) []string {
	t.Helper()
	home := t.TempDir()
	return []string{
		"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH"),
		"DINGTALK_APP=" + a.name, "DINGTALK_MOUNT=" + a.m.path, "DINGTALK_BASE_URL=" + a.dt.url,
	}
}

// runningApp is an example app that calls the API again and again.
type runningApp struct {
	a    *app
	proc *process
	log  string // all that it prints
}

// start runs the app until the test ends, with a Proxy of its own where it is to have one.
func (c appCase) start(t *testing.T, a *app, every string) *runningApp {
	t.Helper()
	if c.proxied {
		return c.startWith(t, a, every, environmentBehind(t, startCachingProxy(t, a)))
	}
	return c.startWith(t, a, every, environment(t, a))
}

// startWith runs the app until the test ends. What it printed by then must hold no secret.
func (c appCase) startWith(t *testing.T, a *app, every string, env []string) *runningApp {
	t.Helper()
	dir := t.TempDir()
	env = append(env, "CALL_EVERY="+every)
	if c.language == "shell" {
		env = watchCommandLines(t, env, dir)
	}
	r := &runningApp{a: a, log: filepath.Join(dir, "app.log")}
	var err error
	r.proc, err = startProcess("app of "+t.Name(), r.log, env, c.program(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := r.proc.stop(10 * time.Second); err != nil {
			t.Error(err)
		}
		printed := r.printed(t)
		requireKeepsSecrets(t, "what the app printed", printed)
		if t.Failed() {
			lines := strings.Split(printed, "\n")
			t.Logf("the end of what the app printed:\n%s", mask(strings.Join(lines[max(0, len(lines)-40):], "\n")))
		}
	})
	return r
}

func (r *runningApp) printed(t *testing.T) string {
	t.Helper()
	printed, err := os.ReadFile(r.log)
	require.NoError(t, err)
	return string(printed)
}

// says counts the lines with a text that the app has printed up to now.
func (r *runningApp) says(t *testing.T, text string) int {
	t.Helper()
	return strings.Count(r.printed(t), text)
}

// accepted and refused count the app's calls of the API.
func (r *runningApp) accepted() int {
	accepted, _ := r.a.dt.Calls(r.a.key)
	return accepted
}

func (r *runningApp) refused() int {
	_, refused := r.a.dt.Calls(r.a.key)
	return refused
}

// noteTokens has the token noted that the app may now print.
func (r *runningApp) noteTokens() { noteSecret(r.a.dt.LastToken(r.a.key), "an access token") }

// awaitCalls waits until so many more calls were accepted.
func (r *runningApp) awaitCalls(t *testing.T, more int) {
	t.Helper()
	enough := r.accepted() + more
	waitFor(t, 20*time.Second, "the app's calls are accepted", func() bool {
		require.True(t, r.proc.Running(), "the app runs")
		r.noteTokens()
		return r.accepted() >= enough
	})
}

// requireCallsFor watches apps for a span of time, in which no call may be refused and none may be
// missing for long.
func requireCallsFor(t *testing.T, d time.Duration, apps ...*runningApp) {
	t.Helper()
	const silence = 10 * time.Second
	type heard struct {
		accepted int
		at       time.Time
	}
	last := map[*runningApp]heard{}
	end := time.Now().Add(d)
	waitFor(t, d+silence, "time passes", func() bool {
		for _, r := range apps {
			require.True(t, r.proc.Running(), "the app runs")
			r.noteTokens()
			require.Zero(t, r.refused(), "refused calls")
			if now := r.accepted(); now > last[r].accepted {
				last[r] = heard{now, time.Now()}
			}
			require.Less(t, time.Since(last[r].at), silence, "since the last accepted call")
		}
		return time.Now().After(end)
	})
}

// requireKeepsSecrets checks a text for what is known to be secret, and for any token of Vault's.
func requireKeepsSecrets(t *testing.T, what, text string) {
	t.Helper()
	assertNoSecret(t, what, text)
	if vaultTokenPattern.MatchString(text) {
		t.Errorf("%s holds a token of Vault's:\n%s", what, mask(text))
	}
}

// watchCommandLines puts stand-ins for curl and jq before the real ones, which note what other
// users of the machine can see of a process, and its environment. Neither must hold a secret when
// the test ends.
func watchCommandLines(t *testing.T, env []string, dir string) []string {
	t.Helper()
	seen, stands := filepath.Join(dir, "command-lines"), filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(stands, 0o700))
	for _, name := range []string{"curl", "jq"} {
		program, err := exec.LookPath(name)
		require.NoError(t, err, "the app in shell needs it")
		script := fmt.Sprintf(
			"#!/bin/sh\n{ printf '%%s\\n' \"$0\" \"$@\"; export -p; } >>%q\nexec %q \"$@\"\n",
			seen,
			program,
		)
		require.NoError(t, os.WriteFile(filepath.Join(stands, name), []byte(script), 0o700))
	}
	t.Cleanup(func() {
		content, err := os.ReadFile(seen)
		require.NoError(t, err)
		require.Contains(t, string(content), "/creds/", "the command lines were seen")
		requireKeepsSecrets(t, "a command line or environment", string(content))
	})
	return append(env, "PATH="+stands+":"+os.Getenv("PATH"))
}

func TestApp_calls_an_API_over_many_lives_of_a_token_and_none_is_refused(t *testing.T) {
	t.Parallel()
	for _, c := range everyApp() {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, appsLifetime)
			a := newMount(t).newApp(t, dt, fields{"leased": c.leased})
			r := c.start(t, a, "0.5")
			r.awaitCalls(t, 1)
			first := dt.LastToken(a.key)
			requireCallsFor(t, 2*appsLifetime+appsLifetime/4, r)

			require.Greater(t, r.accepted(), 30)
			requireSameToken(t, dt.LastToken(a.key), first) // it was extended, in time each time
			require.LessOrEqual(t, a.calls(), 6, "two calls in a lifetime are enough")
			if c.leased {
				require.Len(t, a.leases(t), 1, "one lease is kept")
			} else {
				require.Empty(t, a.leases(t))
			}
			require.Zero(t, r.says(t, saysRefused))
			if !c.proxied {
				require.Equal(t, 1, r.says(t, saysLoggedIn))
			}
		})
	}
}

func TestApp_recovers_once_from_each_token_that_ended_before_its_time(t *testing.T) {
	t.Parallel()
	for _, c := range everyApp() {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, 10*time.Minute)
			a := newMount(t).newApp(t, dt, fields{"leased": c.leased})
			r := c.start(t, a, "0.2")
			r.awaitCalls(t, 3)
			require.Zero(t, r.refused())

			// Replaced: the engine has been given another token, by somebody else perhaps, while the app
			// holds the old one.
			first := dt.LastToken(a.key)
			dt.ExpireTokens(a.key)
			a.refreshNow(t)
			r.requireRecovered(t, 1)
			replaced := time.Now()

			// Ended: nobody knows but DingTalk.
			waitFor(t, refreshInterval+5*time.Second, "the engine may be told to ask DingTalk again", func() bool {
				return time.Since(replaced) > refreshInterval+500*time.Millisecond
			})
			second := dt.LastToken(a.key)
			requireOtherToken(t, second, first)
			dt.ExpireTokens(a.key)
			r.requireRecovered(t, 2)
			requireOtherToken(t, dt.LastToken(a.key), second)
			require.Equal(t, 3, a.calls(), "one call for each token")
			if c.leased {
				require.Len(t, a.leases(t), 1, "the leases of the refused tokens are revoked")
			}
		})
	}
}

// requireRecovered waits until the app's calls are accepted again, and checks that it took one
// refused call, and one more token, for each time that a token was ended so far.
func (r *runningApp) requireRecovered(t *testing.T, ended int) {
	t.Helper()
	waitFor(t, 10*time.Second, "a call is refused", func() bool { return r.refused() >= ended })
	r.awaitCalls(t, 10)
	require.Equal(t, ended, r.refused(), "refused calls")
	require.Equal(t, ended, r.says(t, saysRefused), "recoveries")
	require.Equal(t, 1+ended, r.says(t, saysRead), "tokens that were read")
	require.Zero(t, r.says(t, "Vault warns"), "the engine is told which token was refused, and does nothing twice")
}

func TestApp_recovers_once_behind_a_Proxy_that_others_read_through(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, 10*time.Minute)
	a := newMount(t).newApp(t, dt, nil)
	p := startCachingProxy(t, a)
	others := startProxyReaders(t, p)
	c := appCase{"Go", true, true}
	one, other := c.startWith(t, a, "0.2", environmentBehind(t, p)), c.startWith(t, a, "0.2", environmentBehind(t, p))
	for _, r := range []*runningApp{one, other} {
		waitFor(t, 20*time.Second, "the app has a token", func() bool { return r.says(t, saysRead) == 1 })
	}
	one.awaitCalls(t, 10)
	require.Len(t, a.leases(t), 1, "all have the same copy")

	// The others go on to read the dead token, and would have the Proxy make a copy of it again.
	dt.ExpireTokens(a.key)
	waitFor(t, 10*time.Second, "each app is refused", func() bool { return one.refused() == 2 })
	one.awaitCalls(t, 20)
	require.Equal(t, 2, one.refused(), "each app was refused once")
	for _, r := range []*runningApp{one, other} {
		require.Equal(t, 1, r.says(t, saysRefused))
		require.Equal(t, 2, r.says(t, saysRead))
	}
	require.Equal(t, 2, a.calls(), "one call for each token")
	recovered := time.Now()
	waitFor(
		t,
		10*time.Second,
		"the others have the new token too",
		func() bool { return others.gotSince(recovered, dt.LastToken(a.key)) },
	)
	others.end()
	others.requireErrorsWithin(t, time.Time{}, time.Time{})
}

func TestApp_goes_on_over_a_restart_of_Vault(t *testing.T) {
	t.Parallel()
	// An attempt to renew that meets a Vault that is stopped has to leave time for the next one.
	const lifetime = 40 * time.Second
	v := startVault(t, vaultOptions{storage: storageRaft})
	dt := startDingTalk(t, lifetime)
	m := v.enable(t)
	var all []*runningApp
	for _, c := range []appCase{{"Go", true, false}, {"Go", true, true}, {"Python", true, false}, {"shell", true, false}} {
		all = append(all, c.start(t, m.newApp(t, dt, nil), "0.5"))
	}
	for _, r := range all {
		r.awaitCalls(t, 2)
	}
	require.NoError(t, v.stop(), "stop Vault")
	for _, r := range all {
		r.awaitCalls(t, 2) // with the token in hand
	}
	v.bootAgain(t)

	requireCallsFor(t, lifetime+lifetime/4, all...)
	for _, r := range all {
		require.LessOrEqual(t, r.a.calls(), 5, "the token outlives the restart")
	}
}

func TestApp_logs_in_again_when_its_login_is_revoked(t *testing.T) {
	t.Parallel()
	v := startVault(t, vaultOptions{storage: storageInmem})
	dt := startDingTalk(t, appsLifetime)
	m := v.enable(t)
	var all []*runningApp
	for _, language := range appLanguages {
		for _, leased := range []bool{true, false} {
			all = append(
				all,
				appCase{language, leased, false}.start(t, m.newApp(t, dt, fields{"leased": leased}), "0.5"),
			)
		}
	}
	for _, r := range all {
		r.awaitCalls(t, 2)
	}
	require.NoError(t, v.root.Sys().RevokePrefix("auth/approle/login"))

	requireCallsFor(t, appsLifetime+appsLifetime/2, all...)
	for _, r := range all {
		require.Equal(t, 2, r.says(t, saysLoggedIn))
	}
}

// runOnce runs an example app that makes one call and ends.
func (c appCase) runOnce(t *testing.T, env []string) cliResult {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.program(t))
	cmd.Env = env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	result := cliResult{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(began)}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		result.status = exit.ExitCode()
	} else {
		require.NoError(t, err, "run the app")
	}
	requireKeepsSecrets(t, "what the app printed", result.stdout+result.stderr)
	return result
}

func TestApp_makes_one_call_unless_told_otherwise_and_says_what_is_wrong(t *testing.T) {
	t.Parallel()
	for _, language := range appLanguages {
		c := appCase{language, true, false}
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			dt := startDingTalk(t, fullLifetime)
			a := newMount(t).newApp(t, dt, nil)
			env := environment(t, a)
			noteSecret(a.token(t), "an access token")

			result := c.runOnce(t, env)
			require.Equal(t, "apps: 1\n", result.succeeded(t))
			accepted, refused := dt.Calls(simulator.AnyApp)
			require.Equal(t, []int{1, 0}, []int{accepted, refused})

			for what, wrong := range map[string]struct{ change, says string }{
				"no app":                {"DINGTALK_APP=", "DINGTALK_APP"},
				"an app not configured": {"DINGTALK_APP=other", "permission denied"},
				"no DingTalk":           {"DINGTALK_BASE_URL=http://" + deadAddress(t), "(?i)connect"},
				"no Vault":              {"VAULT_ADDR=http://" + deadAddress(t), "(?i)connect"},
				"no secret id":          {"VAULT_SECRET_ID_FILE=" + filepath.Join(t.TempDir(), "gone"), "(?i)no such file"},
				"not DingTalk's API":    {"DINGTALK_BASE_URL=" + dt.url + "/else", "(?i)not a list of apps|code"},
				"a redirect elsewhere":  {"DINGTALK_BASE_URL=" + redirecting(t, dt.url), "30[27]"},
				"somebody else's secret": {
					"VAULT_SECRET_ID_FILE=" + putFile(t, t.TempDir(), "secret-id", "wrong"),
					"invalid role or secret ID",
				},
			} {
				result := c.runOnce(t, append(slices.Clone(env), wrong.change))
				require.Equal(t, 1, result.status, what)
				require.Regexp(t, wrong.says, result.stderr, what)
				require.Empty(t, result.stdout, what)
				require.NotContains(t, result.stderr, "Traceback", what)
			}
			accepted, refused = dt.Calls(simulator.AnyApp)
			require.Equal(t, []int{1, 0}, []int{accepted, refused}, "no token went anywhere else")
		})
	}
}

// redirecting serves redirects to the same path of another address.
func redirecting(t *testing.T, to string) (url string) {
	t.Helper()
	u := serveUpstream(t, "127.0.0.1", nil, http.RedirectHandler(to+simulator.AppsPath, http.StatusTemporaryRedirect))
	return "http://" + u.addr
}

func TestApp_policy_allows_what_the_app_does_and_no_more(t *testing.T) {
	t.Parallel()
	w := newPolicyWorld(t)
	const policy = "dingtalk-app"
	w.v.mustCLI(t, "policy", "write", policy, exampleFile(t, "go-app/policy.hcl"))
	h := w.holderOf(t, policy)
	noteSecret(w.apps["myapp"].token(t), "an access token")
	w.requireAllows(t, h, "read creds/myapp", "long creds/myapp", "update refresh/myapp")

	lease := func(name string) string {
		id := w.apps[name].read(t).LeaseID
		require.NotEmpty(t, id)
		return id
	}
	revoke := func(path, body string) int { return h.http(t, "PUT", path, "", body).status }
	mine, other := lease("myapp"), lease("myapp-payroll")
	for _, body := range []string{
		fmt.Sprintf(`{"lease_id":%q,"sync":true}`, other),
		fmt.Sprintf(`{"url_lease_id":%q,"sync":true}`, other),
		fmt.Sprintf(`{"lease_id":%q,"url_lease_id":%q}`, mine, other),
	} {
		require.Equal(t, http.StatusForbidden, revoke("sys/leases/revoke", body), body)
	}
	for _, path := range []string{
		"sys/leases/revoke/" + other, "sys/leases/revoke/" + mine, "sys/revoke/" + mine,
		"sys/leases/revoke-prefix/dingtalk/creds/myapp", "sys/leases/revoke-force/dingtalk/creds/myapp",
	} {
		require.Equal(t, http.StatusForbidden, revoke(path, `{"sync":true}`), path)
	}
	require.Equal(
		t,
		http.StatusNoContent,
		revoke("sys/leases/revoke", fmt.Sprintf(`{"lease_id":%q,"sync":true}`, mine)),
	)
	_, err := w.v.root.Sys().Lookup(mine)
	require.Error(t, err, "the lease is gone")
	_, err = w.v.root.Sys().Lookup(other)
	require.NoError(t, err, "the other lease is there")
}

func TestApp_policy_is_in_the_form_that_Vault_writes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(exampleFile(t, "go-app/policy.hcl"))
	require.NoError(t, err)
	formatted := putFile(t, t.TempDir(), "policy.hcl", string(text))
	sharedVault(t).mustCLI(t, "policy", "fmt", formatted)
	again, err := os.ReadFile(formatted)
	require.NoError(t, err)
	require.Equal(t, string(text), string(again))
}
