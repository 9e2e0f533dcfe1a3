// SPDX-License-Identifier: MPL-2.0

// Calls one of DingTalk's APIs with an access token from Vault. README.md has the settings.

using System;
using System.Linq;
using System.Net.Http;
using System.Text;
using System.Text.RegularExpressions;
using System.Threading;

static class App {
    // A redirect would send the token elsewhere.
    static readonly HttpClient http = new HttpClient(new HttpClientHandler { AllowAutoRedirect = false });
    static readonly string path = Env("DINGTALK_MOUNT", "dingtalk") + "/{0}/" + Env("DINGTALK_APP", "");
    static string token;
    static DateTime due; // when to read the token again
    static string Env(string name, string otherwise) => Environment.GetEnvironmentVariable(name) ?? otherwise;
    // The first text or number of this name in JSON, not decoded. A JSON library does more.
    static string Field(string json, string name) =>
        Regex.Match(json, '"' + name + "\":\\s*\"?((?:[^\"\\\\,}]|\\\\.)*)").Groups[1].Value;
    static string[] Send(string method, string url, string header, string value, string body) {
        var request = new HttpRequestMessage(new HttpMethod(method), url);
        request.Headers.Add(header, value);
        request.Headers.Add("X-Vault-Request", "true");
        if (body != null) request.Content = new StringContent(body, Encoding.UTF8, "application/json");
        var response = http.SendAsync(request).Result;
        return new[] { (int)response.StatusCode + "", response.Content.ReadAsStringAsync().Result.Trim() };
    }
    static string Vault(string method, string path, string body) {
        var url = Env("VAULT_ADDR", "https://127.0.0.1:8200") + "/v1/" + path;
        var response = Send(method, url, "X-Vault-Token", Env("VAULT_TOKEN", ""), body);
        if (response[0][0] == '2') return response[1];
        throw new Exception("Vault, " + method + " " + path + ": " + response[0] + " " + response[1]);
    }

    static void Read() {
        try {
            var response = Vault("GET", string.Format(path, "creds"), null);
            token = Field(response, "access_token");
            // A read in the second half of a lease extends the token. Without a lease, ttl says when to read again.
            var life = int.Parse(Field(response, "lease_duration")) * 2 / 3;
            due = DateTime.UtcNow.AddSeconds(life > 0 ? life : int.Parse(Field(response, "ttl")));
            Console.Error.WriteLine("read " + path, "creds");
        } catch (Exception e) {
            if (token == null) throw;
            due = DateTime.UtcNow.AddSeconds(5);
            Console.Error.WriteLine("going on with the current token: " + e.GetBaseException().Message);
        }
    }
    // Returns the response's status and codes, and its body. The old host's status is always 200.
    static string[] Call() {
        string api = Env("DINGTALK_BASE_URL", "https://api.dingtalk.io"), old = Env("DINGTALK_OLD_URL", "");
        var query = "?access_token=" + Uri.EscapeDataString(token);
        var response = old == ""
            ? Send("GET", api + "/v1.0/microApp/allInnerApps", "x-acs-dingtalk-access-token", token, null)
            : Send("POST", old + "/topapi/v2/department/listsub" + query, "Accept", "application/json", "{}");
        if (!response[1].StartsWith("{")) throw new Exception("DingTalk: " + response[0] + " no JSON");
        Func<string, string> code = name => " " + Field(response[1], name);
        var codes = response[0] == "200" ? code("errcode") + code("sub_code") : code("code");
        return new[] { (response[0] + codes).Trim(), response[1] };
    }

    static void Main() {
        string[] accepted = { "200", "200 0" }, refused = { "400 InvalidAuthentication", "200 88 40014", "200 40014" };
        for (var every = TimeSpan.FromSeconds(double.Parse(Env("CALL_EVERY", "0")));; Thread.Sleep(every)) {
            if (DateTime.UtcNow >= due) Read();
            var response = Call();
            if (refused.Contains(response[0])) {
                Console.Error.WriteLine("DingTalk refused the token: " + response[0]);
                Vault("POST", string.Format(path, "refresh"), "{\"rejected_token\":\"" + token + "\"}");
                Read();
                response = Call();
            }
            if (!accepted.Contains(response[0])) throw new Exception("DingTalk: " + response[0]);
            Console.WriteLine(response[1]);
            if (every == TimeSpan.Zero) return;
        }
    }
}
