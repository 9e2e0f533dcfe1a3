// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests config/<app> as a client of Vault's sees it: the statuses, what a write stores
// and what it leaves alone, verification, and generations.

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/errutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

const (
	secondKey    = "dingsecondkey"
	secondSecret = "second-secret-GT-lsu-taDAxxxsTs"
)

// secondFields are another app of DingTalk's, which takes so long to respond.
func (m *mount) secondFields(delay time.Duration) map[string]any {
	m.upstream.SetApp(secondKey, secondSecret)
	if delay > 0 {
		m.upstream.SetFault(secondKey, simulator.Fault{Delay: delay})
	}
	return theFields(map[string]any{"app_key": secondKey, "app_secret": secondSecret})
}

func TestConfig_is_read_back_without_the_secret(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.changed(map[string]any{"app_key": theKey, "app_secret": theSecret, "verify_connection": false})
		require.Equal(t, map[string]any{
			"app_key": theKey, "app_secret_set_at": timestamp(time.Now()), "corp_id": "",
			"base_url": "https://api.dingtalk.io", "refresh_before": int64(200), "request_timeout": int64(10), "leased": true,
		}, m.config(theApp).Data)
	})
}

func TestConfig_of_an_unknown_app_is_created_by_a_write_that_has_key_and_secret(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		for _, fields := range []map[string]any{
			{}, theFields(map[string]any{"app_key": nil}), theFields(map[string]any{"app_secret": nil}),
		} {
			m.write(theApp, fields).
				gets(t, http.StatusBadRequest, `app "myapp" does not exist yet`, "app_key and app_secret are required")
		}
		m.patch(theApp, theFields(nil)).gets(t, http.StatusNotFound, theApp)
		m.config(theApp).gets(t, http.StatusNotFound)
		m.delete()
		require.Empty(t, m.snapshot())
		require.Zero(t, m.calls())

		// The engine's own read decides, not the operation that Vault took it for.
		for _, write := range []logical.Request{
			{Operation: logical.UpdateOperation, Data: theFields(nil)},
			{Operation: logical.CreateOperation, Data: map[string]any{"leased": false}},
		} {
			write.Path, write.Storage = "config/myapp", m.storage
			_, err := m.engine.HandleRequest(t.Context(), &write)
			require.NoError(t, err)
		}
		require.Equal(t, theKey, m.config(theApp).Data["app_key"])
		require.Equal(t, false, m.config(theApp).Data["leased"])
	})
}

func TestConfig_an_invalid_field_is_a_400_that_names_it_and_what_is_allowed_and_changes_nothing(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, tok string) {
		before := m.snapshot()
		for _, c := range []struct {
			field   string
			given   any
			allowed string
		}{
			{"app_key", "two words", "1 to 512 printable ASCII"},
			{"app_key", json.Number("17"), "one string"},
			{"app_secret", "two words", "1 to 512 printable ASCII"},
			{"base_url", "https://user:hunter2@api.dingtalk.com", "https://host[:port]"},
			{"corp_id", "ding/corp", "1 to 64 letters and digits"},
			{"corp_id", strings.Repeat("x", 65), "1 to 64 letters and digits"},
			{"corp_id", "dingc\u00f6rp", "1 to 64 letters and digits"},
			{"corp_id", json.Number("17"), "one string"},
			{"base_url", []any{"https://api.dingtalk.com"}, "one string"},
			{"refresh_before", "500ms", "whole seconds from"},
			{"request_timeout", "-0.5s", "whole seconds from"},
			{"leased", "maybe", "true and false"},
			{"verify_connection", json.Number("2"), "true and false"},
		} {
			for allowed, given := range map[string]any{c.allowed: c.given, "null": nil} {
				fields := theFields(map[string]any{"refresh_before": 60})
				fields[c.field] = given
				for _, got := range []response{m.write(theApp, fields), m.patch(theApp, fields), m.write("another", fields)} {
					got.gets(t, http.StatusBadRequest, c.field+": ", allowed)
					require.NotRegexp(t, "two words|hunter2", got.err.Error())
				}
			}
		}
		require.Equal(t, before, m.snapshot())
		require.Equal(t, tok, m.token(theApp))
		require.Equal(t, 1, m.calls())
	})
}

