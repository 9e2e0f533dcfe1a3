// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package e2e tests the plugin as its users run it: the real binary in a real Vault server process,
// with Vault's client library, CLI, Agent and Proxy. A simulator on loopback takes DingTalk's
// place. Without the two binaries the tests fail and say how to build them. None is skipped, except
// on OpenBao those of features that it lacks, and the way back to the first release where git's
// history does not reach it.
package e2e

import (
	"testing"

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestMain(m *testing.M) {
	harness.Main(m)
}
