# SPDX-License-Identifier: MPL-2.0
#
# What the Vault token that Terraform runs with may do, for these files and nothing else.

# The provider makes a token of its own from the one that it is given, unless TERRAFORM_VAULT_SKIP_CHILD_TOKEN=true.
path "auth/token/create" {
  capabilities = ["update"]
}

path "sys/plugins/catalog/secret/vault-plugin-secrets-dingtalk" {
  capabilities = ["create", "read", "update", "delete", "sudo"]
}

path "sys/plugins/reload/secret/vault-plugin-secrets-dingtalk" {
  capabilities = ["update"]
}

path "sys/mounts/dingtalk" {
  capabilities = ["create", "read", "update", "delete"]
}

# An upgrade moves the mount to the new version here.
path "sys/mounts/dingtalk/tune" {
  capabilities = ["read", "update"]
}

path "sys/policies/acl/dingtalk-myapp" {
  capabilities = ["create", "read", "update", "delete"]
}

path "dingtalk/config/myapp" {
  capabilities = ["create", "update"]
}
