// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package readme

// Every page of the project: that no code in it escapes the tests, that its commands print what it
// says, that a translation has the same code, and that its links lead somewhere.

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const translation = ".zh-CN.md"

// pages are all Markdown files of a clone, with slashes.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch name := entry.Name(); {
		case entry.IsDir() && slices.Contains([]string{
			"bin", "dist", ".git", ".terraform", "testdata", "vendor",
			"node_modules",
		}, name):
			return fs.SkipDir
		case !entry.IsDir() && strings.HasSuffix(name, ".md"):
			relative, err := filepath.Rel(root, path)
			all = append(all, filepath.ToSlash(relative))
			return err
		}
		return nil
	}))
	for _, page := range []string{"README.md", "docs/api.md", "docs/operations.md"} {
		require.Contains(t, all, page)
	}
	return all
}

func pageText(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	require.NoError(t, err)
	return string(text)
}

// pageBlocks are a page's blocks, all of which are in a language that something is done with.
func pageBlocks(t *testing.T, page string) []block {
	t.Helper()
	languages := []string{"shell", "hcl", "yaml", "json", "go"}
	switch {
	case page == "docs/architecture.md":
		languages = append(languages, "mermaid")
	case strings.HasPrefix(page, "examples/"):
		languages = append(languages, "python") // part of a file beside it, as are the others
	}
	blocks, err := parse(pageText(t, page), languages...)
	require.NoError(t, err, page)
	return blocks
}

func TestDocs_code_that_would_not_be_run_is_refused(t *testing.T) {
	t.Parallel()
	const shell = "```shell\ntrue\n```\n"
	for text, want := range map[string]string{
		"```\nls\n```\n":                          "the  block at line 1 would not be run",
		"```sh\nls\n```\n":                        "the sh block at line 1 would not be run",
		"```mermaid\n```\n":                       "would not be run",
		"text\n\n    ls\n":                        "line 3: code that is not in a block",
		"- text\n\n  ```shell\n  ls\n  ```\n":     "line 3: code that is not in a block",
		"~~~shell\nls\n~~~\n":                     "line 1: code that is not in a block",
		"```text\nls\n```\n":                      "does not follow what prints it",
		shell + "```text\n```\n```text\n```\n":    "does not follow what prints it",
		"```shell\nls\n":                          "does not end",
		"<!-- later -->\n" + shell:                "line 1: a comment that says nothing",
		shell + "<!-- given: exit status 1 -->\n": "no block follows",
	} {
		_, err := parse(text, "shell")
		require.ErrorContains(t, err, want, "%s", text)
	}
	blocks, err := parse("<!-- given: exit status 1 -->\n\n"+shell+"\n```text\na … c\n…\n```\n", "shell")
	require.NoError(t, err)
	require.Equal(t, []block{
		{language: "shell", body: "true\n", given: []string{"exit status 1"}, line: 3},
		{language: "text", body: "a … c\n…\n", line: 7},
	}, blocks)
	for printed, want := range map[string]bool{
		"a b c\n": true, "a  b c\nmore\n\nand more\n": true,
		"a c\n": false, "first\na b c\n": false, "a b cd\n": false, "": false,
	} {
		require.Equal(t, want, matches(blocks[1].body, printed), "%q", printed)
	}
}

func TestDocs_work_as_written(t *testing.T) {
	t.Parallel()
	program := buildPlugin(t, pluginVersion)

	for _, page := range pages(t) {
		if page == "README.md" || strings.HasSuffix(page, translation) {
			continue
		}
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			blocks := pageBlocks(t, page)
			if strings.HasPrefix(page, "examples/") {
				// Such a page shows parts of the files beside it, which have tests of their own.
				blocks = slices.DeleteFunc(
					blocks,
					func(b block) bool { return b.language != "shell" && b.language != "text" },
				)
			}
			if slices.ContainsFunc(blocks, func(b block) bool { return b.language != "mermaid" }) {
				newReader(t, program, page, blocks).read(t, blocks)
			}
		})
	}
}

// buildPlugin builds the plugin as `make build` does, and returns the path.
func buildPlugin(t *testing.T, version string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), pluginName)
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X vault-plugin-secrets-dingtalk.Version="+version, "-o", program, "./cmd/"+pluginName)
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

