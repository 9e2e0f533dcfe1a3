// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package consumers

// The clients in examples/clients, in seven languages, as they are. Each reads a real Vault with a
// token that has the policy beside them. It calls the simulator's APIs with the access token, on
// the host that issues tokens or on DingTalk's old one. The simulator refuses a token as DingTalk
// does, and counts the calls.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

const (
	// clientsLifetime is of tokens that clients keep alive. It is long enough for the engine, which
	// extends one at most once in 10 s.
	clientsLifetime = 20 * time.Second

	// refreshInterval is how often the engine asks DingTalk for an app's token because it is told to.
	refreshInterval = 10 * time.Second

	saysRead    = "read "
	saysGoingOn = "going on with the current token"
	saysRefused = "DingTalk refused the token"
)

// language is how the client in one language is run.
type language struct {
	name     string
	file     string
	needs    map[string]string // programs, and the packages of Debian's that have them
	command  func(file string) []string
	compiled func(file, program string) *exec.Cmd // nil where there is nothing to compile
}

func interpreted(name, file, program, debian string) language {
	return language{
		name: name, file: file, needs: map[string]string{program: debian},
		command: func(file string) []string { return []string{program, file} },
	}
}

var languages = []language{
	interpreted("Java", "App.java", "java", "default-jdk-headless"),
	interpreted("Node.js", "app.js", "node", "nodejs"),
	interpreted("PHP", "app.php", "php", "php-cli"),
	interpreted("Python", "app.py", "python3", "python3"),
	{
		name: "shell", file: "app.sh", needs: map[string]string{"bash": "bash", "curl": "curl", "jq": "jq"},
		command: func(file string) []string { return []string{file} },
	},
	{
		name: "Go", file: "main.go", needs: map[string]string{"go": "golang"},
		command: func(file string) []string { return []string{file} },
		compiled: func(_, program string) *exec.Cmd {
			return exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, ".")
		},
	},
	{
		name: "C#", file: "App.cs",
		needs:   map[string]string{"mcs": "mono-mcs libmono-system-net-http4.0-cil", "mono": "mono-runtime"},
		command: func(file string) []string { return []string{"mono", file} },
		compiled: func(file, program string) *exec.Cmd {
			return exec.Command("mcs", "-r:System.Net.Http", "-out:"+program, file)
		},
	},
}

func exampleFile(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(harness.ExamplesDir, name))
	require.NoError(t, err)
	return path
}

var compiledClients sync.Map // language's name to func() error

