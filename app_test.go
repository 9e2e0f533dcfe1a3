// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests one app in memory: the states of its token, who waits for what, what a read does
// in each state, back-off, and what the log says of it.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

func TestToken_state_follows_the_remaining_TTL(t *testing.T) {
	sent := time.Now()
	for _, c := range []struct {
		lifetime, refreshBefore, age time.Duration
		want                         tokenState
	}{
		{2 * time.Hour, 200 * time.Second, 0, stateFresh},
		{2 * time.Hour, 200 * time.Second, 6999 * time.Second, stateFresh},
		{2 * time.Hour, 200 * time.Second, 7000 * time.Second, stateDue},
		{2 * time.Hour, 200 * time.Second, 7198 * time.Second, stateDue},
		{2 * time.Hour, 200 * time.Second, 7198*time.Second + 1, stateExpired},
		{2 * time.Hour, 200 * time.Second, 9000 * time.Second, stateExpired},
		{2 * time.Hour, 0, 7198 * time.Second, stateFresh},
		{2 * time.Hour, 0, 7199 * time.Second, stateExpired},
		{20 * time.Second, time.Hour, 14 * time.Second, stateFresh}, // the window is a quarter: 5 s
		{20 * time.Second, time.Hour, 15 * time.Second, stateDue},
		{2 * time.Second, time.Hour, 0, stateFresh},
	} {
		tok := newToken(newSensitive("t"), sent, c.lifetime)
		require.Equal(t, c.want, tok.state(sent.Add(c.age), c.refreshBefore), "%+v", c)
		require.Equal(t, c.want != stateExpired, tok.servable(sent.Add(c.age)), "%+v", c)
	}
	var none *token
	require.Equal(t, stateAbsent, none.state(sent, 0))
	require.False(t, none.servable(sent))
}

func TestToken_remaining_TTL_is_what_the_stricter_clock_says(t *testing.T) {
	now := time.Now()
	tok := newToken(newSensitive("t"), now, 100*time.Second)
	later := func(wall, monotonic time.Duration) time.Time {
		at := now.Add(wall)
		*(*int64)(unsafe.Add(unsafe.Pointer(&at), 8)) += int64(monotonic - wall)
		require.Equal(t, []time.Duration{wall, monotonic}, []time.Duration{at.Round(0).Sub(now.Round(0)), at.Sub(now)})
		return at
	}
	require.Equal(t, 40*time.Second, tok.remaining(later(time.Minute, time.Second)), "the machine slept")
	require.Equal(t, 40*time.Second, tok.remaining(later(-time.Hour, time.Minute)), "the wall clock was set back")
	require.Equal(t, 100*time.Second, tok.remaining(later(-time.Hour, -time.Hour)), "never more than the lifetime")
	require.Equal(t, 99*time.Second, tok.remaining(now.Add(time.Millisecond)), "rounded down")
}

func TestCreds_a_fresh_token_costs_nothing_and_the_first_reader_of_a_due_one_waits_alone(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, old string) {
		m.storage.fail(nil)
		for range 10 {
			require.Equal(t, old, m.token(theApp))
		}
		require.Empty(t, m.storage.calls())
		require.Equal(t, 1, m.calls())

		time.Sleep(7001 * time.Second)
		m.upstream.RotateTokens(theKey, true)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})
		began, first := time.Now(), begin(func() response { return m.read(theApp) })
		for range 10 {
			require.Equal(t, old, m.token(theApp))
		}
		require.Zero(t, time.Since(began), "the others do not wait")
		require.NotEqual(t, old, (<-first).works(t).Data["access_token"])
		require.Equal(t, time.Second, time.Since(began))
		require.Equal(t, 2, m.calls())
	})
}

func TestCreds_a_lease_begins_with_half_of_the_tokens_life_at_least(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		time.Sleep(time.Hour)
		require.Equal(t, time.Hour, m.read(theApp).Secret.TTL)
		require.Equal(t, 1, m.calls(), "half is left")
		time.Sleep(time.Second)
		require.Equal(t, 2*time.Hour, m.read(theApp).Secret.TTL, "the read extends the token first")
		require.Equal(t, 2, m.calls())
		m.changed(unleased)
		time.Sleep(7000*time.Second - time.Second)
		require.Empty(t, m.read(theApp).works(t).Warnings)
		require.Equal(t, 2, m.calls(), "without a lease it is served as long as it is fresh")
	})
}

