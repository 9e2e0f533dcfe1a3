// SPDX-License-Identifier: MPL-2.0

package main

// This file is an app's life with its token. Nothing here prints a token or a secret.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// tokens holds the access token of one app. Its get and replace may be called by many goroutines at
// once.
type tokens struct {
	vault                    *vault.Client
	proxied                  bool // a Vault Proxy renews what it hands out
	mount, app               string
	authPath                 string
	roleIDFile, secretIDFile string // empty where there is no login to do

	mu      sync.Mutex
	value   string // the access token
	leaseID string // empty for an app without leases
	lease   span   // of the access token
	login   span   // of the app's own token of Vault
}

// get returns the current token, or reads one when it is time.
func (t *tokens) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.lease.over() {
		return t.value, nil
	}
	if err := t.read(ctx); err != nil {
		if t.value == "" {
			return "", err
		}
		// The lease ends before the token does: while Vault is away this one may be good for a
		// while.
		log.Printf("going on with the current token: %v", err)
		t.lease = spanOf(5 * time.Second)
	}
	return t.value, nil
}

// replace returns another token than one that DingTalk refused, which may have been ended there
// before its time.
func (t *tokens) replace(ctx context.Context, refused string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.value != refused {
		return t.value, nil // another goroutine was refused too, and came first
	}
	t.lease.end()
	t.lease = span{}
	// The engine takes its token for good until it is told which one DingTalk refused. If it has
	// another by then, it fetches none: however many apps are refused, it is one call, and at most
	// one in 10 seconds.
	secret, err := t.write(ctx, t.mount+"/refresh/"+t.app, map[string]any{"rejected_token": refused})
	if err != nil {
		return "", err
	}
	logWarnings(secret)
	if t.leaseID != "" {
		// Revoking makes a Proxy drop its copy of the answer: if it came before the refresh,
		// somebody else's read could have the refused token copied again. The Proxy takes notice
		// only of a lease in the body, and of an answer that comes when the lease has gone. To
		// Vault and DingTalk it does not matter: the token goes on as it is.
		if _, err := t.write(
			ctx,
			"sys/leases/revoke",
			map[string]any{"lease_id": t.leaseID, "sync": true},
		); err != nil {
			log.Printf("the lease was not revoked: %v", err)
		}
		if t.proxied {
			select {
			case <-time.After(100 * time.Millisecond): // the copy goes a moment after the answer
			case <-ctx.Done():
			}
		}
	}
	err = t.read(ctx)
	return t.value, err
}

// read reads the app's token, and has its lease kept.
func (t *tokens) read(ctx context.Context) error {
	path := t.mount + "/creds/" + t.app
	secret, err := t.ask(ctx, func() (*vault.Secret, error) { return t.vault.Logical().ReadWithContext(ctx, path) })
	if err != nil {
		return err
	}
	if secret == nil {
		return fmt.Errorf("there is nothing at %s", path)
	}
	logWarnings(secret)
	value, ok := secret.Data["access_token"].(string)
	if !ok {
		return fmt.Errorf("there is no access_token at %s", path)
	}
	var lease span
	if secret.LeaseID != "" {
		lease, err = t.keep(secret)
	} else {
		// Without a lease there is nothing to renew: ttl says when to read again.
		ttl, _ := secret.Data["ttl"].(json.Number)
		var seconds int64
		seconds, err = ttl.Int64()
		lease = spanOf(time.Duration(seconds) * time.Second)
	}
	if err != nil {
		return fmt.Errorf("the life of the token at %s: %w", path, err)
	}
	t.lease.end()
	t.value, t.leaseID, t.lease = value, secret.LeaseID, lease
	log.Printf("read the token at %s", path)
	return nil
}

func (t *tokens) write(ctx context.Context, path string, body map[string]any) (*vault.Secret, error) {
	return t.ask(ctx, func() (*vault.Secret, error) { return t.vault.Logical().WriteWithContext(ctx, path, body) })
}

// ask makes a request, after a login where it is time for one, and once more where Vault refuses
// the token of the last.
func (t *tokens) ask(ctx context.Context, request func() (*vault.Secret, error)) (*vault.Secret, error) {
	if t.roleIDFile == "" {
		return request()
	}
	if t.login.over() {
		if err := t.logIn(ctx); err != nil {
			return nil, err
		}
	}
	secret, err := request()
	var refused *vault.ResponseError
	if errors.As(err, &refused) && refused.StatusCode == http.StatusForbidden {
		if err := t.logIn(ctx); err != nil {
			return nil, err
		}
		return request()
	}
	return secret, err
}

// logIn gets the app a token of Vault, and has it kept.
func (t *tokens) logIn(ctx context.Context) error {
	t.login.end()
	t.login = span{}
	t.vault.ClearToken()
	body := make(map[string]any)
	for field, file := range map[string]string{"role_id": t.roleIDFile, "secret_id": t.secretIDFile} {
		content, err := os.ReadFile(file) //nolint:gosec // whoever sets the environment names the files
		if err != nil {
			return err
		}
		body[field] = strings.TrimSpace(string(content))
	}
	secret, err := t.vault.Logical().WriteWithContext(ctx, t.authPath+"/login", body)
	if err != nil {
		return err
	}
	if secret == nil || secret.Auth == nil {
		return fmt.Errorf("%s/login gave no token", t.authPath)
	}
	t.vault.SetToken(secret.Auth.ClientToken)
	if t.login, err = t.keep(secret); err != nil {
		return err
	}
	log.Print("logged in to Vault")
	return nil
}

// keep has a lease or a login renewed for as long as that goes. Renewing a lease extends the token
// at DingTalk. A Proxy renews by itself, and would cache the answer to a renewal like any other:
// behind one this only watches the time.
func (t *tokens) keep(secret *vault.Secret) (span, error) {
	behavior := vault.RenewBehaviorIgnoreErrors
	if t.proxied {
		behavior = vault.RenewBehaviorRenewDisabled
	}
	watcher, err := t.vault.NewLifetimeWatcher(&vault.LifetimeWatcherInput{Secret: secret, RenewBehavior: behavior})
	if err != nil {
		return span{}, err
	}
	ended := make(chan struct{})
	go func() {
		watcher.Start()
		close(ended)
	}()
	return span{ended: ended, stop: watcher.Stop}, nil
}

// span is the time for which something from Vault is good. The zero span is over.
type span struct {
	ended <-chan struct{}
	stop  func()
}

func spanOf(d time.Duration) span {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	return span{ended: ctx.Done(), stop: cancel}
}

func (s span) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return s.ended == nil
	}
}

// end stops what keeps the time.
func (s span) end() {
	if s.stop != nil {
		s.stop()
	}
}

func logWarnings(secret *vault.Secret) {
	if secret == nil {
		return
	}
	for _, warning := range secret.Warnings {
		log.Printf("Vault warns: %s", warning)
	}
}
