// SPDX-License-Identifier: MPL-2.0

// The command vault-plugin-secrets-dingtalk is the plugin binary. Vault starts it, one process for
// all the mounts of a version, and talks gRPC with it. Run by hand it answers -version, and copies
// itself into a plugin directory with -install.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/plugin"

	dingtalk "vault-plugin-secrets-dingtalk"
)

func main() {
	// Libraries that use the standard logger may repeat what a host sent them: net/http does. Vault
	// would write it to its log.
	log.SetOutput(io.Discard)

	if err := run(os.Args[1:]); err != nil {
		if failed := (installError{}); errors.As(err, &failed) {
			fmt.Fprintln(os.Stderr, "vault-plugin-secrets-dingtalk:", failed) // a person reads it
			os.Exit(1)
		}
		// Vault reads a plugin's stderr, and takes the level from lines in JSON.
		logger := hclog.New(&hclog.LoggerOptions{JSONFormat: true})
		logger.Error("plugin shutting down", "error", err)
		os.Exit(1)
	}
}

// installError is why -install failed.
type installError struct{ error }

func run(args []string) error {
	var meta api.PluginAPIClientMeta
	flags := meta.FlagSet()
	version := flags.Bool("version", false, "print the version, as vault plugin register -version wants it, and exit")
	installDir := flags.String("install", "", "copy this binary into the directory `DIR`, its version added to its name, "+
		"print its SHA-256, as vault plugin register -sha256 wants it, and exit")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *version {
		fmt.Println(dingtalk.Version)
		return nil
	}
	if given(flags, "install") {
		return runInstall(*installDir)
	}

	return plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: dingtalk.Factory,
		// Only a Vault older than 1.12 uses it; later ones set up mutual TLS themselves.
		TLSProviderFunc: api.VaultPluginTLSProvider(meta.GetTLSConfig()),
	})
}

// given reports whether the command line has the flag, be it with an empty value.
func given(flags *flag.FlagSet, name string) (is bool) {
	flags.Visit(func(f *flag.Flag) { is = is || f.Name == name })
	return is
}
