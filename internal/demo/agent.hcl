auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "role-id"
      secret_id_file_path = "secret-id"
    }
  }
}

template {
  contents    = "{{ with secret \"dingtalk/creds/myapp\" }}DINGTALK_ACCESS_TOKEN={{ .Data.access_token }}\n{{ end }}"
  destination = "dingtalk.env"
  perms       = "0600"
}
