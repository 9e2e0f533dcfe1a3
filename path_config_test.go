// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file tests config/<app> as a client of Vault's sees it: the statuses, what a write stores and what it leaves alone,
// verification, generations, and what a failing storage can do.

import (
	"context"
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

// write sends an update, which Vault makes a create where the app does not exist.
func (m *mount) write(name string, data map[string]any) answer {
	return m.do(logical.UpdateOperation, "config/"+name, data)
}

func (m *mount) patch(name string, data map[string]any) answer {
	return m.do(logical.PatchOperation, "config/"+name, data)
}

func (m *mount) config(name string) answer {
	return m.do(logical.ReadOperation, "config/"+name, nil)
}

// theFields are what creates an app that works, with changes; a nil change leaves the field out.
func theFields(changes map[string]any) map[string]any {
	fields := map[string]any{"app_key": theKey, "app_secret": theSecret, "base_url": theURL}
	for k, v := range changes {
		if fields[k] = v; v == nil {
			delete(fields, k)
		}
	}
	return fields
}

// snapshot is every byte in storage.
func (m *mount) snapshot() map[string]string {
	m.t.Helper()
	all := map[string]string{}
	keys, err := logical.CollectKeys(m.t.Context(), m.storage)
	require.NoError(m.t, err)
	for _, k := range keys {
		e, err := m.storage.Get(m.t.Context(), k)
		require.NoError(m.t, err)
		all[k] = string(e.Value)
	}
	return all
}

func TestConfig_is_read_back_with_its_defaults_and_without_the_secret(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		got := m.write(theApp, map[string]any{"app_key": theKey, "app_secret": theSecret, "verify_connection": false})
		require.Equal(t, http.StatusNoContent, got.status, got)
		got = m.config(theApp)
		require.Equal(t, http.StatusOK, got.status)
		require.Equal(t, map[string]any{
			"app_key": theKey, "base_url": "https://api.dingtalk.io", "refresh_before": int64(200), "request_timeout": int64(10), "leased": true,
		}, got.Data)
		require.Empty(t, got.Warnings)
	})
}

func TestConfig_an_update_and_a_patch_change_only_what_they_name(t *testing.T) {
	for _, op := range []logical.Operation{logical.UpdateOperation, logical.PatchOperation} {
		for field, value := range map[string]any{"refresh_before": "90s", "request_timeout": json.Number("7"), "leased": "false"} {
			t.Run(string(op)+" "+field, func(t *testing.T) {
				inVirtualTime(t, func(t *testing.T, m *mount) {
					m.configure(theApp, nil)
					want, stored := maps.Clone(m.config(theApp).Data), m.stored("config/myapp")
					got := m.do(op, "config/myapp", map[string]any{field: value})
					require.Equal(t, http.StatusNoContent, got.status, got)
					want[field] = map[string]any{"refresh_before": int64(90), "request_timeout": int64(7), "leased": false}[field]
					require.Equal(t, want, m.config(theApp).Data)
					require.Equal(t, stored["generation"], m.stored("config/myapp")["generation"])
					require.Equal(t, theSecret, m.stored("config/myapp")["app_secret"])
				})
			})
		}
	}
}

func TestConfig_an_update_of_an_unknown_app_is_a_create(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		for _, missing := range []string{"app_key", "app_secret"} {
			got := m.write(theApp, theFields(map[string]any{missing: nil}))
			require.Equal(t, http.StatusBadRequest, got.status)
			require.ErrorContains(t, got.err, missing)
		}
		require.Empty(t, m.snapshot())
		require.Zero(t, m.calls())
		// Whether the app exists is decided by the engine's own read, not by the operation that Vault took it for.
		_, err := m.engine.HandleRequest(t.Context(), &logical.Request{
			Operation: logical.UpdateOperation, Path: "config/myapp", Storage: m.storage, Data: theFields(nil),
		})
		require.NoError(t, err)
		_, err = m.engine.HandleRequest(t.Context(), &logical.Request{
			Operation: logical.CreateOperation, Path: "config/myapp", Storage: m.storage, Data: map[string]any{"leased": false},
		})
		require.NoError(t, err)
		require.Equal(t, false, m.config(theApp).Data["leased"])
		require.Equal(t, theKey, m.config(theApp).Data["app_key"])
	})
}

func TestConfig_a_patch_of_an_unknown_app_is_a_404_with_a_message(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		got := m.patch(theApp, theFields(nil))
		require.Equal(t, http.StatusNotFound, got.status)
		require.ErrorContains(t, got.err, theApp)
		require.Empty(t, m.snapshot())
		require.Zero(t, m.calls())
	})
}

func TestConfig_read_of_an_unknown_app_is_a_404_and_delete_a_204(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		require.Equal(t, http.StatusNotFound, m.config(theApp).status)
		require.Equal(t, http.StatusNoContent, m.do(logical.DeleteOperation, "config/myapp", nil).status)
	})
}

func TestConfig_an_unknown_field_is_a_200_with_a_warning_that_names_it(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		got := m.write(theApp, theFields(map[string]any{"app_secrt": theSecret}))
		require.Equal(t, http.StatusOK, got.status, got)
		require.Len(t, got.Warnings, 1)
		require.Contains(t, got.Warnings[0], "app_secrt")
		require.NotContains(t, got.Warnings[0], theSecret)
		require.Equal(t, http.StatusOK, m.read(theApp).status)
	})
}

