// SPDX-License-Identifier: MPL-2.0

// The command image makes the OCI image of a release, without a container engine, and pushes it:
//
//	image build -version v1.2.3 -time 2026-01-02T03:04:05Z -licenses FILE -out FILE BINARY...
//	image push FILE REFERENCE...
//
// scripts/release calls the first. FILE is an OCI layout in a tar archive, which skopeo, podman and
// docker read too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

var errUsage = errors.New(`usage:
  image build -version VERSION -time TIME -licenses FILE -out FILE BINARY...
  image push FILE REFERENCE`)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "build":
			return build(args[1:])
		case "push":
			if len(args) > 2 {
				return push(ctx, args[1], args[2:])
			}
		}
	}
	return errUsage
}

func build(args []string) error {
	flags := flag.NewFlagSet("image build", flag.ContinueOnError)
	version := flags.String("version", "", "the plugin's version, with its v")
	created := flags.String("time", "", "the commit's time, in RFC 3339")
	licenses := flags.String("licenses", "", "the file with the licenses of what is in the binaries")
	out := flags.String("out", "", "the file to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	at, err := time.Parse(time.RFC3339, *created)
	if err != nil {
		return fmt.Errorf("-time: %w", err)
	}
	if *version == "" || *out == "" || flags.NArg() == 0 {
		return errUsage
	}
	var binaries []binary
	for _, path := range flags.Args() {
		b, err := readBinary(path)
		if err != nil {
			return err
		}
		binaries = append(binaries, b)
	}
	texts, err := os.ReadFile(*licenses)
	if err != nil {
		return fmt.Errorf("-licenses: %w", err)
	}
	index, err := newIndex(*version, at, texts, binaries)
	if err != nil {
		return err
	}
	if err := writeArchive(index, *version, at, *out); err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	fmt.Println(digest)
	return nil
}

// push uploads the image of an archive under all the references, for all its platforms, and prints
// each with its digest. Credentials are those of `docker login`.
func push(ctx context.Context, archive string, references []string) error {
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	return withArchive(archive, func(index v1.ImageIndex) error {
		digest, err := index.Digest()
		if err != nil {
			return err
		}
		for _, reference := range references {
			ref, err := name.ParseReference(reference, name.StrictValidation)
			if err != nil {
				return err
			}
			if err := remote.WriteIndex(ref, index, options...); err != nil {
				return fmt.Errorf("push %s: %w", ref, err)
			}
			fmt.Printf("%s@%s\n", ref, digest)
		}
		return nil
	})
}