func TestCreds_a_reader_that_could_be_served_waits_two_seconds_at_most(t *testing.T) {
	forEach(t, map[string]time.Duration{"due": 7000 * time.Second, "fresh, in its second half": 5000 * time.Second},
		func(t *testing.T, m *mount, age time.Duration) {
			m.configure(theApp, nil)
			tok := m.token(theApp)
			m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultHang})
			time.Sleep(age)
			for _, waits := range []time.Duration{2 * time.Second, 0, 0} { // the first reader, and others
				began := time.Now()
				require.Equal(t, tok, m.token(theApp), "without a warning")
				require.Equal(t, waits, time.Since(began))
			}
			began, longer := time.Now(), map[string]<-chan response{
				"more life": begin(func() response {
					return m.do(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": "1h"})
				}),
				"a refresh": begin(func() response { return m.refresh(theApp) }),
			}
			(<-longer["a refresh"]).gets(t, http.StatusBadGateway, "no whole response within 10s")
			(<-longer["more life"]).warns(t, "no whole response within 10s")
			require.Equal(t, 8*time.Second, time.Since(began))
			began = time.Now()
			require.Equal(t, tok, m.read(theApp).warns(t, "no whole response within 10s").Data["access_token"])
			require.Zero(t, time.Since(began), "the remembered error")
			require.Equal(t, 2, m.calls())
		})
}

func TestCreds_a_reader_whose_token_ends_while_it_waits_waits_on(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, old string) {
		m.upstream.RotateTokens(theKey, true)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 5 * time.Second})
		time.Sleep(7197 * time.Second)
		began := time.Now()
		require.NotEqual(t, old, m.token(theApp))
		require.Equal(t, 5*time.Second, time.Since(began))
		require.Equal(t, 2, m.calls())
	})
}

func TestCreds_a_due_token_is_served_with_a_warning_when_DingTalk_is_down_and_never_once_expired(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, tok string) {
		expires := time.Now().Add(2 * time.Hour)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultUnavailableEmpty})
		time.Sleep(3601 * time.Second)
		for time.Until(expires) >= 3*time.Second { // an attempt takes up to a second
			got := m.read(theApp).warns(t, "503")
			left := time.Until(expires)
			require.Equal(t, tok, got.Data["access_token"])
			require.LessOrEqual(t, got.Secret.TTL, left)
			require.GreaterOrEqual(t, got.Secret.TTL, 2*time.Second)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Until(expires) - 2*time.Second + time.Nanosecond)
		for range 100 {
			m.read(theApp).gets(t, http.StatusBadGateway)
			time.Sleep(time.Second)
		}
		require.Equal(t, "expired", m.state(theApp)["state"])
	})
}

func TestCreds_a_slow_app_delays_no_other(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		m.upstream.SetApp("slowkey", "slowsecret")
		m.configure("slow", map[string]any{"app_key": "slowkey", "app_secret": "slowsecret"})
		m.upstream.SetFault("slowkey", simulator.Fault{Kind: simulator.FaultHang})
		slow := begin(func() response { return m.read("slow") })
		began := time.Now()
		m.token(theApp)
		m.configure("other", nil)
		m.token("other")
		require.Zero(t, time.Since(began))
		(<-slow).gets(t, http.StatusBadGateway)
	})
}

