// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
	"gopkg.in/yaml.v3"
)

// This file holds the Terraform examples against the lists in testdata/fields, works out their
// expressions, and makes the requests that they would make to the real engine.

const terraformFolder = "terraform"

// language is what Terraform itself knows: by block, the arguments, and with {} the blocks.
type language struct {
	Source, Version, File string
	Blocks                map[string][]string
}

// vaultProvider is what Terraform's provider for Vault knows: by argument or attribute a type, and
// after a space whether it is required, or computed and so not to be given.
type vaultProvider struct {
	Source, Version, File string
	Provider              map[string]string
	Resource              map[string]map[string]string
}

type terraform struct {
	language language
	provider vaultProvider
}

func readTerraformLists(t *testing.T) *terraform {
	t.Helper()
	var tf terraform
	for name, to := range map[string]any{"terraform.yaml": &tf.language, "terraform-provider-vault.yaml": &tf.provider} {
		content, err := os.ReadFile(filepath.Join("testdata", "fields", name))
		require.NoError(t, err)
		require.NoError(t, decodeStrictly(content, to), name)
	}
	return &tf
}

// module is a folder of Terraform files, as one.
type module struct {
	files  map[string][]byte
	blocks hclsyntax.Blocks
}

func parseModule(files map[string][]byte) (module, error) {
	m := module{files: files}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		file, diags := hclsyntax.ParseConfig(files[name], name, hcl.InitialPos)
		if diags.HasErrors() {
			return m, diags
		}
		body := file.Body.(*hclsyntax.Body)
		for _, a := range body.Attributes {
			return m, fmt.Errorf("%s: the argument %s is in no block", a.SrcRange, a.Name)
		}
		m.blocks = append(m.blocks, body.Blocks...)
	}
	return m, nil
}

func readModule(t *testing.T) module {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(examplesDir, terraformFolder, "*.tf"))
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	files := map[string][]byte{}
	for _, path := range paths {
		files[filepath.Base(path)], err = os.ReadFile(path)
		require.NoError(t, err)
	}
	m, err := parseModule(files)
	require.NoError(t, err)
	return m
}

// check returns what is wrong with a module, given values for its variables; nil if nothing is.
func (tf *terraform) check(m module, inputs map[string]cty.Value) []string {
	c := &tfChecker{terraform: tf}
	for _, b := range m.blocks {
		c.block(b)
	}
	if len(c.problems) == 0 {
		_, problems := tf.evaluate(m, inputs)
		c.problems = problems
	}
	return c.problems
}

type tfChecker struct {
	*terraform
	problems []string
}

func (c *tfChecker) report(at hcl.Range, format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf("%s:%d: %s", at.Filename, at.Start.Line, fmt.Sprintf(format, args...)))
}

// own returns what a provider's block of that type may have besides what Terraform itself knows;
// nil where there is no such thing.
func (tf *terraform) own(b *hclsyntax.Block) map[string]string {
	switch {
	case b.Type == "provider" && slices.Equal(b.Labels, []string{"vault"}):
		return tf.provider.Provider
	case b.Type == "resource" && len(b.Labels) == 2:
		return tf.provider.Resource[b.Labels[0]]
	default:
		return nil
	}
}

var labels = map[string]int{"variable": 1, "output": 1, "provider": 1, "resource": 2}

func (c *tfChecker) block(b *hclsyntax.Block) {
	knownHere, ok := c.language.Blocks[b.Type]
	if !ok {
		c.report(b.TypeRange, "there is no block %s", b.Type)
		return
	}
	if len(b.Labels) != labels[b.Type] {
		c.report(b.TypeRange, "%s has %d labels", b.Type, len(b.Labels))
		return
	}
	own := c.own(b)
	if own == nil && (b.Type == "provider" || b.Type == "resource") {
		c.report(b.LabelRanges[0], "there is no %s %s", b.Type, b.Labels[0])
		return
	}
	if b.Type == "required_providers" {
		c.requiredProviders(b)
		return
	}
	for name, a := range b.Body.Attributes {
		typ, isOwn := own[name]
		switch {
		case isOwn && strings.HasSuffix(typ, " computed"):
			c.report(a.NameRange, "%s is computed", name)
		case !isOwn && !slices.Contains(knownHere, name):
			c.report(a.NameRange, "there is no argument %s", name)
		}
	}
	for name, typ := range own {
		if strings.HasSuffix(typ, " required") && b.Body.Attributes[name] == nil {
			c.report(b.TypeRange, "%s is missing", name)
		}
	}
	for _, inner := range b.Body.Blocks {
		if !slices.Contains(knownHere, inner.Type+"{}") {
			c.report(inner.TypeRange, "there is no block %s", inner.Type)
			continue
		}
		c.block(inner)
	}
}

