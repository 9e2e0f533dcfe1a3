// SPDX-License-Identifier: MPL-2.0

package main

// The image: what `FROM scratch` would make of the static binary and the authorities that it trusts.
// All in it is a function of the binaries, the version and the commit's time.

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const (
	pluginName = "vault-plugin-secrets-dingtalk"

	// nobody has an account in the image. Kubernetes and Vault may run it as whom they like.
	nobody = "65532:65532"

	// Where Go looks for authorities first, and Debian has them.
	rootsFile = "etc/ssl/certs/ca-certificates.crt"

	licensesFile = "licenses/THIRD_PARTY_LICENSES"
)

// binary is the plugin for one platform.
type binary struct {
	platform v1.Platform
	content  []byte
}

// readBinary reads a binary, which itself says what platform it is for.
func readBinary(path string) (binary, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return binary{}, err
	}
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		return binary{}, fmt.Errorf("%s: %w", path, err)
	}
	settings := map[string]string{}
	for _, setting := range info.Settings {
		settings[setting.Key] = setting.Value
	}
	// There is no libc in the image.
	if settings["CGO_ENABLED"] != "0" {
		return binary{}, fmt.Errorf("%s is not static: it was built without CGO_ENABLED=0", path)
	}
	return binary{
		platform: v1.Platform{OS: settings["GOOS"], Architecture: settings["GOARCH"]},
		content:  content,
	}, nil
}

// newIndex makes the image for all platforms.
func newIndex(version string, created time.Time, licenses []byte, binaries []binary) (v1.ImageIndex, error) {
	authorities, err := fileLayer(rootsFile, 0o644, roots(), created)
	if err != nil {
		return nil, err
	}
	texts, err := fileLayer(licensesFile, 0o644, licenses, created)
	if err != nil {
		return nil, err
	}
	// In the order of how often they change, the binary last.
	below := []layer{{authorities, "certificates of authorities"}, {texts, "licenses"}}
	about := map[string]string{
		"org.opencontainers.image.title":       pluginName,
		"org.opencontainers.image.description": "A Vault secrets engine for access tokens of DingTalk apps",
		"org.opencontainers.image.version":     version,
		"org.opencontainers.image.licenses":    "MPL-2.0",
		"org.opencontainers.image.created":     created.UTC().Format(time.RFC3339),
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var platforms []string
	for i := range binaries {
		b := &binaries[i]
		if platform := b.platform.String(); slices.Contains(platforms, platform) {
			return nil, fmt.Errorf("two binaries for %s", platform)
		}
		platforms = append(platforms, b.platform.String())
		image, err := newImage(b, below, about, created)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &b.platform},
		})
	}
	annotated, ok := mutate.Annotations(index, about).(v1.ImageIndex)
	if !ok {
		return nil, errors.New("an annotated index is no index")
	}
	return annotated, nil
}

// layer is a layer and what it holds.
type layer struct {
	v1.Layer
	what string
}

// newImage makes the image for one platform: the binary on top of what all platforms share.
func newImage(b *binary, below []layer, about map[string]string, created time.Time) (v1.Image, error) {
	program, err := fileLayer(pluginName, 0o755, b.content, created)
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS:           b.platform.OS,
		Architecture: b.platform.Architecture,
		Created:      v1.Time{Time: created.UTC()},
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: []string{"/" + pluginName},
			User:       nobody,
			WorkingDir: "/",
			Labels:     about,
		},
	})
	if err != nil {
		return nil, err
	}
	for _, l := range append(slices.Clone(below), layer{program, "the plugin"}) {
		image, err = mutate.Append(image, mutate.Addendum{
			Layer:   l.Layer,
			History: v1.History{Created: v1.Time{Time: created.UTC()}, CreatedBy: l.what},
		})
		if err != nil {
			return nil, err
		}
	}
	return image, nil
}

// fileLayer is a layer of one file and the directories above it, root's.
func fileLayer(path string, mode int64, content []byte, modified time.Time) (v1.Layer, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	header := tar.Header{ModTime: modified.UTC().Truncate(time.Second), Format: tar.FormatUSTAR}
	for i, c := range path {
		if c == '/' {
			header.Typeflag, header.Name, header.Mode = tar.TypeDir, path[:i+1], 0o755
			if err := w.WriteHeader(&header); err != nil {
				return nil, err
			}
		}
	}
	header.Typeflag, header.Name, header.Mode, header.Size = tar.TypeReg, path, mode, int64(len(content))
	if err := w.WriteHeader(&header); err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil }
	return tarball.LayerFromOpener(opener, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// roots are the authorities that Mozilla trusts with websites, as the Go project hands them on. Those
// that it trusts on conditions only, a file of certificates cannot say so: they are left out.
func roots() []byte {
	var file bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			file.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return file.Bytes()
}
