#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Calls one of DingTalk's APIs with an access token from Vault. README.md has the settings. Python 3.9 or later."""

import json
import os
import sys
import time
import urllib.parse
import urllib.request

env = os.environ.get
vault_addr, vault_token = env("VAULT_ADDR", "https://127.0.0.1:8200"), env("VAULT_TOKEN", "")
mount, app = env("DINGTALK_MOUNT", "dingtalk"), env("DINGTALK_APP", "")
base_url, old_url = env("DINGTALK_BASE_URL", "https://api.dingtalk.io"), env("DINGTALK_OLD_URL")
assert not old_url or "://" in old_url, "DINGTALK_OLD_URL is no URL"  # urllib's error would have the token
every, token, due = float(env("CALL_EVERY", 0)), "", 0.0  # due is when to read the token again


class AsItComes(urllib.request.HTTPErrorProcessor):
    """Returns every response, whatever its status. A redirect would send the token elsewhere."""
    http_response = https_response = lambda self, request, response: response


def send(method, url, headers, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers}, method=method)
    with urllib.request.build_opener(AsItComes).open(request, timeout=60) as response:
        text = response.read()
    return response.status, json.loads(text) if text.startswith(b"{") else {"code": "no JSON"}


def vault(method, path, body=None):
    headers = {"X-Vault-Token": vault_token, "X-Vault-Request": "true"}
    status, response = send(method, f"{vault_addr}/v1/{path}", headers, body)
    if status >= 300:
        raise RuntimeError(f"Vault, {method} {path}: {status} {response.get('errors')}")
    return response


def read():
    global token, due
    try:
        response = vault("GET", f"{mount}/creds/{app}")
        token = response["data"]["access_token"]
        # A read in the second half of a lease extends the token. Without a lease, ttl says when to read again.
        due = time.monotonic() + (response["lease_duration"] * 2 / 3 or response["data"]["ttl"])
        print(f"read {mount}/creds/{app}", file=sys.stderr)
    except Exception as error:
        if not token:
            raise
        due = time.monotonic() + 5
        print(f"going on with the current token: {error}", file=sys.stderr)


def call():
    """Returns the response's status and codes, and its JSON. The old host's status is always 200."""
    if old_url:
        query = urllib.parse.urlencode({"access_token": token})
        status, response = send("POST", f"{old_url}/topapi/v2/department/listsub?{query}", {}, {})
    else:
        status, response = send("GET", f"{base_url}/v1.0/microApp/allInnerApps", {"x-acs-dingtalk-access-token": token})
    codes = [response[name] for name in ("code", "errcode", "sub_code") if name in response]
    return " ".join(map(str, [status, *codes])), response


while True:
    if time.monotonic() >= due:
        read()
    code, response = call()
    if code in ("400 InvalidAuthentication", "200 88 40014", "200 40014"):
        print(f"DingTalk refused the token: {code}", file=sys.stderr)
        vault("POST", f"{mount}/refresh/{app}", {"rejected_token": token})
        read()
        code, response = call()
    if code not in ("200", "200 0"):
        sys.exit(f"DingTalk: {code}")
    print(json.dumps(response), flush=True)
    every or sys.exit()
    time.sleep(every)