func (c *tfChecker) requiredProviders(b *hclsyntax.Block) {
	for _, a := range b.Body.Attributes {
		value, diags := a.Expr.Value(nil)
		if diags.HasErrors() || !value.Type().IsObjectType() {
			c.report(a.NameRange, "%s is not an object", a.Name)
			continue
		}
		for name := range value.Type().AttributeTypes() {
			if !slices.Contains(c.language.Blocks["required_providers"], name) {
				c.report(a.NameRange, "%s has no %s", a.Name, name)
			}
		}
	}
}

// types of the lists, in Terraform's terms.
var ctyTypes = map[string]cty.Type{
	"string": cty.String, "bool": cty.Bool, "number": cty.Number,
	"list": cty.List(cty.String), "map": cty.Map(cty.String),
}

// values are what the arguments of every resource come to, by type and name.
type values map[string]map[string]map[string]cty.Value

// evaluate works out a module's expressions; what is known only after an apply stays unknown.
func (tf *terraform) evaluate(m module, inputs map[string]cty.Value) (values, []string) {
	c := &tfChecker{terraform: tf}
	variables := map[string]cty.Value{}
	found := values{}
	for _, b := range m.blocks {
		switch b.Type {
		case "variable":
			name := b.Labels[0]
			variables[name] = cty.UnknownVal(cty.String)
			if a := b.Body.Attributes["default"]; a != nil {
				value, diags := a.Expr.Value(nil)
				if diags.HasErrors() {
					c.report(a.SrcRange, "%s", diags)
				}
				variables[name] = value
			}
			if value, given := inputs[name]; given {
				variables[name] = value
			}
		case "resource":
			attributes := map[string]cty.Value{}
			for name, typ := range tf.own(b) {
				typ, _, _ = strings.Cut(typ, " ")
				attributes[name] = cty.UnknownVal(ctyTypes[typ])
			}
			if found[b.Labels[0]] == nil {
				found[b.Labels[0]] = map[string]map[string]cty.Value{}
			}
			found[b.Labels[0]][b.Labels[1]] = attributes
		}
	}
	// Resources refer to each other: as many rounds as there are resources settle it.
	for range m.blocks {
		c.problems = nil
		context := &hcl.EvalContext{
			Variables: map[string]cty.Value{"var": cty.ObjectVal(variables)},
			Functions: map[string]function.Function{"jsonencode": stdlib.JSONEncodeFunc},
		}
		maps.Copy(context.Variables, found.objects())
		for _, b := range m.blocks {
			own := tf.own(b)
			for name, a := range b.Body.Attributes {
				typ, isOwn := own[name]
				if b.Type != "output" && !isOwn {
					continue
				}
				value, diags := a.Expr.Value(context)
				if diags.HasErrors() {
					c.report(a.SrcRange, "%s", diags.Error())
					continue
				}
				if !isOwn {
					continue
				}
				typ, _, _ = strings.Cut(typ, " ")
				value, err := convert.Convert(value, ctyTypes[typ])
				if err != nil {
					c.report(a.SrcRange, "%s is not a %s: %s", name, typ, err)
					continue
				}
				if b.Type == "resource" {
					found[b.Labels[0]][b.Labels[1]][name] = value
				}
			}
		}
	}
	return found, c.problems
}

func (v values) objects() map[string]cty.Value {
	objects := map[string]cty.Value{}
	for typ, byName := range v {
		named := map[string]cty.Value{}
		for name, attributes := range byName {
			named[name] = cty.ObjectVal(attributes)
		}
		objects[typ] = cty.ObjectVal(named)
	}
	return objects
}

// inputs are values for the variables that have no default, for the given engine.
func terraformInputs(e *engine) map[string]cty.Value {
	return map[string]cty.Value{
		"plugin_sha256": cty.StringVal(strings.Repeat("0123456789abcdef", 4)),
		"app_key":       cty.StringVal(theKey),
		"app_secret":    cty.StringVal(theSecret),
		"base_url":      cty.StringVal(e.url),
	}
}