func TestConfig_null_in_a_patch_is_refused(t *testing.T) {
	for _, field := range []string{"app_key", "app_secret", "base_url", "refresh_before", "request_timeout", "leased", "verify_connection"} {
		t.Run(field, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				before := m.snapshot()
				got := m.patch(theApp, map[string]any{"leased": false, field: nil})
				require.Equal(t, http.StatusBadRequest, got.status)
				require.ErrorContains(t, got.err, field+": ")
				require.ErrorContains(t, got.err, "null")
				require.Equal(t, before, m.snapshot())
			})
		})
	}
}

func TestConfig_a_secret_that_is_not_a_string_is_refused_before_anything_repeats_it(t *testing.T) {
	for name, given := range map[string]any{
		"a list":             []any{theSecret, secondSecret},
		"a list of strings":  []string{theSecret, secondSecret},
		"an object":          map[string]any{theSecret: secondSecret},
		"a number":           json.Number("1234567890"),
		"a number of Go's":   1234567890,
		"a fractional":       12345.67890,
		"a boolean":          true,
		"null":               nil,
		"a list in a list":   []any{[]any{theSecret}},
		"a list with a null": []any{nil, theSecret},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure("other", nil)
				before := m.snapshot()
				requireClean := func(text string) {
					t.Helper()
					for _, part := range []string{theSecret, secondSecret, "1234567890", "12345.67"} {
						require.NotContains(t, text, part)
					}
				}
				for _, app := range []string{theApp, "other"} {
					for _, op := range []logical.Operation{logical.CreateOperation, logical.UpdateOperation, logical.PatchOperation} {
						req := &logical.Request{Operation: op, Path: "config/" + app, Storage: m.storage, Data: theFields(nil)}
						req.Data["app_secret"] = given

						_, _, err := m.engine.HandleExistenceCheck(t.Context(), req)
						var user errutil.UserError
						require.ErrorAs(t, err, &user, "which Vault answers with a 400")
						require.ErrorContains(t, err, "app_secret: expected one string")
						requireClean(err.Error())

						_, err = m.engine.HandleRequest(t.Context(), req)
						var coded logical.HTTPCodedError
						require.ErrorAs(t, err, &coded)
						require.Equal(t, http.StatusBadRequest, coded.Code())
						require.ErrorContains(t, err, "app_secret: expected one string")
						requireClean(err.Error())
					}
				}
				require.Equal(t, before, m.snapshot())
				requireClean(m.log.String())
			})
		})
	}
}

func TestConfig_a_secret_in_a_wrong_place_is_not_repeated(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		for _, path := range []string{"config/myapp", "config/", "creds/myapp", "status/myapp", "refresh/myapp", "nothing/myapp"} {
			for _, op := range []logical.Operation{logical.CreateOperation, logical.UpdateOperation, logical.PatchOperation, logical.ReadOperation, logical.DeleteOperation, logical.ListOperation} {
				for _, given := range []any{[]any{theSecret}, map[string]any{"x": theSecret}} {
					got := m.do(op, path, map[string]any{"app_secret": given})
					require.NotContains(t, got.String(), theSecret, "%s %s", op, path)
				}
			}
		}
		for _, field := range []string{"app_key", "base_url", "refresh_before", "request_timeout", "leased", "verify_connection", "app"} {
			for _, given := range []any{[]any{theSecret}, map[string]any{"x": theSecret}} {
				got := m.write(theApp, map[string]any{field: given})
				require.NotContains(t, got.String(), theSecret, field)
			}
		}
		require.NotContains(t, m.log.String(), theSecret)
	})
}

func TestConfig_an_invalid_field_is_a_400_that_names_it_and_what_is_allowed_and_changes_nothing(t *testing.T) {
	characters, duration, boolean, url := "1 to 512 printable ASCII", "whole seconds from", "true and false", "https://host[:port]"
	for _, c := range []struct {
		field   string
		given   any
		allowed string
	}{
		{"app_key", "", characters},
		{"app_key", "two words", characters},
		{"app_key", strings.Repeat("x", 513), characters},
		{"app_key", json.Number("17"), "one string"},
		{"app_secret", "", characters},
		{"app_secret", "two words", characters},
		{"app_secret", strings.Repeat("x", 513), characters},
		{"base_url", "", url},
		{"base_url", "http://api.dingtalk.com", url},
		{"base_url", "https://user:hunter2@api.dingtalk.com", url},
		{"base_url", "https://api.dingtalk.com/path", url},
		{"base_url", []any{"https://api.dingtalk.com"}, "one string"},
		{"refresh_before", "", duration},
		{"refresh_before", "500ms", duration},
		{"refresh_before", "-0.5s", duration},
		{"refresh_before", "-1", duration},
		{"refresh_before", "61m", duration},
		{"refresh_before", []any{"60s"}, duration},
		{"refresh_before", json.Number("18446744074"), duration},
		{"request_timeout", "", duration},
		{"request_timeout", "0", duration},
		{"request_timeout", "1500ms", duration},
		{"request_timeout", "31s", duration},
		{"request_timeout", json.Number("1e30"), duration},
		{"leased", "", boolean},
		{"leased", "maybe", boolean},
		{"leased", []any{true}, boolean},
		{"verify_connection", "maybe", boolean},
		{"verify_connection", json.Number("2"), boolean},
	} {
		t.Run(fmt.Sprintf("%s %.20v", c.field, c.given), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				tok := m.token(theApp)
				before, calls := m.snapshot(), m.calls()
				for what, got := range map[string]answer{
					"update": m.write(theApp, theFields(map[string]any{c.field: c.given})),
					"patch":  m.patch(theApp, map[string]any{c.field: c.given}),
					"create": m.write("another", theFields(map[string]any{c.field: c.given})),
				} {
					require.Equal(t, http.StatusBadRequest, got.status, what)
					require.ErrorContains(t, got.err, c.field+": ", what)
					require.ErrorContains(t, got.err, c.allowed, what)
					require.NotContains(t, got.err.Error(), "two words", what)
					require.NotContains(t, got.err.Error(), "hunter2", what)
				}
				require.Equal(t, before, m.snapshot())
				require.Equal(t, calls, m.calls())
				require.Equal(t, tok, m.token(theApp))
			})
		})
	}
}