// program is the command that runs the client.
func (l language) program(t *testing.T) []string {
	t.Helper()
	for program, debian := range l.needs {
		harness.NeedProgram(t, program, "in Debian it is in "+debian)
	}
	file := exampleFile(t, "clients/"+l.file)
	if l.compiled == nil {
		return l.command(file)
	}
	program := filepath.Join(harness.WorkRoot, "client-"+l.file+".exe")
	// For all tests, not for this one, and so with no context of its own.
	compile, _ := compiledClients.LoadOrStore(l.name, sync.OnceValue(func() error {
		cmd := l.compiled(file, program)
		cmd.Dir = filepath.Dir(file)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
	require.NoError(t, compile.(func() error)(), "compile the client in %s", l.name)
	return l.command(program)
}

// environment is the whole environment of the client.
func (l language) environment(t *testing.T, a *harness.App) []string {
	t.Helper()
	home := t.TempDir()
	policy := harness.RunnableExample(t, "clients/policy.hcl", map[string]string{
		harness.ExampleCreds: a.CredsPath(), "dingtalk/refresh/myapp": a.RefreshPath(),
	})
	env := []string{
		"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH"),
		"VAULT_ADDR=" + a.Mount.Vault.Addr, "VAULT_TOKEN=" + a.Mount.Vault.NewToken(t, policy),
		"DINGTALK_APP=" + a.Name, "DINGTALK_MOUNT=" + a.Mount.Path, "DINGTALK_BASE_URL=" + a.DingTalk.URL,
	}
	if l.name == "Node.js" {
		env = append(env, "NODE_PATH="+nodeModules(t))
	}
	return env
}

// nodeModules is where what examples/clients/package.json names is installed.
func nodeModules(t *testing.T) string {
	t.Helper()
	harness.NeedProgram(t, "node", "in Debian it is in nodejs")
	harness.NeedProgram(t, "npm", "in Debian it is in npm")
	dir := os.Getenv("NODE_MODULES")
	require.NotEmpty(t, dir, "run `make test-e2e`, or set NODE_MODULES to what scripts/node-modules prints")
	require.DirExists(t, dir)
	return dir
}

// runningClient is a client that calls an API again and again.
type runningClient struct {
	a    *harness.App
	proc *harness.Process
	out  string // all that it prints
}

// start runs the client until the test ends. What it printed by then must hold no secret.
func (l language) start(t *testing.T, a *harness.App, env ...string) *runningClient {
	t.Helper()
	dir := t.TempDir()
	env = append(append(l.environment(t, a), "CALL_EVERY=0.5"), env...)
	if l.name == "shell" {
		env = watchCommandLines(t, env, dir)
	}
	command := l.program(t)
	program, err := exec.LookPath(command[0])
	require.NoError(t, err)
	r := &runningClient{a: a, out: filepath.Join(dir, "client.log")}
	r.proc, err = harness.StartProcess("client of "+t.Name(), r.out, env, program, command[1:]...)
	require.NoError(t, err)
	t.Cleanup(func() {
		r.noteTokens()
		if err := r.proc.Kill(); err != nil {
			t.Error(err)
		}
		printed := r.printed(t)
		requireKeepsSecrets(t, "what the client printed", printed)
		if t.Failed() {
			lines := strings.Split(printed, "\n")
			t.Logf("the end of what the client printed:\n%s", harness.Mask(strings.Join(lines[max(0, len(lines)-20):], "\n")))
		}
	})
	return r
}

func (r *runningClient) printed(t *testing.T) string {
	t.Helper()
	printed, err := os.ReadFile(r.out)
	require.NoError(t, err)
	return string(printed)
}

// says counts the lines with a text that the client has printed up to now.
func (r *runningClient) says(t *testing.T, text string) int {
	t.Helper()
	return strings.Count(r.printed(t), text)
}

// accepted and refused count the client's calls of the API.
func (r *runningClient) accepted() int {
	accepted, _ := r.a.DingTalk.Calls(r.a.Key)
	return accepted
}

func (r *runningClient) refused() int {
	_, refused := r.a.DingTalk.Calls(r.a.Key)
	return refused
}

// noteTokens notes the token that the client now has as a secret.
func (r *runningClient) noteTokens() {
	harness.NoteSecret(r.a.DingTalk.LastToken(r.a.Key), "an access token")
}

// awaitCalls waits until so many more calls were accepted.
func (r *runningClient) awaitCalls(t *testing.T, more int) {
	t.Helper()
	enough := r.accepted() + more
	harness.WaitFor(t, time.Minute, "the client's calls are accepted", func() bool {
		require.True(t, r.proc.Running(), "the client runs")
		r.noteTokens()
		return r.accepted() >= enough
	})
}

// requireCallsFor watches clients for a span of time, in which no call may be refused.
func requireCallsFor(t *testing.T, d time.Duration, clients ...*runningClient) {
	t.Helper()
	end := time.Now().Add(d)
	harness.WaitFor(t, d+time.Second, "time passes", func() bool {
		for _, r := range clients {
			require.True(t, r.proc.Running(), "the client runs")
			r.noteTokens()
			require.Zero(t, r.refused(), "refused calls")
		}
		return time.Now().After(end)
	})
	for _, r := range clients {
		r.awaitCalls(t, 1)
	}
}

// requireKeepsSecrets checks a text for what is known to be secret, and for any token of Vault's.
func requireKeepsSecrets(t *testing.T, what, text string) {
	t.Helper()
	harness.AssertNoSecret(t, what, text)
	if harness.VaultTokenPattern.MatchString(text) {
		t.Errorf("%s holds a token of Vault's:\n%s", what, harness.Mask(text))
	}
}

// watchCommandLines puts stand-ins for curl and jq before the real ones, which note what other
// users of the machine can see of a process. It must hold no secret when the test ends.
func watchCommandLines(t *testing.T, env []string, dir string) []string {
	t.Helper()
	seen, stands := filepath.Join(dir, "command-lines"), filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(stands, 0o700))
	for _, name := range []string{"curl", "jq"} {
		program := harness.NeedProgram(t, name, "the client in shell needs it")
		script := fmt.Sprintf("#!/bin/sh\nprintf '%%s\\n' \"$0\" \"$@\" >>%q\nexec %q \"$@\"\n", seen, program)
		require.NoError(t, os.WriteFile(filepath.Join(stands, name), []byte(script), 0o700))
	}
	t.Cleanup(func() {
		content, err := os.ReadFile(seen)
		require.NoError(t, err)
		require.Contains(t, string(content), "Content-Type", "the command lines were seen")
		requireKeepsSecrets(t, "a command line", string(content))
	})
	return append(env, "PATH="+stands+":"+os.Getenv("PATH"))
}

func TestClient_calls_an_API_over_lives_of_a_token_and_none_is_refused(t *testing.T) {
	t.Parallel()
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, clientsLifetime)
			m := harness.NewMount(t)
			leased := l.start(t, m.NewApp(t, dt, nil))
			unleased := l.start(t, m.NewApp(t, dt, harness.Fields{"leased": false}))
			first := map[*runningClient]string{}
			for _, r := range []*runningClient{leased, unleased} {
				r.awaitCalls(t, 1)
				first[r] = dt.LastToken(r.a.Key)
			}
			requireCallsFor(t, 2*clientsLifetime, leased, unleased)

			for r, token := range first {
				harness.RequireSameToken(t, dt.LastToken(r.a.Key), token) // it was extended, in time each time
				require.LessOrEqual(t, r.a.Calls(), 6, "two calls in a lifetime are enough")
				require.Zero(t, r.says(t, saysRefused))
				require.Less(t, r.says(t, saysRead), 15, "it reads when it is time, and not for each call")
			}
			require.NotEmpty(t, leased.a.Leases(t))
			require.Empty(t, unleased.a.Leases(t))
		})
	}
}

