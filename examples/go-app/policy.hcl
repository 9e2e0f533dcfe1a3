# SPDX-License-Identifier: MPL-2.0
#
# For one application that replaces a token which DingTalk no longer takes: what it needs besides Vault's "default" policy,
# which lets it renew its leases and its login. It is for the app "myapp" on the mount dingtalk/.

path "dingtalk/creds/myapp" {
  capabilities = ["read"]
}

# To tell the engine which token DingTalk refused. It fetches another only if that is the current one, and at most once in
# 10 seconds.
path "dingtalk/refresh/myapp" {
  capabilities = ["update"]
}

# Behind a Vault Proxy, revoking its lease makes the Proxy drop its copy of the token. No other lease may be revoked.
path "sys/leases/revoke" {
  capabilities = ["update"]

  allowed_parameters = {
    "lease_id" = ["dingtalk/creds/myapp/*"]
    "sync"     = []
  }
}
