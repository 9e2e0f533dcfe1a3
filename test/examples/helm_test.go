// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

// This file holds the values for a Helm chart in docs/install.md against the keys of the charts that
// the page names, and what the charts pass on to Kubernetes against the fields of a pod.

const installPage = "../../docs/install.md"

// Where a chart puts what it does not look into.
var podFields = map[string]string{
	"server.volumes":             "spec.template.spec.volumes",
	"server.volumeMounts":        "spec.template.spec.containers[].volumeMounts",
	"server.extraInitContainers": "spec.template.spec.initContainers",
}

func readInstallPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(installPage)
	require.NoError(t, err)
	return string(page)
}

func installValues(t *testing.T) object {
	t.Helper()
	block := regexp.MustCompile("(?s)\n```yaml\n(# values.yaml\n.*?)```\n").FindStringSubmatch(readInstallPage(t))
	require.NotNil(t, block, "%s has no values.yaml", installPage)
	objects, err := parseObjects(installPage, []byte(block[1]))
	require.NoError(t, err)
	require.Len(t, objects, 1)
	return objects[0]
}

// valueAt is the node at a path of keys.
func valueAt(n *yaml.Node, path string) *yaml.Node {
	for key := range strings.SplitSeq(path, ".") {
		var next *yaml.Node
		for i := 0; n != nil && n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				next = n.Content[i+1]
			}
		}
		n = next
	}
	return n
}

// checkValues returns what is wrong with the values for a chart; nil if nothing is.
func checkValues(t *testing.T, k *known, chart fieldList, values object) []string {
	t.Helper()
	require.Len(t, chart.Kinds, 1)
	c := &checker{known: k, file: installPage}
	c.mapping(values.node, "", chart.Kinds[0].Fields, nil)
	pod := k.kinds["apps/v1 Deployment"]
	for value, field := range podFields {
		if n := valueAt(values.node, value); n != nil {
			c.value(n, field, "list", pod.Fields, pod.Required)
		}
	}
	return c.problems
}

var charts = []string{"vault-helm.yaml", "openbao-helm.yaml"}

func TestHelm_every_key_of_the_values_is_one_of_the_chart(t *testing.T) {
	k := readKnown(t)
	for _, name := range charts {
		assert.Empty(t, checkValues(t, k, readFieldList(t, name), installValues(t)), name)
	}
}

func TestHelm_a_misspelt_key_fails_whichever_it_is(t *testing.T) {
	k := readKnown(t)
	for _, name := range charts {
		chart, values, spoiled := readFieldList(t, name), installValues(t), 0
		k.misspell(values.node, false, func(key *yaml.Node) {
			spoiled++
			assert.NotEmpty(t, checkValues(t, k, chart, values), "%s: line %d: %s", name, key.Line, key.Value)
		})
		assert.Greater(t, spoiled, 20)
	}
}

func TestHelm_page_names_the_versions_of_the_charts(t *testing.T) {
	page := strings.Join(strings.Fields(readInstallPage(t)), " ")
	for _, name := range charts {
		chart := readFieldList(t, name)
		require.Contains(t, page, "https://"+chart.Source)
		require.Contains(t, page, "version "+strings.TrimPrefix(chart.Version, "v"))
	}
}

// The binary is installed into the volume from which Vault starts it.
func TestHelm_init_container_fills_the_plugin_directory(t *testing.T) {
	values := installValues(t)
	var server struct {
		Volumes      []struct{ Name string }
		VolumeMounts []struct {
			Name      string
			MountPath string `yaml:"mountPath"`
		} `yaml:"volumeMounts"`
		ExtraInitContainers []struct {
			Args         []string
			VolumeMounts []struct {
				Name      string
				MountPath string `yaml:"mountPath"`
			} `yaml:"volumeMounts"`
		} `yaml:"extraInitContainers"`
	}
	require.NoError(t, valueAt(values.node, "server").Decode(&server))
	volume, directory := server.Volumes[0].Name, server.VolumeMounts[0].MountPath
	require.Equal(t, volume, server.VolumeMounts[0].Name)
	for _, c := range server.ExtraInitContainers {
		require.Equal(t, volume, c.VolumeMounts[0].Name)
		require.Equal(t, []string{"-install", c.VolumeMounts[0].MountPath}, c.Args)
	}
	require.Contains(t, values.at("server.ha.raft.config"), `plugin_directory = "`+directory+`"`)
}

func TestHelm_every_key_in_the_text_is_one_of_the_chart(t *testing.T) {
	chart := readFieldList(t, charts[0])
	// The chart reads these too, and has no default for them in its values.
	undeclared := []string{"server.uid", "server.gid"}
	named := regexp.MustCompile("`((?:server|global)\\.[a-zA-Z.]+)`").FindAllStringSubmatch(readInstallPage(t), -1)
	require.Greater(t, len(named), 4)
	for _, key := range named {
		if !slices.Contains(undeclared, key[1]) {
			assert.Contains(t, chart.Kinds[0].Fields, key[1])
		}
	}
}
