// SPDX-License-Identifier: MPL-2.0

import java.net.*;
import java.net.http.*;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Set;

/** Calls one of DingTalk's APIs with an access token from Vault. README.md has the settings. Java 17: java App.java */
public class App {
    static final HttpClient http = HttpClient.newHttpClient(); // follows no redirect: it would send the token elsewhere
    static final String path = env("DINGTALK_MOUNT", "dingtalk") + "/%s/" + env("DINGTALK_APP", "");
    static final String newUrl = env("DINGTALK_BASE_URL", "https://api.dingtalk.io");
    static final URI oldUrl = URI.create(env("DINGTALK_OLD_URL", "")); // parsed here, where an error has no token in it
    static String token = "";
    static long due; // when to read the token again

    static String env(String name, String otherwise) { return System.getenv().getOrDefault(name, otherwise); }

    static HttpResponse<String> send(String method, String url, String body, String... headers) throws Exception {
        return http.send(HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(60)).headers(headers)
            .method(method, HttpRequest.BodyPublishers.ofString(body)).build(), HttpResponse.BodyHandlers.ofString());
    }

    /** The first text or number of this name in JSON, not decoded. A JSON library does more. */
    static String field(String json, String name) {
        var found = java.util.regex.Pattern.compile('"' + name + "\":\\s*\"?((?:[^\"\\\\,}]|\\\\.)*)").matcher(json);
        return found.find() ? found.group(1) : "";
    }

    static String vault(String method, String path, String body) throws Exception {
        var response = send(method, env("VAULT_ADDR", "https://127.0.0.1:8200") + "/v1/" + path, body,
            "X-Vault-Token", env("VAULT_TOKEN", ""), "X-Vault-Request", "true");
        if (response.statusCode() < 300) return response.body();
        throw new Exception("Vault, %s %s: %s %s".formatted(method, path, response.statusCode(), response.body().strip()));
    }

    static void read() throws Exception {
        try {
            var response = vault("GET", path.formatted("creds"), "");
            token = field(response, "access_token");
            // A read in the second half of a lease extends the token. Without a lease, ttl says when to read again.
            var life = Long.parseLong(field(response, "lease_duration")) * 2 / 3;
            due = System.nanoTime() + (life > 0 ? life : Long.parseLong(field(response, "ttl"))) * 1_000_000_000;
            System.err.println("read " + path.formatted("creds"));
        } catch (Exception e) {
            if (token.isEmpty()) throw e;
            due = System.nanoTime() + 5_000_000_000L;
            System.err.println("going on with the current token: " + e);
        }
    }

    /** Returns the response's status and codes, and its body. The old host's status is always 200. */
    static String[] call() throws Exception {
        var query = "?access_token=" + URLEncoder.encode(token, StandardCharsets.UTF_8);
        var response = oldUrl.toString().isEmpty()
            ? send("GET", newUrl + "/v1.0/microApp/allInnerApps", "", "x-acs-dingtalk-access-token", token)
            : send("POST", oldUrl + "/topapi/v2/department/listsub" + query, "{}", "Content-Type", "application/json");
        String status = "" + response.statusCode(), body = response.body();
        if (!body.startsWith("{")) throw new Exception("DingTalk: " + status + " no JSON");
        var codes = status.equals("200") ? field(body, "errcode") + " " + field(body, "sub_code") : field(body, "code");
        return new String[] {(status + " " + codes).strip(), body};
    }

    public static void main(String[] args) throws Exception {
        for (var every = (long) (1000 * Double.parseDouble(env("CALL_EVERY", "0")));; Thread.sleep(every)) {
            if (token.isEmpty() || System.nanoTime() >= due) read();
            var response = call();
            if (Set.of("400 InvalidAuthentication", "200 88 40014", "200 40014").contains(response[0])) {
                System.err.println("DingTalk refused the token: " + response[0]);
                vault("POST", path.formatted("refresh"), "{\"rejected_token\":\"" + token + "\"}");
                read();
                response = call();
            }
            if (!Set.of("200", "200 0").contains(response[0])) throw new Exception("DingTalk: " + response[0]);
            System.out.println(response[1]);
            if (every == 0) return;
        }
    }
}
