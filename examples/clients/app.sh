#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
#
# Calls one of DingTalk's APIs with an access token from Vault, with curl and jq. README.md has the
# settings. No secret is on a command line, which every user of the machine can read: printf is
# built into bash, and curl reads its output.

set -euo pipefail

mount=${DINGTALK_MOUNT:-dingtalk} app=${DINGTALK_APP:-}
every=${CALL_EVERY:-0}
token='' due=0 # due is when to read the token again, on the clock of $SECONDS
status=0 body='' # of the last response

say() { printf '%s\n' "$*" >&2; }

# field prints a field of the last response, or nothing.
field() { jq -r "$1 // empty" <<<"$body" 2>/dev/null || true; }

# send METHOD URL HEADER BODY makes a request.
send() {
	local response
	response=$(curl -sS --max-time 60 -X "$1" -w '\n%{http_code}' -H 'X-Vault-Request: true' \
		-H 'Content-Type: application/json' -H @<(printf '%s\n' "$3") -d @<(printf '%s' "$4") \
		-K <(printf 'url = "%s"\n' "$2")) || return
	status=${response##*$'\n'} body=${response%$'\n'*}
}

# vault METHOD PATH [BODY] makes a request of Vault.
vault() {
	send "$1" "${VAULT_ADDR:-https://127.0.0.1:8200}/v1/$2" "X-Vault-Token: ${VAULT_TOKEN:-}" "${3:-}" || return
	[ "$status" -lt 300 ] || { say "Vault, $1 $2: $status $(field '.errors | join("; ")')"; return 1; }
}

read_token() {
	if vault GET "$mount/creds/$app"; then
		token=$(field .data.access_token)
		# A read in the second half of a lease extends the token. Without a lease, ttl says when to read
		# again.
		due=$((SECONDS + $(field 'if .lease_id == "" then .data.ttl else .lease_duration * 2 / 3 | floor end')))
		say "read $mount/creds/$app"
	elif [ -n "$token" ]; then
		say "going on with the current token"
		due=$((SECONDS + 5))
	else
		return 1
	fi
}

# call sets code to the response's status and codes. The old host's status is always 200.
call() {
	if [ -n "${DINGTALK_OLD_URL:-}" ]; then
		send POST "$DINGTALK_OLD_URL/topapi/v2/department/listsub?access_token=$(jq -Rr @uri <<<"$token")" '' '{}'
	else
		send GET "${DINGTALK_BASE_URL:-https://api.dingtalk.io}/v1.0/microApp/allInnerApps" \
			"x-acs-dingtalk-access-token: $token" ''
	fi
	code=$(jq -r --arg status "$status" '[$status, (.code, .errcode, .sub_code | values)] | join(" ")' <<<"$body") ||
		code="$status no JSON"
}

while true; do
	[ "$SECONDS" -lt "$due" ] || read_token
	call
	case $code in "400 InvalidAuthentication" | "200 88 40014" | "200 40014")
		say "DingTalk refused the token: $code"
		vault POST "$mount/refresh/$app" "$(printf %s "$token" | jq -R '{rejected_token: .}')"
		read_token
		call
		;;
	esac
	case $code in "200" | "200 0") printf '%s\n' "$body" ;; *) say "DingTalk: $code" && exit 1 ;; esac
	[ "$every" != 0 ] || break
	sleep "$every"
done
