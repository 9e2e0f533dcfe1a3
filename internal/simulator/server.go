// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// This file is the server's life: making it, listening, and ending it. Ending must be prompt and
// whole, since tests check for leaked goroutines and the command must stop while requests hang.

// DefaultTokenLifetime is how long DingTalk lets a token live.
const DefaultTokenLifetime = 7200 * time.Second

// Options are a simulator's settings. The zero value knows no app.
type Options struct {
	// TokenLifetime is how long a token lives from its issue or extension; not positive means
	// [DefaultTokenLifetime]. The expireIn of a reply is its whole seconds.
	TokenLifetime time.Duration
	// Apps maps an AppKey to its AppSecret.
	Apps map[string]string
	// CorpIDs maps an AppKey of Apps to the organizations in which the app runs, for the unified
	// call; without an entry it runs in [DefaultCorpID]. New panics where [CheckCorpIDs] fails.
	CorpIDs map[string][]string
	// Logger gets one line for each token request and each API call, without any secret; nil logs
	// nothing.
	Logger *slog.Logger
}

// Server is a simulated token API, with two APIs that a token opens and the control API. It is an
// [http.Handler], and can serve by itself with [Server.Start] or [Server.Serve]. Its methods may be
// called at any time from any goroutine. For virtual time make it inside the bubble of
// testing/synctest.
type Server struct {
	logger  *slog.Logger
	control http.Handler
	http    *http.Server
	closing chan struct{}  // closed when the server ends
	running sync.WaitGroup // the listeners, connections and requests of http

	mu         sync.Mutex // guards all below; never held while waiting
	closed     bool
	lifetime   time.Duration
	secrets    map[string]string // by app key, as are the next four
	corpIDs    map[string][]string
	rotating   map[string]bool
	last       map[string]string // the token issued last
	faults     map[string]Fault
	current    map[account]string     // the token issued last there
	tokens     map[string]issuedToken // by token, expired ones too: LifeLeft knows every one
	requests   map[string]int         // by app key
	underWay   map[string]int         // those that have not ended, by app key; empty for none
	total      int                    // requests of all apps and of none
	requestsIn map[account]int        // requests, also those that name no app
	calls      map[string]apiCalls    // by app key; AnyApp's are all of them
}

// New returns a simulator that is not listening yet.
func New(o Options) *Server {
	s := &Server{
		logger:     o.Logger,
		closing:    make(chan struct{}),
		secrets:    make(map[string]string),
		corpIDs:    make(map[string][]string),
		rotating:   make(map[string]bool),
		last:       make(map[string]string),
		faults:     make(map[string]Fault),
		current:    make(map[account]string),
		tokens:     make(map[string]issuedToken),
		requests:   make(map[string]int),
		underWay:   make(map[string]int),
		requestsIn: make(map[account]int),
		calls:      make(map[string]apiCalls),
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.SetTokenLifetime(o.TokenLifetime)
	for key, secret := range o.Apps {
		s.SetApp(key, secret, o.CorpIDs[key]...)
	}
	s.control = s.newControl()
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serveOwn),
		ConnContext:       withConn,
		ConnState:         s.trackConn,
		ReadHeaderTimeout: time.Minute,
	}
	return s
}

// CheckAddress reports whether addr is a "host:port" that [Listen] takes: the host is localhost or a
// literal loopback address, the port 0 to 65535. The simulator has no authentication, so it is for
// this machine alone.
func CheckAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q is not host:port", addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf(
			"address %q is not a loopback address, such as 127.0.0.1:8123, [::1]:8123 or localhost:8123",
			addr,
		)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("address %q has a port that is not a number from 0 to 65535", addr)
	}
	return nil
}

// Listen opens a TCP listener on a loopback address; port 0 takes a free one. It fails where
// [CheckAddress] does and where the address is in use.
func Listen(addr string) (net.Listener, error) {
	if err := CheckAddress(addr); err != nil {
		return nil, err
	}
	return net.Listen("tcp", addr)
}

