// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// This file is what the tests share: a simulator with a client, over real loopback connections or,
// for virtual time, over net.Pipe.

const (
	appKey    = "dingtestapp"
	appSecret = "GT-lsu-made-up-secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type client struct {
	*simulator.Server

	url    string
	http   *http.Client
	corpID string // what the unified call is made with; empty for the older call
}

type response struct {
	status int
	header http.Header
	body   string
}

// start runs a simulator with one app on a free loopback port.
func start(t *testing.T, o simulator.Options) *client {
	t.Helper()
	s := newServer(o)
	url, err := s.Start("127.0.0.1:0")
	require.NoError(t, err)
	return newClient(t, s, url, nil)
}

// startVirtual does so without a network. It is for the bubble of a synctest, which a network would
// keep awake.
func startVirtual(t *testing.T, o simulator.Options) *client {
	t.Helper()
	s := newServer(o)
	l := newPipeListener()
	go func() { assert.NoError(t, s.Serve(l)) }()
	return newClient(t, s, "http://simulator.test", l.dial)
}

func newServer(o simulator.Options) *simulator.Server {
	o.Apps = map[string]string{appKey: appSecret}
	return simulator.New(o)
}

func newClient(
	t *testing.T,
	s *simulator.Server,
	url string,
	dial func(context.Context, string, string) (net.Conn, error),
) *client {
	t.Helper()
	transport := &http.Transport{DialContext: dial, DisableCompression: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		assert.NoError(t, s.Close())
	})
	return &client{Server: s, url: url, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// do answers with the whole body, or with the first error on the way to it.
func (c *client) do(ctx context.Context, method, path, contentType, body string) (response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return response{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return response{res.StatusCode, res.Header, string(b)}, err
}

func (c *client) must(t *testing.T, method, path, contentType, body string) response {
	t.Helper()
	res, err := c.do(t.Context(), method, path, contentType, body)
	require.NoError(t, err)
	return res
}

// in is the same client, which makes the unified call for this organization.
func (c *client) in(corpID string) *client {
	other := *c
	other.corpID = corpID
	return &other
}

// forBothCalls runs a test with a simulator for each call.
func forBothCalls(t *testing.T, test func(t *testing.T, c *client)) {
	t.Helper()
	for name, corpID := range map[string]string{"older call": "", "unified call": simulator.DefaultCorpID} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t, simulator.Options{}).in(corpID))
		})
	}
}

// named is a text about the older call as it is for the client's call.
func (c *client) named(text string) string {
	if c.corpID == "" {
		return text
	}
	return strings.NewReplacer(
		"accessToken", "access_token", "expireIn", "expires_in", "invalidClientIdOrSecret", "invalid.client",
	).Replace(text)
}

func (c *client) tokenPath() string {
	if c.corpID == "" {
		return simulator.TokenPath
	}
	return simulator.UnifiedPath(c.corpID)
}

func credentials(key, secret string) string {
	return fmt.Sprintf(`{"appKey":%q,"appSecret":%q}`, key, secret)
}

func unifiedCredentials(key, secret string) string {
	return fmt.Sprintf(`{"client_id":%q,"client_secret":%q,"grant_type":"client_credentials"}`, key, secret)
}

// credentials are those of the app.
func (c *client) credentials() string {
	if c.corpID == "" {
		return credentials(appKey, appSecret)
	}
	return unifiedCredentials(appKey, appSecret)
}

// post asks for a token with a JSON body.
func (c *client) post(t *testing.T, body string) response {
	t.Helper()
	return c.must(t, http.MethodPost, c.tokenPath(), "application/json", body)
}

// ask asks for the app's token, whatever the reply.
func (c *client) ask(t *testing.T) response {
	t.Helper()
	return c.post(t, c.credentials())
}

// tryAsk is ask where a request may fail.
func (c *client) tryAsk(ctx context.Context) (response, error) {
	return c.do(ctx, http.MethodPost, c.tokenPath(), "application/json", c.credentials())
}

// startAsking returns without waiting for the response. The channel gets the request's error.
func (c *client) startAsking(ctx context.Context) <-chan error {
	ended := make(chan error, 1)
	go func() {
		_, err := c.tryAsk(ctx)
		ended <- err
	}()
	return ended
}

// token asks for the app's token, and fails the test if it gets none.
func (c *client) token(t *testing.T) (token string, expireIn int64) {
	t.Helper()
	res := c.ask(t)
	require.Equal(t, http.StatusOK, res.status, res.body)
	var reply map[string]any
	require.NoError(t, json.Unmarshal([]byte(res.body), &reply))
	token, _ = reply[c.named("accessToken")].(string)
	require.NotEmpty(t, token)
	seconds, ok := reply[c.named("expireIn")].(float64)
	require.True(t, ok)
	return token, int64(seconds)
}

func (c *client) lifeLeft(t *testing.T, token string) time.Duration {
	t.Helper()
	left, known := c.LifeLeft(token)
	require.True(t, known, "a token that was issued is known")
	return left
}

// pipeListener hands out one end of a net.Pipe for each dial.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newPipeListener() *pipeListener {
	closed := make(chan struct{})
	return &pipeListener{
		conns:  make(chan net.Conn),
		closed: closed,
		close:  sync.OnceFunc(func() { close(closed) }),
	}
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.close()
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
