<?php
// SPDX-License-Identifier: MPL-2.0
// Calls one of DingTalk's APIs with an access token from Vault. README.md has the settings. PHP 8: php app.php

function env(string $name, string $otherwise = ''): string
{
    return getenv($name) ?: $otherwise;
}

/** Makes a request, and returns the response's status and its JSON as an array. */
function send(string $method, string $url, array $headers, ?array $body = null): array
{
    $context = stream_context_create(['http' => [
        'method' => $method,
        'header' => [...$headers, 'Content-Type: application/json'],
        'content' => is_null($body) ? '' : json_encode((object) $body),
        'ignore_errors' => true, // returns the response whatever its status
        'follow_location' => 0, // a redirect would send the token elsewhere
        'timeout' => 60,
    ]]);
    $text = @file_get_contents($url, false, $context); // PHP's warning would have the URL and the token
    if ($text === false) {
        throw new Exception('cannot connect to ' . parse_url($url, PHP_URL_HOST));
    }
    preg_match('/ (\d+)/', $http_response_header[0], $status);
    return [(int) $status[1], json_decode($text, true) ?? ['code' => 'no JSON']];
}

function vault(string $method, string $path, ?array $body = null): array
{
    $headers = ['X-Vault-Token: ' . env('VAULT_TOKEN'), 'X-Vault-Request: true'];
    [$status, $response] = send($method, env('VAULT_ADDR', 'https://127.0.0.1:8200') . "/v1/$path", $headers, $body);
    $status < 300 || throw new Exception("Vault, $method $path: $status " . implode('; ', $response['errors'] ?? []));
    return $response;
}

/** Returns the response's status and codes, and its JSON. The old host's status is always 200. */
function call(string $token): array
{
    if ($old = env('DINGTALK_OLD_URL')) {
        $query = '?access_token=' . urlencode($token);
        [$status, $response] = send('POST', "$old/topapi/v2/department/listsub$query", [], []);
    } else {
        $url = env('DINGTALK_BASE_URL', 'https://api.dingtalk.io') . '/v1.0/microApp/allInnerApps';
        [$status, $response] = send('GET', $url, ["x-acs-dingtalk-access-token: $token"]);
    }
    $codes = array_intersect_key($response, ['code' => 1, 'errcode' => 1, 'sub_code' => 1]);
    return [implode(' ', [$status, ...array_values($codes)]), $response];
}

// PHP's own handler would print the arguments of the functions, and the token with them.
set_exception_handler(fn ($e) => fwrite(STDERR, $e->getMessage() . "\n") && exit(1));
$path = env('DINGTALK_MOUNT', 'dingtalk') . '/%s/' . env('DINGTALK_APP');
[$token, $due] = [null, 0]; // due is when to read the token again
$read = function () use ($path, &$token, &$due): void {
    try {
        $response = vault('GET', sprintf($path, 'creds'));
        $token = $response['data']['access_token'];
        // A read in the second half of a lease extends the token. Without a lease, ttl says when to read again.
        $due = time() + (intdiv($response['lease_duration'] * 2, 3) ?: $response['data']['ttl']);
        fwrite(STDERR, 'read ' . sprintf($path, 'creds') . "\n");
    } catch (Exception $e) {
        $due = time() + 5;
        $token ?? throw $e;
        fwrite(STDERR, "going on with the current token: {$e->getMessage()}\n");
    }
};
for ($every = (float) env('CALL_EVERY', '0');; usleep((int) ($every * 1e6))) {
    time() < $due || $read();
    [$code, $response] = call($token);
    if (in_array($code, ['400 InvalidAuthentication', '200 88 40014', '200 40014'])) {
        fwrite(STDERR, "DingTalk refused the token: $code\n");
        vault('POST', sprintf($path, 'refresh'), ['rejected_token' => $token]);
        $read();
        [$code, $response] = call($token);
    }
    in_array($code, ['200', '200 0']) || throw new Exception("DingTalk: $code");
    echo json_encode($response), "\n";
    $every || exit;
}
