// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// This file is about what the examples for Kubernetes say, beyond the names of the fields: the
// objects fit together, and what they ask of the engine works.

// named finds an object by its kind and name.
func named(objects []object, kind string, name any) *object {
	for i := range objects {
		if objects[i].data["kind"] == kind && objects[i].at("metadata.name") == name {
			return &objects[i]
		}
	}
	return nil
}

// enginePath is a path below the mount, from one in an example.
func enginePath(t *testing.T, path any) string {
	t.Helper()
	rest, found := strings.CutPrefix(fmt.Sprint(path), theMount)
	require.True(t, found, "%v is on the mount", path)
	return rest
}

func TestKubernetes_all_objects_are_in_one_namespace(t *testing.T) {
	for _, dir := range kubernetesDirs {
		for _, o := range readObjects(t, dir) {
			assert.Equal(t, "billing", o.at("metadata.namespace"), o)
		}
	}
}

func TestVaultSecretsOperator_the_objects_refer_to_each_other(t *testing.T) {
	objects := readObjects(t, "vault-secrets-operator")
	secrets := map[any]bool{}
	for _, o := range objects {
		switch o.data["kind"] {
		case "VaultAuth":
			assert.NotNil(t, named(objects, "VaultConnection", o.at("spec.vaultConnectionRef")))
			assert.NotNil(t, named(objects, "ServiceAccount", o.at("spec.kubernetes.serviceAccount")))
			assert.NotNil(t, o.at("spec."+fmt.Sprint(o.at("spec.method"))), "it has the settings of its method")
		case "VaultDynamicSecret":
			assert.NotNil(t, named(objects, "VaultAuth", o.at("spec.vaultAuthRef")))
			assert.Nil(t, o.at("spec.params"), "they are sent with a PUT, and creds/ takes a GET alone")
			secrets[o.at("spec.destination.name")] = true
			targets, _ := o.at("spec.rolloutRestartTargets").([]any)
			for _, target := range targets {
				target := target.(map[string]any)
				assert.NotNil(t, named(objects, target["kind"].(string), target["name"]))
			}
		}
	}
	require.Len(t, secrets, 1, "both modes are for the same Secret")
	deployment := named(objects, "Deployment", "billing")
	require.NotNil(t, deployment)
	volumes := deployment.at("spec.template.spec.volumes").([]any)
	require.Len(t, volumes, 1)
	assert.Contains(t, secrets, volumes[0].(map[string]any)["secret"].(map[string]any)["secretName"])
}

func TestVaultSecretsOperator_what_it_reads_is_there(t *testing.T) {
	for file, leased := range map[string]bool{"leased.yaml": true, "unleased.yaml": false} {
		o, _ := dynamicSecret(t, file)
		e := newEngine(t)
		e.configure(map[string]any{"leased": leased})
		path := enginePath(t, fmt.Sprintf("%v/%v", o.at("spec.mount"), o.at("spec.path")))
		resp := e.do(&logical.Request{Operation: logical.ReadOperation, Path: path})
		assert.Equal(t, e.upstream.LastToken(theKey), resp.Data["access_token"])
		assert.Equal(t, leased, resp.Secret != nil)
	}
}

func TestExternalSecrets_the_objects_refer_to_each_other(t *testing.T) {
	objects := readObjects(t, "external-secrets-operator")
	external := named(objects, "ExternalSecret", "dingtalk-myapp")
	require.NotNil(t, external)
	sources := external.at("spec.dataFrom").([]any)
	require.Len(t, sources, 1)
	ref := sources[0].(map[string]any)["sourceRef"].(map[string]any)["generatorRef"].(map[string]any)
	generator := named(objects, ref["kind"].(string), ref["name"])
	require.NotNil(t, generator)
	assert.Equal(t, ref["apiVersion"], generator.data["apiVersion"])
	assert.NotNil(
		t,
		named(objects, "ServiceAccount", generator.at("spec.provider.auth.kubernetes.serviceAccountRef.name")),
	)
}

// generatorRead is what the generator asks of Vault: the query as Vault hands it to the engine.
func generatorRead(t *testing.T) (path string, query map[string]any) {
	t.Helper()
	generator := named(readObjects(t, "external-secrets-operator"), "VaultDynamicSecret", "dingtalk-myapp")
	require.NotNil(t, generator)
	require.Equal(t, "GET", generator.at("spec.method"))
	query = map[string]any{}
	for field, values := range generator.at("spec.getParameters").(map[string]any) {
		require.Len(t, values, 1)
		query[field] = values.([]any)[0]
	}
	return enginePath(t, generator.at("spec.path")), query
}

