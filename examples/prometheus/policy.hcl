# SPDX-License-Identifier: MPL-2.0
#
# For Prometheus, together with the policy monitor.hcl: Vault's own metrics.

path "sys/metrics" {
  capabilities = ["read"]
}