func TestConfig_a_secret_that_is_not_a_string_is_refused_before_anything_repeats_it(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure("other", nil)
		before := m.snapshot()
		requireRefused := func(err error) {
			t.Helper()
			require.ErrorContains(t, err, "app_secret: expected one string")
			for _, part := range []string{theSecret, secondSecret, "1234567890", "12345.67"} {
				require.NotContains(t, err.Error()+m.log.String(), part)
			}
		}
		for _, given := range []any{
			[]any{theSecret, secondSecret},
			[]string{theSecret, secondSecret},
			map[string]any{theSecret: secondSecret},
			json.Number("1234567890"), 1234567890, 12345.67890, true, nil,
			[]any{[]any{theSecret}},
			[]any{nil, theSecret},
		} {
			for _, path := range []string{"config/myapp", "config/other"} {
				for _, op := range []logical.Operation{"create", "update", "patch"} {
					req := &logical.Request{Operation: op, Path: path, Storage: m.storage, Data: theFields(nil)}
					req.Data["app_secret"] = given
					_, _, err := m.engine.HandleExistenceCheck(t.Context(), req)
					var user errutil.UserError
					require.ErrorAs(t, err, &user, "which Vault answers with a 400")
					requireRefused(err)

					_, err = m.engine.HandleRequest(t.Context(), req)
					var coded logical.HTTPCodedError
					require.ErrorAs(t, err, &coded)
					require.Equal(t, http.StatusBadRequest, coded.Code())
					requireRefused(err)
				}
			}
		}
		require.Equal(t, before, m.snapshot())
	})
}

func TestConfig_a_secret_in_a_wrong_place_is_not_repeated(t *testing.T) {
	fields := []string{
		"app_secret", "app_key", "corp_id", "rejected_token", "base_url", "refresh_before", "request_timeout",
		"leased", "verify_connection", "app",
	}
	withApp(t, func(t *testing.T, m *mount) {
		m.configure("other", nil)
		for _, given := range []any{[]any{theSecret, "b"}, map[string]any{"x": theSecret}} {
			query := map[string]any{"app_key": given, "leased": given}
			m.do(logical.ReadOperation, "config/myapp", query).works(t) // a query is not looked at
			for _, op := range []logical.Operation{"create", "update", "patch", "read", "delete", "list"} {
				for _, path := range []string{
					"config/", "config/myapp", "creds/myapp", "status/myapp", "refresh/myapp", "nothing/myapp",
				} {
					for _, field := range fields {
						got := m.do(op, path, map[string]any{field: given})
						require.NotContains(t, got.String(), theSecret, "%s %s %s", op, path, field)
					}
				}
			}
			got := m.write(theApp, theFields(map[string]any{"app_secrt": theSecret})).warns(t, "app_secrt")
			require.NotContains(t, got.Warnings[0]+m.log.String(), theSecret, "a field that it does not know")
		}
	})
}

