# SPDX-License-Identifier: MPL-2.0
#
# The rights that Terraform's Vault token needs for these files.

# The provider creates a child token, unless TERRAFORM_VAULT_SKIP_CHILD_TOKEN=true.
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
