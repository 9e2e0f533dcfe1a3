# SPDX-License-Identifier: MPL-2.0
#
# One DingTalk app, and a policy to read its token. Terraform passes the app's secret to Vault and
# does not store it: see README.md.

resource "terraform_data" "app" {
  # When one of these changes, the app is stored again, which needs its secret. They are in the
  # state.
  triggers_replace = [var.app_secret_version, var.app_key, var.base_url]

  # The secret is passed by the environment and a pipe, since every user of the machine can read a
  # command line. If Vault refuses the write, the resource is tainted, and the next apply writes
  # again.
  provisioner "local-exec" {
    command = "printf %s \"$APP_SECRET\" | vault write \"$CONFIG\" app_key=\"$APP_KEY\" base_url=\"$BASE_URL\" app_secret=-"

    environment = {
      CONFIG     = "${vault_mount.dingtalk.path}/config/${var.app}"
      APP_KEY    = var.app_key
      BASE_URL   = var.base_url
      APP_SECRET = var.app_secret
    }
  }
}

resource "vault_policy" "reader" {
  name = "dingtalk-${var.app}"

  policy = <<-EOT
    path "${vault_mount.dingtalk.path}/creds/${var.app}" {
      capabilities = ["read"]
    }
  EOT
}