func TestConfig_names_have_128_characters_at_most_and_no_two_dots_in_a_row(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		longest := strings.Repeat("x", 128)
		for _, name := range []string{longest, "b", "a.b-c_9"} {
			m.write(name, theFields(nil)).gets(t, http.StatusNoContent)
			m.config(name).gets(t, http.StatusOK)
			m.token(name)
		}
		list := m.do(logical.ListOperation, "config/", nil)
		require.Equal(t, map[string]any{"keys": []string{"a.b-c_9", "b", longest}}, list.Data)
		before := m.snapshot()
		for name, why := range map[string]string{longest + "x": "128", "a..b": "two dots"} { // Vault's storage refuses these
			for _, got := range []response{
				m.write(name, theFields(nil)), m.patch(name, theFields(nil)), m.config(name),
				m.do(logical.DeleteOperation, "config/"+name, nil), m.read(name),
				m.do(logical.ReadOperation, "status/"+name, nil), m.refresh(name),
			} {
				got.gets(t, http.StatusBadRequest, why)
			}
		}
		for _, name := range []string{"a/b", "-a", "a-", ".a", "a b", "a%2fb", "钉钉", "a\n"} {
			m.write(name, theFields(nil)).gets(t, http.StatusNotFound)
			m.config(name).gets(t, http.StatusNotFound)
		}
		require.Equal(t, before, m.snapshot())
	})
}

func TestConfig_a_write_changes_what_it_names_and_another_key_secret_or_host_is_verified_and_starts_a_generation(
	t *testing.T,
) {
	type fields = map[string]any
	type test struct {
		fields fields
		calls  int
		starts bool
	}
	for _, op := range []logical.Operation{"update", "patch"} {
		forEach(t, map[string]test{
			"another secret":             {fields{"app_secret": secondSecret, "base_url": theURL}, 1, true},
			"another key":                {theFields(fields{"app_key": secondKey, "app_secret": secondSecret}), 1, true},
			"another host":               {fields{"base_url": "http://127.0.0.2", "app_secret": theSecret}, 1, true},
			"an organization":            {fields{"corp_id": simulator.DefaultCorpID}, 1, true},
			"no organization, as before": {fields{"corp_id": ""}, 0, false},
			"another port":               {fields{"base_url": "http://127.0.0.1:81", "app_secret": theSecret}, 1, true},
			"not verified":               {theFields(fields{"app_secret": secondSecret, "verify_connection": false}), 0, true},
			"the same values":            {theFields(nil), 0, false},
			"the same values, verified":  {theFields(verified), 1, false},
			"the same and a line break":  {theFields(fields{"app_secret": theSecret + "\n"}), 0, false},
			"the same host, otherwise":   {fields{"base_url": "HTTP://127.0.0.1:80/"}, 0, false},
			"one setting":                {fields{"refresh_before": int64(90)}, 0, false},
			"another setting":            {fields{"request_timeout": int64(7)}, 0, false},
			"a third setting, verified":  {fields{"leased": false, "verify_connection": true}, 1, false},
			"nothing":                    {fields{}, 0, false},
			"just the verification":      {fields{"verify_connection": "true"}, 1, false},
		}, func(t *testing.T, m *mount, c test) {
			m.changed(theFields(nil))
			require.Equal(t, 1, m.calls(), "a create is verified")
			tok, before, want := m.token(theApp), m.stored("config/myapp"), m.config(theApp).Data
			time.Sleep(time.Minute)
			if secret, given := c.fields["app_secret"]; given && strings.TrimSpace(secret.(string)) != theSecret {
				want["app_secret_set_at"] = timestamp(time.Now())
			}
			if c.fields["app_secret"] == secondSecret {
				m.upstream.SetApp(secondKey, secondSecret)
				m.upstream.SetApp(theKey, secondSecret)
			}
			otherHost, otherPort := m.network.host(t, "127.0.0.2:80"), m.network.host(t, "127.0.0.1:81")
			otherHost.SetApp(theKey, theSecret)
			otherPort.SetApp(theKey, theSecret)
			m.do(op, "config/myapp", maps.Clone(c.fields)).gets(t, http.StatusNoContent)
			calls := func() int { return m.upstream.Requests("*") + otherHost.Requests("*") + otherPort.Requests("*") }
			require.Equal(t, 1+c.calls, calls())
			require.Equal(t, c.starts, m.stored("config/myapp")["generation"] != before["generation"])
			for field, given := range c.fields {
				if _, shown := want[field]; shown && given != "HTTP://127.0.0.1:80/" {
					want[field] = given
				}
			}
			require.Equal(t, want, m.config(theApp).Data)
			if !c.starts {
				require.Equal(t, tok, m.stored("token/myapp")["access_token"])
				require.Equal(t, tok, m.token(theApp))
				require.Equal(t, 1+c.calls, calls(), "the token is kept")
			} else if c.calls == 0 {
				require.Nil(t, m.stored("token/myapp"))
				require.Equal(t, "absent", m.state(theApp)["state"])
			}
		})
	}
}

