# SPDX-License-Identifier: MPL-2.0
#
# One DingTalk app, and a policy to read its token. The app's secret ends up in Terraform's state, in clear: see the
# page README.md before using this file.

resource "vault_generic_endpoint" "app" {
  path = "${vault_mount.dingtalk.path}/config/${var.app}"

  # The answer of config/ has no app_secret, and fields that are not given here.
  ignore_absent_fields = true

  data_json = jsonencode({
    app_key    = var.app_key
    app_secret = var.app_secret
    base_url   = var.base_url
    # In seconds and as a number, as config/ answers it: "15s" would be a change at every plan.
    request_timeout = 15
    leased          = true
  })
}

resource "vault_policy" "reader" {
  name = "dingtalk-${var.app}"

  policy = <<-EOT
    path "${vault_mount.dingtalk.path}/creds/${var.app}" {
      capabilities = ["read"]
    }
  EOT
}
