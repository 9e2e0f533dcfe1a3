#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Calls one of DingTalk's APIs with an access token from Vault, with nothing but Python's standard library.

It lists the organisation's apps, once, or again and again until it is interrupted. The environment says how:

    DINGTALK_APP           the app's name in Vault: the token is read from creds/<name>; required
    DINGTALK_MOUNT         where the secrets engine is mounted; dingtalk
    DINGTALK_BASE_URL      DingTalk's API; https://api.dingtalk.io, and https://api.dingtalk.com for the China edition
    CALL_EVERY             seconds from one call to the next; without it there is one call
    VAULT_ADDR             Vault, as for the CLI; https://127.0.0.1:8200
    VAULT_CACERT           a file with the certificate of the authority that signed Vault's
    VAULT_AGENT_ADDR       a Vault Proxy, which is talked to in place of Vault and keeps alive what it hands out
    VAULT_ROLE_ID_FILE     files with the two halves of an AppRole login; without them VAULT_TOKEN counts, and behind a
    VAULT_SECRET_ID_FILE   Proxy that logs in itself nothing is needed
    VAULT_AUTH_PATH        where AppRole is enabled; auth/approle

Nothing here prints a token or a secret.
"""

import http.client
import json
import os
import ssl
import sys
import time
import urllib.request


def say(text):
    print(text, file=sys.stderr, flush=True)


class AsItComes(urllib.request.HTTPErrorProcessor):
    """Has every answer given back, whatever its status. A redirect is not followed: it would take a token elsewhere."""

    def http_response(self, request, response):
        return response

    https_response = http_response


def send(opener, method, url, headers, body=None, timeout=10):
    """Makes a request and returns the answer's status and its JSON object, which is empty where it is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    with opener.open(request, timeout=timeout) as response:
        text = response.read()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    return response.status, answer if isinstance(answer, dict) else {}


class Failure(Exception):
    """What Vault or DingTalk answered in place of what was asked for."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Vault:
    """Vault, as somebody who logs in by AppRole. The login is renewed by logging in again."""

    def __init__(self, env):
        self.address = (env.get("VAULT_AGENT_ADDR") or env.get("VAULT_ADDR") or "https://127.0.0.1:8200").rstrip("/")
        self.auth_path = env.get("VAULT_AUTH_PATH") or "auth/approle"
        self.files = {"role_id": env.get("VAULT_ROLE_ID_FILE"), "secret_id": env.get("VAULT_SECRET_ID_FILE")}
        self.logs_in = bool(self.files["role_id"])
        self.token = env.get("VAULT_TOKEN")
        self.login_again_at = 0.0
        context = ssl.create_default_context(cafile=env.get("VAULT_CACERT"))
        self.opener = urllib.request.build_opener(AsItComes, urllib.request.HTTPSHandler(context=context))

    def ask(self, method, path, body=None):
        """Makes a request, after a login where it is time for one, and once more where Vault refuses the last one's token."""
        if self.logs_in and time.monotonic() >= self.login_again_at:
            self.log_in()
        try:
            return self.request(method, path, body)
        except Failure as failure:
            if failure.status != 403 or not self.logs_in:
                raise
        self.log_in()
        return self.request(method, path, body)

    def log_in(self):
        self.token = None
        body = {}
        for field, name in self.files.items():
            with open(name, encoding="ascii") as file:
                body[field] = file.read().strip()
        auth = self.request("POST", f"{self.auth_path}/login", body)["auth"]
        self.token = auth["client_token"]
        self.login_again_at = time.monotonic() + auth["lease_duration"] / 2
        say("logged in to Vault")

    def request(self, method, path, body=None):
        headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if self.token:
            headers["X-Vault-Token"] = self.token
        status, answer = send(self.opener, method, f"{self.address}/v1/{path}", headers, body, timeout=60)
        if status >= 300:
            raise Failure(status, f"Vault, {method} {path}: {status} {'; '.join(answer.get('errors') or [])}")
        for warning in answer.get("warnings") or []:
            say(f"Vault warns: {warning}")
        return answer