func TestConfig_space_around_a_value_is_either_taken_or_refused_with_what_is_allowed(t *testing.T) {
	for _, fields := range []map[string]any{{"refresh_before": " 60s"}, {"request_timeout": "7 "}, {"leased": " false "}, {"verify_connection": "false\n"}} {
		t.Run(fmt.Sprint(fields), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				if got := m.write(theApp, fields); got.status != http.StatusNoContent {
					require.Equal(t, http.StatusBadRequest, got.status)
					require.ErrorContains(t, got.err, "allowed ")
				}
			})
		})
	}
}

func TestConfig_names(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		longest := strings.Repeat("x", 128)
		require.Equal(t, http.StatusNoContent, m.write(longest, theFields(nil)).status)
		require.Equal(t, http.StatusOK, m.config(longest).status)
		require.Equal(t, http.StatusOK, m.read(longest).status)
		require.Equal(t, http.StatusNoContent, m.write("a.b-c_9", theFields(nil)).status)
		before := m.snapshot()

		for what, got := range map[string]answer{
			"write":   m.write(longest+"x", theFields(nil)),
			"patch":   m.patch(longest+"x", theFields(nil)),
			"read":    m.config(longest + "x"),
			"delete":  m.do(logical.DeleteOperation, "config/"+longest+"x", nil),
			"creds":   m.read(longest + "x"),
			"status":  m.do(logical.ReadOperation, "status/"+longest+"x", nil),
			"refresh": m.do(logical.UpdateOperation, "refresh/"+longest+"x", nil),
		} {
			require.Equal(t, http.StatusBadRequest, got.status, what)
			require.ErrorContains(t, got.err, "128", what)
		}
		for what, got := range map[string]answer{
			"write":   m.write("a..b", theFields(nil)),
			"patch":   m.patch("a..b", theFields(nil)),
			"read":    m.config("a..b"),
			"delete":  m.do(logical.DeleteOperation, "config/a..b", nil),
			"creds":   m.read("a..b"),
			"status":  m.do(logical.ReadOperation, "status/a..b", nil),
			"refresh": m.do(logical.UpdateOperation, "refresh/a..b", nil),
		} { // Vault's storage refuses such a key
			require.Equal(t, http.StatusBadRequest, got.status, what)
			require.ErrorContains(t, got.err, "two dots", what)
		}
		for _, name := range []string{"a/b", "-a", "a-", ".a", "a b", "a%2fb", "钉钉", "a\n"} {
			require.Equal(t, http.StatusNotFound, m.write(name, theFields(nil)).status, name)
			require.Equal(t, http.StatusNotFound, m.config(name).status, name)
		}
		require.Equal(t, before, m.snapshot())
	})
}

func TestConfig_the_list_is_sorted_and_an_empty_one_a_404(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		list := func() answer { return m.do(logical.ListOperation, "config/", nil) }
		require.Equal(t, http.StatusNotFound, list().status)
		for _, name := range []string{"b", "c", "a.1", "a"} {
			m.configure(name, nil)
		}
		got := list()
		require.Equal(t, http.StatusOK, got.status)
		require.Equal(t, map[string]any{"keys": []string{"a", "a.1", "b", "c"}}, got.Data)
		for _, name := range []string{"b", "c", "a.1", "a"} {
			require.Equal(t, http.StatusNoContent, m.do(logical.DeleteOperation, "config/"+name, nil).status)
		}
		require.Equal(t, http.StatusNotFound, list().status)
	})
}

func TestConfig_verification_is_the_default_where_a_generation_starts(t *testing.T) {
	for _, c := range []struct {
		name   string
		fields map[string]any
		calls  int
		starts bool
	}{
		{"another secret", map[string]any{"app_secret": secondSecret, "base_url": theURL}, 1, true},
		{"another key", map[string]any{"app_key": secondKey, "app_secret": secondSecret, "base_url": theURL}, 1, true},
		{"another host", map[string]any{"base_url": "http://127.0.0.1:81", "app_secret": theSecret}, 1, true},
		{"another secret, not verified", map[string]any{"app_secret": secondSecret, "base_url": theURL, "verify_connection": false}, 0, true},
		{"the same values", theFields(nil), 0, false},
		{"the same values, verified", theFields(map[string]any{"verify_connection": true}), 1, false},
		{"tuning", map[string]any{"leased": false, "refresh_before": 60}, 0, false},
		{"tuning, verified", map[string]any{"leased": false, "verify_connection": true}, 1, false},
		{"nothing", map[string]any{}, 0, false},
		{"nothing but the verification", map[string]any{"verify_connection": "true"}, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				require.Equal(t, http.StatusNoContent, m.write(theApp, theFields(nil)).status)
				require.Equal(t, 1, m.calls(), "a create is verified")
				generation := m.stored("config/myapp")["generation"]
				m.upstream.SetApp(secondKey, secondSecret)
				if c.fields["app_secret"] == secondSecret && c.fields["app_key"] == nil {
					m.upstream.SetApp(theKey, secondSecret)
				}
				other := m.network.host(t, "127.0.0.1:81")
				other.SetApp(theKey, theSecret)
				before := m.upstream.Requests("*")
				got := m.write(theApp, c.fields)
				require.Equal(t, http.StatusNoContent, got.status, got)
				require.Equal(t, c.calls, m.upstream.Requests("*")-before+other.Requests("*"))
				require.Equal(t, c.starts, m.stored("config/myapp")["generation"] != generation)
			})
		})
	}
}

