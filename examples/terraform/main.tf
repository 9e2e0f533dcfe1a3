# SPDX-License-Identifier: MPL-2.0
#
# Registers the plugin and mounts it at dingtalk/. The binary has to be in Vault's plugin directory already, on every
# node.

terraform {
  required_version = ">= 1.3"

  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 5.0"
    }
  }
}

# The address and the token come from the environment: VAULT_ADDR and VAULT_TOKEN.
provider "vault" {}

resource "vault_plugin" "dingtalk" {
  type    = "secret"
  name    = "vault-plugin-secrets-dingtalk"
  version = var.plugin_version
  command = "vault-plugin-secrets-dingtalk-${var.plugin_version}"
  sha256  = var.plugin_sha256

  # An upgrade registers the new version, then moves the mount to it, and only then deregisters the old one.
  lifecycle {
    create_before_destroy = true
  }
}

resource "vault_mount" "dingtalk" {
  path           = "dingtalk"
  type           = vault_plugin.dingtalk.name
  plugin_version = vault_plugin.dingtalk.version
  description    = "Access tokens of DingTalk apps"
}
