// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
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
)

// This file holds the Terraform examples against the lists in testdata/fields, works out their
// expressions, runs the commands that they would run, and makes their requests to the real engine.

const (
	terraformDir = "terraform"
	pluginName   = "vault-plugin-secrets-dingtalk"
)

// language is what Terraform itself knows: by block, the arguments, and with {} the blocks; and the
// resources and provisioners that are part of it.
type language struct {
	Source, Version, File string
	Blocks                map[string][]string
	Resource              map[string]map[string]string
	Provisioner           map[string]map[string]string
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

// module is a directory of Terraform files, as one.
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
	paths, err := filepath.Glob(filepath.Join(examplesDir, terraformDir, "*.tf"))
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

// own returns what a provider's block of that type may have in addition to what Terraform itself knows;
// nil where there is no such thing.
func (tf *terraform) own(b *hclsyntax.Block) map[string]string {
	switch {
	case b.Type == "provider" && slices.Equal(b.Labels, []string{"vault"}):
		return tf.provider.Provider
	case b.Type == "resource" && len(b.Labels) == 2 && tf.language.Resource[b.Labels[0]] != nil:
		return tf.language.Resource[b.Labels[0]]
	case b.Type == "resource" && len(b.Labels) == 2:
		return tf.provider.Resource[b.Labels[0]]
	case b.Type == "provisioner" && len(b.Labels) == 1:
		return tf.language.Provisioner[b.Labels[0]]
	default:
		return nil
	}
}

var labels = map[string]int{"variable": 1, "output": 1, "provider": 1, "resource": 2, "provisioner": 1}

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
	if own == nil && (b.Type == "provider" || b.Type == "resource" || b.Type == "provisioner") {
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
	"list": cty.List(cty.String), "map": cty.Map(cty.String), "any": cty.DynamicPseudoType,
}

// values are what the arguments of every resource come to, by type and name. Those of a provisioner
// are under the types of the resource and of the provisioner, as in "terraform_data local-exec". A
// resource with for_each has an object for each key instead.
type values map[string]map[string]map[string]cty.Value

func (v values) set(typ, name string, to map[string]cty.Value) {
	if v[typ] == nil {
		v[typ] = map[string]map[string]cty.Value{}
	}
	v[typ][name] = to
}

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
			found.set(b.Labels[0], b.Labels[1], attributes)
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
			switch {
			case b.Type != "resource":
				c.attributes(b, context)
			case b.Body.Attributes["for_each"] != nil:
				found.set(b.Labels[0], b.Labels[1], c.instances(b, context))
			default:
				maps.Copy(found[b.Labels[0]][b.Labels[1]], c.attributes(b, context))
			}
			for _, inner := range b.Body.Blocks {
				if inner.Type == "provisioner" {
					found.set(b.Labels[0]+" "+inner.Labels[0], b.Labels[1], c.attributes(inner, context))
				}
			}
		}
	}
	return found, c.problems
}

// instances works out a resource for each element of its for_each, by key.
func (c *tfChecker) instances(b *hclsyntax.Block, context *hcl.EvalContext) map[string]cty.Value {
	found := map[string]cty.Value{}
	a := b.Body.Attributes["for_each"]
	elements, diags := a.Expr.Value(context)
	if diags.HasErrors() || !elements.CanIterateElements() {
		c.report(a.SrcRange, "for_each has no elements: %s", diags)
		return found
	}
	for key, value := range elements.AsValueMap() {
		of := context.NewChild()
		of.Variables = map[string]cty.Value{
			"each": cty.ObjectVal(map[string]cty.Value{"key": cty.StringVal(key), "value": value}),
		}
		found[key] = cty.ObjectVal(c.attributes(b, of))
	}
	return found
}

