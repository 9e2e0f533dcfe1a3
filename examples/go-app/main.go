// SPDX-License-Identifier: MPL-2.0

// Command go-app calls one of DingTalk's APIs with an access token from Vault. It is the model of
// an app that lives with such a token: how it gets one, keeps it alive, and replaces one that
// DingTalk no longer takes. That is all in token.go.
//
// It lists the organisation's apps, once, or again and again until it is interrupted. The
// environment says how:
//
//	DINGTALK_APP           the app's name in Vault: the token is read from creds/<name>; required
//	DINGTALK_MOUNT         where the secrets engine is mounted; dingtalk
//	DINGTALK_BASE_URL      DingTalk's API; https://api.dingtalk.io, and https://api.dingtalk.com for the China edition
//	CALL_EVERY             seconds from one call to the next; without it there is one call
//	VAULT_ADDR             Vault, as for the CLI; VAULT_CACERT and the like count as well
//	VAULT_AGENT_ADDR       a Vault Proxy, which is talked to in place of Vault and keeps alive what it hands out
//	VAULT_ROLE_ID_FILE     files with the two halves of an AppRole login; without them VAULT_TOKEN counts, and behind a
//	VAULT_SECRET_ID_FILE   Proxy that logs in itself nothing is needed
//	VAULT_AUTH_PATH        where AppRole is enabled; auth/approle
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	vault "github.com/hashicorp/vault/api"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	name := os.Getenv("DINGTALK_APP")
	if name == "" {
		return errors.New("DINGTALK_APP is not set: the name of an app in Vault")
	}
	var pause time.Duration
	if every := os.Getenv("CALL_EVERY"); every != "" {
		var err error
		if pause, err = time.ParseDuration(every + "s"); err != nil || pause <= 0 {
			return fmt.Errorf("CALL_EVERY is %q, but must be a number of seconds", every)
		}
	}
	config := vault.DefaultConfig()
	if config.Error != nil {
		return config.Error
	}
	client, err := vault.NewClient(config)
	if err != nil {
		return err
	}
	t := &tokens{
		vault:        client,
		proxied:      config.AgentAddress != "",
		mount:        cmp.Or(os.Getenv("DINGTALK_MOUNT"), "dingtalk"),
		app:          name,
		authPath:     cmp.Or(os.Getenv("VAULT_AUTH_PATH"), "auth/approle"),
		roleIDFile:   os.Getenv("VAULT_ROLE_ID_FILE"),
		secretIDFile: os.Getenv("VAULT_SECRET_ID_FILE"),
	}
	baseURL := cmp.Or(os.Getenv("DINGTALK_BASE_URL"), "https://api.dingtalk.io")
	for {
		count, err := countApps(ctx, t, baseURL)
		if err == nil {
			fmt.Printf("apps: %d\n", count)
		}
		if pause == 0 {
			return err
		}
		if err != nil && ctx.Err() == nil {
			log.Print(err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// countApps makes the call, and once more with another token where DingTalk refuses this one.
func countApps(ctx context.Context, t *tokens, baseURL string) (int, error) {
	token, err := t.get(ctx)
	if err != nil {
		return 0, err
	}
	count, err := listApps(ctx, baseURL, token)
	var refused *apiError
	if errors.As(err, &refused) && refused.Code == "InvalidAuthentication" {
		log.Printf("DingTalk refused the token: %v", err)
		if token, err = t.replace(ctx, token); err != nil {
			return 0, err
		}
		count, err = listApps(ctx, baseURL, token)
	}
	return count, err
}

// apiError is DingTalk's answer to a call that failed. Its message is left out: it may repeat what
// was sent.
type apiError struct {
	Status    int    `json:"-"`
	Code      string `json:"code"`
	RequestID string `json:"requestid"`
}

func (e *apiError) Error() string {
	return fmt.Sprintf("status %d, code %q, request id %q", e.Status, e.Code, e.RequestID)
}

// dingtalk follows no redirect: it would send the token to another host.
var dingtalk = &http.Client{
	Timeout:       10 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func listApps(ctx context.Context, baseURL, token string) (int, error) {
	url := baseURL + "/v1.0/microApp/allInnerApps"
	//nolint:gosec // whoever sets the environment names the host
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, err
	}
	req.Header.Set("x-acs-dingtalk-access-token", token)
	resp, err := dingtalk.Do(req) //nolint:gosec // as above
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 10<<20))
	if err != nil {
		return 0, err
	}
	// An invalid token is a 400 here, like much else: only the code tells.
	if resp.StatusCode != http.StatusOK {
		failed := &apiError{Status: resp.StatusCode}
		_ = json.Unmarshal(body, failed) // a gateway's page has no code
		return 0, failed
	}
	var answer struct {
		AppList []json.RawMessage `json:"appList"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.AppList == nil {
		return 0, errors.New("DingTalk's answer is not a list of apps")
	}
	return len(answer.AppList), nil
}
