// SPDX-License-Identifier: MPL-2.0

package simulator_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// sentStreams are the faults that are bytes on the wire, without a response that depends on the
// request.
var sentStreams = map[string]struct {
	fault        simulator.Fault
	head, repeat string
}{
	"raw and silent": {
		simulator.Fault{Kind: simulator.FaultRaw, Raw: "HTTP/1.1 199 Odd\r\n\r\n"},
		"HTTP/1.1 199 Odd\r\n\r\n", "",
	},
	"raw and endless": {
		simulator.Fault{Kind: simulator.FaultRaw, Raw: "HTTP/9.9 ", Repeat: "odd"},
		"HTTP/9.9 ", "odd",
	},
	"nothing at all": {simulator.Fault{Kind: simulator.FaultRaw}, "", ""},
	"switching-protocols": {
		simulator.Fault{Kind: simulator.FaultSwitchingProtocols},
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n", "",
	},
	"informational-flood": {
		simulator.Fault{Kind: simulator.FaultInformationalFlood},
		"", "HTTP/1.1 103 Early Hints\r\n\r\n",
	},
	"endless-headers": {
		simulator.Fault{Kind: simulator.FaultEndlessHeaders},
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", "X-Filler: " + strings.Repeat("x", 100) + "\r\n",
	},
	"endless-body": {
		simulator.Fault{Kind: simulator.FaultEndlessBody},
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + `{"accessToken":"`, "0123456789abcdef",
	},
}

// send sends a token request of the app on a connection of its own.
func send(t *testing.T, conn net.Conn) {
	t.Helper()
	body := credentials(appKey, appSecret)
	_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\n\r\n%s", simulator.TokenPath, len(body), body)
	require.NoError(t, err)
}

// dialVirtual runs a simulator in the bubble of a synctest, and sends it a request that the fault
// hits.
func dialVirtual(t *testing.T, f simulator.Fault) (*client, net.Conn) {
	t.Helper()
	s := newServer(simulator.Options{})
	l := newPipeListener()
	go func() { assert.NoError(t, s.Serve(l)) }()
	c := newClient(t, s, "http://simulator.test", l.dial)
	c.set(t, appKey, f)
	conn, err := l.dial(t.Context(), "", "")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	send(t, conn)
	return c, conn
}

func read(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	require.NoError(t, err)
	return string(b)
}

// requireSilence is for virtual time.
func requireSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(1000*time.Hour)))
	n, err := conn.Read(make([]byte, 1))
	assert.Zero(t, n)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

// requireClosed reads what is still under way.
func requireClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, conn)
	assert.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestStream_is_to_the_letter_and_ends_with_Close(t *testing.T) {
	t.Parallel()
	for name, want := range sentStreams {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, conn := dialVirtual(t, want.fault)
				assert.Equal(t, want.head, read(t, conn, len(want.head)))
				if want.repeat == "" {
					requireSilence(t, conn)
				} else {
					n := (200 << 10) / len(want.repeat)
					assert.Equal(t, strings.Repeat(want.repeat, n), read(t, conn, n*len(want.repeat)))
				}
				assert.Equal(t, 1, c.Requests(appKey))
				assert.Empty(t, c.LastToken(appKey), "there is no token in it")
				require.NoError(t, conn.SetReadDeadline(time.Time{}))
				require.NoError(t, c.Close())
				requireClosed(t, conn)
			})
		})
	}
}

