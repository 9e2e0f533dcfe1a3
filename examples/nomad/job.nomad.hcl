# SPDX-License-Identifier: MPL-2.0
#
# A Nomad task that reads the access token of the app "myapp" from the file secrets/dingtalk.env.
# Nomad writes the file with consul-template's code, and sends SIGHUP to the task whenever the token
# changes. The role of Vault's jwt auth method needs the policy in examples/policies/reader.hcl and
# Vault's "default" policy.
#
# Replace the names, the image, and the mount and app in dingtalk/creds/myapp.

job "billing" {
  group "billing" {
    task "billing" {
      driver = "docker"

      config {
        image = "registry.example.com/billing:1.0.0"
      }

      vault {
        role = "billing"
      }

      template {
        data                 = "{{ with secret \"dingtalk/creds/myapp\" }}DINGTALK_ACCESS_TOKEN={{ .Data.access_token }}\n{{ end }}"
        destination          = "${NOMAD_SECRETS_DIR}/dingtalk.env"
        perms                = "0600"
        error_on_missing_key = true
        change_mode          = "signal"
        change_signal        = "SIGHUP"
      }
    }
  }
}
