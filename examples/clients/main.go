// SPDX-License-Identifier: MPL-2.0

// Command clients calls an API of DingTalk's with an access token from Vault, as README.md says.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	vault "github.com/hashicorp/vault/api"
)

var (
	path  = cmp.Or(os.Getenv("DINGTALK_MOUNT"), "dingtalk") + "/%s/" + os.Getenv("DINGTALK_APP")
	token string
	due   time.Time // when to read the token again
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func read(v *vault.Logical) {
	secret, err := v.Read(fmt.Sprintf(path, "creds"))
	if err != nil && token != "" {
		log.Printf("going on with the current token: %v", err)
		due = time.Now().Add(5 * time.Second)
		return
	}
	secret = must(secret, err)
	token = fmt.Sprint(secret.Data["access_token"])
	// Reading in the second half of a lease extends the token. Without a lease, ttl says when to come back.
	ttl, _ := strconv.Atoi(fmt.Sprint(secret.Data["ttl"]))
	due = time.Now().Add(time.Duration(max(secret.LeaseDuration*2/3, ttl)) * time.Second)
	log.Printf("read "+path, "creds")
}

// call returns the answer's status and codes, and the answer. The old host's status is 200 whatever is wrong.
func call() (code, answer string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	address := cmp.Or(os.Getenv("DINGTALK_BASE_URL"), "https://api.dingtalk.io") + "/v1.0/microApp/allInnerApps"
	//nolint:gosec // whoever sets the environment names the host
	request := must(http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody))
	request.Header.Set("x-acs-dingtalk-access-token", token)
	if old := os.Getenv("DINGTALK_OLD_URL"); old != "" {
		//nolint:gosec // as above
		request = must(http.NewRequestWithContext(ctx, http.MethodPost, old+"/topapi/v2/department/listsub", http.NoBody))
		request.URL.RawQuery = url.Values{"access_token": {token}}.Encode()
	}
	// A transport follows no redirect, which would take the token elsewhere, and has no URL in its errors.
	response := must(http.DefaultTransport.RoundTrip(request)) //nolint:bodyclose // it is closed
	defer response.Body.Close()
	body := must(io.ReadAll(response.Body))
	fields := map[string]any{}
	must(fields, json.Unmarshal(body, &fields))
	code = fmt.Sprint(response.StatusCode)
	for _, name := range []string{"code", "errcode", "sub_code"} {
		if fields[name] != nil {
			code += fmt.Sprint(" ", fields[name])
		}
	}
	return code, string(body)
}

func main() {
	v := must(vault.NewClient(nil)).Logical() // configured by the environment
	every, _ := time.ParseDuration(os.Getenv("CALL_EVERY") + "s")
	for ; ; time.Sleep(every) {
		if time.Now().After(due) {
			read(v)
		}
		code, answer := call()
		if code == "400 InvalidAuthentication" || code == "200 88 40014" || code == "200 40014" {
			log.Printf("DingTalk refused the token: %s", code)
			must(v.Write(fmt.Sprintf(path, "refresh"), map[string]any{"rejected_token": token}))
			read(v)
			code, answer = call()
		}
		if code != "200" && code != "200 0" {
			log.Fatalf("DingTalk: %s", code)
		}
		fmt.Println(answer)
		if every == 0 {
			return
		}
	}
}
