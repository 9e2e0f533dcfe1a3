# SPDX-License-Identifier: MPL-2.0
#
# For one application: the access token of the app "myapp", and nothing else of the mount dingtalk/. Keep the name
# exact: "dingtalk/creds/myapp*" would also be myapp-payroll.
#
# To renew the lease, or to have Vault Agent or Proxy renew it, the token also needs Vault's own "default" policy, which
# tokens have unless they are made without it.

path "dingtalk/creds/myapp" {
  capabilities = ["read"]
}
