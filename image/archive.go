// SPDX-License-Identifier: MPL-2.0

package main

// The image as one file: an OCI layout in a tar archive.

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// writeArchive writes the index into a file, under the names by which skopeo and docker know it.
func writeArchive(index v1.ImageIndex, version string, created time.Time, file string) error {
	work, err := os.MkdirTemp("", pluginName+"-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	// Not the index as the layout's own: skopeo would take its platforms for images to choose from.
	path, err := layout.Write(work, empty.Index)
	if err != nil {
		return err
	}
	tag := strings.TrimPrefix(version, "v")
	err = path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag,
		"io.containerd.image.name":          "docker.io/library/" + pluginName + ":" + tag,
	}))
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(writeTar(out, work, created.UTC().Truncate(time.Second)), out.Close())
}

// writeTar archives a directory, its files in order and all of one time.
func writeTar(out io.Writer, dir string, modified time.Time) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		header := tar.Header{Name: filepath.ToSlash(relative), ModTime: modified, Format: tar.FormatUSTAR}
		if entry.IsDir() {
			header.Typeflag, header.Name, header.Mode = tar.TypeDir, header.Name+"/", 0o755
			return w.WriteHeader(&header)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		header.Typeflag, header.Mode, header.Size = tar.TypeReg, 0o644, int64(len(content))
		if err := w.WriteHeader(&header); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	return errors.Join(err, w.Close())
}

// withArchive reads the index of a file, which is there until use returns.
func withArchive(file string, use func(v1.ImageIndex) error) error {
	work, err := os.MkdirTemp("", pluginName+"-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := extractTar(file, work); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	all, err := layout.ImageIndexFromPath(work)
	if err != nil {
		return fmt.Errorf("%s is no image: %w", file, err)
	}
	manifest, err := all.IndexManifest()
	if err != nil {
		return err
	}
	if len(manifest.Manifests) != 1 {
		return fmt.Errorf("%s has %d images instead of one", file, len(manifest.Manifests))
	}
	index, err := all.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		return err
	}
	return use(index)
}

// extractTar extracts regular files alone, and none outside the directory.
func extractTar(file, dir string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(in); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := root.MkdirAll(filepath.Dir(header.Name), 0o700); err != nil {
			return err
		}
		out, err := root.Create(header.Name)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
