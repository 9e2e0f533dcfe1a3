# SPDX-License-Identifier: MPL-2.0
#
# Vault Agent for an application that uses several DingTalk apps: one file with the token of each,
# by the template in several-apps.ctmpl. The role needs the right to read each of them.
#
# Agent writes the file once it has read all of the apps. An app that fails for long, for example
# because it was deleted, delays the others. If that matters, use a template and a file for each
# app.
#
# Replace the address of Vault and the paths.

vault {
  address = "https://vault.example.com:8200"
}

auto_auth {
  method "approle" {
    max_backoff = "30s"

    config = {
      role_id_file_path                   = "/etc/vault-agent/role-id"
      secret_id_file_path                 = "/etc/vault-agent/secret-id"
      remove_secret_id_file_after_reading = false
    }
  }
}

template {
  source               = "/etc/vault-agent/several-apps.ctmpl"
  destination          = "/run/myapp/dingtalk.env"
  perms                = "0600"
  error_on_missing_key = true
}