// attributes works out those of a block that its provider or Terraform has a type for.
func (c *tfChecker) attributes(b *hclsyntax.Block, context *hcl.EvalContext) map[string]cty.Value {
	own := c.own(b)
	found := map[string]cty.Value{}
	for name, a := range b.Body.Attributes {
		typ, isOwn := own[name]
		if b.Type != "output" && name != "depends_on" && !isOwn {
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
		found[name] = value
	}
	return found
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
		"plugins": cty.MapVal(map[string]cty.Value{
			"v0.1.0": cty.StringVal(strings.Repeat("0123456789abcdef", 4)),
			"v0.2.0": cty.StringVal(strings.Repeat("fedcba9876543210", 4)),
		}),
		"plugin_version": cty.StringVal("v0.2.0"),
		"app_key":        cty.StringVal(theKey),
		"app_secret":     cty.StringVal(theSecret),
		"base_url":       cty.StringVal(e.url),
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
		switch b.Type {
		case "resource", "provider", "provisioner":
			spoil(b.LabelRanges[0]) // the type
		case "variable":
			spoil(b.LabelRanges[0]) // nothing defines what is referred to
		}
		for _, inner := range b.Body.Blocks {
			visit(inner)
		}
	}
	for _, b := range m.blocks {
		visit(b)
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

// command is what a resource's local-exec runs, with the environment that it adds.
type command struct {
	text        string
	environment map[string]string
}

// terraformCommand works out the module's command of a terraform_data.
func terraformCommand(t *testing.T, name string, inputs map[string]cty.Value) command {
	t.Helper()
	found, problems := readTerraformLists(t).evaluate(readModule(t), inputs)
	require.Empty(t, problems)
	local := found["terraform_data local-exec"][name]
	require.NotNil(t, local, "terraform_data.%s runs something", name)
	c := command{text: local["command"].AsString(), environment: map[string]string{}}
	if environment, ok := local["environment"]; ok {
		for key, value := range environment.AsValueMap() {
			c.environment[key] = value.AsString()
		}
	}
	return c
}

// run lets the shell run the command as Terraform does, with a vault on the PATH that only writes
// down what it is asked for.
func (c command) run(t *testing.T) (args []string, stdin string) {
	t.Helper()
	dir := t.TempDir()
	const stub = "#!/bin/sh\nprintf '%s\\0' \"$@\" >\"$ASKED/args\"\ncat >\"$ASKED/stdin\"\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vault"), []byte(stub), 0o700))
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", c.text)
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "ASKED=" + dir}
	for key, value := range c.environment {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Empty(t, string(out))
	given, err := os.ReadFile(filepath.Join(dir, "args"))
	require.NoError(t, err)
	piped, err := os.ReadFile(filepath.Join(dir, "stdin"))
	require.NoError(t, err)
	return strings.Split(strings.TrimSuffix(string(given), "\x00"), "\x00"), string(piped)
}

// written is the request of a vault write; a field's value - is what is piped.
func written(t *testing.T, args []string, stdin string) (path string, data map[string]any) {
	t.Helper()
	require.Greater(t, len(args), 2)
	require.Equal(t, "write", args[0])
	data = map[string]any{}
	for _, arg := range args[2:] {
		field, value, found := strings.Cut(arg, "=")
		require.True(t, found, arg)
		if value == "-" {
			value = stdin
		}
		data[field] = value
	}
	return args[1], data
}

