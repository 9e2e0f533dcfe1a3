// SPDX-License-Identifier: MPL-2.0

// This module builds the Vault that the demo and the end-to-end tests run against: server, CLI,
// Agent and Proxy in one binary. It is a module of its own so that the plugin does not depend on
// Vault's server, which is under the BUSL 1.1: it serves tests only and is never shipped.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
