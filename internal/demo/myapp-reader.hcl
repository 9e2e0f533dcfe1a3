path "dingtalk/creds/myapp" {
  capabilities = ["read"]
}
