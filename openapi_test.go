// SPDX-License-Identifier: MPL-2.0

package dingtalk

// This file holds the engine against the schema that it publishes through OpenAPI. The harness
// calls assertDescribed for every response that any test of this package gets; the tests here bring
// about each response that the schema describes.

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// assertDescribed checks that the schema has a response's status, and that the response has the
// fields of the schema, no more and no less, each of its type. It is called millions of times, so
// it does without what else the SDK's helper does.
func assertDescribed(t *testing.T, engine *backend, req *logical.Request, got response) {
	t.Helper()
	if got.status == http.StatusInternalServerError {
		return // what Vault may respond with anywhere
	}
	path := engine.Route(req.Path)
	if path == nil || path.Operations[req.Operation] == nil {
		return // not the engine's, or a lease's
	}
	responses := path.Operations[req.Operation].Properties().Responses[got.status]
	if len(responses) != 1 {
		t.Errorf("%s %s: a %d is not described: %v", req.Operation, req.Path, got.status, got.err)
		return
	}
	if got.Response == nil || got.err != nil {
		return
	}
	if kind := responses[0].MediaType; kind != "" { // a body that is no JSON
		if !strings.HasPrefix(fmt.Sprint(got.Data[logical.HTTPContentType]), kind) {
			t.Errorf("%s %s: not %s: %v", req.Operation, req.Path, kind, got.Data[logical.HTTPContentType])
		}
		return
	}
	fields := responses[0].Fields
	for name, value := range got.Data {
		if field := fields[name]; field == nil || !isOf(field, value) {
			t.Errorf("%s %s: in a %d, %s is not described, or not as a %T",
				req.Operation, req.Path, got.status, name, value)
		}
	}
	for name, field := range fields {
		if _, given := got.Data[name]; field.Required && !given {
			t.Errorf("%s %s: a %d lacks %s", req.Operation, req.Path, got.status, name)
		}
	}
}

// isOf reports whether a value will be of the field's type in JSON. The SDK takes the number 5 for
// the string "5", which clients do not.
func isOf(field *framework.FieldSchema, value any) bool {
	if field.AllowedValues != nil && !slices.Contains(field.AllowedValues, value) {
		return false
	}
	switch v := value.(type) {
	case string:
		_, err := time.Parse(time.RFC3339, v)
		return field.Type == framework.TypeString || field.Type == framework.TypeTime && err == nil
	case int64, uint64:
		return field.Type == framework.TypeInt64
	case bool:
		return field.Type == framework.TypeBool
	case []string:
		return field.Type == framework.TypeStringSlice
	default: // a type that the schema has not used so far
		return false
	}
}

var (
	leasedFields   = []string{"access_token"}
	unleasedFields = []string{"access_token", "expires_at", "last_vault_rotation", "rotation_period", "ttl"}
	configFields   = []string{
		"app_key", "app_secret_set_at", "base_url", "corp_id", "leased", "refresh_before", "request_timeout",
	}

	absentFields = []string{"state", "upstream_calls", "upstream_failures"}
	statusFields = []string{"state", "upstream_calls", "upstream_failures", "expires_at", "fetched_at", "ttl"}
	errorFields  = []string{"last_error", "last_error_at", "last_error_class", "failing_since", "consecutive_failures"}
	heldFields   = append([]string{"next_attempt_at"}, errorFields...)

	absentFailed     = slices.Concat(absentFields, heldFields)
	absentLongFailed = slices.Concat(absentFields, errorFields)
	failedFields     = slices.Concat(statusFields, heldFields)
	saidFields       = append([]string{"last_error_code", "last_error_request_id"}, failedFields...)

	unleased      = map[string]any{"leased": false}
	anotherSecret = map[string]any{"app_secret": "another-secret-000000000000", "base_url": theURL}
	aWrongField   = map[string]any{"app_secrt": "not-a-secret"}
	sameAsBefore  = map[string]any{"leased": true}
	verified      = map[string]any{"verify_connection": true}
	rejected      = map[string]any{"rejected_token": "another-token"}

	rejectedNothing = map[string]any{"rejected_token": ""}
	aLongName       = strings.Repeat("a", maxNameLength+1)
)

