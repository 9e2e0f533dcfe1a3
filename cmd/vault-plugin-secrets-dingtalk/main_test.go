// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"log"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain_silences_the_standard_logger(t *testing.T) {
	args, out := os.Args, log.Writer()
	defer func() {
		os.Args = args
		log.SetOutput(out)
	}()
	var logged bytes.Buffer
	log.SetOutput(&logged)
	os.Args = []string{"vault-plugin-secrets-dingtalk", "-version"} // which ends at once
	main()
	log.Print("Unsolicited response received on idle HTTP channel")
	require.Empty(t, logged.String())
}
