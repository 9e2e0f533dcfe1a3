# SPDX-License-Identifier: MPL-2.0
#
# For a client that reads the access token of the app "myapp" on the mount dingtalk/, and recovers
# when DingTalk refuses it.

path "dingtalk/creds/myapp" {
  capabilities = ["read"]
}

# The client reports the refused token here. The engine fetches another only if that is the current
# one, and at most once in 10 seconds.
path "dingtalk/refresh/myapp" {
  capabilities = ["update"]
}
