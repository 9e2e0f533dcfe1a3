# SPDX-License-Identifier: MPL-2.0
#
# For a tool, such as a deployment tool, that reads the access token of the app "myapp" for an
# application. The policy requires response wrapping. The tool passes on a wrapping token, which can
# be unwrapped once. If somebody else unwraps it first, the application's unwrap fails, and the
# theft is noticed. The tool reads with
#
#   vault read -wrap-ttl=5m dingtalk/creds/myapp
#
# and the application, which needs no policy for this, unwraps it with
#
#   VAULT_TOKEN=<wrapping token> vault unwrap
#
# Vault denies a read that is not wrapped, even if another policy of the same token allows it.

path "dingtalk/creds/myapp" {
  capabilities     = ["read"]
  min_wrapping_ttl = "10s"
  max_wrapping_ttl = "5m"
}
