// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"
	"github.com/zclconf/go-cty/cty"
)

// Nomad renders with consul-template's code, so what the tests of consul-template show holds for the
// same template in a job. The fields are those of Nomad's own types.
func TestNomad_task_has_the_template_of_consul_template(t *testing.T) {
	job := onlyBlock(t, hclFile(t, "nomad/job.nomad.hcl"), "job")
	task := onlyBlock(t, onlyBlock(t, job, "group"), "task")
	environment := &hcl.EvalContext{Variables: map[string]cty.Value{
		"NOMAD_SECRETS_DIR": cty.StringVal("/secrets"),
	}}

	var vault nomad.Vault
	require.False(t, gohcl.DecodeBody(onlyBlock(t, task, "vault"), environment, &vault).HasErrors())
	require.Equal(t, "billing", vault.Role)

	var template nomad.Template
	diagnostics := gohcl.DecodeBody(onlyBlock(t, task, "template"), environment, &template)
	require.False(t, diagnostics.HasErrors(), "%v", diagnostics)
	require.Equal(t, "/secrets/dingtalk.env", *template.DestPath)
	require.True(t, *template.ErrMissingKey)

	contents, diagnostics := onlyBlock(t, hclFile(t, "consul-template/consul-template.hcl"), "template").
		Attributes["contents"].Expr.Value(nil)
	require.False(t, diagnostics.HasErrors(), "%v", diagnostics)
	require.Equal(t, contents.AsString(), *template.EmbeddedTmpl)
}

func hclFile(t *testing.T, name string) *hclsyntax.Body {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(examplesDir, name))
	require.NoError(t, err)
	file, diagnostics := hclsyntax.ParseConfig(content, name, hcl.InitialPos)
	require.False(t, diagnostics.HasErrors(), "%v", diagnostics)
	return file.Body.(*hclsyntax.Body)
}

// onlyBlock is the body of the one block of this type.
func onlyBlock(t *testing.T, body *hclsyntax.Body, kind string) *hclsyntax.Body {
	t.Helper()
	var found []*hclsyntax.Body
	for _, block := range body.Blocks {
		if block.Type == kind {
			found = append(found, block.Body)
		}
	}
	require.Len(t, found, 1, "blocks %s", kind)
	return found[0]
}
