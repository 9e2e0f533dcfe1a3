# SPDX-License-Identifier: MPL-2.0
#
# One policy for all applications: each reads the access token of the app that its entity's metadata names, as in
#
#   vault write identity/entity name=billing metadata=dingtalk_app=myapp policies=dingtalk-reader-by-entity
#
# An entity without that metadata reads nothing. Whoever may write the metadata of entities decides who reads what, and
# "*" or "+" in it means every app: let nobody do so who may not.

path "dingtalk/creds/{{identity.entity.metadata.dingtalk_app}}" {
  capabilities = ["read"]
}