func TestCreds_min_ttl_of_up_to_three_quarters_refreshes_a_token_with_less_once_in_ten_seconds(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		m.upstream.SetTokenLifetime(40 * time.Second)
		read := func(minTTL any, calls int, ttl time.Duration, warning string) {
			t.Helper()
			got := m.do(logical.ReadOperation, "creds/myapp", map[string]any{"min_ttl": minTTL}).works(t)
			require.Equal(t, calls, m.calls())
			require.Equal(t, ttl, got.Secret.TTL)
			require.Equal(t, warning != "", len(got.Warnings) == 1, got.Warnings)
			require.Contains(t, strings.Join(got.Warnings, ""), warning)
		}
		for _, long := range []any{"2h", "25h", "2562047h", 9_223_372_036} { // there is no upper limit
			read(long, 1, 40*time.Second, "more than three quarters of the token's lifetime of 40s, and counts as 30s")
		}
		time.Sleep(5 * time.Second)
		read("2h", 1, 35*time.Second, "counts as 30s")
		time.Sleep(6 * time.Second)
		read("29s", 1, 29*time.Second, "")
		m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})
		read("30s", 2, 39*time.Second, "") // the reader waits for it
		time.Sleep(10 * time.Second)
		read("2h", 3, 39*time.Second, "counts as 30s")
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: "4"})
		time.Sleep(11 * time.Second)
		read("30s", 4, 4*time.Second, "counts as 3s")
		time.Sleep(1500 * time.Millisecond)
		read("3s", 4, 2*time.Second, "less than 10s ago")
	})
}

func TestBackOff_grows_and_ends_with_success(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		nextAttempt := func() time.Time { return m.engine.apps.inMemory(theApp).lastFailure.nextAttempt }
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultTruncated})
		for i, wait := range []int{5, 10, 20, 40, 60, 60, 60} {
			got := m.read(theApp)
			got.gets(t, http.StatusBadGateway)
			require.Equal(t, i+1, m.calls())
			left := time.Until(nextAttempt()).Seconds()
			require.GreaterOrEqual(t, left, float64(wait), "never less: the retries of Vault's client come before")
			require.Less(t, left, 1.2*float64(wait))
			require.Contains(t, got.err.Error(), timestamp(nextAttempt()))

			time.Sleep(time.Until(nextAttempt()) - time.Millisecond)
			require.Equal(t, got.err, m.read(theApp).err, "the remembered error, at once")
			require.Equal(t, i+1, m.calls())
			time.Sleep(time.Millisecond)
		}
		m.upstream.ClearFaults()
		m.token(theApp)
		require.NotContains(t, m.state(theApp), "next_attempt_at")
		require.NotContains(t, m.state(theApp), "last_error")

		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultTruncated})
		time.Sleep(2 * time.Hour)
		m.read(theApp)
		require.InDelta(t, 5, time.Until(nextAttempt()).Seconds(), 1, "it starts over")
	})
}

func TestBackOff_is_a_minute_after_a_rejection_which_is_logged_once_until_fetches_work_again(t *testing.T) {
	forEach(t, map[string]string{
		"the credentials": simulator.FaultRejectedCredentials, "the request": simulator.FaultMissingBody,
		"the permission": simulator.FaultPermissionDenied, "the address": simulator.FaultIPNotAllowed,
	}, func(t *testing.T, m *mount, kind string) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: kind, Code: "a.code"})
		for i := range 3 {
			m.read(theApp).gets(t, http.StatusBadRequest)
			time.Sleep(time.Minute - time.Millisecond)
			m.read(theApp).gets(t, http.StatusBadRequest)
			require.Equal(t, i+1, m.calls())
			time.Sleep(time.Millisecond)
		}
		m.upstream.ClearFaults()
		tok := m.token(theApp)
		m.token(theApp)
		require.Equal(t, 1, strings.Count(m.log.String(), "[WARN]"))
		require.Contains(t, m.log.String(), "a.code")
		require.Equal(t, 1, strings.Count(m.log.String(), "[INFO]"))
		require.NotContains(t, m.log.String(), theSecret)
		require.NotContains(t, m.log.String(), tok)
	})
}