func TestConfig_a_verified_token_is_the_generations_first(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		began := time.Now()
		require.Equal(t, http.StatusNoContent, m.write(theApp, theFields(nil)).status)
		require.Equal(t, m.stored("config/myapp")["generation"], m.stored("token/myapp")["generation"])
		require.Equal(t, "fresh", m.state(theApp)["state"])
		require.Equal(t, timestamp(began), m.state(theApp)["fetched_at"])
		require.EqualValues(t, 1, m.state(theApp)["upstream_calls"])
		require.Equal(t, m.upstream.LastToken(theKey), m.token(theApp))
		m.start()
		require.Equal(t, m.upstream.LastToken(theKey), m.token(theApp))
		require.Equal(t, 1, m.calls(), "neither a read nor a restart fetches another")
	})
}

func TestConfig_without_verification_nothing_is_fetched_before_the_first_read(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		require.Equal(t, http.StatusNoContent, m.write(theApp, theFields(map[string]any{"app_secret": "wrong", "verify_connection": false})).status)
		require.Zero(t, m.calls())
		require.Equal(t, "absent", m.state(theApp)["state"])
		require.Equal(t, http.StatusBadRequest, m.read(theApp).status)
	})
}

func TestConfig_a_rejected_secret_creates_nothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		got := m.write(theApp, theFields(map[string]any{"app_secret": "wrong-" + secondSecret}))
		require.Equal(t, http.StatusBadRequest, got.status)
		for _, part := range []string{"nothing was stored", theApp, "invalidClientIdOrSecret", "无效的clientId或者clientSecret", "request id ", theURL, "check app_key and app_secret", "edition", "published"} {
			require.ErrorContains(t, got.err, part)
		}
		require.NotContains(t, got.err.Error(), secondSecret)
		require.NotContains(t, m.log.String(), secondSecret)
		require.Empty(t, m.snapshot())
		require.Equal(t, http.StatusNotFound, m.config(theApp).status)
		require.Equal(t, 1, m.calls())
		require.Nil(t, m.engine.apps.inMemory(theApp))

		require.Equal(t, http.StatusNoContent, m.write(theApp, theFields(nil)).status, "the next try is not held up")
	})
}

func TestConfig_a_rejected_secret_changes_nothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		require.Equal(t, http.StatusNoContent, m.write(theApp, theFields(nil)).status)
		tok, before, state := m.token(theApp), m.snapshot(), m.state(theApp)
		for _, op := range []logical.Operation{logical.UpdateOperation, logical.PatchOperation} {
			got := m.do(op, "config/myapp", map[string]any{"app_secret": secondSecret, "base_url": theURL, "leased": false})
			require.Equal(t, http.StatusBadRequest, got.status)
			require.ErrorContains(t, got.err, "invalidClientIdOrSecret")
			require.NotContains(t, got.err.Error(), secondSecret)
		}
		require.Equal(t, before, m.snapshot())
		require.Equal(t, state, m.state(theApp))
		require.Equal(t, tok, m.token(theApp))
		require.Equal(t, 3, m.calls())
	})
}

func TestConfig_a_verification_that_fails_for_DingTalks_part_is_a_502_and_stores_nothing(t *testing.T) {
	for _, c := range []struct {
		fault  simulator.Fault
		status int
		holds  string
		took   time.Duration // at most
	}{
		{simulator.Fault{Kind: simulator.FaultUnavailableEmpty}, 502, "HTTP status 503", time.Second},
		{simulator.Fault{Kind: simulator.FaultHang}, 502, "within 10s", 10 * time.Second},
		{simulator.Fault{Kind: simulator.FaultTrickle}, 502, "within 10s", 10 * time.Second},
		{simulator.Fault{Kind: simulator.FaultReset}, 502, "could not get a token for app", time.Second},
		{simulator.Fault{Kind: simulator.FaultThrottledQPS}, 502, "QpsLimitForAppkeyAndApi", 0},
		{simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "30"}, 502, "the next attempt is due at 2000-01-01T00:00:30Z", 0},
		{simulator.Fault{Kind: simulator.FaultBanned}, 502, "2000-01-01T00:05:00Z", 0},
		{simulator.Fault{Kind: simulator.FaultHTML}, 502, "HTML", 0},
		{simulator.Fault{Kind: simulator.FaultTruncated}, 502, "not a JSON object", 0},
		{simulator.Fault{Kind: simulator.FaultEmptyToken}, 502, "no accessToken", 0},
		{simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: "0"}, 502, "expireIn", 0},
		{simulator.Fault{Kind: simulator.FaultExpireIn, ExpireIn: "1"}, 502, "expired", 0},
		{simulator.Fault{Kind: simulator.FaultErrcode}, 502, "404", 0},
		{simulator.Fault{Kind: simulator.FaultHuge}, 502, "longer than", 0},
		{simulator.Fault{Kind: simulator.FaultRedirect}, 502, "redirect", 0},
		{simulator.Fault{Kind: simulator.FaultIPNotAllowed}, 400, "allow-list", 0},
		{simulator.Fault{Kind: simulator.FaultPermissionDenied}, 400, "AccessTokenPermissionDenied", 0},
		{simulator.Fault{Kind: simulator.FaultMissingBody}, 400, "Missingbody", 0},
		{simulator.Fault{Kind: simulator.FaultEchoSecret}, 400, "message withheld: it repeats the request", 0},
	} {
		t.Run(c.fault.Kind+c.fault.ExpireIn, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.upstream.SetFault(theKey, c.fault)
				began := time.Now()
				got := m.write(theApp, theFields(nil))
				require.Equal(t, c.status, got.status, got)
				require.ErrorContains(t, got.err, c.holds)
				require.ErrorContains(t, got.err, "nothing was stored")
				require.NotContains(t, got.err.Error(), theSecret)
				require.LessOrEqual(t, time.Since(began), c.took)
				require.Empty(t, m.snapshot())
				require.Equal(t, http.StatusNotFound, m.config(theApp).status)
				require.NotContains(t, m.log.String(), theSecret)
			})
		})
	}
}

