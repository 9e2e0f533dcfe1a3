# SPDX-License-Identifier: MPL-2.0
#
# Registers the plugin and mounts it at dingtalk/. The binary has to be in Vault's plugin directory
# already, on every node.

terraform {
  required_version = ">= 1.10"

  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 5.0"
    }
  }
}

# The address and the token come from the environment: VAULT_ADDR and VAULT_TOKEN.
provider "vault" {}

# One for each version, so that an upgrade deregisters none. Keep the running version registered:
# when its process ends, Vault looks for it in the catalog, and every read fails if it is not there.
resource "vault_plugin" "dingtalk" {
  for_each = var.plugins

  type    = "secret"
  name    = "vault-plugin-secrets-dingtalk"
  version = each.key
  command = "vault-plugin-secrets-dingtalk-${each.key}"
  sha256  = each.value
}

resource "vault_mount" "dingtalk" {
  path           = "dingtalk"
  type           = vault_plugin.dingtalk[var.plugin_version].name
  plugin_version = vault_plugin.dingtalk[var.plugin_version].version
  description    = "Access tokens of DingTalk apps"
}

# Setting plugin_version starts nothing: the old version runs until the plugin is reloaded.
resource "terraform_data" "reload" {
  triggers_replace = [var.plugin_version]
  depends_on       = [vault_mount.dingtalk]

  provisioner "local-exec" {
    command = "vault plugin reload -type=secret -plugin=vault-plugin-secrets-dingtalk -scope=global"
  }
}
