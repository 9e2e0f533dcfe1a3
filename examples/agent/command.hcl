# SPDX-License-Identifier: MPL-2.0
#
# Vault Agent for an application that does not notice by itself when its token changes: one-app.hcl
# with a command.
#
# DingTalk extends a token that is fetched again. So the token and the file usually stay the same
# for long, and the command does not run.
#
# Replace the address of Vault, the paths, the command, and the mount and app in
# dingtalk/creds/myapp.

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
  contents             = "{{ with secret \"dingtalk/creds/myapp\" }}DINGTALK_ACCESS_TOKEN={{ .Data.access_token }}\n{{ end }}"
  destination          = "/run/myapp/dingtalk.env"
  perms                = "0600"
  error_on_missing_key = true

  # Runs whenever Agent has written new content into the file, the first time included. Let the
  # command make the application read the file. Agent does not repeat a command that fails, and
  # continues to write the file.
  exec {
    command = ["/usr/local/bin/token-changed"]
    timeout = "10s"
  }
}
