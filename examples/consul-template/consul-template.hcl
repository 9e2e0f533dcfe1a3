# SPDX-License-Identifier: MPL-2.0
#
# consul-template keeps the access token of the app "myapp" in a file, whether the app has leases or
# not. Its Vault token comes from the environment, as VAULT_TOKEN. It needs the policy in
# examples/policies/reader.hcl and Vault's "default" policy.
#
# Replace the address of Vault, the destination, and the mount and app in dingtalk/creds/myapp.

vault {
  address = "https://vault.example.com:8200"
}

template {
  contents             = "{{ with secret \"dingtalk/creds/myapp\" }}DINGTALK_ACCESS_TOKEN={{ .Data.access_token }}\n{{ end }}"
  destination          = "/run/myapp/dingtalk.env"
  perms                = "0600"
  error_on_missing_key = true
}
