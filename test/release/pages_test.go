// SPDX-License-Identifier: MPL-2.0

package release

// The pages in a release's archive. Whoever has the archive alone reads them there.

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// archived are the files of the checkout that .goreleaser.yaml puts into the archives.
func archived(t *testing.T) []string {
	t.Helper()
	config := read(t, ".goreleaser.yaml")
	_, config, _ = strings.Cut(config, "\narchives:\n")
	config, _, _ = strings.Cut(config, "\n    builds_info:")
	var files []string
	sources := regexp.MustCompile(`(?m)src: "?([^"\n,{}]*(?:\{[^}]*\}[^"\n,}]*)?)`)
	for _, source := range sources.FindAllStringSubmatch(config, -1) {
		if strings.HasPrefix(source[1], "bin/") {
			continue // made for the release
		}
		before := len(files)
		for _, pattern := range alternatives(source[1]) {
			matches, err := fs.Glob(os.DirFS(root), pattern)
			require.NoError(t, err)
			files = append(files, matches...)
		}
		assert.Greater(t, len(files), before, "%s matches no file", source[1])
	}
	return files
}

// alternatives are the patterns that a pattern with one {a,b} stands for.
func alternatives(pattern string) []string {
	before, rest, found := strings.Cut(pattern, "{")
	if !found {
		return []string{pattern}
	}
	list, after, _ := strings.Cut(rest, "}")
	var all []string
	for one := range strings.SplitSeq(list, ",") {
		all = append(all, before+one+after)
	}
	return all
}

func TestRelease_archives_hold_every_page_and_every_file_that_a_page_links_to(t *testing.T) {
	t.Parallel()
	files := archived(t)
	for _, pattern := range []string{"README*.md", "docs/*.md", "examples/*/README.md"} {
		pages, err := fs.Glob(os.DirFS(root), pattern)
		require.NoError(t, err)
		require.Subset(t, files, pages)
	}
	link := regexp.MustCompile(`\]\(<?([^)#> ]+)[^)]*\)|(?m:^\[[^]]+\]: ([^# \n]+))|(?:href|src)="([^"#]+)`)
	links := 0
	for _, page := range files {
		if path.Ext(page) != ".md" {
			continue
		}
		for _, found := range link.FindAllStringSubmatch(read(t, page), -1) {
			target := found[1] + found[2] + found[3]
			if strings.Contains(target, ":") {
				continue // an address
			}
			links++
			target = path.Join(path.Dir(page), target)
			inside := slices.ContainsFunc(files, func(file string) bool {
				return file == target || strings.HasPrefix(file, target+"/")
			})
			assert.True(t, inside, "%s links to %s", page, target)
		}
	}
	require.Greater(t, links, 50)
}

// What dependabot and the maintainers are to look at.
func TestRelease_every_module_has_its_updates_and_its_owner(t *testing.T) {
	t.Parallel()
	updates, owners := read(t, ".github/dependabot.yml"), read(t, ".github/CODEOWNERS")
	ecosystems := map[string]string{"go.mod": "gomod", "package.json": "npm"}
	modules := 0
	require.NoError(t, filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && slices.Contains([]string{"bin", "dist", ".git", "testdata", "node_modules"}, name) {
			return fs.SkipDir
		}
		ecosystem, found := ecosystems[name]
		if entry.IsDir() || !found {
			return nil
		}
		modules++
		relative, err := filepath.Rel(root, file)
		require.NoError(t, err)
		file = "/" + filepath.ToSlash(relative)
		if name == "go.mod" {
			assert.Regexp(t, `(?m)^`+regexp.QuoteMeta(file)+` +@`, owners, "an owner of %s", file)
		}
		directory := regexp.MustCompile(`(?m)^ +(?:- |directory: )` + path.Dir(file) + `$`)
		named := slices.ContainsFunc(strings.Split(updates, "- package-ecosystem: "), func(section string) bool {
			return strings.HasPrefix(section, ecosystem+"\n") && directory.MatchString(section)
		})
		assert.True(t, named, "updates of %s", file)
		return nil
	}))
	require.Greater(t, modules, 6)
}