func TestConfig_a_verification_is_bounded_by_the_request_timeout_it_sets(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultHang})
		began := time.Now()
		require.Equal(t, http.StatusBadGateway, m.write(theApp, theFields(map[string]any{"request_timeout": 3})).status)
		require.Equal(t, 3*time.Second, time.Since(began))
	})
}

func TestConfig_a_verification_waits_out_a_ban_and_a_Retry_After_but_no_back_off(t *testing.T) {
	for _, c := range []struct {
		fault simulator.Fault
		calls int
	}{
		{simulator.Fault{Kind: simulator.FaultRejectedCredentials}, 2},
		{simulator.Fault{Kind: simulator.FaultThrottledQPS}, 2},
		{simulator.Fault{Kind: simulator.FaultThrottledQPS, RetryAfter: "30"}, 1},
		{simulator.Fault{Kind: simulator.FaultBanned}, 1},
	} {
		for name, fields := range map[string]map[string]any{
			"another secret":          {"app_secret": secondSecret, "base_url": theURL},
			"unchanged, as asked for": {"verify_connection": true},
		} {
			t.Run(c.fault.Kind+c.fault.RetryAfter+" "+name, func(t *testing.T) {
				inVirtualTime(t, func(t *testing.T, m *mount) {
					m.configure(theApp, nil)
					m.upstream.SetFault(theKey, c.fault)
					require.GreaterOrEqual(t, m.read(theApp).status, 400)
					m.upstream.ClearFaults()
					if fields["app_secret"] != nil {
						m.upstream.SetApp(theKey, secondSecret)
					}
					got := m.write(theApp, fields)
					require.Equal(t, c.calls, m.calls())
					if c.calls == 1 {
						require.Equal(t, http.StatusBadGateway, got.status)
						require.ErrorContains(t, got.err, "2000-01-01T00:0")
						require.NotEqual(t, secondSecret, m.stored("config/myapp")["app_secret"])
						return
					}
					require.Equal(t, http.StatusNoContent, got.status, got)
					require.Equal(t, m.upstream.LastToken(theKey), m.token(theApp), "success ends the back-off")
				})
			})
		}
	}
}

func TestConfig_a_Retry_After_that_answers_a_verification_is_honoured(t *testing.T) {
	for _, exists := range []bool{true, false} {
		t.Run(fmt.Sprintf("app exists %t", exists), func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				if exists {
					m.configure(theApp, nil)
				}
				m.upstream.SetApp(theKey, secondSecret)
				m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "30", Times: 1})
				fields := theFields(map[string]any{"app_secret": secondSecret})
				for range 3 { // Vault's client repeats a 502 after one and after three seconds
					got := m.write(theApp, fields)
					require.Equal(t, http.StatusBadGateway, got.status, got)
					require.ErrorContains(t, got.err, "2000-01-01T00:00:30Z")
					time.Sleep(2 * time.Second)
				}
				require.Equal(t, 1, m.calls())
				time.Sleep(30 * time.Second)
				require.Equal(t, http.StatusNoContent, m.write(theApp, fields).status)
			})
		})
	}
}

func TestConfig_verifying_unchanged_credentials_is_a_refresh_and_as_rare(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.token(theApp)
		time.Sleep(time.Hour)
		require.Equal(t, http.StatusNoContent, m.write(theApp, map[string]any{"verify_connection": true}).status)
		require.Equal(t, 2, m.calls())
		require.EqualValues(t, 7200, m.state(theApp)["ttl"])

		got := m.write(theApp, map[string]any{"verify_connection": true, "leased": false})
		require.Equal(t, http.StatusOK, got.status, "within 10 s")
		require.Len(t, got.Warnings, 1)
		require.Equal(t, 2, m.calls())
		require.Equal(t, false, m.config(theApp).Data["leased"])

		time.Sleep(10 * time.Second)
		require.Equal(t, http.StatusNoContent, m.write(theApp, map[string]any{"verify_connection": true}).status)
		require.Equal(t, 3, m.calls())
	})
}

