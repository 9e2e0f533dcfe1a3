// SPDX-License-Identifier: MPL-2.0

package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"
)

var commitTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 8*3600))

// forBoth are made-up binaries for the two platforms.
func forBoth() []binary {
	return []binary{
		{platform: v1.Platform{OS: "linux", Architecture: "amd64"}, content: []byte("for amd64")},
		{platform: v1.Platform{OS: "linux", Architecture: "arm64"}, content: []byte("for arm64")},
	}
}

func makeIndex(t *testing.T) v1.ImageIndex {
	t.Helper()
	index, err := newIndex("v1.2.3", commitTime, []byte("licenses"), forBoth())
	require.NoError(t, err)
	return index
}

// imageFor is the image that an engine takes on a platform.
func imageFor(t *testing.T, index v1.ImageIndex, platform v1.Platform) v1.Image {
	t.Helper()
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	for i := range manifest.Manifests {
		m := &manifest.Manifests[i]
		if m.Platform.Equals(platform) {
			image, err := index.Image(m.Digest)
			require.NoError(t, err)
			return image
		}
	}
	require.FailNow(t, "no image for "+platform.String())
	return nil
}

// unpackedFile is a file of an image with its layers on top of each other.
type unpackedFile struct {
	header  tar.Header
	content []byte
}

func unpack(t *testing.T, image v1.Image) map[string]*unpackedFile {
	t.Helper()
	layers := mutate.Extract(image)
	defer layers.Close()
	files := map[string]*unpackedFile{}
	for r := tar.NewReader(layers); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		files[header.Name] = &unpackedFile{header: *header, content: content}
	}
}

func TestImage_has_each_platform_s_binary(t *testing.T) {
	t.Parallel()
	index := makeIndex(t)
	for _, b := range forBoth() {
		require.Equal(t, b.content, unpack(t, imageFor(t, index, b.platform))[pluginName].content)
	}
}

func TestImage_holds_the_binary_the_authorities_the_licenses_and_nothing_else(t *testing.T) {
	t.Parallel()
	files := unpack(t, imageFor(t, makeIndex(t), forBoth()[0].platform))
	modes := map[string]int64{}
	for name, file := range files {
		modes[name] = file.header.Mode
		require.Zero(t, file.header.Uid, name)
		require.Zero(t, file.header.Gid, name)
		require.True(t, file.header.ModTime.Equal(commitTime), name)
	}
	require.Equal(t, map[string]int64{
		pluginName: 0o755, "etc": 0o755, "etc/ssl": 0o755, "etc/ssl/certs": 0o755, rootsFile: 0o644,
		"licenses": 0o755, licensesFile: 0o644,
	}, modes)
	require.Equal(t, "licenses", string(files[licensesFile].content))
}

// The entry point is what Vault and Kubernetes start, and where OpenBao looks for the binary's name.
func TestImage_starts_the_binary_as_nobody(t *testing.T) {
	t.Parallel()
	config, err := imageFor(t, makeIndex(t), forBoth()[1].platform).ConfigFile()
	require.NoError(t, err)
	require.Equal(t, []string{"/" + pluginName}, config.Config.Entrypoint)
	require.Equal(t, "65532:65532", config.Config.User)
	require.Equal(t, "linux/arm64", config.Platform().String())
	require.Equal(t, "v1.2.3", config.Config.Labels["org.opencontainers.image.version"])
	require.True(t, config.Created.Equal(commitTime))
}

func TestImage_authorities_are_read_by_Go(t *testing.T) {
	t.Parallel()
	rest, count := roots(), 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		require.True(t, certificate.IsCA, certificate.Subject)
		count++
	}
	require.Empty(t, rest)
	require.Greater(t, count, 100)
}

func TestImage_is_the_same_bytes_each_time(t *testing.T) {
	t.Parallel()
	var archives [][]byte
	for range 2 {
		file := filepath.Join(t.TempDir(), "image.tar")
		require.NoError(t, writeArchive(makeIndex(t), "v1.2.3", commitTime, file))
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		archives = append(archives, content)
	}
	require.True(t, bytes.Equal(archives[0], archives[1]))
}

func TestImage_in_an_archive_is_valid_and_the_same(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "image.tar")
	want := makeIndex(t)
	require.NoError(t, writeArchive(want, "v1.2.3", commitTime, file))
	require.NoError(t, withArchive(file, func(got v1.ImageIndex) error {
		wantDigest, err := want.Digest()
		require.NoError(t, err)
		gotDigest, err := got.Digest()
		require.NoError(t, err)
		require.Equal(t, wantDigest, gotDigest)
		return validate.Index(got)
	}))
}

func TestImage_has_one_binary_for_each_platform(t *testing.T) {
	t.Parallel()
	_, err := newIndex("v1.2.3", commitTime, nil, append(forBoth(), forBoth()[0]))
	require.EqualError(t, err, "two binaries for linux/amd64")
}

func TestBinary_says_what_platform_it_is_for(t *testing.T) {
	t.Parallel()
	b, err := readBinary(compile(t, "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0"))
	require.NoError(t, err)
	require.Equal(t, v1.Platform{OS: "linux", Architecture: "arm64"}, b.platform)
}

func TestBinary_that_needs_a_libc_is_refused(t *testing.T) {
	t.Parallel()
	path := compile(t, "CGO_ENABLED=1")
	_, err := readBinary(path)
	require.EqualError(t, err, path+" is not static: it was built without CGO_ENABLED=0")
}

func TestBinary_that_is_none_of_Go_s_is_refused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700))
	_, err := readBinary(path)
	require.ErrorContains(t, err, path)
}

// compile builds a program that does nothing.
func compile(t *testing.T, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "program"), source)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return filepath.Join(dir, "program")
}
