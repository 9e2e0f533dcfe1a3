// SPDX-License-Identifier: MPL-2.0

// Package release tests what the project gives away: that it has one version, that a build is the
// same bytes wherever it is made, and, after `make release-snapshot`, every file of a release.
package release

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	dingtalk "vault-plugin-secrets-dingtalk"
)

const (
	root   = "../.."
	plugin = "vault-plugin-secrets-dingtalk"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(text)
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func TestRelease_version_is_the_changelogs_newest(t *testing.T) {
	t.Parallel()
	headings := regexp.MustCompile(`(?m)^## (.+)$`).FindAllStringSubmatch(read(t, "CHANGELOG.md"), -1)
	require.NotEmpty(t, headings)
	released := regexp.MustCompile(`^\[(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)\] - (\d{4}-\d{2}-\d{2})$`)
	newest := headings[0][1]
	if strings.HasSuffix(dingtalk.Version, "-dev") {
		require.Equal(t, "[Unreleased]", newest, "%s is not released yet", dingtalk.Version)
		headings = headings[1:]
	} else {
		require.Truef(t, strings.HasPrefix(newest, "["+strings.TrimPrefix(dingtalk.Version, "v")+"] - "),
			"the source says %s, the changelog's newest version is %s", dingtalk.Version, newest)
	}
	var before time.Time
	for _, heading := range headings {
		parts := released.FindStringSubmatch(heading[1])
		require.NotNil(t, parts, "%q is not a version in brackets and its day", heading[1])
		day, err := time.Parse(time.DateOnly, parts[2])
		require.NoError(t, err)
		require.False(t, !before.IsZero() && day.After(before), "%s is not in its place", heading[1])
		before = day
	}
}

// What goreleaser makes is compared with what `make build` makes by TestSnapshot, which takes
// minutes.
func TestRelease_is_built_with_the_flags_of_make_build(t *testing.T) {
	t.Parallel()
	recipe := regexp.MustCompile(`(\w+=\d+) go build (.+) \\\n\s*-ldflags "(.+)\$\$version" -o \$\(PLUGIN\) (\S+)`).
		FindStringSubmatch(read(t, "Makefile"))
	require.NotNil(t, recipe, "the Makefile's recipe of the build has another form")
	config := read(t, ".goreleaser.yaml")
	for _, line := range []string{
		"env: [" + recipe[1] + "]",
		"flags: [" + strings.Join(strings.Fields(recipe[2]), ", ") + "]",
		`ldflags: ["` + recipe[3] + `v{{ .Version }}"]`,
		"main: " + recipe[4],
	} {
		require.Contains(t, config, "    "+line+"\n")
	}
}

func TestRelease_license_is_the_whole_text(t *testing.T) {
	t.Parallel()
	require.Equal(
		t,
		"60222c28c1a7f6a92c7df98e5c5f4459e624e6e285e0b9b94467af5f6ab3343d",
		digest([]byte(read(t, "LICENSE"))),
	)
}
