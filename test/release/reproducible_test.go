// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package release

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Two builds of the same sources that differ in all that should not matter: the directory and its
// depth, the directory of the modules, the time zone, what the clock says, the files' times, and
// whether git knows them and Go is to tell. Both take the standard library and the dependencies
// from Go's cache, as this would take minutes otherwise. What the cache could hide, a path in a package
// that one build compiled and the other found there, is searched for.
func TestBuild_is_the_same_bytes_wherever_and_whenever_it_is_made(t *testing.T) {
	t.Parallel()
	modules, err := filepath.EvalSymlinks(goEnv(t, "GOMODCACHE"))
	require.NoError(t, err)
	checkout, err := filepath.Abs(root)
	require.NoError(t, err)

	here := filepath.Join(t.TempDir(), "a")
	copySources(t, here)
	one := makeBuild(t, here, "TZ=UTC")

	there := filepath.Join(t.TempDir(), "another directory", "deeper down", "with a longer name")
	copySources(t, there)
	age(t, there)
	commit(t, there)
	elsewhere := t.TempDir()
	require.NoError(t, os.Symlink(modules, filepath.Join(elsewhere, "modules")))
	clock := "#!/bin/sh\necho 1\n" // a date of its own
	require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "date"), []byte(clock), 0o700))
	other := makeBuild(
		t,
		there,
		"GOFLAGS=-buildvcs=true",
		"TZ=Asia/Shanghai",
		"TMPDIR="+elsewhere,
		"GOMODCACHE="+filepath.Join(elsewhere, "modules"),
		"PATH="+elsewhere+string(os.PathListSeparator)+os.Getenv("PATH"),
	)

	require.True(
		t,
		bytes.Equal(one, other),
		"two builds of the same sources differ: %d bytes with SHA-256 %s, and %d with %s",
		len(one),
		digest(one),
		len(other),
		digest(other),
	)
	for _, path := range []string{here, there, checkout, modules, elsewhere, goEnv(t, "GOROOT")} {
		require.False(t, bytes.Contains(one, []byte(path)), "the program has the path %s in it", path)
	}
}

// age sets the files' times to a day of last year.
func age(t *testing.T, dir string) {
	t.Helper()
	lastYear := time.Now().AddDate(-1, 0, -3)
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, lastYear, lastYear)
	}))
}

// commit makes the directory a git checkout, whose commit Go writes into the program unless it is told
// otherwise.
func commit(t *testing.T, dir string) {
	t.Helper()
	var env []string
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, "GIT_") {
			env = append(env, pair)
		}
	}
	env = append(env, "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull)
	run(t, dir, env, "git", "init", "--quiet")
	run(t, dir, env, "git", "add", "--all")
	run(
		t,
		dir,
		env,
		"git",
		"-c",
		"user.name=test",
		"-c",
		"user.email=test@localhost",
		"commit",
		"--quiet",
		"--message=test",
	)
}