func TestConfig_credentials_that_failed_a_moment_ago_are_not_taken_for_verified(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		tok := m.token(theApp)
		m.upstream.RemoveApp(theKey)
		require.Equal(t, http.StatusBadRequest, m.do(logical.UpdateOperation, "refresh/myapp", nil).status)
		before := m.snapshot()

		got := m.write(theApp, map[string]any{"verify_connection": true, "leased": false})
		require.Equal(t, http.StatusBadRequest, got.status)
		require.ErrorContains(t, got.err, "nothing was stored")
		require.ErrorContains(t, got.err, "invalidClientIdOrSecret")
		require.Equal(t, before, m.snapshot())

		got = m.do(logical.UpdateOperation, "refresh/myapp", nil)
		require.Equal(t, http.StatusOK, got.status)
		require.Len(t, got.Warnings, 1)
		require.Contains(t, got.Warnings[0], "invalidClientIdOrSecret")
		require.Equal(t, 2, m.calls())
		require.Equal(t, tok, m.token(theApp))
	})
}

func TestConfig_unchanged_credentials_that_fail_their_verification_change_nothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		tok, before := m.token(theApp), m.snapshot()
		m.upstream.RemoveApp(theKey)
		got := m.write(theApp, map[string]any{"verify_connection": true, "leased": false})
		require.Equal(t, http.StatusBadRequest, got.status)
		require.ErrorContains(t, got.err, "invalidClientIdOrSecret")
		require.Equal(t, before, m.snapshot())
		require.Equal(t, tok, m.token(theApp))
	})
}

func TestConfig_the_same_values_and_tuning_keep_the_token(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		tok, stored := m.token(theApp), m.stored("token/myapp")
		for _, fields := range []map[string]any{theFields(nil), {"leased": false, "refresh_before": "5m"}, {"request_timeout": "3s"}} {
			require.Equal(t, http.StatusNoContent, m.write(theApp, fields).status)
			require.Equal(t, tok, m.token(theApp))
		}
		require.Equal(t, stored, m.stored("token/myapp"))
		require.Equal(t, 1, m.calls())
		require.Contains(t, m.read(theApp).Data, "expires_at", "without a lease, from now on")
	})
}

func TestConfig_tuning_keeps_the_back_off(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"app_secret": "wrong"})
		require.Equal(t, http.StatusBadRequest, m.read(theApp).status)
		require.Equal(t, http.StatusNoContent, m.write(theApp, map[string]any{"leased": false}).status)
		require.Equal(t, http.StatusBadRequest, m.read(theApp).status)
		require.Equal(t, 1, m.calls())
	})
}

func TestConfig_a_new_generation_drops_token_and_back_off(t *testing.T) {
	t.Run("token", func(t *testing.T) {
		inVirtualTime(t, func(t *testing.T, m *mount) {
			m.configure(theApp, nil)
			old := m.token(theApp)
			m.upstream.SetApp(secondKey, secondSecret)
			m.configure(theApp, map[string]any{"app_key": secondKey, "app_secret": secondSecret})
			require.Nil(t, m.stored("token/myapp"))
			require.Equal(t, "absent", m.state(theApp)["state"])
			require.NotEqual(t, old, m.token(theApp))
			require.Equal(t, m.upstream.LastToken(secondKey), m.token(theApp))
		})
	})
	t.Run("back-off", func(t *testing.T) {
		inVirtualTime(t, func(t *testing.T, m *mount) {
			m.configure(theApp, map[string]any{"app_secret": "wrong"})
			require.Equal(t, http.StatusBadRequest, m.read(theApp).status)
			m.configure(theApp, nil)
			require.NotContains(t, m.state(theApp), "last_error")
			require.Equal(t, m.token(theApp), m.upstream.LastToken(theKey))
		})
	})
}

func TestConfig_a_flight_of_the_old_generation_is_neither_served_nor_stored(t *testing.T) {
	for name, fault := range map[string]simulator.Fault{
		"hanging": {Kind: simulator.FaultHang, Times: 1},
		"slow":    {Delay: 3 * time.Second, Times: 1},
	} {
		for _, verify := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, verify_connection=%t", name, verify), func(t *testing.T) {
				inVirtualTime(t, func(t *testing.T, m *mount) {
					m.configure(theApp, nil)
					m.upstream.SetApp(secondKey, secondSecret)
					m.upstream.SetFault(theKey, fault)
					waiting := make(chan answer, 10)
					for range cap(waiting) {
						go func() { waiting <- m.read(theApp) }()
					}
					synctest.Wait()
					began := time.Now()
					m.configure(theApp, map[string]any{"app_key": secondKey, "app_secret": secondSecret, "verify_connection": verify})
					for range cap(waiting) {
						got := <-waiting
						require.Equal(t, http.StatusOK, got.status, got)
						require.Equal(t, m.upstream.LastToken(secondKey), got.Data["access_token"])
					}
					require.Zero(t, time.Since(began), "they need not wait for the old flight")

					time.Sleep(time.Minute)
					require.Equal(t, m.upstream.LastToken(secondKey), m.token(theApp))
					require.Equal(t, m.upstream.LastToken(secondKey), m.stored("token/myapp")["access_token"])
					require.Equal(t, 1, m.upstream.Requests(secondKey))
				})
			})
		}
	}
}

func TestConfig_a_write_meets_a_flight_that_is_storing_its_token(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetApp(secondKey, secondSecret)
		release := make(chan struct{})
		m.storage.on(func(op, key string) error {
			if op == "put" && key == "token/myapp" {
				<-release
			}
			return nil
		})
		done := make(chan answer, 2)
		go func() { done <- m.read(theApp) }()
		synctest.Wait()
		go func() {
			done <- m.write(theApp, map[string]any{"app_key": secondKey, "app_secret": secondSecret, "base_url": theURL, "verify_connection": false})
		}()
		synctest.Wait()
		close(release)
		require.NoError(t, (<-done).err)
		require.NoError(t, (<-done).err)
		synctest.Wait()
		require.Equal(t, m.token(theApp), m.upstream.LastToken(secondKey))
		require.Equal(t, m.token(theApp), m.stored("token/myapp")["access_token"])
		require.Equal(t, m.stored("config/myapp")["generation"], m.stored("token/myapp")["generation"])
	})
}

