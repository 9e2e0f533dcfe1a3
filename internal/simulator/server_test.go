// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

func TestServer_listens_on_loopback_alone(t *testing.T) {
	t.Parallel()
	s := simulator.New(simulator.Options{})
	defer s.Close()
	for addr, want := range map[string]string{
		"":                     "is not host:port",
		"127.0.0.1":            "is not host:port",
		":0":                   "is not a loopback address",
		"0.0.0.0:0":            "is not a loopback address",
		"[::]:0":               "is not a loopback address",
		"192.0.2.1:0":          "is not a loopback address",
		"localhost.invalid:0":  "is not a loopback address",
		"127.0.0.1.invalid:0":  "is not a loopback address",
		"127.0.0.1:http":       "has a port that is not a number",
		"127.0.0.1:65536":      "has a port that is not a number",
		"127.0.0.1:-1":         "has a port that is not a number",
		"http://127.0.0.1:123": "is not host:port",
	} {
		require.ErrorContains(t, simulator.CheckAddress(addr), want, addr)
		_, err := s.Start(addr)
		require.ErrorContains(t, err, want, addr)
	}
	for _, addr := range []string{"127.0.0.1:0", "127.0.0.9:65535", "localhost:8123", "[::1]:1"} {
		require.NoError(t, simulator.CheckAddress(addr))
	}
}

func TestServer_fails_to_start_where_somebody_listens(t *testing.T) {
	t.Parallel()
	l, err := simulator.Listen("127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	s := simulator.New(simulator.Options{})
	defer s.Close()
	_, err = s.Start(l.Addr().String())
	require.ErrorContains(t, err, "address already in use")
}

func TestServer_Close_ends_it_once_and_for_all(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.token(t)
	idle, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", c.url[len("http://"):])
	require.NoError(t, err)
	defer idle.Close()

	requireEnds(t, func() { assert.NoError(t, c.Close()) })
	requireEnds(t, func() { assert.NoError(t, c.Close()) })
	_, err = idle.Read(make([]byte, 1))
	require.Error(t, err, "a connection without a request ends too")
	_, err = c.tryAsk(t.Context())
	require.Error(t, err)
	_, err = c.Start("127.0.0.1:0")
	require.ErrorIs(t, err, http.ErrServerClosed)
	l, err := simulator.Listen("127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, c.Serve(l))
	require.ErrorIs(t, l.Close(), net.ErrClosed, "a closed server closes what it is given")
}

func TestServer_Close_ends_many_connections_that_come_at_the_same_time(t *testing.T) {
	t.Parallel()
	for range 20 {
		c := start(t, simulator.Options{})
		c.SetFault(simulator.AnyApp, simulator.Fault{Kind: simulator.FaultHang})
		var clients []<-chan error
		for range 20 {
			clients = append(clients, c.startAsking(t.Context()))
		}
		require.Eventually(t, func() bool { return c.Requests(appKey) > 0 }, 10*time.Second, 100*time.Microsecond)
		require.NoError(t, c.Close())
		for _, ended := range clients {
			require.Error(t, <-ended)
		}
	}
}

func TestServer_Serve_tells_why_its_listener_broke(t *testing.T) {
	t.Parallel()
	s := simulator.New(simulator.Options{})
	defer s.Close()
	broken := errors.New("broken")
	require.ErrorIs(t, s.Serve(brokenListener{newPipeListener(), broken}), broken)
}

type brokenListener struct {
	*pipeListener

	err error
}

func (l brokenListener) Accept() (net.Conn, error) { return nil, l.err }

func TestServer_is_a_handler_for_any_server(t *testing.T) {
	t.Parallel()
	s := newServer(simulator.Options{})
	other := httptest.NewServer(s)
	defer other.Close()
	c := newClient(t, s, other.URL, nil)
	c.token(t)

	s.SetFault(appKey, simulator.Fault{Kind: simulator.FaultHang})
	failed := c.startAsking(t.Context())
	require.Eventually(t, func() bool { return s.Requests(appKey) == 2 }, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Close())
	require.ErrorIs(t, <-failed, io.EOF, "Close ends requests, not the server they came by")
	_, err := c.tryAsk(context.Background())
	require.ErrorIs(t, err, io.EOF)
}
