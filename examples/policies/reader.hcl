# SPDX-License-Identifier: MPL-2.0
#
# For one application: the access token of the app "myapp", and nothing else of the mount dingtalk/.
# Use the exact name: "dingtalk/creds/myapp*" would also match myapp-payroll.
#
# To renew the lease, itself or through Vault Agent or Proxy, the token also needs Vault's "default"
# policy, which tokens have unless they are created without it.

path "dingtalk/creds/myapp" {
  capabilities = ["read"]
}
