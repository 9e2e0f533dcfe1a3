// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

// This file holds the objects of Kubernetes in the examples against the lists in testdata/fields:
// every field is one that its kind has, of the right type, and none that is required is missing.

// fieldList is what one project's kinds look like, in the version that the list was taken from.
type fieldList struct {
	Source   string
	Version  string
	File     string
	Metadata map[string]string // of every kind
	Kinds    []*objectKind

	// Of the Agent injector alone.
	Prefix      string
	Annotations []string
}

// objectKind is one kind. A field is written as its path: [] is an element of a list, {} a value of
// a map; what it holds is a type and, after a space, what it may be.
type objectKind struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	File       string
	Required   []string
	Fields     map[string]string
}

// known is all lists together.
type known struct {
	metadata    *objectKind
	kinds       map[string]*objectKind // by version and kind
	annotations *regexp.Regexp
	prefix      string
}

// decodeStrictly refuses what the value has no field for.
func decodeStrictly(content []byte, value any) error {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	return decoder.Decode(value)
}

func readFieldList(t *testing.T, name string) fieldList {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", "fields", name))
	require.NoError(t, err)
	var list fieldList
	require.NoError(t, decodeStrictly(content, &list), name)
	require.NotEmpty(t, list.Source, name)
	require.Regexp(t, `^v\d+\.\d+\.\d+$`, list.Version, name)
	return list
}

func readKnown(t *testing.T) *known {
	t.Helper()
	k := &known{kinds: map[string]*objectKind{}}
	for _, name := range []string{"kubernetes.yaml", "vault-secrets-operator.yaml", "external-secrets.yaml"} {
		list := readFieldList(t, name)
		if list.Metadata != nil {
			k.metadata = &objectKind{Fields: list.Metadata, Required: []string{"name"}}
		}
		for _, kind := range list.Kinds {
			k.kinds[kind.APIVersion+" "+kind.Kind] = kind
		}
	}
	injector := readFieldList(t, "vault-k8s.yaml")
	k.prefix = injector.Prefix
	var patterns []string
	for _, a := range injector.Annotations {
		patterns = append(patterns, strings.ReplaceAll(regexp.QuoteMeta(injector.Prefix+a), `\{name\}`, "[a-z0-9.-]+"))
	}
	k.annotations = regexp.MustCompile("^(?:" + strings.Join(patterns, "|") + ")$")
	return k
}

// object is one document of an example.
type object struct {
	file string
	node *yaml.Node // the mapping
	data map[string]any
}

func (o object) String() string {
	return fmt.Sprintf("%s %v in %s", o.data["kind"], o.at("metadata.name"), o.file)
}

// at is the value at a path of names, nil where there is none.
func (o object) at(path string) any {
	var value any = o.data
	for name := range strings.SplitSeq(path, ".") {
		m, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = m[name]
	}
	return value
}

// parseObjects returns the documents of a file. A key that stands twice is an error.
func parseObjects(file string, content []byte) ([]object, error) {
	var objects []object
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		o := object{file: file, node: document.Content[0]}
		if err := document.Decode(&o.data); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		objects = append(objects, o)
	}
}

// readObjects returns the objects of every YAML file in a directory of the examples.
func readObjects(t *testing.T, dir string) []object {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(examplesDir, dir, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files, dir)
	var all []object
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		objects, err := parseObjects(filepath.Join(dir, filepath.Base(file)), content)
		require.NoError(t, err)
		require.NotEmpty(t, objects, file)
		all = append(all, objects...)
	}
	return all
}

// check returns what is wrong with an object; nil if nothing is.
func (k *known) check(o object) []string {
	kind := k.kinds[fmt.Sprintf("%v %v", o.data["apiVersion"], o.data["kind"])]
	if kind == nil {
		return []string{fmt.Sprintf("%s: there is no kind %v %v", o.file, o.data["apiVersion"], o.data["kind"])}
	}
	c := &checker{known: k, file: o.file}
	// The three fields that every kind has.
	fields := map[string]string{"apiVersion": "string", "kind": "string", "metadata": "metadata"}
	maps.Copy(fields, kind.Fields)
	c.mapping(o.node, "", fields, append([]string{"metadata"}, kind.Required...))
	return c.problems
}

