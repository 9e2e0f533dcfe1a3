// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// What Vault says about the mount: the OpenAPI document, compared with the engine's real responses,
// and the texts of `vault path-help`.

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// The parts of an OpenAPI document that these tests look at.
type (
	apiDocument struct {
		Paths      map[string]*apiPath
		Components struct{ Schemas map[string]*apiSchema }
	}

	apiPath struct {
		Description string
		Parameters  []apiParameter
		Get         *apiOperation
		Post        *apiOperation
		Patch       *apiOperation
		Delete      *apiOperation
	}

	apiOperation struct {
		ID          string `json:"operationId"`
		Summary     string
		Description string
		Parameters  []apiParameter
		RequestBody struct{ Content apiContent }
		Responses   map[string]struct {
			Description string
			Content     apiContent
		}
	}

	apiParameter struct {
		Name, In, Description string
		Required              bool
		Schema                *apiSchema
	}

	apiContent map[string]struct{ Schema *apiSchema }

	apiSchema struct {
		Ref         string `json:"$ref"`
		Type        string
		Format      string
		Description string
		Default     any
		Enum        []any
		Items       *apiSchema
		Properties  map[string]*apiSchema
		Required    []string
		Display     struct{ Sensitive bool } `json:"x-vault-displayAttrs"`
	}
)

// String is what the tables below say of a parameter or field.
func (s *apiSchema) String() string {
	text := s.Type
	if s.Items != nil {
		text += " of " + s.Items.Type
	}
	if s.Format != "" {
		text += ", " + s.Format
	}
	if s.Default != nil {
		text += fmt.Sprintf(", default %v", s.Default)
	}
	if s.Enum != nil {
		text += fmt.Sprintf(", one of %v", s.Enum)
	}
	if s.Display.Sensitive {
		text += ", sensitive"
	}
	return text
}

// fields are what a body has. A reference is followed as clients do; Vault keeps none of a plugin's
// in the document of all mounts.
func (d *apiDocument) fields(content apiContent) map[string]*apiSchema {
	schema := content["application/json"].Schema
	if schema == nil {
		return nil
	}
	if name, ok := strings.CutPrefix(schema.Ref, "#/components/schemas/"); ok {
		schema = d.Components.Schemas[name]
	}
	return schema.Properties
}

// operations are those of a path by their method.
func (p *apiPath) operations() map[string]*apiOperation {
	all := map[string]*apiOperation{"GET": p.Get, "POST": p.Post, "PATCH": p.Patch, "DELETE": p.Delete}
	maps.DeleteFunc(all, func(_ string, op *apiOperation) bool { return op == nil })
	return all
}

// documentOf asks Vault for the document of all mounts.
func documentOf(t *testing.T, v *harness.VaultServer) *apiDocument {
	t.Helper()
	var reply harness.Response
	// Vault asks every mount, and gives up when another test disables one of them meanwhile.
	harness.WaitFor(t, 20*time.Second, "Vault returns the document", func() bool {
		reply = v.HTTP(t, "GET", "sys/internal/specs/openapi", "", "")
		return reply.Status == http.StatusOK
	})
	var document apiDocument
	harness.DecodeJSON(t, reply.Body, &document)
	return &document
}

// genericDocumentOf is documentOf with the CLI and with parameters for the mounts' paths, as
// clients are generated from it.
func genericDocumentOf(t *testing.T, v *harness.VaultServer) *apiDocument {
	t.Helper()
	var reply harness.CLIResult
	harness.WaitFor(t, 20*time.Second, "Vault returns the document", func() bool {
		reply = v.CLI(t, "read", "-format=json", "sys/internal/specs/openapi", "generic_mount_paths=true")
		return reply.Status == 0
	})
	var got struct{ Data apiDocument }
	harness.DecodeJSON(t, reply.Stdout, &got)
	return &got.Data
}

// under is the part of a document below a path, which is cut off.
func (d *apiDocument) under(prefix string) *apiDocument {
	part := &apiDocument{Paths: map[string]*apiPath{}, Components: d.Components}
	for path, item := range d.Paths {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			part.Paths[rest] = item
		}
	}
	return part
}

