// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package consumers tests the plugin with other people's programs, as their users run them:
// DingTalk's own SDK, Prometheus, consul-template, Terraform, and the clients in examples/clients.
// Vault and the plugin are real, and the simulator takes DingTalk's place. Only the test with
// Terraform is skipped where its program is missing.
package consumers

import (
	"testing"

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestMain(m *testing.M) {
	harness.Main(m)
}
