# SPDX-License-Identifier: MPL-2.0
#
# For whoever manages the apps: stores, changes and deletes their credentials, and makes the engine
# fetch a token to check them. It allows no read of an access token. Nobody can read a secret back.
#
# The mount is dingtalk/.

path "dingtalk/config/*" {
  capabilities = ["create", "read", "update", "patch", "delete", "list"]
}

path "dingtalk/status/*" {
  capabilities = ["read"]
}

path "dingtalk/refresh/*" {
  capabilities = ["update"]
}
