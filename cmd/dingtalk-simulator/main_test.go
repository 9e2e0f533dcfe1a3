// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// The flags are tested in this process; serving and ending, in a process of its own, as its users
// have it.

const secret = "GT-lsu-made-up-secret"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCommand_refuses_bad_flags_with_status_2_and_shows_no_secret(t *testing.T) {
	t.Parallel()
	empty := writeFile(t, "\n")
	twoLines := writeFile(t, secret+"\nmore\n")

	for name, in := range map[string]struct {
		args []string
		want string
	}{
		"all interfaces":       {[]string{"-address", ":8123"}, `-address: address ":8123" is not a loopback address`},
		"another host":         {[]string{"-address", "192.0.2.1:8123"}, `is not a loopback address`},
		"no port":              {[]string{"-address", "127.0.0.1"}, `-address: address "127.0.0.1" is not host:port`},
		"bad port":             {[]string{"-address", "127.0.0.1:x"}, `has a port that is not a number`},
		"lifetime not a time":  {[]string{"-token-lifetime", "7200"}, `invalid value "7200" for flag -token-lifetime`},
		"lifetime too short":   {[]string{"-token-lifetime", "999ms"}, "-token-lifetime 999ms is less than 1s"},
		"lifetime negative":    {[]string{"-token-lifetime", "-2h"}, "-token-lifetime -2h0m0s is less than 1s"},
		"app without a secret": {[]string{"-app", secret}, "-app number 1: want key=secret or key=@file"},
		"app without a key":    {[]string{"-app", "=" + secret}, "-app number 1: want key=secret or key=@file"},
		"app key of all":       {[]string{"-app", "*=" + secret}, "-app number 1: want key=secret or key=@file"},
		"empty secret":         {[]string{"-app", "dinga=x", "-app", "dingb="}, "-app number 2: the secret is empty"},
		"app given twice": {
			[]string{"-app", "dinga=" + secret, "-app", "dinga=" + secret}, "-app number 2: its key was given before",
		},
		"secret's file gone": {
			[]string{"-app", "dinga=@" + secret}, "-app number 1: the file of the secret: " + syscall.ENOENT.Error(),
		},
		"secret's file empty":  {[]string{"-app", "dinga=@" + empty}, "-app number 1: the secret is empty"},
		"secret's file longer": {[]string{"-app", "dinga=@" + twoLines}, "-app number 1: the secret has a line break in it"},
		"organizations of no app": {
			[]string{"-app", "dinga=x", "-corp-ids", secret + "=dingA"}, "-corp-ids number 1: no -app has its key",
		},
		"no organizations": {
			[]string{"-app", "dinga=x", "-corp-ids", "dinga"}, "-corp-ids number 1: want key=corpId or key=corpId,corpId",
		},
		"bad organization": {
			[]string{"-app", "dinga=x", "-corp-ids", "dinga=dingA,"},
			"-corp-ids number 1: a corpId is 1 to 64 letters and digits",
		},
		"organizations given twice": {
			[]string{"-app", "dinga=x", "-corp-ids", "dinga=dingA", "-corp-ids", "dinga=dingB"},
			"-corp-ids number 2: its key was given before",
		},
		"unknown flag": {[]string{"-port=" + secret}, "flag provided but not defined: -port"},
		"an argument":  {[]string{"-app", "dinga=", secret}, "1 arguments too many after the flags"},
	} {
		var stdout, stderr bytes.Buffer
		assert.Equal(t, 2, run(t.Context(), in.args, &stdout, &stderr), name)
		assert.Contains(t, stderr.String(), "dingtalk-simulator: ", name)
		assert.Contains(t, stderr.String(), in.want, name)
		assert.Contains(t, stderr.String(), "-help", name)
		assert.NotContains(t, stderr.String(), secret, name)
		assert.Empty(t, stdout.String(), name)
	}
}

func TestCommand_help_names_every_flag_and_how_to_keep_a_secret_off_the_command_line(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"-help", "-h", "--help"} {
		var stdout, stderr bytes.Buffer
		assert.Equal(t, 0, run(t.Context(), []string{arg}, &stdout, &stderr))
		for _, want := range []string{
			"-address", "127.0.0.1:8123", "-app key=secret", "-app key=@file", "-token-lifetime",
			"-corp-ids key=corpId", simulator.DefaultCorpID, simulator.TokenPath, simulator.UnifiedPath("{corpId}"),
			"Other users of this machine can read a command line",
		} {
			assert.Contains(t, stdout.String(), want)
		}
		for _, kind := range simulator.FaultKinds() {
			assert.Contains(t, stdout.String(), "\n  "+kind+"\n")
		}
		assert.Empty(t, stderr.String())
	}
}

func TestCommand_fails_with_status_1_where_somebody_listens(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var stdout, stderr bytes.Buffer
	assert.Equal(t, 1, run(t.Context(), []string{"-address", l.Addr().String()}, &stdout, &stderr))
	assert.Contains(t, stderr.String(), "listen tcp "+l.Addr().String())
	assert.Empty(t, stdout.String())
}