// On a network a write without end is held up by a client that does not read.
func TestStream_ends_with_the_client_and_with_Close_on_a_network(t *testing.T) {
	t.Parallel()
	for _, kind := range simulator.FaultKinds() {
		if !strings.HasPrefix(kind, "endless-") && !slices.Contains([]string{
			simulator.FaultRaw, simulator.FaultSwitchingProtocols, simulator.FaultInformationalFlood,
			simulator.FaultStatus099, simulator.FaultSurplus,
		}, kind) {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{}, 2)
			s := newServer(simulator.Options{})
			other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					if r.URL.Path == simulator.TokenPath {
						ended <- struct{}{}
					}
				}()
				s.ServeHTTP(w, r)
			}))
			defer other.Close()
			c := newClient(t, s, other.URL, nil)
			c.set(t, appKey, simulator.Fault{Kind: kind})
			conns := make([]net.Conn, 2)
			for i := range conns {
				var err error
				conns[i], err = (&net.Dialer{}).DialContext(t.Context(), "tcp", other.Listener.Addr().String())
				require.NoError(t, err)
				defer conns[i].Close()
				send(t, conns[i])
			}
			require.Eventually(t, func() bool { return s.Requests(appKey) == 2 }, time.Minute, time.Millisecond)

			require.NoError(t, conns[0].Close())
			<-ended
			require.NoError(t, s.Close())
			<-ended
			requireClosed(t, conns[1])
		})
	}
}

func TestStream_endless_drip_is_one_byte_a_second(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, conn := dialVirtual(t, simulator.Fault{Kind: simulator.FaultEndlessDrip})
		const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
		assert.Equal(t, head, read(t, conn, len(head)))
		begin := time.Now()
		for i := range 100_000 {
			assert.Equal(t, " ", read(t, conn, 1))
			assert.Equal(t, time.Duration(i+1)*time.Second, time.Since(begin))
		}
	})
}

func TestStream_raw_drips_what_it_is_told(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, conn := dialVirtual(t, simulator.Fault{
			Kind: simulator.FaultRaw, Raw: "HTTP", Repeat: "abc", Interval: time.Minute,
		})
		assert.Equal(t, "HTTP", read(t, conn, 4))
		begin := time.Now()
		assert.Equal(t, "abcabca", read(t, conn, 7))
		assert.Equal(t, 7*time.Minute, time.Since(begin))
	})
}

func TestStream_endless_gzip_is_small_and_expands_without_end(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.set(t, appKey, simulator.Fault{Kind: simulator.FaultEndlessGzip})
	res := c.open(t)
	defer res.Body.Close()
	assert.Equal(t, 200, res.StatusCode)
	assert.Equal(t, "gzip", res.Header.Get("Content-Encoding"))
	var wire countingReader
	wire.Reader = res.Body
	z, err := gzip.NewReader(bufio.NewReaderSize(&wire, 1<<10))
	require.NoError(t, err)
	const size = 32 << 20
	n, err := io.CopyN(io.Discard, z, size)
	require.NoError(t, err)
	assert.EqualValues(t, size, n)
	assert.Less(t, wire.n, size/500)
}

func TestStream_endless_gzip_empty_expands_to_nothing(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.set(t, appKey, simulator.Fault{Kind: simulator.FaultEndlessGzipEmpty})
	res := c.open(t)
	defer res.Body.Close()
	assert.Equal(t, "gzip", res.Header.Get("Content-Encoding"))
	wire := bufio.NewReader(res.Body)
	z, err := gzip.NewReader(wire)
	for range 10_000 {
		require.NoError(t, err)
		z.Multistream(false)
		n, copyErr := io.Copy(io.Discard, z)
		require.NoError(t, copyErr)
		require.Zero(t, n)
		err = z.Reset(wire)
	}
}

type countingReader struct {
	io.Reader

	n int
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.n += n
	return n, err
}

func TestStream_surplus_follows_a_whole_response(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, conn := dialVirtual(t, simulator.Fault{Kind: simulator.FaultSurplus, RetryAfter: "7"})
		synctest.Wait()
		token := c.LastToken(appKey)
		want := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 66\r\nRetry-After: 7\r\n\r\n" +
			`{"accessToken":"` + token + `","expireIn":7200}` + token + "\r\n" + credentials(appKey, appSecret)
		assert.Equal(t, want, read(t, conn, len(want)))
		requireSilence(t, conn)
	})
}