func TestConfig_apps_that_share_a_key_have_a_token_for_each_organization(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetApp(theKey, theSecret, "corpA", "corpB")
		tokens := map[string]bool{}
		for _, corp := range []string{"", "corpA", "corpB"} {
			m.configure("app"+corp, map[string]any{"corp_id": corp, "verify_connection": true})
			tok := m.token("app" + corp)
			require.Equal(t, m.upstream.LastTokenIn(theKey, corp), tok)
			require.Equal(t, 1, m.upstream.RequestsIn(theKey, corp))
			tokens[tok] = true
		}
		require.Len(t, tokens, 3)
		m.patch("appcorpA", map[string]any{"corp_id": "corpC"}).gets(t, 502, "unknownError", "check corp_id")
		require.Equal(t, "corpA", m.config("appcorpA").Data["corp_id"])
		m.patch("appcorpA", map[string]any{"corp_id": ""}).works(t)
		require.Equal(t, m.token("app"), m.token("appcorpA"))

		time.Sleep(11 * time.Second)
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "600", Times: 1})
		m.refresh("appcorpB").gets(t, http.StatusBadGateway)
		require.Empty(t, m.refresh("app").works(t).Warnings, "a Retry-After is for the organization")
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultBanned, Times: 1})
		time.Sleep(11 * time.Second)
		m.refresh("app").gets(t, http.StatusBadGateway)
		m.upstream.ClearFaults()
		m.configure("another", map[string]any{"corp_id": "corpA"})
		m.read("another").gets(t, http.StatusBadGateway, "banned")
	})
}

func TestConfig_a_verification_that_fails_says_why_and_changes_nothing(t *testing.T) {
	type fault = simulator.Fault
	for _, c := range []struct {
		fault  fault
		status int
		took   time.Duration // at most
		says   []string
	}{
		{fault{Kind: simulator.FaultUnavailableEmpty}, 502, time.Second, []string{"HTTP status 503"}},
		{fault{Kind: simulator.FaultHang}, 502, defaultRequestTimeout, []string{"within 10s"}},
		{fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "30"}, 502, 0, []string{"due at 2000-01-01T00:00:30Z"}},
		{fault{Kind: simulator.FaultBanned}, 502, 0, []string{"to be made, at 2000-01-01T00:05:00Z"}},
		{fault{Kind: simulator.FaultIPNotAllowed}, 400, 0, []string{"allow-list"}},
		{fault{Kind: simulator.FaultRejectedCredentials}, 400, 0, []string{
			"code invalidClientIdOrSecret, message \"无效的clientId或者clientSecret\", request id ",
			"; check app_key and app_secret, that the app's version is published, and that base_url (" + theURL +
				") is the host of the app's edition",
		}},
	} {
		t.Run(c.fault.Kind, func(t *testing.T) {
			secondWrite := theFields(map[string]any{"app_secret": secondSecret, "leased": false})
			forEach(t, map[string]map[string]any{
				"create": secondWrite, "another secret": secondWrite, "unchanged": {"leased": false, "verify_connection": true},
			}, func(t *testing.T, m *mount, fields map[string]any) {
				create, unchanged := strings.HasSuffix(t.Name(), "create"), fields["app_secret"] == nil
				var tok string
				if !create {
					m.configure(theApp, nil)
					tok = m.token(theApp)
				}
				if !unchanged {
					m.upstream.SetApp(theKey, secondSecret) // so that the fault alone is in the way
				}
				before, began := m.snapshot(), time.Now()
				m.upstream.SetFault(theKey, c.fault)
				got := m.write(theApp, fields)
				got.gets(t, c.status, append(c.says, "nothing was stored", theApp)...)
				require.LessOrEqual(t, time.Since(began), c.took)
				for _, secret := range []string{theSecret, secondSecret} {
					require.NotContains(t, got.err.Error()+m.log.String(), secret)
				}
				require.Equal(t, before, m.snapshot())
				if create {
					require.Nil(t, m.engine.apps.inMemory(theApp))
					return
				}
				require.Equal(t, unchanged, m.state(theApp)["last_error"] != nil, "of the app's own credentials")
				require.Equal(t, tok, m.token(theApp))
			})
		})
	}
}