// describedOperation is what a client is generated from.
type describedOperation struct {
	parameters map[string]string
	request    map[string]string
	response   map[string]string
	statuses   string
}

var (
	appParameter = map[string]string{"app": "path, required: string"}

	configRequest = map[string]string{
		"app_key":           "string",
		"app_secret":        "string, sensitive",
		"corp_id":           "string",
		"base_url":          "string, default https://api.dingtalk.io",
		"refresh_before":    "string, duration, default 200s",
		"request_timeout":   "string, duration, default 10s",
		"leased":            "boolean, default true",
		"verify_connection": "boolean",
	}

	statusResponse = map[string]string{
		"state":                 "string, one of [absent fresh due expired]",
		"expires_at":            "string, date-time",
		"fetched_at":            "string, date-time",
		"ttl":                   "integer, int64",
		"upstream_calls":        "integer, int64",
		"upstream_failures":     "integer, int64",
		"last_error":            "string",
		"last_error_at":         "string, date-time",
		"last_error_class":      "string",
		"last_error_code":       "string",
		"last_error_request_id": "string",
		"failing_since":         "string, date-time",
		"consecutive_failures":  "integer, int64",
		"next_attempt_at":       "string, date-time",
	}

	// wantOperations are all operations by path, method and id. Clients are generated with these
	// names: they must not change.
	wantOperations = map[string]describedOperation{
		"GET config/ dingtalk-list-apps": {
			parameters: map[string]string{"list": "query, required: string, one of [true]"},
			response:   map[string]string{"keys": "array of string"},
			statuses:   "200 400 404",
		},
		"POST config/{app} dingtalk-configure-app": {
			parameters: appParameter, request: configRequest, statuses: "200 204 400 502 503",
		},
		"PATCH config/{app} dingtalk-patch-app": {
			parameters: appParameter, request: configRequest, statuses: "200 204 400 404 502 503",
		},
		"GET config/{app} dingtalk-read-app-configuration": {
			parameters: appParameter,
			response: map[string]string{
				"app_key":           "string",
				"app_secret_set_at": "string, date-time",
				"corp_id":           "string",
				"base_url":          "string",
				"refresh_before":    "integer, int64",
				"request_timeout":   "integer, int64",
				"leased":            "boolean",
			},
			statuses: "200 400 404",
		},
		"DELETE config/{app} dingtalk-delete-app-configuration": {
			parameters: appParameter, statuses: "204 400 503",
		},
		"GET creds/{app} dingtalk-read-credentials": {
			parameters: map[string]string{"app": "path, required: string", "min_ttl": "query: string, default 0s"},
			response: map[string]string{
				"access_token":        "string, sensitive",
				"expires_at":          "string, date-time",
				"ttl":                 "integer, int64",
				"rotation_period":     "integer, int64",
				"last_vault_rotation": "string, date-time",
			},
			statuses: "200 400 502 503",
		},
		"GET status/{app} dingtalk-read-status": {
			parameters: appParameter, response: statusResponse, statuses: "200 400",
		},
		"POST refresh/{app} dingtalk-refresh-token": {
			parameters: appParameter, request: map[string]string{"rejected_token": "string, sensitive"},
			response: statusResponse, statuses: "200 400 502 503",
		},
		"GET metrics dingtalk-read-metrics": {parameters: map[string]string{}, statuses: "200"},
	}
)

