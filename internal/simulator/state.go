// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"
)

// This file is what the simulator remembers: apps, tokens, counters and armed faults.

// AnyApp stands for all apps, and for requests that name none, in [Server.SetFault] and
// [Server.Requests].
const AnyApp = "*"

type issuedToken struct {
	appKey  string
	expires time.Time
}

// SetApp adds an app, or gives it another secret. DingTalk does not document what a new secret does
// to issued tokens; here they live on.
func (s *Server) SetApp(appKey, appSecret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[appKey] = appSecret
}

// RemoveApp makes the app unknown: its credentials are rejected. Issued tokens live on.
func (s *Server) RemoveApp(appKey string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.secrets, appKey)
}

// SetTokenLifetime is the lifetime that tokens get from now on, when issued or extended; not
// positive means [DefaultTokenLifetime]. A lifetime below a second is answered as an expireIn of 0.
func (s *Server) SetTokenLifetime(d time.Duration) {
	if d <= 0 {
		d = DefaultTokenLifetime
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lifetime = d
}

// RotateTokens makes every call of the app give a new token (on), or repeat the last one (off, as
// at first). Older tokens live on to their end.
func (s *Server) RotateTokens(appKey string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotating[appKey] = on
}

// ExpireTokens ends every token issued to the app so far. The next call gives a new one.
func (s *Server) ExpireTokens(appKey string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for token, t := range s.tokens {
		if t.appKey == appKey && t.expires.After(now) {
			t.expires = now
			s.tokens[token] = t
		}
	}
}

// SetFault makes the app's requests fail as f says, in place of the fault set before. [AnyApp] hits
// every token request, also one whose body names no app. An app's own fault wins over it, so that
// Fault{} exempts an app. It panics where [Fault.Validate] fails.
func (s *Server) SetFault(appKey string, f Fault) {
	if err := f.Validate(); err != nil {
		panic(fmt.Sprintf("simulator: SetFault: %v", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[appKey] = f
}

// ClearFault takes back the fault set for this app key, or for [AnyApp]. A request already hit
// stays so.
func (s *Server) ClearFault(appKey string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.faults, appKey)
}

// ClearFaults takes back all faults. Requests already hit stay so.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
}

// Requests counts the token requests that named the app, whatever their answer and whether the app
// is known; for [AnyApp] all of them, also those that named none. A request counts once its body is
// read.
func (s *Server) Requests(appKey string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if appKey == AnyApp {
		return s.total
	}
	return s.requests[appKey]
}

// UnderWay counts the token requests that named the app and have not ended: their response is not
// sent, and their client has not gone. For [AnyApp] it counts all of them.
func (s *Server) UnderWay(appKey string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if appKey != AnyApp {
		return s.underWay[appKey]
	}
	n := 0
	for _, requests := range s.underWay {
		n += requests
	}
	return n
}

// LifeLeft tells how long a token will still be accepted, zero or less if it has expired, and
// whether it was ever issued.
func (s *Server) LifeLeft(token string) (left time.Duration, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.tokens[token]
	if !known {
		return 0, false
	}
	return time.Until(t.expires), true
}

// Owner is the app that a token was issued to, and whether the token is still accepted; empty if it
// was never issued.
func (s *Server) Owner(token string) (appKey string, live bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[token]
	return t.appKey, t.expires.After(time.Now())
}

// LastToken is the token that the app got last, expired or not; empty if it got none.
func (s *Server) LastToken(appKey string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[appKey]
}

// issue answers valid credentials with a token and its lifetime.
func (s *Server) issue(appKey, appSecret string) (token string, lifetime time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	secret, known := s.secrets[appKey]
	if !known || secret != appSecret {
		return "", 0, false
	}
	now := time.Now()
	token = s.last[appKey]
	if s.rotating[appKey] || !s.tokens[token].expires.After(now) {
		token = newToken()
		s.last[appKey] = token
	}
	s.tokens[token] = issuedToken{appKey: appKey, expires: now.Add(s.lifetime)}
	return token, s.lifetime, true
}

// receive counts a token request, which lasts until end, and returns the fault that hits it; appKey
// is empty if it names no app.
func (s *Server) receive(appKey string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total++
	s.underWay[appKey]++
	if appKey != "" {
		s.requests[appKey]++
	}
	key := appKey
	f, armed := s.faults[key]
	if !armed {
		key = AnyApp
		f = s.faults[key]
	}
	switch f.Times {
	case 0: // until it is cleared
	case 1:
		delete(s.faults, key)
	default:
		left := f
		left.Times--
		s.faults[key] = left
	}
	return f.numbered(s.total)
}

// end notes that a token request has ended.
func (s *Server) end(appKey string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay[appKey]--; s.underWay[appKey] == 0 {
		delete(s.underWay, appKey)
	}
}

func (s *Server) hasHTTP2Fault() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.faults {
		if isHTTP2Fault(s.faults[key].Kind) {
			return true
		}
	}
	return false
}

// isApp tells whether the app has credentials, or had them when it was given a token.
func (s *Server) isApp(appKey string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.secrets[appKey]
	return known || s.last[appKey] != ""
}

func newToken() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// newRequestID is a random UUID in upper case, as DingTalk writes them.
func newRequestID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
