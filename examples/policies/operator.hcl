# SPDX-License-Identifier: MPL-2.0
#
# For whoever looks after the apps: stores, changes and deletes their credentials, and has a token fetched to see that
# they work. It cannot read a secret back, since nobody can, and gives no access token.
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
