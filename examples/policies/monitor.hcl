# SPDX-License-Identifier: MPL-2.0
#
# For monitoring: the state of every app's token on the mount dingtalk/, without any secret.

path "dingtalk/status/*" {
  capabilities = ["read"]
}
