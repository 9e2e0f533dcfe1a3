# SPDX-License-Identifier: MPL-2.0
#
# For Vault Proxy in front of the clients of the app "myapp", on the mount dingtalk/. To renew its
# leases it also needs Vault's "default" policy, which tokens have unless they are created without
# it.

path "dingtalk/creds/myapp" {
  capabilities = ["read"]
}

# The rest is for a client whose token DingTalk refuses. First it passes that token to refresh/ as
# rejected_token. The engine fetches another only if that is the current one, and at most once in 10
# seconds.
path "dingtalk/refresh/myapp" {
  capabilities = ["update"]
}

# Then it makes Proxy drop its copy, by revoking the copy's lease. It can revoke no other lease.
path "sys/leases/revoke" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["dingtalk/creds/myapp/*"]
    "sync"     = []
  }
}