// It is not parallel, since it looks at the process's log.
func TestStream_surplus_is_what_net_http_logs(t *testing.T) {
	var logged lockedBuilder
	log.SetOutput(&logged)
	defer log.SetOutput(os.Stderr)
	c := start(t, simulator.Options{})
	c.set(t, appKey, simulator.Fault{Kind: simulator.FaultSurplus})
	res := c.ask(t)
	assert.Equal(t, 200, res.status)
	assert.Regexp(t, goodReply, res.body, "to a client it is a good response")
	require.Eventually(t, func() bool {
		return strings.Contains(logged.String(), appSecret)
	}, time.Minute, time.Millisecond)
	assert.Contains(t, logged.String(), "Unsolicited response received on idle HTTP channel starting with")
	assert.Contains(t, logged.String(), c.LastToken(appKey))
}

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestStream_status_099_is_the_usual_response_otherwise(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, conn := dialVirtual(t, simulator.Fault{Kind: simulator.FaultStatus099})
		const head = "HTTP/1.1 099 Odd\r\nContent-Type: application/json\r\nContent-Length: 66\r\n\r\n"
		assert.Equal(t, head, read(t, conn, len(head)))
		assert.Regexp(t, goodReply, read(t, conn, 66))
		requireSilence(t, conn)

		res := c.ask(t)
		assert.Equal(t, 99, res.status)
		assert.Regexp(t, goodReply, res.body)
	})
}

func TestStream_switching_protocols_gives_a_client_the_bare_connection(t *testing.T) {
	t.Parallel()
	c := start(t, simulator.Options{})
	c.set(t, appKey, simulator.Fault{Kind: simulator.FaultSwitchingProtocols})
	res := c.open(t)
	defer res.Body.Close()
	assert.Equal(t, 101, res.StatusCode)
	_, writable := res.Body.(io.Writer)
	assert.True(t, writable)
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	_, err := res.Body.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, <-closed)
}

// startTLS runs a simulator with TLS and, for its control API, without. The client takes HTTP/2
// where it is offered.
func startTLS(t *testing.T) (c *client, overTLS *client) {
	t.Helper()
	c = start(t, simulator.Options{})
	config, trusting := certificates()
	url, err := c.StartTLS("127.0.0.1:0", config)
	require.NoError(t, err)
	transport := &http.Transport{TLSClientConfig: trusting, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return c, &client{Server: c.Server, url: url, http: &http.Client{Transport: transport}}
}

// newConnection is the same client without the connections that it keeps.
func (c *client) newConnection(t *testing.T) *http.Client {
	t.Helper()
	transport := c.http.Transport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// certificates are those of net/http's own tests.
func certificates() (server, trusting *tls.Config) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	trusting = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	trusting.ServerName = "example.com"
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: s.TLS.Certificates}, trusting
}

func TestTLS_has_HTTP2_only_while_a_fault_needs_it(t *testing.T) {
	t.Parallel()
	c, overTLS := startTLS(t)
	proto := func() string {
		fresh := *overTLS
		fresh.http = fresh.newConnection(t)
		res := fresh.open(t)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		assert.Regexp(t, goodReply, string(body))
		return res.Proto
	}
	assert.Equal(t, "HTTP/1.1", proto())
	c.set(t, "dingother", simulator.Fault{Kind: simulator.FaultHTTP2Silent})
	assert.Equal(t, "HTTP/2.0", proto(), "the requests of other apps get a response")
	c.ClearFaults()
	assert.Equal(t, "HTTP/1.1", proto())
}

func TestTLS_faults_of_HTTP2_leave_HTTP1_alone(t *testing.T) {
	t.Parallel()
	c, overTLS := startTLS(t)
	overTLS.http.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	for _, kind := range []string{simulator.FaultHTTP2GoAway, simulator.FaultHTTP2Silent, simulator.FaultHTTP2Flood} {
		c.set(t, appKey, simulator.Fault{Kind: kind})
		assert.Regexp(t, goodReply, overTLS.ask(t).body)
		assert.Regexp(t, goodReply, c.ask(t).body)
	}
}

