// SPDX-License-Identifier: MPL-2.0

package main

// -install: an image made from scratch has neither cp nor sha256sum, so an init container that fills
// Vault's plugin directory needs the binary to do both itself.

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	dingtalk "vault-plugin-secrets-dingtalk"
)

// installedName is what the binary is called in a plugin directory: with its version, so that the
// next release can be put beside it.
func installedName() string {
	name := "vault-plugin-secrets-dingtalk-" + dingtalk.Version
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return name
}

// runInstall prints the SHA-256 alone on standard output, for a script to read.
func runInstall(dir string) error {
	if dir == "" {
		return installError{errors.New("-install needs a directory, such as Vault's plugin_directory")}
	}
	source, err := os.Executable()
	if err != nil {
		return installError{fmt.Errorf("find this binary: %w", err)}
	}
	path, sum, err := install(source, dir)
	if err != nil {
		return installError{fmt.Errorf("install into %q: %w", dir, err)}
	}
	fmt.Fprintln(os.Stderr, "installed", path)
	fmt.Println(sum)
	return nil
}

// install copies the binary at source into dir and returns where it is and its SHA-256. Vault may be
// running while it does: the file appears whole or not at all. One of the same name and other content
// is left alone, as its SHA-256 may be in a catalog.
func install(source, dir string) (path, sum string, err error) {
	// A directory that is missing is not made: it is a typo, or a volume that is not mounted there,
	// and the binary would be lost with the container.
	if info, err := os.Stat(dir); err != nil {
		return "", "", err
	} else if !info.IsDir() {
		return "", "", errors.New("not a directory")
	}
	path = filepath.Join(dir, installedName())
	temporary, sum, err := copyBeside(source, path)
	if err != nil {
		return "", "", err
	}
	defer os.Remove(temporary) // fails once it has its name

	switch there, err := sumOf(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", "", fmt.Errorf("read what is there: %w", err)
	case there != sum:
		return "", "", fmt.Errorf("%s is there with other content, SHA-256 %s instead of %s; "+
			"remove it if no Vault has that in its catalog", path, there, sum)
	}
	if err := os.Rename(temporary, path); err != nil {
		return "", "", err
	}
	return path, sum, syncDir(dir)
}

// copyBeside copies source into a new file next to path, ready to be renamed.
func copyBeside(source, path string) (temporary, sum string, err error) {
	in, err := os.Open(source) //nolint:gosec // this very binary
	if err != nil {
		return "", "", fmt.Errorf("read this binary: %w", err)
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return "", "", err
	}
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, hash), in)
	if err == nil {
		err = out.Chmod(0o755) // whatever the umask
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return "", "", errors.Join(err, os.Remove(out.Name()))
	}
	return out.Name(), hex.EncodeToString(hash.Sum(nil)), nil
}

func sumOf(path string) (string, error) {
	file, err := os.Open(path) //nolint:gosec // whoever runs -install names the directory
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// syncDir makes a rename outlast a loss of power.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // which has no such call for a directory
		return nil
	}
	d, err := os.Open(dir) //nolint:gosec // whoever runs -install names it
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