func TestLog_warns_of_the_first_failure_of_another_class_and_once_an_hour_with_the_end_of_the_token(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		warnings := func() (all []string) {
			for line := range strings.Lines(m.log.String()) {
				if _, warned, ok := strings.Cut(line, "[WARN]  "); ok {
					all = append(all, warned)
				}
			}
			return all
		}
		until := "token_expires_at=" + timestamp(time.Now().Add(2*time.Hour))
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultReset})
		time.Sleep(time.Hour + time.Second)
		failing := func(lasts time.Duration) {
			for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(time.Minute) {
				m.read(theApp)
			}
		}
		failing(30 * time.Minute)
		require.Len(t, warnings(), 1)
		require.Contains(t, warnings()[0], "class=unreachable")
		require.Contains(t, warnings()[0], until)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultUnavailableEmpty})
		failing(10 * time.Minute)
		require.Len(t, warnings(), 2)
		require.Contains(t, warnings()[1], "class=unavailable")
		require.Contains(t, warnings()[1], until)
		failing(100 * time.Minute)
		require.Len(t, warnings(), 3)
		require.Contains(t, warnings()[2], `token_expires_at=none`)
		m.upstream.ClearFaults()
		time.Sleep(time.Minute)
		m.token(theApp)
		require.Equal(t, 1, strings.Count(m.log.String(), "[INFO]"))
	})
}

// deafTransport sends no response and heeds no context until the test ends.
type deafTransport struct {
	calls atomic.Int32
	end   chan struct{}
	body  bool // send a head at once, and nothing after it
}

func (d *deafTransport) RoundTrip(*http.Request) (*http.Response, error) {
	d.calls.Add(1)
	if d.body {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(d)}, nil
	}
	<-d.end
	return nil, net.ErrClosed
}

func (d *deafTransport) Read([]byte) (int, error) {
	<-d.end
	return 0, net.ErrClosed
}

func TestFlight_ends_with_request_timeout_whatever_the_transport_does(t *testing.T) {
	forEach(t, map[string]bool{"before the head": false, "in the body": true}, func(t *testing.T, m *mount, body bool) {
		deaf := &deafTransport{end: make(chan struct{}), body: body}
		t.Cleanup(func() { close(deaf.end) })
		m.transport = deaf
		m.start()
		m.configure(theApp, map[string]any{"request_timeout": 3})
		for range 2 {
			began := time.Now()
			m.read(theApp).gets(t, http.StatusBadGateway, "no whole response within 3s")
			require.Equal(t, 3*time.Second, time.Since(began))
			require.EqualValues(t, 1, m.state(theApp)["upstream_failures"])
			time.Sleep(time.Minute)
			m.engine.apps.forget(theApp)
		}
		require.EqualValues(t, 2, deaf.calls.Load(), "it fetches again")

		began := time.Now()
		m.write(theApp, map[string]any{"app_secret": "another", "base_url": theURL, "request_timeout": 4}).
			gets(t, http.StatusBadGateway) // a verification
		require.Equal(t, 4*time.Second, time.Since(began))

		reading := begin(func() response { return m.read(theApp) })
		began = time.Now()
		m.engine.Cleanup(t.Context())
		require.LessOrEqual(t, time.Since(began), closeTimeout)
		(<-reading).gets(t, http.StatusServiceUnavailable)
	})
}

func TestCaller_that_goes_away_leaves_no_trace_and_fails_nobody_else(t *testing.T) {
	forEach(t, map[string]logical.Request{
		"read":         {Operation: logical.ReadOperation, Path: "creds/myapp"},
		"refresh":      {Operation: logical.UpdateOperation, Path: "refresh/myapp"},
		"create":       {Operation: logical.UpdateOperation, Path: "config/new", Data: theFields(nil)},
		"verification": {Operation: logical.UpdateOperation, Path: "config/myapp", Data: verified},
		"write": {
			Operation: logical.UpdateOperation, Path: "config/myapp", Data: theFields(map[string]any{"app_key": "another"}),
		},
	}, func(t *testing.T, m *mount, request logical.Request) {
		m.configure(theApp, nil)
		m.upstream.SetApp("another", theSecret)
		config := m.stored("config/myapp")
		m.upstream.SetFault(simulator.AnyApp, simulator.Fault{Delay: 3 * time.Second})
		ctx, hangUp := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, hangUp)
		began := time.Now()
		other := make(chan response, 1)
		time.AfterFunc(100*time.Millisecond, func() { other <- m.read(theApp) })
		require.ErrorIs(t, m.send(ctx, &request).err, context.Canceled)
		require.Equal(t, 200*time.Millisecond, time.Since(began))

		require.Empty(t, (<-other).works(t).Warnings, "the fetch itself goes on for others")
		time.Sleep(5 * time.Second)
		state := m.state(theApp)
		require.NotContains(t, state, "last_error")
		require.NotContains(t, state, "next_attempt_at")
		require.Equal(t, []any{uint64(1), uint64(0)}, []any{state["upstream_calls"], state["upstream_failures"]})
		require.NotContains(t, m.log.String(), "failed")
		require.Equal(t, config, m.stored("config/myapp"))
		require.Nil(t, m.stored("config/new"))
	})
}

