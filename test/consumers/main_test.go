// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package consumers tests against programs of other people, as their users run them: DingTalk's own
// SDK, Prometheus, consul-template, and the clients in examples/clients, in seven languages. Vault
// and the plugin are the real ones.
package consumers

import (
	"testing"

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestMain(m *testing.M) {
	harness.Main(m)
}
