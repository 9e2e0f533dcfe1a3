# SPDX-License-Identifier: MPL-2.0
#
# For whoever fetches the access token of the app "myapp" to hand it on, a deployment tool say: the answer has to be
# wrapped. The tool passes on a wrapping token, which opens once. If somebody on the way opened it, the application
# cannot, and knows. The tool reads with
#
#   vault read -wrap-ttl=5m dingtalk/creds/myapp
#
# and the application, which needs no policy for this, opens it with
#
#   VAULT_TOKEN=<wrapping token> vault unwrap
#
# A read that is not wrapped is denied, also where another policy of the same token allows it.

path "dingtalk/creds/myapp" {
  capabilities     = ["read"]
  min_wrapping_ttl = "10s"
  max_wrapping_ttl = "5m"
}
