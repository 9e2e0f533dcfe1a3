// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package consumers

// DingTalk's own SDK against the simulator, which shows whether the simulator responds as DingTalk
// does. And the SDK with a token from a real Vault.

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// sdkResult is the result of one call: what the SDK returned, or the error that it threw.
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
func callSDK(t *testing.T, dt *harness.DingTalk, calls ...harness.Fields) []sdkResult {
	t.Helper()
	input, err := json.Marshal(harness.Fields{"host": strings.TrimPrefix(dt.URL, "http://"), "asked": calls})
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "node", "testdata/sdk.js")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "NODE_PATH=" + nodeModules(t)}
	cmd.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "run the SDK: %s", harness.Mask(stderr.String()))
	var results []sdkResult
	harness.DecodeJSON(t, string(out), &results)
	require.Len(t, results, len(calls))
	for i := range results {
		harness.NoteSecret(results[i].Body.AccessToken, "an access token")
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
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	secret := harness.NewSecret()
	dt.SetApp("dingsdk", secret)
	r := callSDK(t, dt,
		harness.Fields{"call": "getAccessToken", "appKey": "dingsdk", "appSecret": secret},
		harness.Fields{
			"call": "getToken", "corpId": simulator.DefaultCorpID, "clientId": "dingsdk", "clientSecret": secret,
			"grantType": "client_credentials",
		},
	)
	require.Empty(t, r[0].Thrown, harness.Mask(r[0].Message))
	require.Positive(t, dt.Remaining(r[0].Body.AccessToken))
	require.Equal(t, 7200, r[0].Body.ExpireIn)
	require.Empty(t, r[1].Thrown, harness.Mask(r[1].Message))
	harness.RequireSameToken(t, r[1].Body.AccessToken, dt.LastTokenIn("dingsdk", simulator.DefaultCorpID))
	harness.RequireOtherToken(t, r[1].Body.AccessToken, r[0].Body.AccessToken)
	require.Equal(t, 7200, r[1].Body.ExpiresIn)
}

func TestDingTalkSDK_reports_wrong_credentials_with_code_message_and_request_id(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	dt.SetApp("dingsdk", harness.NewSecret())
	r := callSDK(t, dt,
		harness.Fields{"call": "getAccessToken", "appKey": "dingsdk", "appSecret": "wrong"},
		harness.Fields{
			"call": "getToken", "corpId": simulator.DefaultCorpID, "clientId": "dingsdk", "clientSecret": "wrong",
			"grantType": "client_credentials",
		},
	)
	requireThrown(t, r[0], 400, "invalidClientIdOrSecret", "无效的clientId或者clientSecret")
	requireThrown(t, r[1], 400, "invalid.client", "")
}

func TestDingTalkSDK_calls_an_API_with_the_token_that_Vault_gave_until_that_is_dead(t *testing.T) {
	t.Parallel()
	dt := harness.StartDingTalk(t, harness.FullLifetime)
	a := harness.NewMount(t).NewApp(t, dt, nil)
	call := harness.Fields{"call": "listAllInnerApps", "token": a.Token(t)}
	live := callSDK(t, dt, call)[0]
	require.Empty(t, live.Thrown, harness.Mask(live.Message))
	require.Len(t, live.Body.AppList, 1)

	dt.ExpireTokens(a.Key)
	requireThrown(t, callSDK(t, dt, call)[0], 400, "InvalidAuthentication", "不合法的access_token")
}
