<?php
// SPDX-License-Identifier: MPL-2.0
// Calls an API of DingTalk's with an access token from Vault. README.md has the settings. PHP 8: php app.php

function env(string $name, string $otherwise = ''): string
{
    return getenv($name) ?: $otherwise;
}

/** Makes a request: the answer's status, and its JSON as an array. */
function send(string $method, string $url, array $headers, ?array $body = null): array
{
    $context = stream_context_create(['http' => [
        'method' => $method,
        'header' => [...$headers, 'Content-Type: application/json'],
        'content' => is_null($body) ? '' : json_encode((object) $body),
        'ignore_errors' => true, // gives the answer whatever its status
        'follow_location' => 0, // a redirect would take the token elsewhere
        'timeout' => 60,
    ]]);
    $text = @file_get_contents($url, false, $context); // whose own warning has the URL, and a token with it
    if ($text === false) {
        throw new Exception('cannot connect to ' . parse_url($url, PHP_URL_HOST));
    }
    preg_match('/ (\d+)/', $http_response_header[0], $status);
    return [(int) $status[1], json_decode($text, true) ?? ['code' => 'no JSON']];
}

function vault(string $method, string $path, ?array $body = null): array
{
    $headers = ['X-Vault-Token: ' . env('VAULT_TOKEN'), 'X-Vault-Request: true'];
    [$status, $answer] = send($method, env('VAULT_ADDR', 'https://127.0.0.1:8200') . "/v1/$path", $headers, $body);
    $status < 300 || throw new Exception("Vault, $method $path: $status " . implode('; ', $answer['errors'] ?? []));
    return $answer;
}

/** Returns the answer's status and codes, and the answer. The old host's status is 200 whatever is wrong. */
function call(string $token): array
{
    if ($old = env('DINGTALK_OLD_URL')) {
        $query = '?access_token=' . urlencode($token);
        [$status, $answer] = send('POST', "$old/topapi/v2/department/listsub$query", [], []);
    } else {
        $url = env('DINGTALK_BASE_URL', 'https://api.dingtalk.io') . '/v1.0/microApp/allInnerApps';
        [$status, $answer] = send('GET', $url, ["x-acs-dingtalk-access-token: $token"]);
    }
    $codes = array_intersect_key($answer, ['code' => 1, 'errcode' => 1, 'sub_code' => 1]);
    return [implode(' ', [$status, ...array_values($codes)]), $answer];
}

// PHP's own handler would print what the functions were called with, and a token with that.
set_exception_handler(fn ($e) => fwrite(STDERR, $e->getMessage() . "\n") && exit(1));
$path = env('DINGTALK_MOUNT', 'dingtalk') . '/%s/' . env('DINGTALK_APP');
[$token, $due] = [null, 0]; // due is when to read the token again
$read = function () use ($path, &$token, &$due): void {
    try {
        $answer = vault('GET', sprintf($path, 'creds'));
        $token = $answer['data']['access_token'];
        // Reading in the second half of a lease extends the token. Without a lease, ttl says when to come back.
        $due = time() + (intdiv($answer['lease_duration'] * 2, 3) ?: $answer['data']['ttl']);
        fwrite(STDERR, 'read ' . sprintf($path, 'creds') . "\n");
    } catch (Exception $e) {
        $due = time() + 5;
        $token ?? throw $e;
        fwrite(STDERR, "going on with the current token: {$e->getMessage()}\n");
    }
};
for ($every = (float) env('CALL_EVERY', '0');; usleep((int) ($every * 1e6))) {
    time() < $due || $read();
    [$code, $answer] = call($token);
    if (in_array($code, ['400 InvalidAuthentication', '200 88 40014', '200 40014'])) {
        fwrite(STDERR, "DingTalk refused the token: $code\n");
        vault('POST', sprintf($path, 'refresh'), ['rejected_token' => $token]);
        $read();
        [$code, $answer] = call($token);
    }
    in_array($code, ['200', '200 0']) || throw new Exception("DingTalk: $code");
    echo json_encode($answer), "\n";
    $every || exit;
}