// policyPaths are the paths of a policy with their capabilities.
func policyPaths(t *testing.T, policy string) map[string][]string {
	t.Helper()
	file, diags := hclsyntax.ParseConfig([]byte(policy), "policy", hcl.InitialPos)
	require.False(t, diags.HasErrors(), diags)
	paths := map[string][]string{}
	for _, b := range file.Body.(*hclsyntax.Body).Blocks {
		require.Equal(t, "path", b.Type)
		value, diags := b.Body.Attributes["capabilities"].Expr.Value(nil)
		require.False(t, diags.HasErrors(), diags)
		for _, capability := range value.AsValueSlice() {
			paths[b.Labels[0]] = append(paths[b.Labels[0]], capability.AsString())
		}
	}
	return paths
}

func TestTerraform_every_argument_of_the_example_exists(t *testing.T) {
	tf := readTerraformLists(t)
	assert.Empty(t, tf.check(readModule(t), terraformInputs(newEngine(t))))
}

func TestTerraform_a_misspelt_argument_or_block_fails_whichever_it_is(t *testing.T) {
	tf := readTerraformLists(t)
	m := readModule(t)
	inputs := terraformInputs(newEngine(t))
	spoiled := 0
	// spoil writes an x behind a name.
	spoil := func(at hcl.Range) {
		spoiled++
		files := maps.Clone(m.files)
		before := files[at.Filename]
		end := at.End.Byte
		if before[end-1] == '"' {
			end--
		}
		files[at.Filename] = slices.Concat(before[:end], []byte("x"), before[end:])
		bad, err := parseModule(files)
		require.NoError(t, err)
		assert.NotEmpty(t, tf.check(bad, inputs), "%s:%d: %s", at.Filename, at.Start.Line, at.SliceBytes(before))
	}
	var visit func(b *hclsyntax.Block)
	visit = func(b *hclsyntax.Block) {
		spoil(b.TypeRange)
		if b.Type != "required_providers" { // its names are the user's own
			for _, a := range b.Body.Attributes {
				spoil(a.NameRange)
			}
		}
		for _, inner := range b.Body.Blocks {
			visit(inner)
		}
	}
	for _, b := range m.blocks {
		visit(b)
		switch b.Type {
		case "resource", "provider":
			spoil(b.LabelRanges[0]) // the type
		case "variable":
			spoil(b.LabelRanges[0]) // nothing defines what is referred to
		}
	}
	assert.Greater(t, spoiled, 50)
}

func TestTerraform_what_the_provider_does_not_know_is_found(t *testing.T) {
	tf := readTerraformLists(t)
	for name, c := range map[string]struct{ text, problem string }{
		"an argument of another resource": {`resource "vault_policy" "a" {
  name = "a"
  policy = "b"
  path = "c"
}`, "a.tf:4: there is no argument path"},
		"a missing argument": {`resource "vault_policy" "a" {
  name = "a"
}`, "a.tf:1: policy is missing"},
		"an argument that is computed": {`resource "vault_policy" "a" {
  name = "a"
  policy = "b"
  id = "c"
}`, "a.tf:4: id is computed"},
		"a resource that there is not": {`resource "vault_dingtalk" "a" {
}`, "a.tf:1: there is no resource vault_dingtalk"},
		"a block in the wrong place": {`variable "a" {
  lifecycle {}
}`, "a.tf:2: there is no block lifecycle"},
		"text for a truth value": {`resource "vault_generic_endpoint" "a" {
  path = "a"
  data_json = "{}"
  disable_read = "perhaps"
}`, "a.tf:4: disable_read is not a bool: a bool is required"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := parseModule(map[string][]byte{"a.tf": []byte(c.text)})
			require.NoError(t, err)
			assert.Equal(t, []string{c.problem}, tf.check(m, nil))
		})
	}
	m, err := parseModule(map[string][]byte{"a.tf": []byte(`output "a" { value = vault_policy.a.name }`)})
	require.NoError(t, err)
	assert.NotEmpty(t, tf.check(m, nil), "a resource that is not there")
}

// writes are the requests of the example's generic endpoints, by path.
func terraformWrites(t *testing.T, found values) map[string]map[string]any {
	t.Helper()
	writes := map[string]map[string]any{}
	for _, endpoint := range found["vault_generic_endpoint"] {
		require.True(t, endpoint["path"].IsKnown())
		require.True(t, endpoint["data_json"].IsKnown())
		var data map[string]any
		decoder := json.NewDecoder(strings.NewReader(endpoint["data_json"].AsString()))
		decoder.UseNumber() // as Vault does
		require.NoError(t, decoder.Decode(&data))
		writes[endpoint["path"].AsString()] = data
	}
	return writes
}

