// SPDX-License-Identifier: MPL-2.0

// The command engine is the plugin, which also serves profiles, for looking at where its time and
// its memory go. Reads a second are measured with the plugin's own binary.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/vault/sdk/plugin"

	dingtalk "vault-plugin-secrets-dingtalk"
	"vault-plugin-secrets-dingtalk/bench/profiling"
)

func main() {
	profiling.Serve()
	if err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: dingtalk.Factory}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