func TestConfig_a_verification_has_the_request_timeout_that_is_to_be_stored(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		took := func(seconds int, fields map[string]any) {
			t.Helper()
			m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultHang})
			time.Sleep(time.Minute)
			began := time.Now()
			m.write(theApp, fields).gets(t, http.StatusBadGateway)
			require.Equal(t, time.Duration(seconds)*time.Second, time.Since(began))
		}
		took(3, theFields(map[string]any{"request_timeout": 3}))
		m.configure(theApp, map[string]any{"request_timeout": 1})
		tune := map[string]any{"request_timeout": 10, "verify_connection": true}
		took(10, tune)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 2 * time.Second})
		time.Sleep(time.Minute)
		reading := begin(func() response { return m.read(theApp) }) // whose fetch has one second
		m.changed(tune)
		(<-reading).gets(t, http.StatusBadGateway)
		require.EqualValues(t, 10, m.config(theApp).Data["request_timeout"])
		took(10, map[string]any{"request_timeout": 3, "verify_connection": true}) // nor less than the one in force
	})
}

// A ban and a Retry-After it waits out: see client_test.go.
func TestConfig_a_verification_waits_for_the_end_of_no_back_off(t *testing.T) {
	for _, kind := range []string{simulator.FaultRejectedCredentials, simulator.FaultThrottledQPS} {
		secondWrite := theFields(map[string]any{"app_secret": secondSecret})
		forEach(t, map[string]map[string]any{
			kind + " new": secondWrite, kind + " another secret": secondWrite, kind + " unchanged": verified,
		}, func(t *testing.T, m *mount, fields map[string]any) {
			m.upstream.SetFault(theKey, simulator.Fault{Kind: kind})
			if strings.HasSuffix(t.Name(), "new") { // the failure is a verification's
				require.Error(t, m.write(theApp, fields).err)
			} else {
				m.configure(theApp, nil)
				require.Error(t, m.read(theApp).err)
			}
			m.upstream.ClearFaults()
			if fields["app_secret"] != nil {
				m.upstream.SetApp(theKey, secondSecret)
			}
			m.changed(fields)
			require.Equal(t, 2, m.calls())
			require.Equal(t, m.upstream.LastToken(theKey), m.token(theApp), "success ends the back-off")
		})
	}
}

func TestConfig_verifying_unchanged_credentials_is_a_refresh_and_as_rare(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, _ string) {
		time.Sleep(time.Hour)
		m.changed(verified)
		require.Equal(t, 2, m.calls())
		require.EqualValues(t, 7200, m.state(theApp)["ttl"])

		m.write(theApp, map[string]any{"verify_connection": true, "leased": false}).warns(t, "less than 10 seconds ago")
		require.Equal(t, 2, m.calls())
		require.Equal(t, false, m.config(theApp).Data["leased"])

		time.Sleep(10 * time.Second)
		m.upstream.RemoveApp(theKey)
		m.refresh(theApp).gets(t, http.StatusBadRequest)
		require.Equal(t, 3, m.calls())
		before := m.snapshot()
		// What failed a moment ago is not taken for verified.
		m.write(theApp, map[string]any{"verify_connection": true, "leased": true}).
			gets(t, http.StatusBadRequest, "nothing was stored", "invalidClientIdOrSecret")
		require.Equal(t, before, m.snapshot())
		m.refresh(theApp).warns(t, "invalidClientIdOrSecret")
		require.Equal(t, 3, m.calls())
	})
}