// requireOperations checks that a mount's part of a document has all that wantOperations says, and
// a text wherever one belongs.
func requireOperations(t *testing.T, d *apiDocument) {
	t.Helper()
	texts := func(fields map[string]*apiSchema) map[string]string {
		if len(fields) == 0 {
			return nil
		}
		found := map[string]string{}
		for name, field := range fields {
			found[name] = field.String()
			assert.NotEmpty(t, field.Description, name)
		}
		return found
	}
	got := map[string]describedOperation{}
	for path, item := range d.Paths {
		assert.NotEmpty(t, item.Description, path)
		for method, op := range item.operations() {
			name := method + " " + path + " " + op.ID
			assert.NotEmpty(t, op.Summary, name)
			found := describedOperation{
				parameters: map[string]string{},
				request:    texts(d.fields(op.RequestBody.Content)),
			}
			for _, p := range slices.Concat(item.Parameters, op.Parameters) {
				if p.Required {
					p.In += ", required"
				}
				found.parameters[p.Name] = p.In + ": " + p.Schema.String()
				assert.NotEmpty(t, p.Description, "%s: %s", name, p.Name)
			}
			for status, response := range op.Responses {
				assert.NotEmpty(t, response.Description, "%s: %s", name, status)
				if fields := d.fields(response.Content); len(fields) > 0 {
					assert.Equal(t, "200", status, "%s: what has fields", name)
					found.response = texts(fields)
				}
			}
			found.statuses = strings.Join(slices.Sorted(maps.Keys(op.Responses)), " ")
			got[name] = found
		}
	}
	require.Equal(t, wantOperations, got)
}

func TestOpenAPI_document_has_every_operation_with_its_parameters_and_its_response(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	requireOperations(t, documentOf(t, m.Vault).under("/"+m.Path+"/"))
}

func TestOpenAPI_document_with_generic_mount_paths_is_the_same(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	parameter := strings.ReplaceAll(m.Path, "-", "_") + "_mount_path"
	generic := genericDocumentOf(t, m.Vault).under("/{" + parameter + "}/")
	for path, item := range generic.Paths {
		at := slices.IndexFunc(item.Parameters, func(p apiParameter) bool { return p.Name == parameter })
		require.GreaterOrEqual(t, at, 0, path)
		assert.Equal(t, "path", item.Parameters[at].In)
		assert.Equal(t, m.Path, item.Parameters[at].Schema.Default)
		item.Parameters = slices.Delete(item.Parameters, at, at+1)
	}
	requireOperations(t, generic)
}

func TestOpenAPI_document_is_also_what_path_help_prints_as_JSON(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	var document apiDocument
	harness.DecodeJSON(t, m.Vault.MustCLI(t, "path-help", "-format=json", m.Path), &document)
	requireOperations(t, document.under("/"))
}

func TestOpenAPI_defaults_are_what_the_engine_uses(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := harness.NewMount(t)
	d := documentOf(t, m.Vault).under("/" + m.Path + "/")

	// The least that stores an app; its base_url is the default one, so nothing may be fetched.
	least := m.UnstoredApp(dt)
	_, err := m.Vault.Root.Logical().
		Write(least.ConfigPath(), harness.Fields{
			"app_key": least.Key, "app_secret": least.Secret, "verify_connection": false,
		})
	require.NoError(t, err)
	stored := m.ReadData(t, least.ConfigPath())

	defaults := harness.Fields{}
	for name, field := range d.fields(d.Paths["config/{app}"].Post.RequestBody.Content) {
		if field.Default == nil {
			assert.Contains(t, []string{"app_key", "app_secret", "corp_id", "verify_connection"}, name, "has no default")
			continue
		}
		defaults[name] = field.Default
		if field.Format == "duration" {
			given, err := time.ParseDuration(field.Default.(string))
			require.NoError(t, err, name)
			assert.Equal(t, harness.Seconds(t, stored[name]), given, name)
			continue
		}
		assert.Equal(t, stored[name], field.Default, name)
	}
	require.Len(t, defaults, 4)

	// A client that sends the defaults gets what one gets that sends nothing.
	explicit := m.UnstoredApp(dt)
	maps.Copy(defaults, harness.Fields{"app_key": least.Key, "app_secret": explicit.Secret, "verify_connection": false})
	_, err = m.Vault.Root.Logical().Write(explicit.ConfigPath(), defaults)
	require.NoError(t, err)
	again := m.ReadData(t, explicit.ConfigPath())
	delete(stored, "app_secret_set_at")
	delete(again, "app_secret_set_at")
	require.Equal(t, stored, again)

	a := m.NewApp(t, dt, nil)
	creds := d.Paths["creds/{app}"].Get.Parameters
	require.Len(t, creds, 1)
	minTTL := creds[0].Schema.Default.(string)
	a.Read(t)
	secret, err := m.Vault.Root.Logical().ReadWithData(a.CredsPath(), url.Values{"min_ttl": {minTTL}})
	require.NoError(t, err)
	require.Empty(t, secret.Warnings)
	require.Equal(t, 1, a.Calls())
}