func TestExternalSecrets_the_token_outlives_the_time_to_the_next_read(t *testing.T) {
	path, query := generatorRead(t)
	external := named(readObjects(t, "external-secrets-operator"), "ExternalSecret", "dingtalk-myapp")
	interval, err := time.ParseDuration(external.at("spec.refreshInterval").(string))
	require.NoError(t, err)
	least, err := time.ParseDuration(query["min_ttl"].(string))
	require.NoError(t, err)
	// After a failure the operator tries again within 7 minutes.
	assert.GreaterOrEqual(t, least, interval+10*time.Minute, "with time for failures")
	assert.LessOrEqual(t, least, 90*time.Minute, "three quarters of a token's life, the most that min_ttl counts for")

	e := newEngine(t)
	e.configure(map[string]any{"leased": false})
	e.read()
	e.age(2*time.Hour - least + time.Minute)
	resp := e.do(&logical.Request{Operation: logical.ReadOperation, Path: path, Data: query})
	expires, err := time.Parse(time.RFC3339, resp.Data["expires_at"].(string))
	require.NoError(t, err)
	assert.Greater(t, time.Until(expires), least)
	assert.Empty(t, resp.Warnings)
	assert.Equal(t, 2, e.upstream.Requests(theKey), "what had a shorter remaining TTL was refreshed")

	for range 10 {
		e.do(&logical.Request{Operation: logical.ReadOperation, Path: path, Data: query})
	}
	assert.Equal(t, 2, e.upstream.Requests(theKey), "what has enough is not")
}

func TestExternalSecrets_the_Secret_has_the_token_and_nothing_else(t *testing.T) {
	external := named(readObjects(t, "external-secrets-operator"), "ExternalSecret", "dingtalk-myapp")
	require.Equal(t, "Replace", external.at("spec.target.template.mergePolicy"))
	templates := external.at("spec.target.template.data").(map[string]any)
	require.Len(t, templates, 1)

	e := newEngine(t)
	e.configure(map[string]any{"leased": false})
	values := map[string]string{}
	for field, value := range e.read().Data {
		// Of what the engine could return, the operator takes strings and numbers, and fails at types of
		// Go's own.
		switch value := value.(type) {
		case string:
			values[field] = value
		case json.Number:
			values[field] = value.String()
		default:
			t.Errorf("%s is a %T", field, value)
		}
	}
	var out strings.Builder
	tmpl, err := template.New("").Option("missingkey=error").Parse(templates["access_token"].(string))
	require.NoError(t, err)
	require.NoError(t, tmpl.Execute(&out, values))
	assert.Equal(t, e.upstream.LastToken(theKey), out.String())
}

func injectorAnnotations(t *testing.T) map[string]string {
	t.Helper()
	deployment := named(readObjects(t, "agent-injector"), "Deployment", "billing")
	require.NotNil(t, deployment)
	require.Nil(t, deployment.at("metadata.annotations"), "there the injector would not see them")
	annotations := map[string]string{}
	for name, value := range deployment.at("spec.template.metadata.annotations").(map[string]any) {
		annotations[strings.TrimPrefix(name, "vault.hashicorp.com/")] = value.(string)
	}
	return annotations
}

func TestAgentInjector_the_annotations_of_one_file_belong_together(t *testing.T) {
	annotations := injectorAnnotations(t)
	assert.Equal(t, "true", annotations["agent-inject"])
	files := 0
	for name := range annotations {
		part := regexp.MustCompile(`^agent-inject-(secret|template|perms|file|command)-(.+)$`).FindStringSubmatch(name)
		if part == nil {
			continue
		}
		if part[1] == "secret" {
			files++
		}
		assert.NotEmpty(t, annotations["agent-inject-secret-"+part[2]], name)
	}
	assert.Equal(t, 1, files)
}

func TestAgentInjector_the_pod_logs_in_as_the_service_account(t *testing.T) {
	objects := readObjects(t, "agent-injector")
	deployment := named(objects, "Deployment", "billing")
	assert.NotNil(t, named(objects, "ServiceAccount", deployment.at("spec.template.spec.serviceAccountName")))
	assert.Equal(t, deployment.at("spec.selector.matchLabels"), deployment.at("spec.template.metadata.labels"))
}

func TestAgentInjector_the_file_is_the_token_in_either_mode(t *testing.T) {
	annotations := injectorAnnotations(t)
	for _, leased := range []bool{true, false} {
		e := newEngine(t)
		e.configure(map[string]any{"leased": leased})
		var read []string
		tmpl, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{
			"secret": func(path string) any {
				read = append(read, path)
				return e.do(&logical.Request{Operation: logical.ReadOperation, Path: enginePath(t, path)})
			},
		}).Parse(annotations["agent-inject-template-dingtalk-token"])
		require.NoError(t, err)
		var out strings.Builder
		require.NoError(t, tmpl.Execute(&out, nil))
		assert.Equal(t, e.upstream.LastToken(theKey), out.String(), "no line break, no other field")
		assert.Equal(t, []string{annotations["agent-inject-secret-dingtalk-token"]}, read)
	}
}

func TestKubernetes_the_policy_that_the_examples_name_allows_what_they_read(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(examplesDir, "policies", "reader.hcl"))
	require.NoError(t, err)
	assert.Equal(t, map[string][]string{theMount + "creds/" + theApp: {"read"}}, policyPaths(t, string(content)))
}