func TestConfig_tuning_keeps_the_back_off_and_a_new_generation_drops_it(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"app_secret": "wrong"})
		m.read(theApp).gets(t, http.StatusBadRequest)
		m.changed(map[string]any{"leased": false})
		m.read(theApp).gets(t, http.StatusBadRequest)
		require.Equal(t, 1, m.calls())
		m.configure(theApp, nil)
		require.NotContains(t, m.state(theApp), "last_error")
		require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
		require.Contains(t, m.read(theApp).Data, "expires_at", "without a lease")
	})
}

// requireSecond wants the second app's token served and stored, after one call.
func (m *mount) requireSecond() {
	m.t.Helper()
	synctest.Wait()
	for range 2 {
		require.Equal(m.t, m.upstream.LastToken(secondKey), m.token(theApp))
		require.Equal(m.t, m.upstream.LastToken(secondKey), m.stored("token/myapp")["access_token"])
		require.Equal(m.t, m.stored("config/myapp")["generation"], m.stored("token/myapp")["generation"])
		m.start()
	}
	require.Equal(m.t, 1, m.upstream.Requests(secondKey))
}

func TestConfig_a_fetch_of_the_old_generation_is_neither_awaited_nor_served_nor_stored(t *testing.T) {
	for _, verify := range []bool{true, false} {
		forEach(t, map[string]simulator.Fault{
			fmt.Sprintf("it hangs, verify_connection=%t", verify):   {Kind: simulator.FaultHang, Times: 1},
			fmt.Sprintf("it is slow, verify_connection=%t", verify): {Delay: 3 * time.Second, Times: 1},
		}, func(t *testing.T, m *mount, fault simulator.Fault) {
			m.configure(theApp, nil)
			m.upstream.SetFault(theKey, fault)
			var waiting []<-chan response
			for range 10 {
				waiting = append(waiting, begin(func() response { return m.read(theApp) }))
			}
			began := time.Now()
			fields := m.secondFields(0)
			fields["verify_connection"] = verify
			m.changed(fields)
			for _, reading := range waiting {
				got := (<-reading).works(t)
				require.Equal(t, m.upstream.LastToken(secondKey), got.Data["access_token"])
			}
			require.Zero(t, time.Since(began))
			time.Sleep(time.Minute)
			m.requireSecond()
		})
	}
}

func TestConfig_a_write_and_a_fetch_store_one_after_the_other_and_the_writes_generation_stays(t *testing.T) {
	forEach(t, map[string]time.Duration{"put token/myapp": 2 * time.Second, "put config/myapp": 0},
		func(t *testing.T, m *mount, head time.Duration) {
			m.configure(theApp, nil)
			m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})
			m.storage.on(func(op, key string) error {
				if op == "put" && strings.HasPrefix(key, "token/") == (head > 0) {
					time.Sleep(3 * time.Second) // the other one waits for the app's lock meanwhile
				}
				return nil
			})
			reading := begin(func() response { return m.read(theApp) })
			time.Sleep(head)
			m.changed(m.secondFields(0))
			(<-reading).works(t)
			m.requireSecond()
		})
}

func TestConfig_a_change_during_a_verification_wins(t *testing.T) {
	type test struct{ before, change func(m *mount) }
	forEach(t, map[string]test{
		"tuning":            {configured, configuredUnleased},
		"generation":        {configured, configuredWrongly},
		"delete":            {configured, (*mount).delete},
		"delete and create": {configured, after((*mount).delete, configured)},
		"create":            {nothing, configured},
	}, func(t *testing.T, m *mount, c test) {
		c.before(m)
		verifying := begin(func() response { return m.write(theApp, m.secondFields(3*time.Second)) })
		c.change(m)
		left := m.snapshot()
		(<-verifying).gets(t, http.StatusBadRequest, "nothing was stored", "changed")
		require.Equal(t, left, m.snapshot())
	})
}