// varieties are all responses of the engine: what was before, the request, its response's status
// and fields. A request whose response is a 503 is under way when the engine is unloaded.
var varieties = []struct {
	name   string
	before func(m *mount)
	op     logical.Operation
	path   string
	data   map[string]any
	status int
	fields []string
	state  tokenState
}{
	{"list", configured, "list", "config/", nil, 200, []string{"keys"}, ""},
	{"list with a bad secret", nothing, "list", "config/", map[string]any{"app_secret": []any{"a"}}, 400, nil, ""},
	{"list of nothing", nothing, "list", "config/", nil, 404, nil, ""},

	{"create", nothing, "create", "config/myapp", theFields(nil), 204, nil, ""},
	{"create with a warning", nothing, "create", "config/myapp", theFields(aWrongField), 200, nil, ""},
	{"create without a key", nothing, "create", "config/myapp", anotherSecret, 400, nil, ""},
	{"create while DingTalk is down", down, "create", "config/myapp", theFields(nil), 502, nil, ""},

	{"update", configured, "update", "config/myapp", sameAsBefore, 204, nil, ""},
	{"update with a warning", configured, "update", "config/myapp", aWrongField, 200, nil, ""},
	{"update that DingTalk rejects", configured, "update", "config/myapp", anotherSecret, 400, nil, ""},
	{"update while DingTalk is down", configuredThenDown, "update", "config/myapp", anotherSecret, 502, nil, ""},
	{"update while the engine ends", configured, "update", "config/myapp", anotherSecret, 503, nil, ""},

	{"patch", configured, "patch", "config/myapp", sameAsBefore, 204, nil, ""},
	{"patch with a warning", configured, "patch", "config/myapp", aWrongField, 200, nil, ""},
	{"patch that DingTalk rejects", configured, "patch", "config/myapp", anotherSecret, 400, nil, ""},
	{"patch of nothing", nothing, "patch", "config/myapp", sameAsBefore, 404, nil, ""},
	{"patch while DingTalk is down", configuredThenDown, "patch", "config/myapp", anotherSecret, 502, nil, ""},
	{"patch while the engine ends", configured, "patch", "config/myapp", verified, 503, nil, ""},

	{"config", configured, "read", "config/myapp", nil, 200, configFields, ""},
	{"config of nothing", nothing, "read", "config/myapp", nil, 404, nil, ""},
	{"config of a long name", nothing, "read", "config/" + aLongName, nil, 400, nil, ""},
	{"delete", configured, "delete", "config/myapp", nil, 204, nil, ""},
	{"delete of nothing", nothing, "delete", "config/myapp", nil, 204, nil, ""},
	{"delete when the engine has ended", after(configured, end), "delete", "config/myapp", nil, 503, nil, ""},
	{"delete of a long name", nothing, "delete", "config/" + aLongName, nil, 400, nil, ""},

	{"leased creds", configured, "read", "creds/myapp", nil, 200, leasedFields, ""},
	{"leased creds with a warning", dueThenDown, "read", "creds/myapp", nil, 200, leasedFields, ""},
	{"unleased creds", configuredUnleased, "read", "creds/myapp", nil, 200, unleasedFields, ""},
	{"unleased creds with a warning", unleasedDueThenDown, "read", "creds/myapp", nil, 200, unleasedFields, ""},
	{"creds of nothing", nothing, "read", "creds/myapp", nil, 400, nil, ""},
	{"creds with a bad min_ttl", configured, "read", "creds/myapp", map[string]any{"min_ttl": "soon"}, 400, nil, ""},
	{"creds that DingTalk rejects", configuredWrongly, "read", "creds/myapp", nil, 400, nil, ""},
	{"creds while DingTalk is down", configuredThenDown, "read", "creds/myapp", nil, 502, nil, ""},
	{"creds while the engine ends", configured, "read", "creds/myapp", nil, 503, nil, ""},

	{"status of nothing", nothing, "read", "status/myapp", nil, 400, nil, ""},
	{"status absent", configured, "read", "status/myapp", nil, 200, absentFields, stateAbsent},
	{"status absent after a failure", failed, "read", "status/myapp", nil, 200, absentFailed, stateAbsent},
	{"status absent after the back-off", failedLongAgo, "read", "status/myapp", nil, 200, absentLongFailed, stateAbsent},
	{"status fresh", fetched, "read", "status/myapp", nil, 200, statusFields, stateFresh},
	{"status fresh after a failure", refreshFailed, "read", "status/myapp", nil, 200, failedFields, stateFresh},
	{"status due", due, "read", "status/myapp", nil, 200, statusFields, stateDue},
	{"status due after a failure", dueThenFailed, "read", "status/myapp", nil, 200, failedFields, stateDue},
	{"status due after what DingTalk said", dueThenRejected, "read", "status/myapp", nil, 200, saidFields, stateDue},
	{"status expired", expired, "read", "status/myapp", nil, 200, statusFields, stateExpired},
	{"status expired after a failure", expiredThenFailed, "read", "status/myapp", nil, 200, failedFields, stateExpired},

	{"metrics", configured, "read", "metrics", nil, 200, nil, ""},

	{"refresh", configured, "update", "refresh/myapp", nil, 200, statusFields, stateFresh},
	{"refresh too soon", fetched, "update", "refresh/myapp", nil, 200, statusFields, stateFresh},
	{"refresh during a ban", refreshBanned, "update", "refresh/myapp", nil, 200, failedFields, stateFresh},
	{"refresh of another token", fetched, "update", "refresh/myapp", rejected, 200, statusFields, stateFresh},
	{"refresh with an empty token", fetched, "update", "refresh/myapp", rejectedNothing, 400, nil, ""},
	{"refresh during a Retry-After", refreshThrottled, "update", "refresh/myapp", nil, 200, saidFields, stateFresh},
	{"refresh of nothing", nothing, "update", "refresh/myapp", nil, 400, nil, ""},
	{"refresh that DingTalk rejects", configuredWrongly, "update", "refresh/myapp", nil, 400, nil, ""},
	{"refresh while DingTalk is down", configuredThenDown, "update", "refresh/myapp", nil, 502, nil, ""},
	{"refresh while the engine ends", configured, "update", "refresh/myapp", nil, 503, nil, ""},
}