// describedMount sends requests to a mount and compares each response with the mount's part of the
// document.
type describedMount struct {
	*harness.Mount
	document *apiDocument
}

var aDateTime = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`)

// ask sends a request over HTTP. The response has that status, and of the described fields those
// that are named.
func (m describedMount) ask(t *testing.T, method, path, body string, status int, names ...string) map[string]any {
	t.Helper()
	what := fmt.Sprintf("%s %s with %s", method, path, harness.Mask(body))
	contentType := ""
	if method == http.MethodPatch {
		contentType = patchType
	}
	reply := m.Vault.HTTP(t, method, m.Path+"/"+path, contentType, body)
	require.Equal(t, status, reply.Status, "%s: %s", what, harness.Mask(reply.Body))

	template, _, _ := strings.Cut(path, "?")
	if first, app, _ := strings.Cut(template, "/"); app != "" {
		template = first + "/{app}"
	}
	if method == "LIST" {
		method = http.MethodGet
	}
	op := m.document.Paths[template].operations()[method]
	require.NotNil(t, op, what)
	response, known := op.Responses[strconv.Itoa(status)]
	require.True(t, known, "%s: a %d is not described", what, status)
	if reply.Body == "" {
		require.Equal(t, http.StatusNoContent, status, what)
		return nil
	}

	var got struct {
		Data     map[string]any
		Warnings []string
		Errors   []string
	}
	harness.DecodeJSON(t, reply.Body, &got)
	require.Equal(t, status >= 400, got.Errors != nil,
		"%s: errors come with their status: %s", what, harness.Mask(reply.Body))
	require.ElementsMatch(t, names, slices.Collect(maps.Keys(got.Data)), what)
	described := m.document.fields(response.Content)
	for name, value := range got.Data {
		require.Contains(t, described, name, what)
		requireOfType(t, described[name], value, what+": "+name)
	}
	return got.Data
}

// requireOfType checks a field's value strictly, as a generated client's decoder does.
func requireOfType(t *testing.T, schema *apiSchema, value any, what string) {
	t.Helper()
	if schema.Enum != nil {
		require.Contains(t, schema.Enum, value, what)
	}
	switch schema.Type {
	case "string":
		text, ok := value.(string)
		require.True(t, ok && text != "", "%s is a %T", what, value)
		if schema.Format == "date-time" {
			require.Regexp(t, aDateTime, text, what)
		}
	case "boolean":
		require.IsType(t, true, value, what)
	case "integer":
		number, ok := value.(float64)
		require.True(t, ok && number == float64(int64(number)), "%s is %v", what, value)
	case "array":
		require.IsType(t, []any{}, value, what)
		for _, item := range value.([]any) {
			requireOfType(t, schema.Items, item, what)
		}
	default:
		require.Fail(t, "a type that these tests do not know", "%s: %s", what, schema)
	}
}

func newDescribedMount(t *testing.T) describedMount {
	t.Helper()
	m := harness.NewMount(t)
	return describedMount{m, documentOf(t, m.Vault).under("/" + m.Path + "/")}
}

var (
	configNames = []string{
		"app_key", "app_secret_set_at", "base_url", "corp_id", "leased", "refresh_before", "request_timeout",
	}
	unleasedNames = []string{"access_token", "expires_at", "last_vault_rotation", "rotation_period", "ttl"}
	absentNames   = []string{"state", "upstream_calls", "upstream_failures"}
	statusNames   = slices.Concat(absentNames, []string{"expires_at", "fetched_at", "ttl"})
	failedNames   = []string{
		"last_error", "last_error_at", "last_error_class", "last_error_code", "last_error_request_id",
		"failing_since", "consecutive_failures", "next_attempt_at",
	}
)

func TestOpenAPI_document_holds_what_config_answers(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := newDescribedMount(t)
	a := m.UnstoredApp(dt)
	config := a.Config()
	config["corp_id"] = simulator.DefaultCorpID
	path, whole := "config/"+a.Name, jsonOf(t, config)

	m.ask(t, "LIST", "config/", "", 404)
	m.ask(t, "GET", "config/?list=true", "", 404)
	m.ask(t, "GET", path, "", 404)
	m.ask(t, "PATCH", path, `{"leased":true}`, 404)
	m.ask(t, "DELETE", path, "", 204)

	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultReset})
	m.ask(t, "POST", path, whole, 502)
	dt.ClearFault(a.Key)
	m.ask(t, "POST", path, `{"leased":true}`, 400)
	m.ask(t, "POST", path, whole, 204)
	m.ask(t, "POST", path, `{"leased":true,"laesed":false}`, 200) // a warning names it
	m.ask(t, "PATCH", path, `{"leased":true}`, 204)
	m.ask(t, "PATCH", path, `{"leased":true,"laesed":false}`, 200)
	m.ask(t, "PATCH", path, `{"leased":null}`, 400)
	m.ask(t, "PATCH", path, `{"app_secret":"not-the-right-one"}`, 400) // it names no base_url
	m.ask(t, "PATCH", path, jsonOf(t, a.Rotation("not-the-right-one")), 400)
	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultReset})
	m.ask(t, "PATCH", path, jsonOf(t, a.Rotation("one-more-wrong-one")), 502)

	m.ask(t, "GET", path, "", 200, configNames...)
	m.ask(t, "LIST", "config/", "", 200, "keys")
	m.ask(t, "GET", "config/?list=true", "", 200, "keys")
	m.ask(t, "DELETE", path, "", 204)
	long := "config/" + strings.Repeat("a", 129)
	m.ask(t, "GET", long, "", 400)
	m.ask(t, "DELETE", long, "", 400)
	m.ask(t, "POST", long, whole, 400)
}

func TestOpenAPI_document_holds_what_creds_returns(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	m := newDescribedMount(t)
	leased, unleased := m.NewApp(t, dt, nil), m.NewApp(t, dt, harness.Fields{"leased": false})

	m.ask(t, "GET", "creds/nobody", "", 400)
	m.ask(t, "GET", "creds/"+leased.Name+"?min_ttl=soon", "", 400)
	dt.SetFault(leased.Key, simulator.Fault{Kind: simulator.FaultReset})
	m.ask(t, "GET", "creds/"+leased.Name, "", 502)
	m.ask(t, "GET", "creds/"+leased.Name, "", 502) // the remembered error
	dt.ClearFault(leased.Key)
	m.ask(t, "POST", "refresh/"+leased.Name, "", 200, statusNames...)
	for _, query := range []string{"", "?min_ttl=30m", "?min_ttl=2h"} { // the last one with a warning
		got := m.ask(t, "GET", "creds/"+leased.Name+query, "", 200, "access_token")
		harness.NoteSecret(got["access_token"].(string), "an access token")
		m.ask(t, "GET", "creds/"+unleased.Name+query, "", 200, unleasedNames...)
	}
	wrong := m.NewApp(t, dt, harness.Fields{"app_secret": harness.NewSecret()})
	m.ask(t, "GET", "creds/"+wrong.Name, "", 400)
}

func TestOpenAPI_document_holds_what_status_and_refresh_return(t *testing.T) {
	t.Parallel()
	const lifetime = 32 * time.Second // due for the last 8 s, of which the last 2 s count as expired
	dt := harness.StartDingTalk(t, lifetime)
	m := newDescribedMount(t)
	a := m.NewApp(t, dt, harness.Fields{"request_timeout": "2s"})
	path := "status/" + a.Name
	state := func(names ...string) any {
		t.Helper()
		return m.ask(t, "GET", path, "", 200, names...)["state"]
	}

	m.ask(t, "GET", "status/nobody", "", 400)
	m.ask(t, "POST", "refresh/nobody", "", 400)
	require.Equal(t, "absent", state(absentNames...))
	wrong := m.NewApp(t, dt, harness.Fields{"app_secret": harness.NewSecret()})
	m.ask(t, "POST", "refresh/"+wrong.Name, "", 400)
	require.Equal(
		t,
		"absent",
		m.ask(t, "GET", "status/"+wrong.Name, "", 200, slices.Concat(absentNames, failedNames)...)["state"],
	)

	m.ask(t, "POST", "refresh/"+a.Name, "", 200, statusNames...)
	m.ask(t, "POST", "refresh/"+a.Name, "", 200, statusNames...) // too soon
	m.ask(t, "POST", "refresh/"+a.Name, `{"rejected_token":"not-the-current-one"}`, 200, statusNames...)
	m.ask(t, "POST", "refresh/"+a.Name, `{"rejected_token":""}`, 400)
	require.Equal(t, "fresh", state(statusNames...))

	token := dt.LastToken(a.Key)
	harness.NoteSecret(token, "an access token")
	dt.SetFault(a.Key, simulator.Fault{Kind: simulator.FaultThrottledBusy})
	dt.WaitForAge(t, token, lifetime-11*time.Second)
	m.ask(t, "POST", "refresh/"+a.Name, "", 502)
	require.Equal(t, "fresh", state(slices.Concat(statusNames, failedNames)...))

	// Time alone brings the rest. Whether next_attempt_at is there depends on the back-off's end.
	for _, want := range []string{"due", "expired"} {
		harness.WaitFor(t, lifetime, "the token is "+want, func() bool { return a.Status(t)["state"] == want })
		names := slices.Concat(statusNames, failedNames)
		if _, held := a.Status(t)["next_attempt_at"]; !held {
			names = slices.DeleteFunc(names, func(name string) bool { return name == "next_attempt_at" })
		}
		require.Equal(t, want, state(names...))
	}
}

// helpText is what `vault path-help` prints, taken apart.
type helpText struct {
	synopsis, description string
	parameters            map[string]string // what each is, white space collapsed
}

func parseHelp(t *testing.T, text string) helpText {
	t.Helper()
	head, description, found := strings.Cut(text, "\n## DESCRIPTION\n")
	require.True(t, found, text)
	head, list, _ := strings.Cut(head, "\n## PARAMETERS\n")
	_, synopsis, found := strings.Cut(head, "\n\n")
	require.True(t, found, text)
	help := helpText{
		synopsis:    strings.TrimSpace(synopsis),
		description: strings.TrimSpace(description),
		parameters:  map[string]string{},
	}
	name := ""
	for line := range strings.Lines(list) {
		switch indent := len(line) - len(strings.TrimLeft(line, " ")); {
		case strings.TrimSpace(line) == "":
		case indent == 4:
			name, _, _ = strings.Cut(strings.TrimSpace(line), " (")
			help.parameters[name] = ""
		default:
			require.Equal(t, 8, indent, line)
			help.parameters[name] = strings.TrimSpace(help.parameters[name] + " " + strings.TrimSpace(line))
		}
	}
	return help
}

// requireReadable checks what a terminal of 80 columns shows.
func requireReadable(t *testing.T, text string) {
	t.Helper()
	assert.NotContains(t, text, "<no ", "no empty parts")
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "Matching Route:") {
			assert.LessOrEqual(t, len(strings.TrimRight(line, "\n")), 80, line)
		}
	}
}

func TestPathHelp_of_the_mount_says_what_it_is_and_lists_every_path(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	text := m.Vault.MustCLI(t, "path-help", m.Path)
	requireReadable(t, text)
	description, paths, found := strings.Cut(text, "\n## PATHS\n")
	require.True(t, found, text)
	for path, synopsis := range map[string]string{
		"config/": "List the names of the configured apps.",
		"config":  "Configure an app: its credentials and settings.",
		"creds":   "Get the access token of an app.",
		"status":  "Read the state of an app's token, without the token.",
		"refresh": "Fetch an app's token now.",
	} {
		route := regexp.QuoteMeta(path) + `/\(\?P<app>`
		if path == "config/" {
			route = `config/\?\$`
		} else {
			assert.Contains(t, description, path+"/<app>")
		}
		assert.Regexp(t, `(?m)^    \^`+route+`.*\n        `+regexp.QuoteMeta(synopsis)+`$`, paths)
	}
}

func TestPathHelp_of_every_path_explains_every_parameter(t *testing.T) {
	t.Parallel()
	m := harness.NewMount(t)
	for path, parameters := range map[string][]string{
		"config": nil,
		"config/myapp": {
			"app", "app_key", "app_secret", "base_url", "corp_id", "leased", "refresh_before", "request_timeout",
			"verify_connection",
		},
		"creds/myapp":   {"app", "min_ttl"},
		"status/myapp":  {"app"},
		"refresh/myapp": {"app", "rejected_token"},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			text := m.Vault.MustCLI(t, "path-help", m.Path+"/"+path)
			requireReadable(t, text)
			help := parseHelp(t, text)
			assert.NotEmpty(t, help.synopsis)
			assert.NotEmpty(t, help.description)
			assert.NotEqual(t, help.synopsis, help.description)
			assert.ElementsMatch(t, parameters, slices.Collect(maps.Keys(help.parameters)))

			// The same words as in the document of the same path, and the defaults, which Vault shows only
			// there.
			var document apiDocument
			harness.DecodeJSON(t, m.Vault.MustCLI(t, "path-help", "-format=json", m.Path+"/"+path), &document)
			require.Len(t, document.Paths, 1)
			for _, item := range document.Paths {
				assert.Equal(t, item.Description, help.synopsis)
				schemas := map[string]*apiSchema{}
				for _, op := range item.operations() {
					maps.Copy(schemas, document.fields(op.RequestBody.Content))
					for _, p := range slices.Concat(item.Parameters, op.Parameters) {
						schemas[p.Name] = p.Schema
						schemas[p.Name].Description = p.Description
					}
				}
				delete(schemas, "list") // what makes a GET a LIST
				for name, schema := range schemas {
					assert.NotEmpty(t, schema.Description, name)
					assert.Equal(t, schema.Description, help.parameters[name], name)
					if schema.Default != nil {
						assert.Contains(t, help.parameters[name], fmt.Sprint(schema.Default), "%s: its default", name)
					}
				}
				assert.Len(t, schemas, len(parameters))
			}
		})
	}
}

func TestPathHelp_the_commands_in_it_work(t *testing.T) {
	t.Parallel()
	w := newPolicyWorld(t) // where the mount and an app are called as in the help
	secret := harness.NewSecret()
	w.dt.SetApp("dingxxxxxxxx", secret)
	ran := 0
	for _, path := range []string{"", "/config", "/config/myapp", "/creds/myapp", "/status/myapp", "/refresh/myapp"} {
		for line := range strings.Lines(w.v.MustCLI(t, "path-help", "dingtalk"+path)) {
			command, found := strings.CutPrefix(line, "    vault ")
			if !found {
				continue
			}
			ran++
			args := strings.Fields(command)
			if slices.Contains(args, "app_secret=-") { // where the app's host is DingTalk's, that is all
				args = append(args, "base_url="+w.dt.URL)
			}
			result := w.v.CLIWithInput(t, secret, args...)
			assert.Zero(t, result.Status, "%s: %s", command, harness.Mask(result.Stderr))
			harness.NoteSecret(w.dt.LastToken("dingxxxxxxxx"), "an access token")
		}
	}
	require.Equal(t, 8, ran)
}
