// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package e2e drives the plugin as its users do: the real binary in a real Vault server process,
// through Vault's client library, its CLI and its Agent, with the simulator on loopback in
// DingTalk's place. Without the two binaries the run fails and says how to build them. Nothing is
// skipped, except on OpenBao what that lacks, and the way back to the first release where git's
// history does not reach it.
package e2e

import (
	"testing"

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestMain(m *testing.M) {
	harness.Main(m)
}
