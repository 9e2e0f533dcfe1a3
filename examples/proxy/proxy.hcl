# SPDX-License-Identifier: MPL-2.0
#
# Vault Proxy for the programs of one machine: it logs in by AppRole and serves access tokens from
# its cache, so the programs need no Vault token. The role needs the policy in policy.hcl, in the
# same directory.
#
# Replace the address of Vault, the listener's address, and the paths.

vault {
  address = "https://vault.example.com:8200"

  # By default Proxy makes twelve more attempts. Clients would wait a minute and a half for an
  # error, and Proxy would serve a copy that it cannot renew for as long, even after the token
  # expired. Clients can try again themselves.
  retry {
    num_retries = 1
  }
}

auto_auth {
  method "approle" {
    # The longest wait between two attempts to log in. The default is five minutes.
    max_backoff = "30s"

    config = {
      role_id_file_path   = "/etc/vault-proxy/role-id"
      secret_id_file_path = "/etc/vault-proxy/secret-id"

      # Proxy needs the file to log in again after a restart.
      remove_secret_id_file_after_reading = false
    }
  }
}

# Proxy caches responses with a lease and renews the lease. It passes responses without a lease
# through.
cache {}

api_proxy {
  # Proxy makes every request with its own Vault token, whatever token the client sends. It caches
  # only what it reads with its own token.
  use_auto_auth_token = "force"
}

# Whoever can connect here has the rights of Proxy's role, so listen on loopback only.
listener "tcp" {
  address     = "127.0.0.1:8100"
  tls_disable = true

  # Requests need the header X-Vault-Request: true, which Vault's CLI and client libraries send. A
  # program that can be tricked into fetching a URL does not send it.
  require_request_header = true
}
