# SPDX-License-Identifier: MPL-2.0
#
# For monitoring: the mount dingtalk/'s metrics, and the state of every app's token, without any
# secret.

path "dingtalk/metrics" {
  capabilities = ["read"]
}

path "dingtalk/status/*" {
  capabilities = ["read"]
}
