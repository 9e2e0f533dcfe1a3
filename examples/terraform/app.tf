# SPDX-License-Identifier: MPL-2.0
#
# One DingTalk app, and a policy to read its token. The app's secret goes through Terraform to Vault, and Terraform does
# not keep it: see the page README.md.

resource "terraform_data" "app" {
  # When one of these changes, the app is stored again, which needs its secret. They are in the state.
  triggers_replace = [var.app_secret_version, var.app_key, var.base_url]

  # The secret takes the way of the environment and a pipe: a command line can be read by every user of the machine. If
  # Vault refuses the write, the resource is tainted, and the next apply writes again.
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
