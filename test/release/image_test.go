// SPDX-License-Identifier: MPL-2.0

//go:build release

package release

// The OCI image of a release. What is in one is tested beside the command that makes it, in image/.

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	dingtalk "vault-plugin-secrets-dingtalk"
)

// image is the name of the image's archive.
func image() string {
	return plugin + "_" + strings.TrimPrefix(dingtalk.Version, "v") + "_linux_oci.tar"
}

// descriptor points at a blob of an OCI layout.
type descriptor struct {
	Digest   string `json:"digest"`
	Platform struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

func TestSnapshot_image_has_the_released_binaries_of_Linux_and_their_licenses(t *testing.T) {
	t.Parallel()
	blobs := untar(t, []byte(read(t, "dist/"+image())))
	blob := func(d descriptor, into any) {
		t.Helper()
		require.NoError(t, json.Unmarshal(blobs["blobs/"+strings.ReplaceAll(d.Digest, ":", "/")], into))
	}
	var layout, index struct {
		Manifests []descriptor `json:"manifests"`
	}
	require.NoError(t, json.Unmarshal(blobs["index.json"], &layout))
	require.Len(t, layout.Manifests, 1)
	blob(layout.Manifests[0], &index)

	want, got := map[string]string{}, map[string]string{}
	licenses := digest(systems[0].unpack(t)[licensesFile].content)
	for _, s := range systems {
		if s.os == "linux" {
			want[s.os+"/"+s.arch] = checksums(t)[s.name()]
		}
	}
	for _, m := range index.Manifests {
		var manifest struct {
			Layers []descriptor `json:"layers"`
		}
		blob(m, &manifest)
		files := map[string][]byte{}
		for _, layer := range manifest.Layers {
			unzipped, err := gzip.NewReader(bytes.NewReader(blobs["blobs/"+strings.ReplaceAll(layer.Digest, ":", "/")]))
			require.NoError(t, err)
			content, err := io.ReadAll(unzipped)
			require.NoError(t, err)
			maps.Copy(files, untar(t, content))
		}
		got[m.Platform.OS+"/"+m.Platform.Architecture] = digest(files[plugin])
		require.Equal(t, licenses, digest(files["licenses/"+licensesFile]))
	}
	require.Equal(t, want, got)
}

func TestSnapshot_image_is_the_same_bytes_when_it_is_made_again(t *testing.T) {
	t.Parallel()
	again, licenses := filepath.Join(t.TempDir(), "again.tar"), filepath.Join(t.TempDir(), licensesFile)
	require.NoError(t, os.WriteFile(licenses, systems[0].unpack(t)[licensesFile].content, 0o600))
	args := []string{
		"-C", filepath.Join(root, "image"), "run", ".", "build", "-version", dingtalk.Version, "-out", again,
		"-time", commitTime(t).Format(time.RFC3339), "-licenses", licenses,
	}
	for _, s := range systems {
		if s.os == "linux" {
			program := filepath.Join(t.TempDir(), "program")
			require.NoError(t, os.WriteFile(program, s.unpack(t)[plugin].content, 0o600))
			args = append(args, program)
		}
	}
	run(t, ".", append(os.Environ(), "GOWORK=off"), "go", args...)
	content, err := os.ReadFile(again)
	require.NoError(t, err)
	require.Equal(t, digest([]byte(read(t, "dist/"+image()))), digest(content))
}

// untar returns the regular files of an archive.
func untar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		if header.Typeflag == tar.TypeReg {
			if files[header.Name], err = io.ReadAll(r); err != nil {
				require.NoError(t, err)
			}
		}
	}
}
