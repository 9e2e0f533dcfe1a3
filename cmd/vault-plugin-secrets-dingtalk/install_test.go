// SPDX-License-Identifier: MPL-2.0

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	dingtalk "vault-plugin-secrets-dingtalk"
)

// TestMain lets a test start this very program as the plugin binary.
func TestMain(m *testing.M) {
	if os.Getenv("DINGTALK_TEST_RUN_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runMain runs the program with arguments, in a directory of its own.
func runMain(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "DINGTALK_TEST_RUN_MAIN=1")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// newBinary is a file to install, and its SHA-256.
func newBinary(t *testing.T, content string) (path, sum string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "binary")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	digest := sha256.Sum256([]byte(content))
	return path, hex.EncodeToString(digest[:])
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all
}

func TestInstall_copies_the_binary_that_runs_and_prints_its_SHA_256(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stdout, stderr, err := runMain(t, "-install", dir)
	require.NoError(t, err, stderr)

	want, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	installed := filepath.Join(dir, installedName())
	require.Equal(t, "vault-plugin-secrets-dingtalk-"+dingtalk.Version, strings.TrimSuffix(installedName(), ".exe"))
	got, err := os.ReadFile(installed)
	require.NoError(t, err)
	require.Equal(t, want, got)
	digest := sha256.Sum256(want)
	require.Equal(t, hex.EncodeToString(digest[:])+"\n", stdout)
	require.Equal(t, "installed "+installed+"\n", stderr)
}

func TestInstall_file_may_be_run_by_every_user_whatever_the_source_s_mode(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	source, _ := newBinary(t, "content")
	path, _, err := install(source, t.TempDir())
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode())
}

func TestInstall_leaves_nothing_but_the_binary(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, _ := newBinary(t, "content")
	_, _, err := install(source, dir)
	require.NoError(t, err)
	require.Equal(t, []string{installedName()}, names(t, dir))
}

// An init container runs again when its pod is restarted.
func TestInstall_again_is_no_error(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, sum := newBinary(t, "content")
	for range 2 {
		_, got, err := install(source, dir)
		require.NoError(t, err)
		require.Equal(t, sum, got)
	}
	require.Equal(t, []string{installedName()}, names(t, dir))
}

// Who opened the file before, a Vault that is just starting it, keeps what it opened.
func TestInstall_replaces_the_file_and_never_writes_into_it(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, _ := newBinary(t, "content")
	path, _, err := install(source, dir)
	require.NoError(t, err)
	before, err := os.Stat(path)
	require.NoError(t, err)
	_, _, err = install(source, dir)
	require.NoError(t, err)
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.False(t, os.SameFile(before, after))
}

func TestInstall_leaves_another_binary_of_the_same_version_alone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, firstSum := newBinary(t, "first")
	path, _, err := install(first, dir)
	require.NoError(t, err)
	second, secondSum := newBinary(t, "second")
	_, _, err = install(second, dir)
	require.EqualError(t, err, path+" is there with other content, SHA-256 "+firstSum+" instead of "+secondSum+
		"; remove it if no Vault has that in its catalog")
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "first", string(content))
	require.Equal(t, []string{installedName()}, names(t, dir))
}

func TestInstall_says_in_plain_words_what_is_wrong_with_the_directory(t *testing.T) {
	t.Parallel()
	file, _ := newBinary(t, "a file")
	missing := filepath.Join(t.TempDir(), "missing")
	_, notThere := os.Stat(missing) // in the system's words
	for dir, want := range map[string]string{
		missing: fmt.Sprintf("install into %q: %v", missing, notThere),
		file:    fmt.Sprintf("install into %q: not a directory", file),
		"":      "-install needs a directory, such as Vault's plugin_directory",
	} {
		stdout, stderr, err := runMain(t, "-install="+dir)
		require.Error(t, err)
		require.Empty(t, stdout)
		require.Equal(t, "vault-plugin-secrets-dingtalk: "+want+"\n", stderr)
	}
	require.NoFileExists(t, missing, "nothing is made")
}

func TestMain_without_a_flag_is_for_Vault_alone(t *testing.T) {
	t.Parallel()
	_, stderr, err := runMain(t)
	require.Error(t, err)
	require.Contains(t, stderr, "This binary is a plugin")
}
