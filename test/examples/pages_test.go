// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// This file is about the page of each example: it names every file, what it links to exists, and
// what it quotes is in the files.

var dirs = append([]string{terraformDir}, kubernetesDirs...)

// example is a directory's page and its other files.
func example(t *testing.T, dir string) (page string, files map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(examplesDir, dir))
	require.NoError(t, err)
	files = map[string]string{}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(examplesDir, dir, entry.Name()))
		require.NoError(t, err)
		if entry.Name() == "README.md" {
			page = string(content)
		} else {
			files[entry.Name()] = string(content)
		}
	}
	require.NotEmpty(t, page, dir)
	require.NotEmpty(t, files, dir)
	return page, files
}

func TestPages_name_every_file_and_link_to_files_that_are_there(t *testing.T) {
	for _, dir := range dirs {
		page, files := example(t, dir)
		linked := map[string]bool{}
		for _, link := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(page, -1) {
			if strings.HasPrefix(link[1], "https://") {
				continue
			}
			file, _, _ := strings.Cut(link[1], "#")
			linked[file] = true
			info, err := os.Stat(filepath.Join(examplesDir, dir, file))
			if assert.NoError(t, err, dir) {
				assert.True(t, info.Mode().IsRegular(), "%s links to the file %s", dir, file)
			}
		}
		for name := range files {
			assert.True(t, linked[name], "%s links to %s", dir, name)
		}
	}
}

// A block of code in a page would be run by nothing.
func TestPages_quote_only_what_is_in_the_files(t *testing.T) {
	block := regexp.MustCompile("(?s)```([a-z]*)\n(.*?)```")
	for _, dir := range dirs {
		page, files := example(t, dir)
		for _, b := range block.FindAllStringSubmatch(page, -1) {
			assert.Contains(t, []string{"yaml", "hcl"}, b[1], dir)
			found := false
			for _, content := range files {
				found = found || strings.Contains(content, b[2])
			}
			assert.True(t, found, "%s quotes what is in none of its files:\n%s", dir, b[2])
		}
	}
}

// The version that a page speaks of is the one whose fields the tests know.
func TestPages_speak_of_the_version_that_is_checked(t *testing.T) {
	for dir, list := range map[string]string{
		"vault-secrets-operator":    "vault-secrets-operator.yaml",
		"external-secrets-operator": "external-secrets.yaml",
		"agent-injector":            "vault-k8s.yaml",
	} {
		page, _ := example(t, dir)
		assert.Contains(t, page, "version "+strings.TrimPrefix(readFieldList(t, list).Version, "v"), dir)
	}
	page, _ := example(t, terraformDir)
	assert.Contains(t, page, "version "+strings.TrimPrefix(readTerraformLists(t).provider.Version, "v"))
}

func TestPages_and_files_hold_no_secret(t *testing.T) {
	for _, dir := range dirs {
		page, files := example(t, dir)
		files["README.md"] = page
		for name, content := range files {
			for _, given := range regexp.MustCompile(`app_secret\s*=\s*(\S+)`).FindAllStringSubmatch(content, -1) {
				assert.Contains(t, []string{"-\""}, given[1], "%s/%s", dir, name)
			}
		}
	}
}

func TestFiles_begin_with_the_license(t *testing.T) {
	for _, dir := range dirs {
		_, files := example(t, dir)
		for name, content := range files {
			assert.True(t, strings.HasPrefix(content, "# SPDX-License-Identifier: MPL-2.0\n"), "%s/%s", dir, name)
		}
	}
}
