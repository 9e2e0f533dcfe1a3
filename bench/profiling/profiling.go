// SPDX-License-Identifier: MPL-2.0

// Package profiling lets a plugin be looked into while Vault runs it: profiles of its time, and how
// much memory is in use.
package profiling

import (
	"net"
	"net/http"
	_ "net/http/pprof" // serves on the default mux
	"os"
	"time"
)

// AddressEnv names the environment variable with the loopback address to serve the profiles of
// net/http/pprof at.
const AddressEnv = "BENCH_PPROF"

// Serve serves profiles in the background if the environment asks for it. A process that Vault is
// about to end may still have the port: it is waited for.
func Serve() {
	address := os.Getenv(AddressEnv)
	if address == "" {
		return
	}
	go func() {
		for {
			listener, err := net.Listen("tcp", address)
			if err == nil {
				server := http.Server{ReadHeaderTimeout: time.Minute}
				_ = server.Serve(listener)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
}
