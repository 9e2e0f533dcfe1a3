// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// This file holds what a hostile host sends that no http.ResponseWriter would. The faults here are
// bytes on a connection that was taken from net/http: some once, others without end, or none.

// stream is written to a connection, which then stays open until the client closes it or the server
// is closed.
type stream struct {
	head     string        // sent once
	repeat   string        // then sent without end; empty is silence
	interval time.Duration // the pause before each byte of repeat; 0 sends it as fast as the client reads
}

const (
	okHead     = "HTTP/1.1 200 OK\r\nContent-Type: " + contentTypeJSON + "\r\n"
	gzipHead   = okHead + "Content-Encoding: gzip\r\n\r\n"
	maxRepeat  = 64 << 10 // what is repeated is sent in pieces of about this size
	memberSize = 1 << 20  // of a gzip member of FaultEndlessGzip, decoded
)

// streams are the faults that send the same to every request, and no whole response.
var streams = map[string]stream{
	FaultSwitchingProtocols: {
		head: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n",
	},
	FaultInformationalFlood: {repeat: "HTTP/1.1 103 Early Hints\r\n\r\n"},
	FaultEndlessHeaders:     {head: okHead, repeat: "X-Filler: " + strings.Repeat("x", 100) + "\r\n"},
	FaultEndlessDrip:        {head: okHead + "\r\n", repeat: " ", interval: time.Second},
	FaultEndlessGzip:        {head: gzipHead, repeat: gzipMember(memberSize)},
	FaultEndlessGzipEmpty:   {head: gzipHead, repeat: gzipMember(0)},

	// SETTINGS come first on a connection, and net/http may not have written its own by now. A
	// client may send a stream again that the last id of a GOAWAY does not cover.
	FaultHTTP2GoAway: {head: frames(
		func(f *http2.Framer) error { return f.WriteSettings() },
		func(f *http2.Framer) error { return f.WriteGoAway(0, http2.ErrCodeNo, nil) },
	)},
	FaultHTTP2Silent: {},
	FaultHTTP2Flood: {repeat: frames(
		func(f *http2.Framer) error { return f.WriteSettings() },
		func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) },
	)},
}

// endless is what the fault sends in place of any response, if it is one that does.
func endless(r *http.Request, c *tokenCall, f Fault) (st stream, ok bool) {
	switch {
	case f.Kind == FaultRaw:
		return stream{head: f.Raw, repeat: f.Repeat, interval: f.Interval}, true
	case f.Kind == FaultEndlessBody:
		return stream{head: okHead + "\r\n" + c.hugeHead(), repeat: "0123456789abcdef"}, true
	case isHTTP2Fault(f.Kind) && r.ProtoMajor != 2:
		return stream{}, false
	}
	st, ok = streams[f.Kind]
	return st, ok
}

// streamFor is what the fault sends past net/http, if it is one that does; a is the response.
func (s *Server) streamFor(r *http.Request, req tokenRequest, f Fault, a reply) (st stream, ok bool) {
	switch f.Kind {
	case FaultStatus099:
		return stream{head: wire("099 Odd", a, f)}, true
	case FaultSurplus:
		status := fmt.Sprintf("%d %s", a.status, http.StatusText(a.status))
		return stream{head: wire(status, a, f) + s.LastTokenIn(req.appKey, req.corpID) + "\r\n" + req.body}, true
	}
	return endless(r, req.call, f)
}

// wire is a response as it is on the wire.
func wire(status string, a reply, f Fault) string {
	head := fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", status, a.contentType, len(a.body))
	if f.RetryAfter != "" {
		head += "Retry-After: " + f.RetryAfter + "\r\n"
	}
	return head + "\r\n" + string(a.body)
}

func gzipMember(size int) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(bytes.Repeat([]byte(" "), size)) // a buffer takes everything
	_ = w.Close()
	return b.String()
}

func frames(write ...func(*http2.Framer) error) string {
	var b bytes.Buffer
	framer := http2.NewFramer(&b, nil)
	for _, w := range write {
		_ = w(framer) // a buffer takes everything
	}
	return b.String()
}

// sendStream returns once the connection is closed and what it started has ended.
func (s *Server) sendStream(w http.ResponseWriter, r *http.Request, st stream) {
	conn, gone := takeOver(w, r)
	written := make(chan struct{})
	go func() {
		defer close(written)
		st.write(conn, gone)
	}()
	select {
	case <-gone:
	case <-s.closing:
	}
	_ = conn.Close() // also ends a write that the client does not read
	<-gone
	<-written
	panic(http.ErrAbortHandler) // otherwise net/http would send a response of its own on HTTP/2
}

// write ends early when the connection breaks.
func (st stream) write(w io.Writer, gone <-chan struct{}) {
	if st.head != "" {
		if _, err := io.WriteString(w, st.head); err != nil {
			return
		}
	}
	switch {
	case st.repeat == "":
		return
	case st.interval > 0:
		st.drip(w, gone)
		return
	}
	piece := []byte(strings.Repeat(st.repeat, max(1, maxRepeat/len(st.repeat))))
	for {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

func (st stream) drip(w io.Writer, gone <-chan struct{}) {
	ticker := time.NewTicker(st.interval)
	defer ticker.Stop()
	for i := 0; ; i = (i + 1) % len(st.repeat) {
		select {
		case <-gone:
			return
		case <-ticker.C:
		}
		if _, err := io.WriteString(w, st.repeat[i:i+1]); err != nil {
			return
		}
	}
}

// takeOver takes the connection of a request from net/http. What the client still sends is
// discarded, and gone is closed once the connection ends. It panics where that is not possible.
func takeOver(w http.ResponseWriter, r *http.Request) (conn net.Conn, gone <-chan struct{}) {
	if conn, ok := r.Context().Value(connKey{}).(*tls.Conn); ok && r.ProtoMajor == 2 {
		if under, ok := conn.NetConn().(*seizableConn); ok {
			under.seized.Store(true)
			return conn, r.Context().Done()
		}
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2 over somebody else's TLS
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, buffered)
	}()
	return conn, ended
}

// seizableConn is under the TLS of a connection that may become HTTP/2, which net/http does not
// hand over. Once it is seized, net/http reads nothing from it, and so sends no reply, until it
// ends.
type seizableConn struct {
	net.Conn

	seized atomic.Bool
}

func (c *seizableConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil {
			return 0, err
		}
		if !c.seized.Load() {
			return n, nil
		}
	}
}

type seizableListener struct{ net.Listener }

func (l seizableListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &seizableConn{Conn: conn}, nil
}

// connKey is the key of a request's *tls.Conn in its context.
type connKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	if conn, ok := conn.(*tls.Conn); ok {
		return context.WithValue(ctx, connKey{}, conn)
	}
	return ctx
}

// overTLS offers HTTP/2 only while a fault of its own is set: all the others are those of HTTP/1.1.
func (s *Server) overTLS(l net.Listener, config *tls.Config) net.Listener {
	plain, both := config.Clone(), config.Clone()
	plain.NextProtos = []string{"http/1.1"}
	both.NextProtos = []string{http2.NextProtoTLS, "http/1.1"}
	chooser := config.Clone()
	chooser.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if s.hasHTTP2Fault() {
			return both, nil
		}
		return plain, nil
	}
	return tls.NewListener(seizableListener{l}, chooser)
}