type checker struct {
	known    *known
	file     string
	problems []string
}

func (c *checker) report(n *yaml.Node, format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf("%s:%d: %s", c.file, n.Line, fmt.Sprintf(format, args...)))
}

// mapping checks the fields of an object at a path.
func (c *checker) mapping(n *yaml.Node, path string, fields map[string]string, required []string) {
	if n.Kind != yaml.MappingNode {
		c.report(n, "%s is not an object", path)
		return
	}
	var given []string
	for i := 0; i < len(n.Content); i += 2 {
		field := join(path, n.Content[i].Value)
		given = append(given, field)
		if typ, ok := fields[field]; ok {
			c.value(n.Content[i+1], field, typ, fields, required)
		} else {
			c.report(n.Content[i], "there is no field %s", field)
		}
	}
	for _, field := range required {
		if parent, name := split(field); parent == path && !slices.Contains(given, field) {
			c.report(n, "%s is missing in %q", name, path)
		}
	}
}

var scalarTags = map[string]string{"string": "!!str", "boolean": "!!bool", "integer": "!!int", "number": "!!float"}

func (c *checker) value(n *yaml.Node, path, typ string, fields map[string]string, required []string) {
	typ, choices, limited := strings.Cut(typ, " ")
	switch typ {
	case "any":
	case "object":
		c.mapping(n, path, fields, required)
	case "metadata":
		c.mapping(n, "", c.known.metadata.Fields, c.metadataRequired(path))
	case "list":
		if n.Kind != yaml.SequenceNode {
			c.report(n, "%s is not a list", path)
			return
		}
		for _, element := range n.Content {
			c.value(element, path+"[]", fields[path+"[]"], fields, required)
		}
	case "map":
		if n.Kind != yaml.MappingNode {
			c.report(n, "%s is not a map", path)
			return
		}
		for i := 0; i < len(n.Content); i += 2 {
			if key := n.Content[i]; strings.HasPrefix(key.Value, c.known.prefix) &&
				!c.known.annotations.MatchString(key.Value) {
				c.report(key, "there is no annotation %s", key.Value)
			}
			c.value(n.Content[i+1], path+"{}", fields[path+"{}"], fields, required)
		}
	default:
		if want := scalarTags[typ]; want == "" {
			c.report(n, "the list has no type for %s", path)
		} else if n.Kind != yaml.ScalarNode || n.Tag != want {
			c.report(n, "%s is not a %s", path, typ)
		} else if limited && !slices.Contains(strings.Split(choices, "|"), n.Value) {
			c.report(n, "%s is none of %s", path, choices)
		}
	}
}

