// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The OpenAPI document that Vault serves has every path of the mount, described.

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOpenAPI_document_describes_every_path(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	var document answer
	// Vault asks every mount, and gives up when another test disables one of them meanwhile.
	waitFor(t, 20*time.Second, "Vault answers with the document", func() bool {
		document = m.v.http(t, "GET", "sys/internal/specs/openapi", "", "")
		return document.status == 200
	})

	var spec struct {
		Paths map[string]map[string]any
	}
	decodeJSON(t, document.body, &spec)
	prefix := "/" + m.path + "/"
	parameter := regexp.MustCompile(`\{[a-z_]+\}`)
	found := map[string]map[string]any{}
	for path, item := range spec.Paths {
		if rest, ours := strings.CutPrefix(path, prefix); ours {
			found[parameter.ReplaceAllString(rest, "{}")] = item
		}
	}

	want := map[string][]string{
		"config/":    {"get"},
		"config/{}":  {"get", "post", "patch", "delete"},
		"creds/{}":   {"get"},
		"status/{}":  {"get"},
		"refresh/{}": {"post"},
	}
	ids := map[string]string{}
	for path, methods := range want {
		item := found[path]
		if !assert.NotNil(t, item, "%s is described", path) {
			continue
		}
		for _, method := range methods {
			operation, ok := item[method].(map[string]any)
			if !assert.True(t, ok, "%s %s is described", method, path) {
				continue
			}
			assert.NotEmpty(t, operation["summary"], "%s %s", method, path)
			assert.NotEmpty(t, operation["responses"], "%s %s", method, path)
			id, _ := operation["operationId"].(string)
			assert.NotEmpty(t, id, "%s %s", method, path)
			assert.Empty(t, ids[id], "%s %s has an operation id of its own", method, path)
			ids[id] = path
		}
	}
	require.Len(t, found, len(want), "and nothing else: %v", found)
}
