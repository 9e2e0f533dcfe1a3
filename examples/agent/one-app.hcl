# SPDX-License-Identifier: MPL-2.0
#
# Vault Agent for one application: it logs in by AppRole and keeps the access token of the app
# "myapp" in a file, whether the app has leases or not. The role needs the policy in
# examples/policies/reader.hcl.
#
# Replace the address of Vault, the paths, and the mount and app in dingtalk/creds/myapp.

vault {
  address = "https://vault.example.com:8200"
}

auto_auth {
  method "approle" {
    # The longest wait between two attempts while Vault cannot be reached. The default is five
    # minutes.
    max_backoff = "30s"

    config = {
      role_id_file_path   = "/etc/vault-agent/role-id"
      secret_id_file_path = "/etc/vault-agent/secret-id"

      # Agent needs the file to log in again after a restart.
      remove_secret_id_file_after_reading = false
    }
  }
}

template {
  contents             = "{{ with secret \"dingtalk/creds/myapp\" }}DINGTALK_ACCESS_TOKEN={{ .Data.access_token }}\n{{ end }}"
  destination          = "/run/myapp/dingtalk.env"
  perms                = "0600"
  error_on_missing_key = true
}