// BaseURL is the URL of what is served on l, such as http://127.0.0.1:8123.
func BaseURL(l net.Listener) string {
	return "http://" + l.Addr().String()
}

// Start listens on a loopback address as [Listen] does, serves in the background until
// [Server.Close], and returns the base URL. It fails where Listen does and after Close.
func (s *Server) Start(addr string) (baseURL string, err error) {
	l, err := Listen(addr)
	if err != nil {
		return "", err
	}
	if err := s.start(l); err != nil {
		return "", err
	}
	return BaseURL(l), nil
}

// StartTLS is [Server.Start] over TLS with the certificates of config. HTTP/2 is offered only while
// one of its faults is set, and a client that does not take it gets HTTP/1.1.
func (s *Server) StartTLS(addr string, config *tls.Config) (baseURL string, err error) {
	l, err := Listen(addr)
	if err != nil {
		return "", err
	}
	if err := s.start(s.overTLS(l, config)); err != nil {
		return "", err
	}
	return "https://" + l.Addr().String(), nil
}

func (s *Server) start(l net.Listener) error {
	if !s.hold() {
		return errors.Join(http.ErrServerClosed, l.Close())
	}
	go func() {
		defer s.running.Done()
		_ = s.serve(l) // it ends with Close, or because l broke, which the clients see
	}()
	return nil
}

// Serve answers on l until [Server.Close], and closes l. It returns nil once the server is closed,
// otherwise why l gave no more connections. Any listener will do, also one that hands out net.Pipe
// connections.
func (s *Server) Serve(l net.Listener) error {
	if !s.hold() {
		return l.Close()
	}
	defer s.running.Done()
	return s.serve(l)
}

// ServeTLS is to [Server.StartTLS] what [Server.Serve] is to [Server.Start].
func (s *Server) ServeTLS(l net.Listener, config *tls.Config) error {
	return s.Serve(s.overTLS(l, config))
}

// Close ends everything at once, requests without a reply included, and returns when what the
// server started has ended. Closing again does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	err := s.http.Close()
	s.running.Wait()
	return err
}

// ServeHTTP answers a request to the token API, to the API that a token opens, or to the control
// API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	corpID := corpIDOf(r.URL.Path)
	switch {
	case s.isClosed():
		panic(http.ErrAbortHandler)
	case strings.HasPrefix(r.URL.Path, controlPrefix):
		s.control.ServeHTTP(w, r)
	case r.URL.Path == TokenPath, corpID != "":
		s.serveToken(w, r, corpID)
	case r.URL.Path == AppsPath:
		s.serveApps(w, r)
	case r.URL.Path == DepartmentsPath:
		s.serveDepartments(w, r)
	default:
		// A wrong path is no error to DingTalk's gateway, going by the status.
		send(w, reply{status: http.StatusOK, contentType: contentTypeJSON, body: []byte(errcodeBody)})
	}
}

// hold keeps Close waiting until s.running.Done, unless the server is closed already.
func (s *Server) hold() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

func (s *Server) serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveOwn answers what came in by the server's own listeners. Their connections alone are waited
// for: Close cannot end those of somebody else's server.
func (s *Server) serveOwn(w http.ResponseWriter, r *http.Request) {
	if !s.hold() { // on HTTP/2 a request can begin when its connection has ended
		panic(http.ErrAbortHandler)
	}
	defer s.running.Done()
	s.ServeHTTP(w, r)
}

func (s *Server) trackConn(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.running.Add(1) // its listener is counted too
		if s.isClosed() {
			_ = c.Close() // accepted while http.Server.Close was running, which may have missed it
		}
	case http.StateHijacked, http.StateClosed:
		s.running.Done()
	case http.StateActive, http.StateIdle:
	}
}

func (s *Server) isClosed() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}
