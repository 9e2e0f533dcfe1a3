// SPDX-License-Identifier: MPL-2.0

//go:build release

package release

// What `make release-snapshot` has left in dist/. It runs these tests itself.

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	dingtalk "vault-plugin-secrets-dingtalk"
)

const dist = root + "/dist"

// system is one that a release is for.
type system struct{ os, arch string }

var systems = []system{
	{"linux", "amd64"},
	{"linux", "arm64"},
	{"darwin", "amd64"},
	{"darwin", "arm64"},
	{"windows", "amd64"},
	{"windows", "arm64"},
}

// name is how a system's files begin.
func (s system) name() string {
	return strings.Join([]string{plugin, strings.TrimPrefix(dingtalk.Version, "v"), s.os, s.arch}, "_")
}

func (s system) exe() string {
	if s.os == "windows" {
		return ".exe"
	}
	return ""
}

func (s system) archive() string {
	if s.os == "windows" {
		return s.name() + ".zip"
	}
	return s.name() + ".tar.gz"
}

// packed is a file in an archive.
type packed struct {
	content  []byte
	mode     fs.FileMode
	modified time.Time
}

func TestSnapshot_has_an_image_and_an_archive_with_its_SBOM_for_each_system(t *testing.T) {
	t.Parallel()
	var got []string
	want := []string{image()}
	for _, s := range systems {
		want = append(want, s.archive(), s.archive()+".spdx.json")
	}
	files, err := filepath.Glob(filepath.Join(dist, plugin+"_*"))
	require.NoError(t, err)
	for _, file := range files {
		if !strings.Contains(file, "_checksums.txt") {
			got = append(got, filepath.Base(file))
		}
	}
	require.ElementsMatch(t, want, got)
}

func TestSnapshot_checksums_are_those_of_every_file_of_the_release(t *testing.T) {
	t.Parallel()
	want := map[string]string{image(): digest([]byte(read(t, "dist/"+image())))}
	for _, s := range systems {
		for _, name := range []string{s.archive(), s.archive() + ".spdx.json"} {
			want[name] = digest([]byte(read(t, "dist/"+name)))
		}
		want[s.name()+s.exe()] = digest(s.unpack(t)[plugin+s.exe()].content)
	}
	require.Equal(t, want, checksums(t))
}

// licensesFile has the licenses of what is in the binary.
const licensesFile = "THIRD_PARTY_LICENSES"

func TestSnapshot_archives_hold_the_binary_its_licenses_the_pages_and_the_examples(t *testing.T) {
	t.Parallel()
	want := strings.Fields(run(t, root, os.Environ(), "git", "ls-files", "LICENSE", ":(glob)*.md", "docs", "examples"))
	require.Greater(t, len(want), 45)
	for _, s := range systems {
		t.Run(s.name(), func(t *testing.T) {
			t.Parallel()
			files := s.unpack(t)
			require.ElementsMatch(t, append([]string{plugin + s.exe(), licensesFile}, want...),
				slices.Collect(maps.Keys(files)))
			for _, name := range want {
				require.Equal(t, read(t, name), string(files[name].content), name)
				info, err := os.Stat(filepath.Join(root, name))
				require.NoError(t, err)
				mode := fs.FileMode(0o644)
				if info.Mode()&0o100 != 0 {
					mode = 0o755
				}
				require.Equal(t, mode, files[name].mode, name)
			}
			require.Equal(t, fs.FileMode(0o755), files[plugin+s.exe()].mode)
			for name, file := range files {
				require.True(
					t,
					file.modified.Equal(commitTime(t)),
					"%s is of %s, the commit of %s",
					name,
					file.modified,
					commitTime(t),
				)
			}
		})
	}
}

// What a license says, of each kind that is in the binary.
var licenseText = regexp.MustCompile(`Permission is hereby granted, free of charge|Permission to use, copy, modify, and` +
	`|Redistribution and use in source and binary forms|Apache License|Mozilla Public License`)

func TestSnapshot_licenses_are_those_of_every_module_in_the_binary(t *testing.T) {
	t.Parallel()
	for _, s := range systems {
		t.Run(s.name(), func(t *testing.T) {
			t.Parallel()
			files := s.unpack(t)
			text := string(files[licensesFile].content)
			texts := map[string]string{}
			headings := regexp.MustCompile(`(?m)^={80}\n(.+): \S+\n={80}\n`).FindAllStringSubmatchIndex(text, -1)
			for i, heading := range headings {
				end := len(text)
				if i+1 < len(headings) {
					end = headings[i+1][0]
				}
				texts[text[heading[2]:heading[3]]] += text[heading[1]:end]
			}

			built, err := buildinfo.Read(bytes.NewReader(files[plugin+s.exe()].content))
			require.NoError(t, err)
			names := []string{"Go " + built.GoVersion}
			for _, module := range built.Deps {
				names = append(names, module.Path+" "+module.Version)
			}
			for _, name := range names {
				require.Regexp(t, licenseText, texts[name], "the license of %s", name)
			}
		})
	}
}