// after is one thing after the other.
func after(steps ...func(m *mount)) func(m *mount) {
	return func(m *mount) {
		for _, step := range steps {
			step(m)
		}
	}
}

// The steps that lead to a variety.
func nothing(*mount) {}

func down(m *mount) { m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultReset}) }

func banned(m *mount)             { m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultBanned}) }
func configured(m *mount)         { m.configure(theApp, nil) }
func configuredUnleased(m *mount) { m.configure(theApp, unleased) }
func configuredWrongly(m *mount)  { m.configure(theApp, anotherSecret) }
func read(m *mount)               { m.read(theApp) }
func refresh(m *mount)            { m.refresh(theApp) }
func end(m *mount)                { m.engine.Cleanup(m.t.Context()) }

// wait lets virtual time pass.
func wait(d time.Duration) func(*mount) { return func(*mount) { time.Sleep(d) } }

var (
	configuredThenDown = after(configured, down)
	failed             = after(configuredThenDown, read)
	failedLongAgo      = after(failed, wait(time.Minute))
	fetched            = after(configured, refresh)
	refreshFailed      = after(fetched, wait(time.Minute), down, refresh)
	refreshBanned      = after(fetched, wait(time.Minute), banned, refresh)
	refreshThrottled   = after(fetched, wait(time.Minute), func(m *mount) {
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultThrottledBusy, RetryAfter: "60"})
	}, refresh)
	due             = after(fetched, wait(7000*time.Second))
	dueThenDown     = after(due, down)
	dueThenFailed   = after(dueThenDown, read)
	dueThenRejected = after(due, func(m *mount) {
		m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultRejectedCredentials})
	}, read)
	expired             = after(due, wait(200*time.Second))
	expiredThenFailed   = after(expired, down, read)
	unleasedDueThenDown = after(configuredUnleased, read, wait(7000*time.Second), down)
)