func TestFlight_that_panics_fails_its_waiters_and_nobody_else(t *testing.T) {
	forEach(t, map[string]bool{"storage": true, "the transport": false}, func(t *testing.T, m *mount, inStorage bool) {
		sane, mad := m.transport, false
		goMad := func() {
			if mad {
				panic("went mad over " + theSecret)
			}
		}
		m.transport = transportFunc(func(r *http.Request) (*http.Response, error) {
			goMad()
			return sane.RoundTrip(r)
		})
		m.start()
		m.upstream.SetApp("otherkey", "othersecret")
		m.configure("other", map[string]any{"app_key": "otherkey", "app_secret": "othersecret"})
		m.token("other")
		m.configure(theApp, nil)
		m.state(theApp)
		mad = true
		if inStorage {
			m.storage.on(func(string, string) error { goMad(); return nil })
		}
		m.read(theApp).gets(t, http.StatusInternalServerError, `internal error while fetching a token for app "myapp"`)
		require.Contains(t, m.log.String(), "class=internal")
		require.Contains(t, m.log.String(), "app_test.go", "the stack")
		require.NotContains(t, m.log.String()+fmt.Sprint(m.read(theApp)), "went mad", "not the panic's value")
		m.token("other")

		mad = false
		time.Sleep(longestFirstBackOff)
		m.token(theApp)
	})
}

func TestFlight_with_failing_storage_is_a_failure_like_any_other(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		m.storage.on(func(string, string) error { return errors.New("no quorum") })
		time.Sleep(6899 * time.Second) // the background's is the first that fails
		m.tick()
		require.Contains(t, m.state(theApp)["last_error"], "no quorum")
		require.NotEmpty(t, m.state(theApp)["next_attempt_at"])
		require.Contains(t, m.log.String(), "[WARN]  fetching a token failed: app=myapp class=storage")

		time.Sleep(290 * time.Second)
		m.read(theApp).warns(t, "no quorum")
		time.Sleep(20 * time.Second)
		got := m.read(theApp)
		got.gets(t, http.StatusInternalServerError, "no quorum", "next attempt")
		require.Equal(t, got.err, m.read(theApp).err, "remembered")
		require.Equal(t, 1, m.calls())
		m.storage.fail(nil)
		time.Sleep(time.Minute)
		m.token(theApp)
		require.NotContains(t, m.state(theApp), "last_error")
		require.Equal(t, 1, strings.Count(m.log.String(), "[WARN]  fetching a token failed"))
		require.Equal(t, 1, strings.Count(m.log.String(), "[INFO]"))
	})
}

// slowLog is a log that somebody is slow to read.
type slowLog struct{ hclog.Logger }

func (l slowLog) Debug(string, ...any) { time.Sleep(time.Minute) }
func (l slowLog) Info(string, ...any)  { time.Sleep(time.Minute) }
func (l slowLog) Warn(string, ...any)  { time.Sleep(time.Minute) }

func TestLog_that_is_slow_holds_up_nobody_who_does_not_wait_for_the_fetch(t *testing.T) {
	forEach(t, map[string]string{"that works": "", "that fails": simulator.FaultRejectedCredentials},
		func(t *testing.T, m *mount, kind string) {
			m.configure(theApp, nil)
			m.token(theApp)
			m.engine.apps.log = slowLog{m.engine.apps.log}
			m.upstream.SetFault(theKey, simulator.Fault{Kind: kind})
			go m.refresh(theApp)
			synctest.Wait()
			require.Equal(t, 2, m.calls())
			began := time.Now()
			m.state(theApp)
			m.token(theApp)
			require.Zero(t, time.Since(began))
			time.Sleep(time.Hour)
		})
}
