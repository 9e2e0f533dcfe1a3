// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// DingTalk's own SDK against the simulator: the SDK says whether that answers as DingTalk does. And
// the SDK with a token that a real Vault gave.

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// sdkResult is what came of one call: what the SDK returned, or the error that it threw.
type sdkResult struct {
	Status int
	Body   struct {
		AccessToken string
		ExpireIn    int // in seconds
		ExpiresIn   int // the same, of the unified call
		AppList     []struct{ Name string }
	}

	Thrown, Code, Message, RequestID string
}

// callSDK makes calls by DingTalk's SDK, one after the other.
func callSDK(t *testing.T, dt *dingtalk, calls ...fields) []sdkResult {
	t.Helper()
	requireProgram(t, "node", "nodejs")
	input, err := json.Marshal(fields{"host": strings.TrimPrefix(dt.url, "http://"), "asked": calls})
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "node", "testdata/sdk.js")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "NODE_PATH=" + nodeModules(t)}
	cmd.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "run the SDK: %s", mask(stderr.String()))
	var results []sdkResult
	decodeJSON(t, string(out), &results)
	require.Len(t, results, len(calls))
	for i := range results {
		noteSecret(results[i].Body.AccessToken, "an access token")
	}
	return results
}

// requireThrown checks an error as the SDK reports it.
func requireThrown(t *testing.T, r sdkResult, status int, code, message string) {
	t.Helper()
	require.NotEmpty(t, r.Thrown)
	require.Equal(t, status, r.Status)
	require.Equal(t, code, r.Code)
	require.Contains(t, r.Message, message)
	require.Regexp(t, `^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$`, r.RequestID)
	require.Contains(t, r.Message, r.RequestID, "the message ends in the request id that the SDK found")
}

func TestDingTalkSDK_gets_a_token_from_the_simulator_by_either_call(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	secret := newSecret()
	dt.SetApp("dingsdk", secret)
	r := callSDK(t, dt,
		fields{"call": "getAccessToken", "appKey": "dingsdk", "appSecret": secret},
		fields{
			"call": "getToken", "corpId": simulator.DefaultCorpID, "clientId": "dingsdk", "clientSecret": secret,
			"grantType": "client_credentials",
		},
	)
	require.Empty(t, r[0].Thrown, mask(r[0].Message))
	require.Positive(t, dt.left(r[0].Body.AccessToken))
	require.Equal(t, 7200, r[0].Body.ExpireIn)
	require.Empty(t, r[1].Thrown, mask(r[1].Message))
	requireSameToken(t, r[1].Body.AccessToken, dt.LastTokenIn("dingsdk", simulator.DefaultCorpID))
	requireOtherToken(t, r[1].Body.AccessToken, r[0].Body.AccessToken)
	require.Equal(t, 7200, r[1].Body.ExpiresIn)
}

func TestDingTalkSDK_reports_wrong_credentials_with_code_message_and_request_id(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	dt.SetApp("dingsdk", newSecret())
	r := callSDK(t, dt,
		fields{"call": "getAccessToken", "appKey": "dingsdk", "appSecret": "wrong"},
		fields{
			"call": "getToken", "corpId": simulator.DefaultCorpID, "clientId": "dingsdk", "clientSecret": "wrong",
			"grantType": "client_credentials",
		},
	)
	requireThrown(t, r[0], 400, "invalidClientIdOrSecret", "无效的clientId或者clientSecret")
	requireThrown(t, r[1], 400, "invalid.client", "")
}

func TestDingTalkSDK_calls_an_API_with_the_token_that_Vault_gave_until_that_is_dead(t *testing.T) {
	t.Parallel()
	dt := startDingTalk(t, fullLifetime)
	a := newMount(t).newApp(t, dt, nil)
	call := fields{"call": "listAllInnerApps", "token": a.token(t)}
	live := callSDK(t, dt, call)[0]
	require.Empty(t, live.Thrown, mask(live.Message))
	require.Len(t, live.Body.AppList, 1)

	dt.ExpireTokens(a.key)
	requireThrown(t, callSDK(t, dt, call)[0], 400, "InvalidAuthentication", "不合法的access_token")
}