func TestTLS_has_the_faults_of_HTTP1(t *testing.T) {
	t.Parallel()
	c, overTLS := startTLS(t)
	c.set(t, appKey, simulator.Fault{Kind: simulator.FaultStatus099})
	assert.Equal(t, 99, overTLS.ask(t).status)

	c.set(t, "dingother", simulator.Fault{Kind: simulator.FaultHTTP2Silent})
	overTLS.http = overTLS.newConnection(t)
	_, err := overTLS.tryAsk(t.Context())
	require.ErrorContains(t, err, "frame", "on a connection of HTTP/2 the same bytes make no sense")
}

func TestTLS_fails_to_start_like_the_rest(t *testing.T) {
	t.Parallel()
	s := newServer(simulator.Options{})
	config, _ := certificates()
	_, err := s.StartTLS("192.0.2.1:0", config)
	require.ErrorContains(t, err, "is not a loopback address")
	require.NoError(t, s.Close())
	_, err = s.StartTLS("127.0.0.1:0", config)
	require.ErrorIs(t, err, http.ErrServerClosed)
}

func TestHTTP2_goaway_makes_a_client_send_the_request_again(t *testing.T) {
	t.Parallel()
	c, overTLS := startTLS(t)
	c.set(t, appKey, simulator.Fault{Kind: simulator.FaultHTTP2GoAway})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := overTLS.startAsking(ctx)
	require.Eventually(t, func() bool { return c.Requests(appKey) >= 3 }, time.Minute, time.Millisecond)
	cancel()
	require.Error(t, <-ended)

	c.set(t, appKey, simulator.Fault{Kind: simulator.FaultHTTP2GoAway, Times: 1})
	before := c.Requests(appKey)
	assert.Regexp(t, goodReply, overTLS.ask(t).body)
	assert.Equal(t, before+2, c.Requests(appKey))
}

// dialHTTP2 sends a request that the fault hits over HTTP/2, in the bubble of a synctest, and
// returns the frames after those that begin every connection.
func dialHTTP2(t *testing.T, f simulator.Fault) (*client, net.Conn, *http2.Framer) {
	t.Helper()
	c := startVirtual(t, simulator.Options{})
	c.set(t, appKey, f)
	config, trusting := certificates()
	trusting.NextProtos = []string{"h2"}
	l := newPipeListener()
	go func() { assert.NoError(t, c.ServeTLS(l, config)) }()
	raw, err := l.dial(t.Context(), "", "")
	require.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	conn := tls.Client(raw, trusting)
	require.NoError(t, conn.HandshakeContext(t.Context()))
	require.Equal(t, "h2", conn.ConnectionState().NegotiatedProtocol)

	// The server writes while it is written to, and a pipe holds nothing.
	sent := make(chan error, 1)
	go func() { sent <- sendHTTP2(conn) }()
	t.Cleanup(func() { assert.NoError(t, <-sent) })
	return c, conn, http2.NewFramer(conn, conn)
}

func sendHTTP2(conn net.Conn) error {
	framer := http2.NewFramer(conn, nil)
	var headers strings.Builder
	encoder := hpack.NewEncoder(&headers)
	body := credentials(appKey, appSecret)
	for _, field := range [][2]string{
		{":method", "POST"},
		{":scheme", "https"},
		{":authority", "example.com"},
		{":path", simulator.TokenPath},
		{"content-type", "application/json"},
	} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			return err
		}
	}
	_, err := io.WriteString(conn, http2.ClientPreface)
	return errors.Join(err,
		framer.WriteSettings(),
		framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, BlockFragment: []byte(headers.String()), EndHeaders: true,
		}),
		framer.WriteData(1, true, []byte(body)))
}

// nextFrame returns the next frame that is not one of those that net/http sends by itself at the
// beginning of a connection: they may arrive at any time, also after a fault.
func nextFrame(framer *http2.Framer) (http2.Frame, error) {
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return nil, err
		}
		if !slices.Contains([]http2.FrameType{http2.FrameSettings, http2.FrameWindowUpdate}, frame.Header().Type) {
			return frame, nil
		}
	}
}