func TestConfig_a_verification_holds_up_no_reader(t *testing.T) {
	withToken(t, func(t *testing.T, m *mount, tok string) {
		verifying := begin(func() response { return m.write(theApp, m.secondFields(3*time.Second)) })
		began := time.Now()
		require.Equal(t, tok, m.token(theApp))
		require.Equal(t, theKey, m.config(theApp).Data["app_key"])
		require.Zero(t, time.Since(began))
		(<-verifying).gets(t, http.StatusNoContent)
		require.EqualValues(t, 1, m.state(theApp)["upstream_calls"], "the verification's")
		m.requireSecond()
	})
}

func TestConfig_delete_removes_config_and_token_also_in_the_middle_of_a_fetch(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure("other", nil)
		m.token("other")
		before := m.snapshot()
		requireGone := func(got response) {
			t.Helper()
			got.gets(t, http.StatusBadRequest, "config/myapp")
		}
		for _, fetching := range []bool{false, true} {
			m.configure(theApp, nil)
			m.upstream.SetFault(theKey, simulator.Fault{Delay: 3 * time.Second})
			reading := begin(func() response { return m.read(theApp) })
			if !fetching {
				(<-reading).works(t)
			}
			m.delete()
			if fetching {
				requireGone(<-reading)
			}
			time.Sleep(time.Minute)
			require.Equal(t, before, m.snapshot())
			requireGone(m.read(theApp))
			requireGone(m.do(logical.ReadOperation, "status/myapp", nil))
			requireGone(m.refresh(theApp))
			m.config(theApp).gets(t, http.StatusNotFound)
		}
		m.token("other")
	})
}

func TestConfig_an_app_made_again_with_the_same_values_starts_without_a_token(t *testing.T) {
	for _, leftOver := range []bool{false, true} {
		withApp(t, func(t *testing.T, m *mount) {
			m.upstream.RotateTokens(theKey, true)
			old, stored := m.token(theApp), m.snapshot()["token/myapp"]
			m.delete()
			if leftOver {
				m.putRaw("token/myapp", stored)
			}
			m.configure(theApp, nil)
			require.Equal(t, "absent", m.state(theApp)["state"])
			m.start()
			require.Equal(t, "absent", m.state(theApp)["state"])
			require.NotEqual(t, old, m.token(theApp))
			require.Equal(t, 2, m.calls())
		})
	}
}

func TestConfig_in_storage_that_cannot_be_read_can_be_deleted_and_made_again(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.putRaw("config/myapp", `{"version":99,"app_secret":"`+theSecret+`"}`)
		for _, got := range []response{
			m.config(theApp), m.read(theApp), m.write(theApp, theFields(nil)), m.patch(theApp, theFields(nil)),
		} {
			got.gets(t, http.StatusInternalServerError, "version 99")
			require.NotContains(t, got.err.Error(), theSecret)
		}
		m.delete()
		m.changed(theFields(nil))
		m.token(theApp)
	})
}

func TestConfig_the_existence_check_and_a_read_wait_for_no_lock(t *testing.T) {
	withApp(t, func(t *testing.T, m *mount) {
		unlock, err := m.engine.apps.lock(t.Context(), theApp)
		require.NoError(t, err)
		defer unlock()
		_, exists, err := m.engine.HandleExistenceCheck(t.Context(), &logical.Request{
			Operation: logical.UpdateOperation, Path: "config/myapp", Storage: m.storage,
		})
		require.NoError(t, err)
		require.True(t, exists)
		m.config(theApp).gets(t, http.StatusOK)
	})
}
