// SPDX-License-Identifier: MPL-2.0

// Command clients calls one of DingTalk's APIs with an access token from Vault. README.md has the settings.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"time"

	vault "github.com/hashicorp/vault/api"
)

var (
	path       = cmp.Or(os.Getenv("DINGTALK_MOUNT"), "dingtalk") + "/%s/" + os.Getenv("DINGTALK_APP")
	api, old   = cmp.Or(os.Getenv("DINGTALK_BASE_URL"), "https://api.dingtalk.io"), os.Getenv("DINGTALK_OLD_URL")
	token, due = "", time.Time{} // due is when to read the token again
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func read(v *vault.Logical) {
	secret, err := v.Read(fmt.Sprintf(path, "creds"))
	if due = time.Now().Add(5 * time.Second); err != nil && token != "" {
		log.Printf("going on with the current token: %v", err)
		return
	}
	token = fmt.Sprint(must(secret, err).Data["access_token"])
	// A read in the second half of a lease extends the token. Without a lease, ttl says when to read again.
	ttl, _ := time.ParseDuration(fmt.Sprint(secret.Data["ttl"], "s"))
	due = time.Now().Add(max(time.Duration(secret.LeaseDuration)*time.Second*2/3, ttl))
	log.Printf("read "+path, "creds")
}

// call returns a response's status, code, errcode and sub_code, and its JSON. The old host's status is always 200.
func call() (codes string, body map[string]json.RawMessage) {
	defer time.AfterFunc(time.Minute, func() { log.Fatal("DingTalk: no response within a minute") }).Stop()
	request := &http.Request{URL: must(url.Parse(api + "/v1.0/microApp/allInnerApps")), Header: http.Header{}}
	request.Header.Set("x-acs-dingtalk-access-token", token)
	if old != "" {
		request = &http.Request{Method: http.MethodPost, URL: must(url.Parse(old)), Header: http.Header{}}
		request.URL.Path, request.URL.RawQuery = "/topapi/v2/department/listsub", "access_token="+url.QueryEscape(token)
	}
	response := must(http.DefaultTransport.RoundTrip(request)) // no redirect is followed, and no error has the URL
	defer response.Body.Close()
	must(0, json.NewDecoder(response.Body).Decode(&body))
	return fmt.Sprintf("%d,%s,%s,%s", response.StatusCode, body["code"], body["errcode"], body["sub_code"]), body
}

func main() {
	v := must(vault.NewClient(nil)).Logical() // configured by the environment
	every, _ := time.ParseDuration(os.Getenv("CALL_EVERY") + "s")
	for more := true; more; more = every > 0 {
		if time.Now().After(due) {
			read(v)
		}
		codes, body := call()
		if codes == `400,"InvalidAuthentication",,` || codes == `200,,88,"40014"` || codes == "200,,40014," {
			log.Printf("DingTalk refused the token: %s", codes)
			must(v.Write(fmt.Sprintf(path, "refresh"), map[string]any{"rejected_token": token}))
			read(v)
			codes, body = call()
		}
		if codes != "200,,," && codes != "200,,0," {
			log.Fatalf("DingTalk: %s", codes)
		}
		must(0, json.NewEncoder(os.Stdout).Encode(body))
		time.Sleep(every)
	}
}
