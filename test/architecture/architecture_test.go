// SPDX-License-Identifier: MPL-2.0

// Package architecture holds docs/architecture.md against the sources: the page names files and
// identifiers, and whoever renames one is told here that the page still has the old name.
package architecture

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestArchitecture_names_what_is_there(t *testing.T) {
	t.Parallel()
	const root = "../../"
	declared := declaredIn(t, root)
	text, err := os.ReadFile(root + "docs/architecture.md")
	require.NoError(t, err)
	identifier := regexp.MustCompile(`^[A-Za-z]+[a-z]([A-Z]\w*)?(\.\w+)?$`)
	page := regexp.MustCompile("(?s)\n```.*?\n```").ReplaceAllString(string(text), "")
	files, identifiers := 0, 0
	for _, code := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(page, -1) {
		name := code[1]
		switch {
		case strings.HasSuffix(name, ".go") && !strings.Contains(name, "*"),
			regexp.MustCompile(`^(cmd|internal|test|bench|image|testdata|examples|scripts|Makefile|\.goreleaser)\b[^ ]*$`).MatchString(name):
			files++
			matches, err := filepath.Glob(root + name)
			require.NoError(t, err)
			assert.Len(t, matches, 1, "no file %s", name)
		case identifier.MatchString(name) && regexp.MustCompile(`[A-Z.]`).MatchString(name):
			identifiers++
			assert.True(t, declared[name], "the engine has no %s", name)
		}
	}
	require.Greater(t, files, 30)
	require.Greater(t, identifiers, 50)
}

// declaredIn are the identifiers that a package declares: functions, types, values, and as
// type.name its methods and fields. A name alone also stands for a field.
func declaredIn(t *testing.T, dir string) map[string]bool {
	t.Helper()
	paths, err := filepath.Glob(dir + "*.go")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	declared := map[string]bool{}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				name := n.Name.Name
				if n.Recv != nil {
					receiver := n.Recv.List[0].Type
					if star, ok := receiver.(*ast.StarExpr); ok {
						receiver = star.X
					}
					if generic, ok := receiver.(*ast.IndexExpr); ok {
						receiver = generic.X
					}
					name = receiver.(*ast.Ident).Name + "." + name
				}
				declared[name] = true
				return false
			case *ast.TypeSpec:
				declared[n.Name.Name] = true
				if s, ok := n.Type.(*ast.StructType); ok {
					for _, field := range s.Fields.List {
						for _, name := range field.Names {
							declared[name.Name], declared[n.Name.Name+"."+name.Name] = true, true
						}
					}
				}
			case *ast.ValueSpec:
				for _, name := range n.Names {
					declared[name.Name] = true
				}
			}
			return true
		})
	}
	return declared
}