func TestConfig_a_flight_that_meets_a_write_that_is_being_stored_does_not_store_over_it(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetApp(secondKey, secondSecret)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 3 * time.Second})
		waiting := make(chan answer, 1)
		go func() { waiting <- m.read(theApp) }()
		synctest.Wait()
		m.storage.on(func(op, key string) error {
			if op == "put" && key == "config/myapp" {
				time.Sleep(4 * time.Second) // the flight has its token, and waits for the app's lock
			}
			return nil
		})
		m.configure(theApp, map[string]any{"app_key": secondKey, "app_secret": secondSecret, "verify_connection": true})
		got := <-waiting
		require.NoError(t, got.err)
		require.Equal(t, m.upstream.LastToken(secondKey), got.Data["access_token"])
		synctest.Wait()
		require.Equal(t, m.upstream.LastToken(secondKey), m.stored("token/myapp")["access_token"])
		m.start()
		require.Equal(t, m.upstream.LastToken(secondKey), m.token(theApp))
		require.Equal(t, 1, m.upstream.Requests(secondKey))
	})
}

func TestConfig_a_verification_ends_with_the_mount(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultHang})
		verifying := make(chan answer, 1)
		go func() { verifying <- m.write(theApp, theFields(nil)) }()
		synctest.Wait()
		began := time.Now()
		m.engine.Cleanup(t.Context())
		got := <-verifying
		require.Equal(t, http.StatusServiceUnavailable, got.status, got)
		require.Less(t, time.Since(began), 100*time.Millisecond)
		require.Empty(t, m.snapshot())
	})
}

func TestConfig_a_change_during_a_verification_wins(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, m *mount){
		"tuning":     func(_ *testing.T, m *mount) { m.configure(theApp, map[string]any{"leased": false}) },
		"generation": func(_ *testing.T, m *mount) { m.configure(theApp, map[string]any{"app_secret": "third"}) },
		"delete": func(t *testing.T, m *mount) {
			t.Helper()
			require.NoError(t, m.do(logical.DeleteOperation, "config/myapp", nil).err)
		},
		"delete and create": func(t *testing.T, m *mount) {
			t.Helper()
			require.NoError(t, m.do(logical.DeleteOperation, "config/myapp", nil).err)
			m.configure(theApp, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.upstream.SetApp(secondKey, secondSecret)
				m.upstream.SetFault(secondKey, simulator.Fault{Delay: 3 * time.Second})
				verifying := make(chan answer, 1)
				go func() {
					verifying <- m.write(theApp, theFields(map[string]any{"app_key": secondKey, "app_secret": secondSecret}))
				}()
				synctest.Wait()
				change(t, m)
				after := m.snapshot()
				got := <-verifying
				require.Equal(t, http.StatusBadRequest, got.status, got)
				require.ErrorContains(t, got.err, "nothing was stored")
				require.ErrorContains(t, got.err, "changed")
				require.Equal(t, after, m.snapshot())
			})
		})
	}
}

func TestConfig_of_two_creates_at_once_one_wins(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetFault(theKey, simulator.Fault{Delay: time.Second})
		answers := make(chan answer, 2)
		for range cap(answers) {
			go func() { answers <- m.write(theApp, theFields(nil)) }()
		}
		require.ElementsMatch(t, []int{http.StatusNoContent, http.StatusBadRequest}, []int{(<-answers).status, (<-answers).status})
		require.Equal(t, m.upstream.LastToken(theKey), m.token(theApp))
	})
}

func TestConfig_a_verification_holds_up_no_reader(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		tok := m.token(theApp)
		m.upstream.SetApp(secondKey, secondSecret)
		m.upstream.SetFault(secondKey, simulator.Fault{Delay: 3 * time.Second})
		verifying := make(chan answer, 1)
		go func() {
			verifying <- m.write(theApp, map[string]any{"app_key": secondKey, "app_secret": secondSecret, "base_url": theURL})
		}()
		synctest.Wait()
		began := time.Now()
		require.Equal(t, tok, m.token(theApp))
		require.Equal(t, theKey, m.config(theApp).Data["app_key"])
		require.Zero(t, time.Since(began))
		require.Equal(t, http.StatusNoContent, (<-verifying).status)
		require.Equal(t, m.upstream.LastToken(secondKey), m.token(theApp))
	})
}

func TestConfig_a_writer_that_gives_up_stores_nothing(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 3 * time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got := m.send(ctx, &logical.Request{Operation: logical.UpdateOperation, Path: "config/myapp", Data: theFields(nil)})
		require.Error(t, got.err)
		time.Sleep(time.Minute)
		require.Empty(t, m.snapshot())
		require.Equal(t, http.StatusNotFound, m.config(theApp).status)
	})
}

func TestConfig_delete_removes_config_and_token(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.configure("other", nil)
		m.token(theApp)
		m.token("other")
		require.Equal(t, http.StatusNoContent, m.do(logical.DeleteOperation, "config/myapp", nil).status)
		for key := range m.snapshot() {
			require.NotContains(t, key, theApp)
		}
		for what, got := range map[string]answer{
			"creds":   m.read(theApp),
			"status":  m.do(logical.ReadOperation, "status/myapp", nil),
			"refresh": m.do(logical.UpdateOperation, "refresh/myapp", nil),
		} {
			require.Equal(t, http.StatusBadRequest, got.status, what)
			require.ErrorContains(t, got.err, "config/myapp", what)
		}
		require.Equal(t, http.StatusNotFound, m.config(theApp).status)
		require.Equal(t, http.StatusNoContent, m.do(logical.DeleteOperation, "config/myapp", nil).status)
		m.token("other")
	})
}

