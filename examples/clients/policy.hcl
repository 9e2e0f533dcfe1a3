# SPDX-License-Identifier: MPL-2.0
#
# For a program that reads the access token of the app "myapp" on the mount dingtalk/, and replaces one that DingTalk no
# longer takes.

path "dingtalk/creds/myapp" {
  capabilities = ["read"]
}

# To tell the engine which token DingTalk refused. It fetches another only if that is the current one, and at most once in
# 10 seconds.
path "dingtalk/refresh/myapp" {
  capabilities = ["update"]
}