// oldHosts are the ways in which DingTalk's old host refuses a token.
func oldHosts(t *testing.T, dt *harness.DingTalk) map[string]string {
	t.Helper()
	// On older paths the code stands alone.
	target, err := url.Parse(dt.URL)
	require.NoError(t, err)
	older := httputil.NewSingleHostReverseProxy(target)
	older.ModifyResponse = func(response *http.Response) error {
		text, err := io.ReadAll(response.Body)
		if bytes.Contains(text, []byte(`"errcode":88,`)) {
			text = []byte(`{"errcode":40014,"errmsg":"不合法的access_token"}`)
		}
		response.Body = io.NopCloser(bytes.NewReader(text))
		response.ContentLength = int64(len(text))
		response.Header.Del("Content-Length")
		return err
	}
	return map[string]string{
		"old host":                  dt.URL,
		"old host, an older path's": serve(t, older),
	}
}

func TestClient_recovers_once_from_each_token_that_ended_before_its_time(t *testing.T) {
	t.Parallel()
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, 10*time.Minute)
			m := harness.NewMount(t)
			all := map[string]*runningClient{
				"leased":   l.start(t, m.NewApp(t, dt, nil)),
				"unleased": l.start(t, m.NewApp(t, dt, harness.Fields{"leased": false})),
			}
			for name, host := range oldHosts(t, dt) {
				all[name] = l.start(t, m.NewApp(t, dt, nil), "DINGTALK_OLD_URL="+host)
			}
			first := map[*runningClient]string{}
			for _, r := range all {
				r.awaitCalls(t, 2)
				require.Zero(t, r.refused())
				first[r] = dt.LastToken(r.a.Key)
			}

			// Replaced: the engine has another token, refreshed by somebody else perhaps, while the client
			// holds the old one.
			for _, r := range all {
				dt.ExpireTokens(r.a.Key)
				r.a.RefreshNow(t)
			}
			replaced := time.Now()
			for _, r := range all {
				r.requireRecovered(t, 1)
				harness.RequireOtherToken(t, dt.LastToken(r.a.Key), first[r])
			}

			// Ended: nobody knows but DingTalk.
			harness.WaitFor(t, refreshInterval+5*time.Second, "the engine may be told to ask DingTalk again", func() bool {
				return time.Since(replaced) > refreshInterval+500*time.Millisecond
			})
			for _, r := range all {
				dt.ExpireTokens(r.a.Key)
			}
			for name, r := range all {
				r.requireRecovered(t, 2)
				require.Equal(t, 3, r.a.Calls(), "%s: one call for each token", name)
			}
		})
	}
}

// requireRecovered waits until the client's calls are accepted again, and checks that it took one
// refused call, and one more read, for each time that a token was ended so far.
func (r *runningClient) requireRecovered(t *testing.T, ended int) {
	t.Helper()
	harness.WaitFor(t, 30*time.Second, "a call is refused", func() bool {
		require.True(t, r.proc.Running(), "the client runs")
		return r.refused() >= ended
	})
	r.awaitCalls(t, 3)
	require.Equal(t, ended, r.refused(), "refused calls")
	require.Equal(t, ended, r.says(t, saysRefused), "recoveries")
	require.Equal(t, 1+ended, r.says(t, saysRead), "tokens that were read")
}