func TestConfig_delete_during_a_fetch_serves_and_stores_nothing_of_it(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 3 * time.Second})
		waiting := make(chan answer, 1)
		go func() { waiting <- m.read(theApp) }()
		synctest.Wait()
		require.Equal(t, http.StatusNoContent, m.do(logical.DeleteOperation, "config/myapp", nil).status)
		got := <-waiting
		require.Equal(t, http.StatusBadRequest, got.status)
		require.ErrorContains(t, got.err, "config/myapp")
		time.Sleep(time.Minute)
		require.Empty(t, m.snapshot())
	})
}

func TestConfig_an_app_made_again_with_the_same_values_starts_without_a_token(t *testing.T) {
	for name, leftOver := range map[string]bool{"deleted": false, "its token left over": true} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				m.configure(theApp, nil)
				m.upstream.RotateTokens(theKey, true)
				old, stored := m.token(theApp), m.snapshot()["token/myapp"]
				require.NoError(t, m.do(logical.DeleteOperation, "config/myapp", nil).err)
				if leftOver {
					putRaw(t, m.storage, "token/myapp", stored)
				}
				m.configure(theApp, nil)
				require.Equal(t, "absent", m.state(theApp)["state"])
				m.start()
				require.Equal(t, "absent", m.state(theApp)["state"])
				require.NotEqual(t, old, m.token(theApp))
				require.Equal(t, 2, m.calls())
			})
		})
	}
}

func TestConfig_in_storage_that_cannot_be_read_can_be_deleted_and_made_again(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		putRaw(t, m.storage, "config/myapp", `{"version":99,"app_secret":"`+theSecret+`"}`)
		for what, got := range map[string]answer{"config": m.config(theApp), "creds": m.read(theApp), "write": m.write(theApp, theFields(nil)), "patch": m.patch(theApp, theFields(nil))} {
			require.Equal(t, http.StatusInternalServerError, got.status, what)
			require.ErrorContains(t, got.err, "version 99", what)
			require.NotContains(t, got.err.Error(), theSecret, what)
		}
		require.Equal(t, http.StatusNoContent, m.do(logical.DeleteOperation, "config/myapp", nil).status)
		require.Equal(t, http.StatusNoContent, m.write(theApp, theFields(nil)).status)
		m.token(theApp)
	})
}

func TestConfig_a_verification_has_the_request_timeout_that_is_to_be_stored(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, map[string]any{"request_timeout": 1})
		m.upstream.SetFault(theKey, simulator.Fault{Delay: 2 * time.Second})
		require.Equal(t, http.StatusBadGateway, m.read(theApp).status, "that is not enough")
		tune := map[string]any{"request_timeout": 10, "verify_connection": true}
		require.Equal(t, http.StatusNoContent, m.write(theApp, tune).status)
		require.EqualValues(t, 10, m.config(theApp).Data["request_timeout"])

		m.configure(theApp, map[string]any{"request_timeout": 1})
		time.Sleep(3 * time.Hour)
		go m.read(theApp) // whose fetch has one second
		synctest.Wait()
		require.Equal(t, http.StatusNoContent, m.write(theApp, tune).status)

		m.upstream.SetFault(theKey, simulator.Fault{Delay: 20 * time.Second})
		time.Sleep(time.Minute)
		began := time.Now()
		require.Equal(t, http.StatusBadGateway, m.write(theApp, map[string]any{"request_timeout": 3, "verify_connection": true}).status)
		require.Equal(t, 10*time.Second, time.Since(began), "nor is it less than the one in force")
	})
}

func TestConfig_the_existence_check_and_a_read_wait_for_no_lock(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		m.configure(theApp, nil)
		unlock, err := m.engine.apps.lock(t.Context(), theApp)
		require.NoError(t, err)
		defer unlock()
		_, exists, err := m.engine.HandleExistenceCheck(t.Context(), &logical.Request{
			Operation: logical.UpdateOperation, Path: "config/myapp", Storage: m.storage,
		})
		require.NoError(t, err)
		require.True(t, exists)
		require.Equal(t, http.StatusOK, m.config(theApp).status)
	})
}

func TestConfig_errors_and_warnings_name_paths_with_the_mount(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, m *mount) {
		for _, req := range []logical.Request{
			{Operation: logical.ReadOperation, Path: "creds/nope"},
			{Operation: logical.ReadOperation, Path: "status/nope"},
			{Operation: logical.UpdateOperation, Path: "refresh/nope"},
		} {
			req.MountPoint = "team/dingtalk/"
			got := m.send(t.Context(), &req)
			require.Equal(t, http.StatusBadRequest, got.status)
			require.Contains(t, got.err.Error(), " team/dingtalk/config/nope ")
		}
		m.configure(theApp, nil)
		secret := m.issue().secret
		m.upstream.RotateTokens(theKey, true)
		m.do(logical.UpdateOperation, "refresh/myapp", nil)
		got := m.send(t.Context(), &logical.Request{
			Operation: logical.RenewOperation, Path: "creds/myapp", MountPoint: "team/dingtalk/", Secret: &secret,
		})
		require.Contains(t, fmt.Sprint(got.Warnings), "Read team/dingtalk/creds/myapp again")
	})
}