func TestHTTP2_goaway_is_to_the_letter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, conn, framer := dialHTTP2(t, simulator.Fault{Kind: simulator.FaultHTTP2GoAway})
		first, err := framer.ReadFrame()
		require.NoError(t, err)
		assert.Equal(t, http2.FrameSettings, first.Header().Type, "a client takes nothing else as the first one")
		frame, err := nextFrame(framer)
		require.NoError(t, err)
		goAway, ok := frame.(*http2.GoAwayFrame)
		require.True(t, ok)
		assert.Zero(t, goAway.LastStreamID, "the stream was not processed")
		assert.Equal(t, http2.ErrCodeNo, goAway.ErrCode)
		assert.Equal(t, 1, c.Requests(appKey))
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(1000*time.Hour)))
		_, err = nextFrame(framer)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}

func TestHTTP2_silent_replies_to_no_ping(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, conn, framer := dialHTTP2(t, simulator.Fault{Kind: simulator.FaultHTTP2Silent})
		frames := make(chan http2.Frame, 100)
		go func() {
			defer close(frames)
			for {
				frame, err := framer.ReadFrame()
				if err != nil {
					return
				}
				frames <- frame
			}
		}()
		synctest.Wait()
		assert.Equal(t, 1, c.Requests(appKey))
		for len(frames) > 0 {
			<-frames
		}
		require.NoError(t, framer.WritePing(false, [8]byte{1}))
		require.NoError(t, framer.WriteData(3, true, nil), "which would be an error")
		time.Sleep(1000 * time.Hour)
		assert.Empty(t, frames)
		require.NoError(t, c.Close())
		for range frames {
			continue // the end of TLS alone
		}
		requireClosed(t, conn)
	})
}

func TestHTTP2_flood_has_no_end(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, conn, framer := dialHTTP2(t, simulator.Fault{Kind: simulator.FaultHTTP2Flood})
		var settings, pings int
		for settings < 10_000 || pings < 10_000 {
			frame, err := framer.ReadFrame()
			require.NoError(t, err)
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if !frame.IsAck() {
					settings++
				}
			case *http2.PingFrame:
				pings++
				assert.False(t, frame.IsAck())
				require.NoError(t, framer.WriteSettingsAck(), "too many of them would be an error")
			}
		}
		require.NoError(t, c.Close())
		requireClosed(t, conn)
	})
}

func TestHTTP2_faults_end_with_the_client_and_with_Close_on_a_network(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{simulator.FaultHTTP2GoAway, simulator.FaultHTTP2Silent, simulator.FaultHTTP2Flood} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := start(t, simulator.Options{})
			c.set(t, appKey, simulator.Fault{Kind: kind})
			config, trusting := certificates()
			trusting.NextProtos = []string{"h2"}
			tcp, err := simulator.Listen("127.0.0.1:0")
			require.NoError(t, err)
			l := closeListener{tcp, make(chan struct{}, 2)}
			go func() { assert.NoError(t, c.ServeTLS(l, config)) }()
			conns := make([]net.Conn, 2)
			for i := range conns {
				conns[i], err = (&tls.Dialer{Config: trusting}).DialContext(t.Context(), "tcp", tcp.Addr().String())
				require.NoError(t, err)
				defer conns[i].Close()
				require.NoError(t, sendHTTP2(conns[i]))
			}
			require.Eventually(t, func() bool { return c.Requests(appKey) == 2 }, time.Minute, time.Millisecond)

			require.NoError(t, conns[0].Close())
			<-l.closed
			require.NoError(t, c.Close())
			requireClosed(t, conns[1])
		})
	}
}

// closeListener reports when the server closes a connection.
type closeListener struct {
	net.Listener

	closed chan struct{}
}

func (l closeListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return closeConn{conn, sync.OnceFunc(func() { l.closed <- struct{}{} })}, nil
}

type closeConn struct {
	net.Conn

	closing func()
}

func (c closeConn) Close() error {
	c.closing()
	return c.Conn.Close()
}
