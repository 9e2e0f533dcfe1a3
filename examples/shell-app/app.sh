#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# Calls one of DingTalk's APIs with an access token from Vault, with curl and jq.
#
# It lists the organisation's apps, once, or again and again until it is interrupted. The environment says how:
#
#   DINGTALK_APP           the app's name in Vault: the token is read from creds/<name>; required
#   DINGTALK_MOUNT         where the secrets engine is mounted; dingtalk
#   DINGTALK_BASE_URL      DingTalk's API; https://api.dingtalk.io, and https://api.dingtalk.com for the China edition
#   CALL_EVERY             seconds from one call to the next; without it there is one call
#   VAULT_ADDR             Vault, as for the CLI; https://127.0.0.1:8200
#   VAULT_CACERT           a file with the certificate of the authority that signed Vault's
#   VAULT_AGENT_ADDR       a Vault Proxy, which is talked to in place of Vault and keeps alive what it hands out
#   VAULT_ROLE_ID_FILE     files with the two halves of an AppRole login; without them VAULT_TOKEN counts, and behind a
#   VAULT_SECRET_ID_FILE   Proxy that logs in itself nothing is needed
#   VAULT_AUTH_PATH        where AppRole is enabled; auth/approle
#
# Nothing here prints a token or a secret, and none is ever part of a command line, which all users of the machine can
# read: printf is a part of bash, and curl gets its headers and bodies from there.

set -euo pipefail