// metadataRequired is what metadata must have: a name, where it is not that of a template.
func (c *checker) metadataRequired(path string) []string {
	if path == "metadata" {
		return c.known.metadata.Required
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func split(path string) (parent, name string) {
	if i := strings.LastIndex(path, "."); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

var kubernetesDirs = []string{"vault-secrets-operator", "external-secrets-operator", "agent-injector"}

func TestKubernetes_every_field_of_the_examples_exists(t *testing.T) {
	k := readKnown(t)
	for _, dir := range kubernetesDirs {
		for _, o := range readObjects(t, dir) {
			assert.Empty(t, k.check(o), o)
		}
	}
}

// misspell spoils one field's name after the other, calls do, and restores it. Names that are the
// user's own are left out: of labels, of a Secret's keys.
func (k *known) misspell(n *yaml.Node, ownNames bool, do func(key *yaml.Node)) {
	if n.Kind == yaml.SequenceNode {
		for _, element := range n.Content {
			k.misspell(element, false, do)
		}
	}
	if n.Kind == yaml.MappingNode {
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			if isAnnotation := strings.HasPrefix(key.Value, k.prefix); isAnnotation || !ownNames {
				right := key.Value
				if isAnnotation {
					key.Value = strings.Replace(right, "agent", "agnet", 1)
				}
				if key.Value == right {
					key.Value = right + "x"
				}
				do(key)
				key.Value = right
			}
			k.misspell(
				n.Content[i+1],
				slices.Contains([]string{"labels", "matchLabels", "annotations", "data", "getParameters"}, key.Value),
				do,
			)
		}
	}
}

func TestKubernetes_a_misspelt_field_fails_whichever_it_is(t *testing.T) {
	k := readKnown(t)
	for _, dir := range kubernetesDirs {
		spoiled := 0
		for _, o := range readObjects(t, dir) {
			k.misspell(o.node, false, func(key *yaml.Node) {
				spoiled++
				assert.NotEmpty(t, k.check(o), "%s:%d: %s", o.file, key.Line, key.Value)
			})
			assert.Empty(t, k.check(o), "it is whole again")
		}
		assert.Greater(t, spoiled, 20, dir)
	}
}

func TestKubernetes_what_is_not_a_field_of_the_kind_is_found(t *testing.T) {
	k := readKnown(t)
	for name, c := range map[string]struct{ document, problem string }{
		"a field of another kind": {
			"spec: {destination: {name: a}, mount: b, path: c, refreshInterval: 15m}",
			"there is no field spec.refreshInterval",
		},
		"a field in the wrong place": {
			"spec: {destination: {name: a, includes: [b]}, mount: b, path: c}",
			"there is no field spec.destination.includes",
		},
		"a missing field": {"spec: {destination: {name: a}, mount: b}", `path is missing in "spec"`},
		"a missing field further down": {
			"spec: {destination: {create: true}, mount: b, path: c}",
			`name is missing in "spec.destination"`,
		},
		"text for a truth value": {
			`spec: {destination: {name: a, create: "true"}, mount: b, path: c}`,
			"spec.destination.create is not a boolean",
		},
		"a number for text": {
			"spec: {destination: {name: a}, mount: b, path: c, refreshAfter: 30}",
			"spec.refreshAfter is not a string",
		},
		"text for a list": {"spec: {destination: {name: a, transformation: {includes: b}}, mount: b, path: c}", "spec.destination.transformation.includes is not a list"},
		"what the field cannot be": {
			"spec: {destination: {name: a}, mount: b, path: c, requestHTTPMethod: PATCH}",
			"spec.requestHTTPMethod is none of GET|POST|PUT",
		},
		"an annotation of the injector": {"spec: {destination: {name: a, annotations: {vault.hashicorp.com/agent-injekt: b}}, mount: b, path: c}", "there is no annotation vault.hashicorp.com/agent-injekt"},
	} {
		t.Run(name, func(t *testing.T) {
			head := "apiVersion: secrets.hashicorp.com/v1beta1\nkind: VaultDynamicSecret\nmetadata: {name: a}\n"
			objects, err := parseObjects("a.yaml", []byte(head+c.document))
			require.NoError(t, err)
			assert.Equal(t, []string{"a.yaml:4: " + c.problem}, k.check(objects[0]))
		})
	}
	objects, err := parseObjects("a.yaml", []byte("apiVersion: secrets.hashicorp.com/v1\nkind: VaultDynamicSecret\n"))
	require.NoError(t, err)
	assert.Equal(
		t,
		[]string{"a.yaml: there is no kind secrets.hashicorp.com/v1 VaultDynamicSecret"},
		k.check(objects[0]),
	)
	_, err = parseObjects("a.yaml", []byte("kind: a\nkind: b\n"))
	assert.ErrorContains(t, err, "already defined")
}

func TestFieldLists_say_where_they_are_from(t *testing.T) {
	files, err := filepath.Glob("testdata/fields/*.yaml")
	require.NoError(t, err)
	require.Len(t, files, 8)
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		var head struct{ Source, Version string }
		require.NoError(t, yaml.Unmarshal(content, &head))
		assert.Regexp(t, `^github\.com/[a-z-]+/[a-z0-9-]+$`, head.Source, file)
		assert.Regexp(t, `^v\d+\.\d+\.\d+$`, head.Version, file)
	}
}
