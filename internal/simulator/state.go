// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// This file is what the simulator remembers: apps, tokens, counters and armed faults.

// AnyApp stands for all apps, and for requests that name none, in [Server.SetFault],
// [Server.Requests] and [Server.RequestsIn].
const AnyApp = "*"

// account is what has a token of its own: an app in an organization, or with an empty corpID an app
// on the older call, which names none.
type account struct{ appKey, corpID string }

type issuedToken struct {
	account

	expires time.Time
}

// SetApp adds an app, or gives it another secret. The app runs in the organizations given; without
// any it stays in those that it has, at first [DefaultCorpID] alone. DingTalk does not document
// what a new secret does to issued tokens; here they live on. It panics where [CheckCorpIDs] fails.
func (s *Server) SetApp(appKey, appSecret string, corpIDs ...string) {
	if err := CheckCorpIDs(corpIDs); err != nil {
		panic(fmt.Sprintf("simulator: SetApp: %v", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[appKey] = appSecret
	if len(corpIDs) > 0 {
		s.corpIDs[appKey] = slices.Clone(corpIDs)
	}
}

// RemoveApp makes the app unknown: its credentials are rejected. Issued tokens live on, and its
// organizations stay.
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
// at first), in all organizations. Older tokens live on to their end.
func (s *Server) RotateTokens(appKey string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotating[appKey] = on
}

// ExpireTokens ends every token issued to the app so far, in all organizations. The next call gives
// a new one.
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

// Requests counts the token requests that named the app, on both calls, whatever their reply and
// whether the app is known; for [AnyApp] all of them, also those that named none. A request counts
// once its body is read.
func (s *Server) Requests(appKey string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if appKey == AnyApp {
		return s.total
	}
	return s.requests[appKey]
}

// RequestsIn counts those of [Server.Requests] that were unified calls for this organization. With
// an empty corpID it counts those on the older call.
func (s *Server) RequestsIn(appKey, corpID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if appKey != AnyApp {
		return s.requestsIn[account{appKey, corpID}]
	}
	n := 0
	for of, requests := range s.requestsIn {
		if of.corpID == corpID {
			n += requests
		}
	}
	return n
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

// Organization is the corpId that a token is for; empty if the older call issued it, or none did.
func (s *Server) Organization(token string) (corpID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[token].corpID
}

// LastToken is the token that the app got last, by either call, expired or not; empty if it got
// none.
func (s *Server) LastToken(appKey string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[appKey]
}

// LastTokenIn is the token that the app got last in this organization. With an empty corpID it is
// the one of the older call.
func (s *Server) LastTokenIn(appKey, corpID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current[account{appKey, corpID}]
}

// issue returns a token and its lifetime, or the kind of fault with whose error the request is
// refused.
func (s *Server) issue(of account, appSecret string) (token string, lifetime time.Duration, refusal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	secret, known := s.secrets[of.appKey]
	switch {
	case of.corpID != "" && !s.isOrganization(of.corpID):
		return "", 0, FaultUnavailableUnknown
	case !known, secret != appSecret:
		return "", 0, FaultRejectedCredentials
	case of.corpID != "" && !s.runsIn(of):
		return "", 0, FaultUnauthorizedClient
	}
	now := time.Now()
	token = s.current[of]
	if s.rotating[of.appKey] || !s.tokens[token].expires.After(now) {
		token = newToken()
		s.current[of] = token
	}
	s.last[of.appKey] = token
	s.tokens[token] = issuedToken{of, now.Add(s.lifetime)}
	return token, s.lifetime, ""
}

// runsIn reports whether the app runs in the organization. The caller holds the lock.
func (s *Server) runsIn(of account) bool {
	corpIDs, named := s.corpIDs[of.appKey]
	if !named {
		return of.corpID == DefaultCorpID
	}
	return slices.Contains(corpIDs, of.corpID)
}

// isOrganization reports whether there is such an organization: the default one, or one that an app
// runs in or ran in until it was removed. The caller holds the lock.
func (s *Server) isOrganization(corpID string) bool {
	if corpID == DefaultCorpID {
		return true
	}
	for _, corpIDs := range s.corpIDs {
		if slices.Contains(corpIDs, corpID) {
			return true
		}
	}
	return false
}

// receive counts a token request, which lasts until end, and returns the fault that hits it; the
// app key is empty if it names no app.
func (s *Server) receive(of account) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total++
	s.underWay[of.appKey]++
	s.requestsIn[of]++
	if of.appKey != "" {
		s.requests[of.appKey]++
	}
	key := of.appKey
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

// isApp reports whether the app has credentials, or had them when it was given a token.
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
