// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// refresh/<app> with rejected_token: many clients that meet a token which DingTalk ended before its
// time cost one call.

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRejectedToken_of_50_clients_costs_one_call_however_far_apart_they_notice(t *testing.T) {
	t.Parallel()
	const clients = 50
	const spread = 30 * time.Second // longer than the ten seconds for which any refresh counts
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	dead := a.token(t)
	dt.ExpireTokens(a.key)

	var all sync.WaitGroup
	for i := range clients {
		client, notices := a.m.v.client(t), time.After(spread/(clients-1)*time.Duration(i))
		all.Go(func() {
			<-notices
			refreshed, err := client.Logical().Write(a.refreshPath(), fields{"rejected_token": dead})
			if assert.NoError(t, err) {
				assert.Empty(t, refreshed.Warnings)
				assert.Equal(t, "fresh", refreshed.Data["state"])
			}
			secret, err := client.Logical().Read(a.credsPath())
			if assert.NoError(t, err) {
				assert.Positive(t, dt.left(tokenIn(secret)), "the token lives")
			}
		})
	}
	all.Wait()
	noteSecret(dt.LastToken(a.key), "an access token")
	require.Equal(t, 2, a.calls(), "the first one's, and one for all of them")
}

func TestRejectedToken_that_is_not_the_current_one_fetches_nothing(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	token := a.token(t)
	refreshed, err := a.m.v.root.Logical().Write(a.refreshPath(), fields{"rejected_token": newSecret()})
	require.NoError(t, err)
	require.Empty(t, refreshed.Warnings)
	require.Equal(t, a.status(t)["fetched_at"], refreshed.Data["fetched_at"])
	require.Equal(t, 1, a.calls())
	requireSameToken(t, a.token(t), token)
}

func TestRejectedToken_that_is_the_current_one_is_replaced(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	dead := a.token(t)
	dt.ExpireTokens(a.key)

	// As people type it: the token on standard input, with the line break that echo adds.
	a.m.v.cliWithInput(t, dead+"\n", "write", a.refreshPath(), "rejected_token=-").succeeded(t)
	require.Equal(t, 2, a.calls())
	requireSameToken(t, a.token(t), dt.LastToken(a.key))
	requireOtherToken(t, a.token(t), dead)
}

// It may be a secret, whatever its form: nothing of it is repeated. The server's log and its audit
// log are searched for it as the run ends.
func TestRejectedToken_of_a_wrong_form_is_refused_and_not_repeated(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	a.read(t)
	hidden := func() string { return fmt.Sprintf("%q", newSecret()) }
	for _, value := range []string{
		`[` + hidden() + `]`,
		`[` + hidden() + `,` + hidden() + `]`,
		`{"token":` + hidden() + `}`,
		secretNumber(), `true`, `null`,
		`""`, `"\n"`,
		fmt.Sprintf(`"%s %s"`, newSecret(), newSecret()),
		fmt.Sprintf(`"%s钉"`, newSecret()),
		fmt.Sprintf(`"%s%s"`, newSecret(), strings.Repeat("x", 2048)),
	} {
		reply := a.m.v.http(t, "POST", a.refreshPath(), "", `{"rejected_token":`+value+`}`)
		require.Equal(t, http.StatusBadRequest, reply.status, mask(value))
		require.Contains(t, reply.body, "rejected_token", mask(value))
		assertNoSecret(t, "the refusal", reply.body)
	}
	require.Equal(t, 1, a.calls(), "none of them fetched anything")
}

func TestRejectedToken_may_be_as_long_as_a_token_is(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	a.read(t)
	secret := newSecret()
	refreshed, err := a.m.v.root.Logical().Write(a.refreshPath(),
		fields{"rejected_token": secret + strings.Repeat("x", 2048-len(secret))})
	require.NoError(t, err)
	require.Equal(t, "fresh", refreshed.Data["state"])
	require.Equal(t, 1, a.calls())
}
