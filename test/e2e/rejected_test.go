// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// refresh/<app> with rejected_token: many clients whose token DingTalk ended before its time cost
// one call.

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/test/harness"
)

func TestRejectedToken_of_50_clients_costs_one_call_however_far_apart_they_notice(t *testing.T) {
	t.Parallel()
	const clients = 50
	const spread = 30 * time.Second // longer than the ten seconds for which any refresh counts
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	dead := a.Token(t)
	dt.ExpireTokens(a.Key)

	var all sync.WaitGroup
	for i := range clients {
		client, notices := a.Mount.Vault.Client(t), time.After(spread/(clients-1)*time.Duration(i))
		all.Go(func() {
			<-notices
			refreshed, err := client.Logical().Write(a.RefreshPath(), harness.Fields{"rejected_token": dead})
			if assert.NoError(t, err) {
				assert.Empty(t, refreshed.Warnings)
				assert.Equal(t, "fresh", refreshed.Data["state"])
			}
			secret, err := client.Logical().Read(a.CredsPath())
			if assert.NoError(t, err) {
				assert.Positive(t, dt.Remaining(harness.TokenIn(secret)), "the token lives")
			}
		})
	}
	all.Wait()
	harness.NoteSecret(dt.LastToken(a.Key), "an access token")
	require.Equal(t, 2, a.Calls(), "the first one's, and one for all of them")
}

func TestRejectedToken_that_is_not_the_current_one_fetches_nothing(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	token := a.Token(t)
	rejected := harness.Fields{"rejected_token": harness.NewSecret()}
	refreshed, err := a.Mount.Vault.Root.Logical().Write(a.RefreshPath(), rejected)
	require.NoError(t, err)
	require.Empty(t, refreshed.Warnings)
	require.Equal(t, a.Status(t)["fetched_at"], refreshed.Data["fetched_at"])
	require.Equal(t, 1, a.Calls())
	harness.RequireSameToken(t, a.Token(t), token)
}

func TestRejectedToken_that_is_the_current_one_is_replaced(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	dead := a.Token(t)
	dt.ExpireTokens(a.Key)

	// As people type it: the token on standard input, with the line break that echo adds.
	a.Mount.Vault.CLIWithInput(t, dead+"\n", "write", a.RefreshPath(), "rejected_token=-").Succeeded(t)
	require.Equal(t, 2, a.Calls())
	harness.RequireSameToken(t, a.Token(t), dt.LastToken(a.Key))
	harness.RequireOtherToken(t, a.Token(t), dead)
}

// It may be a secret, whatever its form: nothing of it is repeated. The server's log and its audit
// log are searched for it as the run ends.
func TestRejectedToken_of_a_wrong_form_is_refused_and_not_repeated(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	a.Read(t)
	hidden := func() string { return fmt.Sprintf("%q", harness.NewSecret()) }
	for _, value := range []string{
		`[` + hidden() + `]`,
		`[` + hidden() + `,` + hidden() + `]`,
		`{"token":` + hidden() + `}`,
		secretNumber(), `true`, `null`,
		`""`, `"\n"`,
		fmt.Sprintf(`"%s %s"`, harness.NewSecret(), harness.NewSecret()),
		fmt.Sprintf(`"%s钉"`, harness.NewSecret()),
		fmt.Sprintf(`"%s%s"`, harness.NewSecret(), strings.Repeat("x", 2048)),
	} {
		reply := a.Mount.Vault.HTTP(t, "POST", a.RefreshPath(), "", `{"rejected_token":`+value+`}`)
		require.Equal(t, http.StatusBadRequest, reply.Status, harness.Mask(value))
		require.Contains(t, reply.Body, "rejected_token", harness.Mask(value))
		harness.AssertNoSecret(t, "the refusal", reply.Body)
	}
	require.Equal(t, 1, a.Calls(), "none of them fetched anything")
}

func TestRejectedToken_may_be_as_long_as_a_token_is(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	a.Read(t)
	secret := harness.NewSecret()
	refreshed, err := a.Mount.Vault.Root.Logical().Write(a.RefreshPath(),
		harness.Fields{"rejected_token": secret + strings.Repeat("x", 2048-len(secret))})
	require.NoError(t, err)
	require.Equal(t, "fresh", refreshed.Data["state"])
	require.Equal(t, 1, a.Calls())
}
