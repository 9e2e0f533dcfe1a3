# SPDX-License-Identifier: MPL-2.0
#
# Vault Agent for one application that has to be told when its token changes: as one-app.hcl, and with a command.
#
# DingTalk extends a token that is asked for again, so in quiet times the token, and with it the file, stays the same for
# long, and the command does not run.
#
# Yours to replace: the address of Vault, the paths, and the mount and app in dingtalk/creds/myapp.

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

  # Runs each time the file was written with another content, the first time included. Have it make the application read
  # the file. Agent does not repeat a command that fails, but goes on with the file.
  exec {
    command = ["/usr/local/bin/token-changed"]
    timeout = "10s"
  }
}
