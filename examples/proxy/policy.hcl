# SPDX-License-Identifier: MPL-2.0
#
# For Vault Proxy in front of the readers of the app "myapp", on the mount dingtalk/. To renew its leases it also needs
# Vault's own "default" policy, which tokens have unless they are made without it.

path "dingtalk/creds/myapp" {
  capabilities = ["read"]
}

# The rest is for a reader whose token DingTalk has ended before its time. First it passes that token to refresh/ as
# rejected_token: the engine fetches another only if that is the current one, and at most once in 10 seconds.
path "dingtalk/refresh/myapp" {
  capabilities = ["update"]
}

# Then it has Proxy drop its copy, by revoking the lease of it. No other lease may be revoked.
path "sys/leases/revoke" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["dingtalk/creds/myapp/*"]
    "sync"     = []
  }
}