func TestCommand_fails_when_nobody_can_read_its_URL(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	require.NoError(t, r.Close())
	var stderr bytes.Buffer
	assert.Equal(t, 1, run(t.Context(), []string{"-address", "127.0.0.1:0"}, w, &stderr))
	assert.Contains(t, stderr.String(), io.ErrClosedPipe.Error())
}

func TestCommand_serves_until_it_is_told_to_stop(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("no process can send another a signal there")
	}
	binary := filepath.Join(t.TempDir(), "dingtalk-simulator")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	file := writeFile(t, "secret-of-a-file\n")

	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			p := startProcess(t, binary, "-address", "127.0.0.1:0", "-token-lifetime", "90s",
				"-app", "dinga="+secret, "-app", "dingb=@"+file, "-app", "dingc=with=sign",
				"-corp-ids", "dinga=dingA,dingB")
			require.Regexp(t, `^http://127\.0\.0\.1:[0-9]+$`, p.url)

			tokens := map[string]bool{}
			for key, appSecret := range map[string]string{"dinga": secret, "dingb": "secret-of-a-file", "dingc": "with=sign"} {
				body := p.ask(t, key, appSecret)
				require.Regexp(t, `^\{"accessToken":"[0-9a-f]{32}","expireIn":90\}$`, body)
				tokens[body[len(`{"accessToken":"`):][:32]] = true
			}
			assert.Len(t, tokens, 3)
			assert.Contains(t, p.ask(t, "dinga", "wrong-secret"), "invalidClientIdOrSecret")
			unified := `{"client_id":"dinga","client_secret":"` + secret + `","grant_type":"client_credentials"}`
			assert.Equal(t, 200, p.send(t, http.MethodPost, simulator.UnifiedPath("dingB"), unified))
			assert.Equal(t, 401, p.send(t, http.MethodPost, simulator.UnifiedPath(simulator.DefaultCorpID), unified))

			assert.Equal(t, 204, p.send(t, http.MethodPut, "/simulator/faults/dinga", `{"kind":"hang"}`))
			hung := make(chan error, 1)
			go func() {
				_, err := p.request(
					t.Context(),
					http.MethodPost,
					"/v1.0/oauth2/accessToken",
					credentials("dinga", secret),
				)
				hung <- err
			}()
			require.Eventually(t, func() bool {
				res, err := p.request(t.Context(), http.MethodGet, "/simulator/requests/dinga", "")
				return err == nil && res == `{"requests":5}`
			}, 10*time.Second, 5*time.Millisecond)

			begin := time.Now()
			require.NoError(t, p.cmd.Process.Signal(signal))
			require.NoError(t, p.wait(), "it exits with 0")
			assert.Less(t, time.Since(begin), 5*time.Second, "it waits for no response that is under way")
			require.Error(t, <-hung)

			log := p.stderr.String()
			assert.Regexp(t, `app=dinga status=200 request_id=[0-9A-F-]{36}`, log)
			assert.Regexp(t, `app=dinga status=400 request_id=[0-9A-F-]{36}`, log)
			assert.Equal(t, 7, strings.Count(log, "\n"), "one line for each token request")
			for token := range tokens {
				assert.NotContains(t, log, token)
			}
			for _, s := range []string{secret, "secret-of-a-file", "with=sign", "wrong-secret"} {
				assert.NotContains(t, log, s)
			}
		})
	}
}

// process is a running command, which has printed its base URL.
type process struct {
	cmd    *exec.Cmd
	client *http.Client
	url    string
	stdout *bufio.Reader
	stderr *bytes.Buffer
}

func startProcess(t *testing.T, binary string, args ...string) *process {
	t.Helper()
	p := &process{
		cmd:    exec.CommandContext(t.Context(), binary, args...),
		client: &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second},
		stderr: &bytes.Buffer{},
	}
	p.cmd.Stderr = p.stderr
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		p.client.CloseIdleConnections()
		if p.cmd.ProcessState == nil { // the test failed on its way
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	p.stdout = bufio.NewReader(stdout)
	line, err := p.stdout.ReadString('\n')
	require.NoError(t, err)
	p.url = strings.TrimSuffix(line, "\n")
	return p
}

// wait fails if there is more on stdout than the URL, or the exit status is not 0.
func (p *process) wait() error {
	rest, err := io.ReadAll(p.stdout)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("unexpected on stdout: %q", rest)
	}
	return p.cmd.Wait()
}

func credentials(key, appSecret string) string {
	return `{"appKey":"` + key + `","appSecret":"` + appSecret + `"}`
}

func (p *process) ask(t *testing.T, key, appSecret string) string {
	t.Helper()
	body, err := p.request(t.Context(), http.MethodPost, "/v1.0/oauth2/accessToken", credentials(key, appSecret))
	require.NoError(t, err)
	return body
}

func (p *process) request(ctx context.Context, method, path, body string) (string, error) {
	res, err := p.do(ctx, method, path, body)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

func (p *process) send(t *testing.T, method, path, body string) (status int) {
	t.Helper()
	res, err := p.do(t.Context(), method, path, body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	return res.StatusCode
}

func (p *process) do(ctx context.Context, method, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return p.client.Do(req)
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	return name
}