class Tokens:
    """The access token of one app, kept alive and replaced where DingTalk refuses it. For one thread."""

    def __init__(self, vault, env):
        self.vault = vault
        self.mount = env.get("DINGTALK_MOUNT") or "dingtalk"
        self.app = env["DINGTALK_APP"]
        # A Proxy renews by itself, and would cache the answer to a renewal like any other.
        self.proxied = bool(env.get("VAULT_AGENT_ADDR"))
        self.value = None
        self.lease_id = ""
        self.due = 0.0  # when to renew or to read again

    def get(self):
        """Returns the current token, after renewing its lease or reading again when it is time."""
        if time.monotonic() < self.due:
            return self.value
        try:
            if not self.renew():
                self.read()
        except (Failure, OSError, http.client.HTTPException) as error:
            if not self.value:
                raise
            # The lease ends before the token does: while Vault is away this one may be good for a while.
            say(f"going on with the current token: {error}")
            self.due = time.monotonic() + 5
        return self.value

    def replace(self):
        """Gets another token than the current one, which DingTalk refused: it may have been ended there before its time."""
        self.due = 0.0
        # The engine takes its token for good until it is told which one DingTalk refused. If it has another by then, it
        # fetches none: however many apps are refused, it is one call, and at most one in 10 seconds.
        self.vault.ask("PUT", f"{self.mount}/refresh/{self.app}", {"rejected_token": self.value})
        if self.lease_id:
            # Revoking makes a Proxy drop its copy of the answer: if it came before the refresh, somebody else's read could have
            # the refused token copied again. The Proxy takes notice only of a lease in the body, and of an answer that comes
            # when the lease has gone. To Vault and DingTalk it does not matter: the token goes on as it is.
            try:
                self.vault.ask("PUT", "sys/leases/revoke", {"lease_id": self.lease_id, "sync": True})
            except Failure as failure:
                say(f"the lease was not revoked: {failure}")
            self.lease_id = ""
            if self.proxied:
                time.sleep(0.1)  # the copy goes a moment after the answer
        self.read()
        return self.value

    def renew(self):
        """Extends the token at DingTalk by renewing the lease, and tells whether that was to be done and worked."""
        if not self.lease_id or self.proxied:
            return False
        try:
            life = self.vault.ask("PUT", "sys/leases/renew", {"lease_id": self.lease_id})["lease_duration"]
        except Failure:
            return False  # it ended, with the login perhaps
        self.due = time.monotonic() + life / 2
        return life > 1  # a lease gets one second more where the app has another token now

    def read(self):
        path = f"{self.mount}/creds/{self.app}"
        answer = self.vault.ask("GET", path)
        data = answer["data"]
        self.value = data["access_token"]
        self.lease_id = answer["lease_id"]
        # Without a lease there is nothing to renew: ttl says when to read again.
        self.due = time.monotonic() + (answer["lease_duration"] / 2 if self.lease_id else data["ttl"])
        say(f"read the token at {path}")


def list_apps(opener, base_url, token):
    url = f"{base_url}/v1.0/microApp/allInnerApps"
    return send(opener, "GET", url, {"x-acs-dingtalk-access-token": token})


def count_apps(tokens, opener, base_url):
    """Makes the call, and once more with another token where DingTalk refuses this one."""
    status, answer = list_apps(opener, base_url, tokens.get())
    # An invalid token is a 400 here, like much else: only the code tells.
    if status != 200 and answer.get("code") == "InvalidAuthentication":
        say(f"DingTalk refused the token: request id {answer.get('requestid')}")
        status, answer = list_apps(opener, base_url, tokens.replace())
    if status != 200 or "appList" not in answer:
        # The message is left out: it may repeat what was sent.
        raise Failure(status, f"DingTalk: status {status}, code {answer.get('code')}, request id {answer.get('requestid')}")
    return len(answer["appList"])


def main(env):
    if not env.get("DINGTALK_APP"):
        sys.exit("DINGTALK_APP is not set: the name of an app in Vault")
    try:
        pause = float(env.get("CALL_EVERY") or 0)
    except ValueError:
        sys.exit("CALL_EVERY is not a number of seconds")
    base_url = env.get("DINGTALK_BASE_URL") or "https://api.dingtalk.io"
    tokens = Tokens(Vault(env), env)
    opener = urllib.request.build_opener(AsItComes)
    while True:
        try:
            print(f"apps: {count_apps(tokens, opener, base_url)}", flush=True)
        except (Failure, OSError, http.client.HTTPException) as error:
            if not pause:
                sys.exit(str(error))
            say(error)
        if not pause:
            return
        time.sleep(pause)


if __name__ == "__main__":
    try:
        main(os.environ)
    except KeyboardInterrupt:
        sys.exit(130)
