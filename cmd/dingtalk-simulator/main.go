// SPDX-License-Identifier: MPL-2.0

// Command dingtalk-simulator serves DingTalk's token API on loopback, for trying out the secrets
// engine and for tests. See its -help, and the package internal/simulator for the API that controls
// it while it runs.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
