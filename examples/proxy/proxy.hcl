# SPDX-License-Identifier: MPL-2.0
#
# Vault Proxy for the programs of one machine: it logs in by AppRole and answers their reads of access tokens from its
# cache, so that they need no token of Vault. The role needs the policy in policy.hcl, which is next to this file.
#
# Yours to replace: the address of Vault, the listener's address, and the paths.

vault {
  address = "https://vault.example.com:8200"

  # By default Proxy makes twelve more attempts: its readers would wait a minute and a half for an error, and a copy that
  # cannot be renewed would be served for as long, if need be beyond its end. Readers can try again themselves.
  retry {
    num_retries = 1
  }
}

auto_auth {
  method "approle" {
    # The longest wait between two attempts to log in. Without it, that is five minutes.
    max_backoff = "30s"

    config = {
      role_id_file_path   = "/etc/vault-proxy/role-id"
      secret_id_file_path = "/etc/vault-proxy/secret-id"

      # Kept, so that Proxy can log in again after a restart.
      remove_secret_id_file_after_reading = false
    }
  }
}

# Leased answers are kept and their leases renewed. Answers without a lease go through.
cache {}

api_proxy {
  # Every request is made with Proxy's own token of Vault, whatever token the reader sends: only what is read with that is
  # cached.
  use_auto_auth_token = "force"
}

# Whoever can connect here has the rights of Proxy's role, so listen on loopback only.
listener "tcp" {
  address     = "127.0.0.1:8100"
  tls_disable = true

  # Requests have to carry the header X-Vault-Request: true, as Vault's CLI and client libraries send it. A program that
  # can be talked into fetching any URL cannot be talked into that.
  require_request_header = true
}