func TestTerraform_stores_the_app_and_allows_its_token_to_be_read(t *testing.T) {
	tf := readTerraformLists(t)
	e := newEngine(t)
	found, problems := tf.evaluate(readModule(t), terraformInputs(e))
	require.Empty(t, problems)

	writes := terraformWrites(t, found)
	require.Len(t, writes, 1)
	for path, data := range writes {
		require.Equal(t, "config/"+theApp, enginePath(t, path))
		resp := e.do(&logical.Request{Operation: logical.UpdateOperation, Path: enginePath(t, path), Data: data})
		require.Nil(t, resp, "without a warning")
	}

	policies := found["vault_policy"]
	require.Len(t, policies, 1)
	for path, capabilities := range policyPaths(t, policies["reader"]["policy"].AsString()) {
		require.Equal(t, []string{"read"}, capabilities)
		resp := e.do(&logical.Request{Operation: logical.ReadOperation, Path: enginePath(t, path)})
		assert.Equal(t, e.upstream.LastToken(theKey), resp.Data["access_token"])
	}
}

func TestTerraform_files_are_formatted(t *testing.T) {
	for name, content := range readModule(t).files {
		assert.Equal(t, string(hclwrite.Format(content)), string(content), name)
	}
}

// Terraform compares what it wrote with what it reads: where they differ, every plan has a change.
func TestTerraform_finds_no_change_at_the_next_plan(t *testing.T) {
	tf := readTerraformLists(t)
	e := newEngine(t)
	found, problems := tf.evaluate(readModule(t), terraformInputs(e))
	require.Empty(t, problems)
	endpoint := found["vault_generic_endpoint"]["app"]
	require.True(t, endpoint["ignore_absent_fields"].True(), "else what the example does not give would be a change")
	for path, written := range terraformWrites(t, found) {
		path = enginePath(t, path)
		e.do(&logical.Request{Operation: logical.UpdateOperation, Path: path, Data: maps.Clone(written)})
		answer, err := json.Marshal(e.do(&logical.Request{Operation: logical.ReadOperation, Path: path}).Data)
		require.NoError(t, err)
		var read map[string]any
		require.NoError(t, yaml.Unmarshal(answer, &read))
		assert.NotContains(t, read, "app_secret")
		for field, value := range written {
			if answered, ok := read[field]; ok {
				assert.Equal(t, fmt.Sprint(value), fmt.Sprint(answered), field)
			}
		}
	}
}

// The names of paths and fields are those of the document that the engine itself gives of them.
func TestTerraform_the_fields_are_those_of_the_engine(t *testing.T) {
	tf := readTerraformLists(t)
	e := newEngine(t)
	document := e.do(&logical.Request{Operation: logical.HelpOperation}).Data["openapi"].(*framework.OASDocument)
	found, problems := tf.evaluate(readModule(t), terraformInputs(e))
	require.Empty(t, problems)
	item := document.Paths["/config/{app}"]
	require.NotNil(t, item)
	schema := item.Post.RequestBody.Content["application/json"].Schema
	require.NotNil(t, schema)
	for _, data := range terraformWrites(t, found) {
		for field := range data {
			assert.Contains(t, schema.Properties, field)
		}
	}
}

func TestTerraform_the_plugin_is_mounted_in_the_version_that_is_registered(t *testing.T) {
	tf := readTerraformLists(t)
	m := readModule(t)
	found, problems := tf.evaluate(m, terraformInputs(newEngine(t)))
	require.Empty(t, problems)
	plugin, mount := found["vault_plugin"]["dingtalk"], found["vault_mount"]["dingtalk"]
	assert.Equal(t, "secret", plugin["type"].AsString())
	assert.Equal(t, "vault-plugin-secrets-dingtalk", plugin["name"].AsString())
	assert.Equal(t, "vault-plugin-secrets-dingtalk-"+plugin["version"].AsString(), plugin["command"].AsString())
	assert.Equal(t, plugin["name"], mount["type"])
	assert.Equal(t, plugin["version"], mount["plugin_version"])
	assert.Equal(t, theMount, mount["path"].AsString()+"/")
}

func TestTerraform_hides_the_secret_in_what_it_prints(t *testing.T) {
	for _, b := range readModule(t).blocks {
		if b.Type != "variable" || b.Labels[0] != "app_secret" {
			continue
		}
		sensitive := b.Body.Attributes["sensitive"]
		require.NotNil(t, sensitive)
		value, diags := sensitive.Expr.Value(nil)
		require.False(t, diags.HasErrors())
		require.True(t, value.True())
		require.Nil(t, b.Body.Attributes["default"])
		return
	}
	t.Fatal("there is no variable app_secret")
}