// A translation for readers in China may name the host of their edition.
func TestDocs_a_translation_has_the_same_code(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		original, is := strings.CutSuffix(page, translation)
		if !is {
			continue
		}
		translated, want := pageBlocks(t, page), pageBlocks(t, original+".md")
		for i := range min(len(want), len(translated)) {
			translated[i].line = want[i].line
			for _, b := range []*block{&want[i], &translated[i]} {
				b.body = strings.ReplaceAll(b.body, "https://"+dingtalkHost, "https://"+chinaHost)
			}
			require.Equal(t, want[i], translated[i], "%s: %v of the original, and its translation", page, want[i])
		}
		require.Len(t, translated, len(want), page)
	}
}

func TestDocs_of_the_examples_show_what_is_in_the_files(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		if !strings.HasPrefix(page, "examples/") {
			continue
		}
		dir := filepath.Join(root, filepath.Dir(page))
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, b := range pageBlocks(t, page) {
			if b.language == "shell" || b.language == "text" {
				continue
			}
			found := slices.ContainsFunc(entries, func(entry fs.DirEntry) bool {
				content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
				return err == nil && filepath.Ext(entry.Name()) != ".md" && strings.Contains(string(content), b.body)
			})
			assert.True(t, found, "%s: %v is in no file beside it", page, b)
		}
	}
}

// A configuration on the page of the clients is the example of that name, which has tests of its own,
// without the comment at its beginning.
func TestDocs_configurations_of_clients_are_the_examples(t *testing.T) {
	t.Parallel()
	shown := 0
	for _, b := range pageBlocks(t, clientsPage) {
		if b.language != "hcl" && b.language != "yaml" {
			continue
		}
		name, err := b.fileName()
		require.NoError(t, err)
		files, err := filepath.Glob(filepath.Join(root, "examples", "*", name))
		require.NoError(t, err)
		require.NotEmpty(t, files, "%v is no example", b)
		var contents []string
		for _, file := range files {
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			_, content, _ = bytes.Cut(content, []byte("\n\n"))
			contents = append(contents, "# "+name+"\n"+string(content))
		}
		assert.Contains(t, contents, b.body, "%v, and what is in %v", b, files)
		shown++
	}
	require.Equal(t, 7, shown)
}

func TestDocs_links_within_the_project_lead_somewhere(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		for _, link := range regexp.MustCompile(`\]\(([^)]*)\)`).FindAllStringSubmatch(prose(t, page), -1) {
			target, anchor, _ := strings.Cut(link[1], "#")
			if strings.HasPrefix(target, "https://") {
				continue
			}
			linked := page
			if target != "" {
				linked = filepath.ToSlash(filepath.Join(filepath.Dir(page), target))
				if !assert.FileExists(t, filepath.Join(root, linked), "%s links to %s", page, link[1]) {
					continue
				}
			}
			if anchor != "" {
				assert.Contains(t, anchors(t, linked), anchor, "%s links to %s", page, link[1])
			}
		}
	}
}

func TestDocs_runbooks_of_the_alerts_lead_somewhere(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(root, "examples", "prometheus", "*.yaml"))
	require.NoError(t, err)
	links := 0
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, link := range regexp.MustCompile(`runbook_url: (\S+)#(\S+)`).FindAllStringSubmatch(string(content), -1) {
			assert.Contains(t, anchors(t, link[1]), link[2], "%s", file)
			links++
		}
		if rules := strings.Count(string(content), "- alert: "); rules > 0 {
			require.Equal(t, rules, strings.Count(string(content), "runbook_url: "), "%s: a link for each", file)
		}
	}
	require.Greater(t, links, 20)
}

// prose is a page without its blocks.
func prose(t *testing.T, page string) string {
	t.Helper()
	var text strings.Builder
	inside := false
	for line := range strings.Lines(pageText(t, page)) {
		if strings.HasPrefix(line, "```") {
			inside = !inside
		} else if !inside {
			text.WriteString(line)
		}
	}
	return text.String()
}

// anchors are the names that a page's headings get from GitHub: of a second one with the same name,
// the name and a number.
func anchors(t *testing.T, page string) []string {
	t.Helper()
	var all []string
	times := map[string]int{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(prose(t, page), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		name = strings.ReplaceAll(name, " ", "-")
		if times[name]++; times[name] > 1 {
			name += "-" + strconv.Itoa(times[name]-1)
		}
		all = append(all, name)
	}
	return all
}
