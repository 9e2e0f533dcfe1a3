// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// The command measured is the plugin with one addition, for tests alone: whoever connects to the
// Unix socket named in the environment is told how many goroutines the process has and how much
// memory is in use after a garbage collection. From outside of a process neither can be seen.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/hashicorp/vault/sdk/plugin"

	dingtalk "vault-plugin-secrets-dingtalk"
)

// socketEnv names the socket.
const socketEnv = "DINGTALK_E2E_MEASURE"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	path := os.Getenv(socketEnv)
	_ = os.Remove(path) // of the process before, such as the one that Vault asks for the version
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go respond(listener)
	return plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: dingtalk.Factory})
}

func respond(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		_ = json.NewEncoder(conn).Encode(map[string]uint64{
			"goroutines": uint64(runtime.NumGoroutine()),
			"heap_bytes": memory.HeapAlloc,
		})
		_ = conn.Close()
	}
}