func TestTerraform_stores_the_app_and_allows_its_token_to_be_read(t *testing.T) {
	e := newEngine(t)
	args, stdin := terraformCommand(t, "app", terraformInputs(e)).run(t)
	path, data := written(t, args, stdin)
	require.Equal(t, "config/"+theApp, enginePath(t, path))
	resp := e.do(&logical.Request{Operation: logical.UpdateOperation, Path: enginePath(t, path), Data: data})
	require.Nil(t, resp, "without a warning")

	found, problems := readTerraformLists(t).evaluate(readModule(t), terraformInputs(e))
	require.Empty(t, problems)
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

// A command line can be read by every user of the machine, and Terraform prints the command.
func TestTerraform_the_secret_is_on_no_command_line(t *testing.T) {
	c := terraformCommand(t, "app", terraformInputs(newEngine(t)))
	args, stdin := c.run(t)
	assert.Equal(t, theSecret, stdin)
	assert.NotContains(t, strings.Join(args, " "), theSecret)
	assert.NotContains(t, c.text, theSecret)
}

// What the shell would make something else of stays as it is.
func TestTerraform_stores_any_secret_that_the_engine_takes(t *testing.T) {
	const odd = "it's-a-$HOME-`id`-\\n-%s-\"quoted\"-*"
	inputs := terraformInputs(newEngine(t))
	inputs["app_secret"] = cty.StringVal(odd)
	_, stdin := terraformCommand(t, "app", inputs).run(t)
	assert.Equal(t, odd, stdin)
}

// What triggers is in the state.
func TestTerraform_what_the_app_is_stored_with_stores_it_again_except_for_the_secret(t *testing.T) {
	inputs := terraformInputs(newEngine(t))
	inputs["app_secret_version"] = cty.NumberIntVal(1)
	triggers := func(changed string, to cty.Value) cty.Value {
		t.Helper()
		now := maps.Clone(inputs)
		if changed != "" {
			now[changed] = to
		}
		found, problems := readTerraformLists(t).evaluate(readModule(t), now)
		require.Empty(t, problems)
		return found["terraform_data"]["app"]["triggers_replace"]
	}
	before := triggers("", cty.NilVal)
	require.True(t, before.IsWhollyKnown())
	for name, to := range map[string]cty.Value{
		"app_secret_version": cty.NumberIntVal(2),
		"app_key":            cty.StringVal("another"),
		"base_url":           cty.StringVal("https://api.dingtalk.com"),
	} {
		assert.False(t, triggers(name, to).RawEquals(before), name)
	}
	assert.True(t, triggers("app_secret", cty.StringVal("another")).RawEquals(before), "it would be in the state")
}

// The names of paths and fields are those of the document that the engine itself gives of them.
func TestTerraform_the_fields_are_those_of_the_engine(t *testing.T) {
	e := newEngine(t)
	document := e.do(&logical.Request{Operation: logical.HelpOperation}).Data["openapi"].(*framework.OASDocument)
	item := document.Paths["/config/{app}"]
	require.NotNil(t, item)
	schema := item.Post.RequestBody.Content["application/json"].Schema
	require.NotNil(t, schema)
	args, stdin := terraformCommand(t, "app", terraformInputs(e)).run(t)
	_, data := written(t, args, stdin)
	for field := range data {
		assert.Contains(t, schema.Properties, field)
	}
}

func TestTerraform_every_version_is_registered_and_one_of_them_mounted(t *testing.T) {
	inputs := terraformInputs(newEngine(t))
	found, problems := readTerraformLists(t).evaluate(readModule(t), inputs)
	require.Empty(t, problems)
	plugins, mount := found["vault_plugin"]["dingtalk"], found["vault_mount"]["dingtalk"]
	require.Len(t, plugins, 2)
	for version, sha256 := range inputs["plugins"].AsValueMap() {
		plugin := plugins[version].AsValueMap()
		assert.Equal(t, "secret", plugin["type"].AsString())
		assert.Equal(t, pluginName, plugin["name"].AsString())
		assert.Equal(t, version, plugin["version"].AsString())
		assert.Equal(t, pluginName+"-"+version, plugin["command"].AsString())
		assert.Equal(t, sha256, plugin["sha256"])
	}
	assert.Equal(t, pluginName, mount["type"].AsString())
	assert.Equal(t, "v0.2.0", mount["plugin_version"].AsString())
	assert.Equal(t, theMount, mount["path"].AsString()+"/")
}

func TestTerraform_reloads_the_plugin_once_the_mount_has_another_version(t *testing.T) {
	inputs := terraformInputs(newEngine(t))
	found, problems := readTerraformLists(t).evaluate(readModule(t), inputs)
	require.Empty(t, problems)
	args, _ := terraformCommand(t, "reload", inputs).run(t)
	assert.Equal(t, []string{"plugin", "reload", "-type=secret", "-plugin=" + pluginName, "-scope=global"}, args)
	version := cty.TupleVal([]cty.Value{inputs["plugin_version"]})
	assert.True(t, found["terraform_data"]["reload"]["triggers_replace"].RawEquals(version))
	for _, b := range readModule(t).blocks {
		if slices.Equal(b.Labels, []string{"terraform_data", "reload"}) {
			before := b.Body.Attributes["depends_on"].Expr.Variables()
			require.Len(t, before, 1)
			assert.Equal(t, "vault_mount", before[0].RootName())
			return
		}
	}
	t.Fatal("nothing reloads the plugin")
}

func TestTerraform_the_policy_allows_what_the_files_ask_for(t *testing.T) {
	found, problems := readTerraformLists(t).evaluate(readModule(t), terraformInputs(newEngine(t)))
	require.Empty(t, problems)
	mount := found["vault_mount"]["dingtalk"]["path"].AsString()
	all := []string{"create", "read", "update", "delete"}
	content, err := os.ReadFile(filepath.Join(examplesDir, terraformDir, "policy.hcl"))
	require.NoError(t, err)
	assert.Equal(t, map[string][]string{
		"auth/token/create":                                                      {"update"}, // the provider's own token
		"sys/plugins/catalog/secret/" + pluginName:                               append(slices.Clone(all), "sudo"),
		"sys/plugins/reload/secret/" + pluginName:                                {"update"},
		"sys/mounts/" + mount:                                                    all,
		"sys/mounts/" + mount + "/tune":                                          {"read", "update"},
		"sys/policies/acl/" + found["vault_policy"]["reader"]["name"].AsString(): all,
		mount + "/config/" + theApp:                                              {"create", "update"},
	}, policyPaths(t, string(content)))
}

// An ephemeral variable is neither in the state nor in a plan, and Terraform refuses it where it
// would be.
func TestTerraform_keeps_the_secret_nowhere(t *testing.T) {
	for _, b := range readModule(t).blocks {
		if b.Type != "variable" || b.Labels[0] != "app_secret" {
			continue
		}
		ephemeral := b.Body.Attributes["ephemeral"]
		require.NotNil(t, ephemeral)
		value, diags := ephemeral.Expr.Value(nil)
		require.False(t, diags.HasErrors())
		require.True(t, value.True())
		byDefault, diags := b.Body.Attributes["default"].Expr.Value(nil)
		require.False(t, diags.HasErrors())
		require.True(t, byDefault.IsNull(), "other plans need none")
		return
	}
	t.Fatal("there is no variable app_secret")
}