// whileEnding sends a request and unloads the engine, twice, while that waits for DingTalk: it ends
// at once and changes nothing, and nothing starts from then on.
func (m *mount) whileEnding(op logical.Operation, path string, data map[string]any) response {
	before, began := m.snapshot(), time.Now()
	m.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultHang})
	waiting := begin(func() response { return m.do(op, path, data) })
	end(m)
	end(m)
	got := <-waiting
	m.read(theApp).gets(m.t, http.StatusServiceUnavailable)
	require.Less(m.t, time.Since(began), 100*time.Millisecond)
	require.Equal(m.t, before, m.snapshot())
	return got
}

// responseLine names a response of an operation. In OpenAPI, create and update are one.
func responseLine(op logical.Operation, path *framework.Path, status int) string {
	if op == logical.CreateOperation {
		op = logical.UpdateOperation
	}
	route, _, _ := strings.Cut(strings.TrimPrefix(path.Pattern, "^"), "(")
	return fmt.Sprintf("%s %s %d", op, route, status)
}

// described are all responses that the schema describes, and their fields, as lines of text.
func described(engine *backend) map[string]bool {
	lines := map[string]bool{}
	for _, path := range engine.Paths {
		for op, handler := range path.Operations {
			for status, responses := range handler.Properties().Responses {
				line := responseLine(op, path, status)
				lines[line] = true
				for name := range responses[0].Fields {
					lines[line+" "+name] = true
				}
			}
		}
	}
	return lines
}

func TestOpenAPI_describes_every_response_and_none_that_never_comes(t *testing.T) {
	var unseen map[string]bool
	for _, v := range varieties {
		t.Run(v.name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, m *mount) {
				if unseen == nil {
					unseen = described(m.engine)
				}
				v.before(m)
				ask := m.do // which holds the response against the schema
				if v.status == http.StatusServiceUnavailable {
					ask = m.whileEnding
				}
				got := ask(v.op, v.path, maps.Clone(v.data))
				require.Equal(t, v.status, got.status, got)

				line := responseLine(v.op, m.engine.Route(v.path), v.status)
				delete(unseen, line)
				if v.status != http.StatusOK || v.path == metricsPath {
					return
				}
				op := m.engine.Route(v.path).Operations[v.op]
				schema.ValidateResponse(t, &op.Properties().Responses[http.StatusOK][0], got.Response, true)
				require.ElementsMatch(t, v.fields, slices.Collect(maps.Keys(got.Data)))
				for name := range got.Data {
					delete(unseen, line+" "+name)
				}
				if v.state != "" {
					require.Equal(t, string(v.state), got.Data["state"])
				}
			})
		})
	}
	require.Empty(t, slices.Sorted(maps.Keys(unseen)), "described, but never seen")
}

func TestOpenAPI_document_refers_to_no_schema_which_Vault_would_lose(t *testing.T) {
	m := newMount(t)
	m.system.PluginEnvironment = &logical.PluginEnvironment{}
	resp, err := m.engine.HandleRequest(t.Context(), &logical.Request{Operation: logical.HelpOperation})
	require.NoError(t, err)
	paths, err := json.Marshal(resp.Data["openapi"].(*framework.OASDocument).Paths)
	require.NoError(t, err)
	require.NotContains(t, string(paths), `"$ref"`)
	require.Equal(t, 8, strings.Count(string(paths), `"properties":{`), "three requests and five responses have fields")
}
