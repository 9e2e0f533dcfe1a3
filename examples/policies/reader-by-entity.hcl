# SPDX-License-Identifier: MPL-2.0
#
# One policy for all applications: each entity reads the access token of the app named in its
# metadata, as in
#
#   vault write identity/entity name=billing metadata=dingtalk_app=myapp policies=dingtalk-reader-by-entity
#
# An entity without that metadata reads nothing. Whoever may write the metadata of entities decides
# who reads what: "*" or "+" in it means every app. Restrict that right to those who may read every
# app.

path "dingtalk/creds/{{identity.entity.metadata.dingtalk_app}}" {
  capabilities = ["read"]
}