app=${DINGTALK_APP:?is not set: the name of an app in Vault}
mount=${DINGTALK_MOUNT:-dingtalk}
base_url=${DINGTALK_BASE_URL:-https://api.dingtalk.io}
vault=${VAULT_AGENT_ADDR:-${VAULT_ADDR:-https://127.0.0.1:8200}}
auth_path=${VAULT_AUTH_PATH:-auth/approle}
role_id_file=${VAULT_ROLE_ID_FILE:-}

vault_token=${VAULT_TOKEN:-} # the app's own token of Vault
login_again_at=0             # on the clock of $SECONDS, like due
token=                       # the access token
lease_id=                    # empty for an app without leases
due=0                        # when to renew or to read again

status=0 # of the last answer,
body=    # and what it holds

say() { printf '%s\n' "$*" >&2; }

# field prints a field of the last answer.
field() { jq -r "$@" <<<"$body"; }

# fetch URL HEADER [curl's arguments] makes a request and takes the answer apart. What curl is to send is on its standard input.
fetch() {
	local url=$1 header=$2 answer
	shift 2
	status=0 body=
	answer=$(curl -sS "$@" -w '\n%{http_code}' -H @<(printf '%s\n' "$header") "$url") || return
	status=${answer##*$'\n'}
	body=${answer%$'\n'*}
}

# request METHOD PATH [BODY] makes a request of Vault.
request() {
	local options=(--max-time 60 -X "$1" -H 'X-Vault-Request: true')
	[ -z "${VAULT_CACERT:-}" ] || options+=(--cacert "$VAULT_CACERT")
	[ -z "${3:-}" ] || options+=(-d @-)
	fetch "$vault/v1/$2" "X-Vault-Token: $vault_token" "${options[@]}" < <(printf '%s' "${3:-}") || return
	if [ "$status" -ge 300 ]; then
		say "Vault, $1 $2: $status $(field '.errors // [] | join("; ")' 2>/dev/null)"
		return 1
	fi
	[ -z "$body" ] || field '.warnings // [] | .[] | "Vault warns: " + .' >&2
}

# ask is a request after a login where it is time for one, and once more where Vault refuses the token of the last.
ask() {
	if [ -n "$role_id_file" ] && [ "$SECONDS" -ge "$login_again_at" ]; then
		log_in || return
	fi
	request "$@" && return
	[ "$status" = 403 ] && [ -n "$role_id_file" ] && log_in && request "$@"
}

log_in() {
	vault_token=
	request POST "$auth_path/login" "$(jq -n --rawfile role_id "$role_id_file" --rawfile secret_id "$VAULT_SECRET_ID_FILE" \
		'{role_id: $role_id, secret_id: $secret_id} | map_values(rtrimstr("\n"))')" || return
	vault_token=$(field .auth.client_token)
	login_again_at=$((SECONDS + $(field '.auth.lease_duration / 2 | floor')))
	say "logged in to Vault"
}

# read_token reads the app's token. Without a lease there is nothing to renew: ttl says when to read again.
read_token() {
	ask GET "$mount/creds/$app" || return
	token=$(field .data.access_token)
	lease_id=$(field .lease_id)
	due=$((SECONDS + $(field 'if .lease_id == "" then .data.ttl else .lease_duration / 2 | floor end')))
	say "read the token at $mount/creds/$app"
}

# renew extends the token at DingTalk by renewing the lease, and fails where that is not to be done or does not work. A
# Proxy renews by itself, and would cache the answer to a renewal like any other. A lease gets one second more where the
# app has another token now.
renew() {
	[ -n "$lease_id" ] && [ -z "${VAULT_AGENT_ADDR:-}" ] || return
	ask PUT sys/leases/renew "$(printf '{"lease_id":"%s"}' "$lease_id")" || return
	due=$((SECONDS + $(field '.lease_duration / 2 | floor')))
	[ "$(field .lease_duration)" -gt 1 ]
}

# get_token sees to it that there is a token, renewing or reading when it is time.
get_token() {
	[ "$SECONDS" -ge "$due" ] || return 0
	renew || read_token && return
	# The lease ends before the token does: while Vault is away this one may be good for a while.
	[ -n "$token" ] || return
	say "going on with the current token"
	due=$((SECONDS + 5))
}

# replace_token gets another token than the current one, which DingTalk refused: it may have been ended there before its time.
replace_token() {
	due=0
	# The engine takes its token for good until it is told which one DingTalk refused. If it has another by then, it fetches
	# none: however many apps are refused, it is one call, and at most one in 10 seconds.
	ask PUT "$mount/refresh/$app" "$(printf %s "$token" | jq -Rs '{rejected_token: .}')" || return
	if [ -n "$lease_id" ]; then
		# Revoking makes a Proxy drop its copy of the answer: if it came before the refresh, somebody else's read could have
		# the refused token copied again. The Proxy takes notice only of a lease in the body, and of an answer that comes when
		# the lease has gone. To Vault and DingTalk it does not matter: the token goes on as it is.
		ask PUT sys/leases/revoke "$(printf '{"lease_id":"%s","sync":true}' "$lease_id")" || say "the lease was not revoked"
		lease_id=
		[ -z "${VAULT_AGENT_ADDR:-}" ] || sleep 0.1 # the copy goes a moment after the answer
	fi
	read_token
}

# list_apps makes the call.
list_apps() {
	fetch "$base_url/v1.0/microApp/allInnerApps" "x-acs-dingtalk-access-token: $token" --max-time 10 </dev/null || return
	if [ "$status" != 200 ] || ! field -e .appList >/dev/null 2>&1; then
		# The message is left out: it may repeat what was sent.
		say "DingTalk: status $status, $(field '"code \(.code), request id \(.requestid)"' 2>/dev/null)"
		return 1
	fi
	echo "apps: $(field '.appList | length')"
}

# call lists the apps, and once more with another token where DingTalk refuses this one.
call() {
	get_token || return
	list_apps && return
	# An invalid token is a 400 here, like much else: only the code tells.
	[ "$status" = 400 ] && [ "$(field .code 2>/dev/null)" = InvalidAuthentication ] || return
	say "DingTalk refused the token"
	replace_token && list_apps
}

if [ -z "${CALL_EVERY:-}" ]; then
	call
	exit
fi
while :; do
	call || true
	sleep "$CALL_EVERY"
done
