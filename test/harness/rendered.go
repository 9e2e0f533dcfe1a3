// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

// A file that holds a token, as an application reads it.

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// DeadAtMost is how long a file may hold a token that DingTalk refuses.
const DeadAtMost = time.Second

// Rendered is a file that an Agent renders, as an application sees it. Tests read it all the time.
type Rendered struct {
	File   string
	dt     *DingTalk
	tokens int // how many the file holds

	Contents  []string // one after another, no two in a row the same
	MayBeDead time.Duration
	deadSince time.Time // zero while the tokens live
	Longest   time.Duration
}

// renderedToken is a token as the simulator makes them.
var renderedToken = regexp.MustCompile(`\b[0-9a-f]{32}\b`)

// NewRendered returns a file that holds so many tokens.
func NewRendered(file string, dt *DingTalk, tokens int) *Rendered {
	return &Rendered{File: file, dt: dt, tokens: tokens, MayBeDead: DeadAtMost}
}

// Look reads the file once. It may be missing until it was there for the first time.
func (r *Rendered) Look(t *testing.T) {
	t.Helper()
	content, err := os.ReadFile(r.File)
	if errors.Is(err, fs.ErrNotExist) && len(r.Contents) == 0 {
		return
	}
	require.NoError(t, err, "read the rendered file")
	now, text := time.Now(), string(content)
	tokens := renderedToken.FindAllString(text, -1)
	require.Len(t, tokens, r.tokens, "tokens in the rendered file")
	if len(r.Contents) == 0 || text != r.Last() {
		r.Contents = append(r.Contents, text)
		for _, token := range tokens {
			NoteSecret(token, "an access token")
		}
	}
	for _, token := range tokens {
		if r.dt.Remaining(token) > 0 {
			continue
		}
		if r.deadSince.IsZero() {
			r.deadSince = now
		}
		dead := now.Sub(r.deadSince)
		r.Longest = max(r.Longest, dead)
		require.LessOrEqual(t, dead, r.MayBeDead, "how long the file has held a token that DingTalk refuses")
		return
	}
	r.deadSince = time.Time{}
}

// Last returns the file's current content.
func (r *Rendered) Last() string {
	if len(r.Contents) == 0 {
		return ""
	}
	return r.Contents[len(r.Contents)-1]
}

// Holds reports whether the file holds the apps' current tokens, and all of them are live.
func (r *Rendered) Holds(apps ...*App) bool {
	for _, a := range apps {
		token := a.DingTalk.LastToken(a.Key)
		if token == "" || !strings.Contains(r.Last(), token) || a.DingTalk.Remaining(token) <= 0 {
			return false
		}
	}
	return true
}

// WatchFiles reads the files until the condition holds. The test fails if that takes longer than
// the bound.
func WatchFiles(t *testing.T, bound time.Duration, what string, files []*Rendered, holds func() bool) {
	t.Helper()
	WaitFor(t, bound, what, func() bool {
		for _, r := range files {
			r.Look(t)
		}
		return holds()
	})
}

// CallLog records when DingTalk was asked for an app's token.
type CallLog struct {
	app   *App
	At    []time.Time // not later than this
	after []time.Time // later than the look before
	last  time.Time   // look
}

// NewCallLog begins to record an app's calls.
func NewCallLog(a *App) *CallLog { return &CallLog{app: a, last: time.Now()} }

// look records the calls since the last look.
func (l *CallLog) look() {
	for n := l.app.Calls(); len(l.At) < n; {
		l.At, l.after = append(l.At, time.Now()), append(l.after, l.last)
	}
	l.last = time.Now()
}

// WatchFiles is WatchFiles, with an eye on the calls.
func (l *CallLog) WatchFiles(t *testing.T, bound time.Duration, what string, files []*Rendered, holds func() bool) {
	t.Helper()
	WatchFiles(t, bound, what, files, func() bool {
		l.look()
		return holds()
	})
}

// Pass watches the files and the calls for a while.
func (l *CallLog) Pass(t *testing.T, d time.Duration, files []*Rendered) {
	t.Helper()
	end := time.Now().Add(d)
	l.WatchFiles(t, d+time.Second, "time passes", files, func() bool { return time.Now().After(end) })
}

// RequireAtMostTwoPer requires that no three calls are within a token's lifetime.
func (l *CallLog) RequireAtMostTwoPer(t *testing.T, lifetime time.Duration) {
	t.Helper()
	const early = 500 * time.Millisecond // the engine counts whole seconds
	for i := 2; i < len(l.At); i++ {
		require.Greater(t, l.At[i].Sub(l.after[i-2])+early, lifetime, "three calls upstream within a lifetime")
	}
}