func TestClient_goes_on_with_its_token_while_Vault_is_away(t *testing.T) {
	t.Parallel()
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			const lifetime = 30 * time.Second // time to try again after five seconds
			dt := harness.StartDingTalk(t, lifetime)
			a := harness.NewMount(t).NewApp(t, dt, nil)
			target, err := url.Parse(a.Mount.Vault.Addr)
			require.NoError(t, err)
			vault := httputil.NewSingleHostReverseProxy(target)
			var away atomic.Bool
			address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if away.Load() {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				vault.ServeHTTP(w, r)
			}))
			r := l.start(t, a, "VAULT_ADDR="+address)
			r.awaitCalls(t, 1)
			away.Store(true)
			harness.WaitFor(t, lifetime, "the client notices that Vault is away", func() bool {
				require.True(t, r.proc.Running(), "the client runs")
				return r.says(t, saysGoingOn) > 0
			})
			r.awaitCalls(t, 1)
			away.Store(false)

			requireCallsFor(t, lifetime/2, r)
			require.Greater(t, r.says(t, saysRead), 1)
		})
	}
}

// runOnce runs a client that makes one call and ends.
func (l language) runOnce(t *testing.T, env []string) harness.CLIResult {
	t.Helper()
	command := l.program(t)
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	result := harness.CLIResult{Stdout: stdout.String(), Stderr: stderr.String()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		result.Status = exit.ExitCode()
	} else {
		require.NoError(t, err, "run the client")
	}
	requireKeepsSecrets(t, "what the client printed", result.Stdout+result.Stderr)
	return result
}

func TestClient_makes_one_call_unless_told_otherwise_and_says_what_is_wrong(t *testing.T) {
	t.Parallel()
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			dt := harness.StartDingTalk(t, harness.FullLifetime)
			a := harness.NewMount(t).NewApp(t, dt, nil)
			env := l.environment(t, a)
			harness.NoteSecret(a.Token(t), "an access token")

			require.Contains(t, l.runOnce(t, env).Succeeded(t), "simulated app")
			old := l.runOnce(t, append(slices.Clone(env), "DINGTALK_OLD_URL="+dt.URL))
			require.Contains(t, old.Succeeded(t), "simulated department")
			accepted, refused := dt.Calls(simulator.AnyApp)
			require.Equal(t, []int{2, 0}, []int{accepted, refused})

			for what, wrong := range map[string]struct{ change, says string }{
				"an app not configured": {"DINGTALK_APP=other", "permission denied"},
				"no DingTalk":           {"DINGTALK_BASE_URL=http://" + harness.DeadAddress(t), "(?i)connect"},
				"no old host":           {"DINGTALK_OLD_URL=http://" + harness.DeadAddress(t), "(?i)connect"},
				"no scheme":             {"DINGTALK_OLD_URL=oapi.example.com", "."},
				"no URL":                {"DINGTALK_OLD_URL=http://old host", "."},
				"no Vault":              {"VAULT_ADDR=http://" + harness.DeadAddress(t), "(?i)connect"},
				"another path":          {"DINGTALK_BASE_URL=" + dt.URL + "/else", "404"},
				"a redirect elsewhere":  {"DINGTALK_BASE_URL=" + redirecting(t, dt.URL), "307|JSON|invalid character"},
			} {
				if what == "another path" && l.name == "Node.js" {
					continue // the SDK is told a host, and knows the paths itself
				}
				result := l.runOnce(t, append(slices.Clone(env), wrong.change))
				require.NotZero(t, result.Status, what)
				require.Regexp(t, wrong.says, result.Stderr, what)
				require.Empty(t, result.Stdout, what)
			}
			accepted, refused = dt.Calls(simulator.AnyApp)
			require.Equal(t, []int{2, 0}, []int{accepted, refused}, "no token went anywhere else")
		})
	}
}

// serve serves a handler on loopback for the length of the test.
func serve(t *testing.T, handler http.Handler) (address string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

// redirecting serves redirects to the same path of another address.
func redirecting(t *testing.T, to string) (address string) {
	t.Helper()
	return serve(t, http.RedirectHandler(to+simulator.AppsPath, http.StatusTemporaryRedirect))
}
