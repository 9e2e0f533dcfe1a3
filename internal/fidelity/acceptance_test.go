// SPDX-License-Identifier: MPL-2.0

//go:build acceptance

package fidelity

// The table against the live API, or whatever the environment names. It prints every row, and fails
// where one differs.

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	envAppKey    = "DINGTALK_APP_KEY"
	envAppSecret = "DINGTALK_APP_SECRET"
	envBaseURL   = "DINGTALK_BASE_URL"
	envCorpID    = "DINGTALK_CORP_ID"
)

func TestAcceptance_the_API_is_as_it_is_known_to_be(t *testing.T) {
	var missing []string
	for _, name := range []string{envAppKey, envAppSecret, envBaseURL} {
		if os.Getenv(name) == "" {
			missing = append(missing, name)
		}
	}
	require.Empty(
		t,
		missing,
		"not set in the environment: %s. They are an internal app's AppKey and AppSecret, and the host of "+
			"its edition, https://api.dingtalk.io or https://api.dingtalk.com",
		strings.Join(missing, ", "),
	)

	api := API{
		BaseURL: os.Getenv(envBaseURL), AppKey: os.Getenv(envAppKey), AppSecret: os.Getenv(envAppSecret),
		CorpID: os.Getenv(envCorpID),
	}
	if api.CorpID == "" {
		t.Logf("%s, the corpId of the app's organization, is not set: the unified call is left out", envCorpID)
	}
	rows, err := Run(t.Context(), api)
	if len(rows) > 0 {
		require.NoError(t, Fprint(os.Stdout, rows))
	}
	require.NoError(t, err)

	var differ []string
	for _, r := range rows {
		if !r.OK() {
			differ = append(differ, fmt.Sprintf("%s: %s", r.Call, r.Check))
		}
	}
	require.Empty(t, differ, "the API differs from what the engine and the simulator take it for")
}