// Not in parallel: each build takes all the cores.
func TestSnapshot_programs_are_what_make_build_makes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "copy")
	copySources(t, dir)
	for _, s := range systems {
		built := makeBuild(t, dir, "GOOS="+s.os, "GOARCH="+s.arch)
		require.Equal(t, digest(built), checksums(t)[s.name()+s.exe()], "%s", s.name())
	}
}

func TestSnapshot_program_tells_its_version(t *testing.T) {
	t.Parallel()
	here := system{runtime.GOOS, runtime.GOARCH}
	require.Contains(t, systems, here, "there is no release for this machine")
	program := filepath.Join(t.TempDir(), plugin+here.exe())
	require.NoError(t, os.WriteFile(program, here.unpack(t)[plugin+here.exe()].content, 0o700))
	require.Equal(t, dingtalk.Version+"\n", run(t, root, os.Environ(), program, "-version"))
}

func TestSnapshot_SBOMs_name_every_module_in_the_program(t *testing.T) {
	t.Parallel()
	for _, s := range systems {
		t.Run(s.name(), func(t *testing.T) {
			t.Parallel()
			var sbom struct {
				SPDXVersion  string `json:"spdxVersion"`
				CreationInfo struct {
					Created time.Time `json:"created"`
				} `json:"creationInfo"`
				Namespace string `json:"documentNamespace"`
				Packages  []struct {
					Name    string `json:"name"`
					Version string `json:"versionInfo"`
				} `json:"packages"`
			}
			require.NoError(t, json.Unmarshal([]byte(read(t, "dist/"+s.archive()+".spdx.json")), &sbom))
			require.Equal(t, "SPDX-2.3", sbom.SPDXVersion)
			require.True(t, sbom.CreationInfo.Created.Equal(commitTime(t)))
			require.True(
				t,
				strings.HasSuffix(sbom.Namespace, "-"+digest([]byte(read(t, "dist/"+s.archive())))),
				sbom.Namespace,
			)
			named := map[string]string{}
			for _, p := range sbom.Packages {
				require.NotContains(
					t,
					named,
					p.Name,
					"once from the program, and once from an example, which is no part of it",
				)
				named[p.Name] = p.Version
			}
			require.Equal(t, dingtalk.Version, named[s.archive()])

			built, err := buildinfo.Read(bytes.NewReader(s.unpack(t)[plugin+s.exe()].content))
			require.NoError(t, err)
			require.Contains(t, named, built.Main.Path)
			require.Equal(t, strings.TrimPrefix(built.GoVersion, "go"), strings.TrimPrefix(named["stdlib"], "go"))
			require.Greater(t, len(built.Deps), 50)
			for _, module := range built.Deps {
				require.Equal(t, module.Version, named[module.Path], module.Path)
			}
		})
	}
}

// checksums are what stands in the file of them, by file.
func checksums(t *testing.T) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for line := range strings.Lines(read(t, "dist/"+plugin+"_"+strings.TrimPrefix(dingtalk.Version,
		"v")+"_checksums.txt")) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		require.True(t, ok, line)
		require.NotContains(t, sums, name)
		sums[name] = sum
	}
	return sums
}

// unpack returns what the system's archive holds in its one directory.
func (s system) unpack(t *testing.T) map[string]packed {
	t.Helper()
	content := []byte(read(t, "dist/"+s.archive()))
	all := map[string]packed{}
	add := func(name string, file packed) {
		name, ok := strings.CutPrefix(name, s.name()+"/")
		require.True(t, ok, "%s is outside the archive's directory", name)
		require.NotContains(t, all, name)
		all[name] = file
	}
	if s.os == "windows" {
		archive, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
		require.NoError(t, err)
		for _, entry := range archive.File {
			reader, err := entry.Open()
			require.NoError(t, err)
			unpacked, err := io.ReadAll(reader)
			require.NoError(t, err)
			add(entry.Name, packed{content: unpacked, mode: entry.Mode(), modified: entry.Modified})
		}
		return all
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(content))
	require.NoError(t, err)
	require.True(t, unzipped.ModTime.IsZero())
	archive := tar.NewReader(unzipped)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		require.Equal(t, byte(tar.TypeReg), header.Typeflag, header.Name)
		require.Equal(t, "root:root", header.Uname+":"+header.Gname, header.Name)
		require.Zero(t, header.Uid+header.Gid, header.Name)
		unpacked, err := io.ReadAll(archive)
		require.NoError(t, err)
		add(header.Name, packed{content: unpacked, mode: header.FileInfo().Mode(), modified: header.ModTime})
	}
}

func commitTime(t *testing.T) time.Time {
	t.Helper()
	seconds, err := strconv.ParseInt(
		strings.TrimSpace(run(t, root, os.Environ(), "git", "show", "--no-patch", "--format=%ct", "HEAD")),
		10,
		64,
	)
	require.NoError(t, err)
	return time.Unix(seconds, 0)
}
