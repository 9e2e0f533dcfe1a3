// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package readme

// Which Vault scripts/vault-bin takes, and what it says of one that it refuses.

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVaultBin_takes_a_Vault_or_an_OpenBao_that_is_new_enough(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string // of the executable on the PATH
		prints  string // as "vault version" does
		refused string // empty if it is taken
	}{
		{name: "vault", prints: "Vault v1.21.1 (2453aac2638a6ae243341b4e0657fd8aea1cbf18), built 2025-11-18T13:04:32Z"},
		{name: "vault", prints: "Vault v1.19.0"},
		{name: "vault", prints: "Vault v1.20.0+ent (abc)"},
		{name: "vault", prints: "Vault v2.0.0-rc1"},
		{name: "vault", prints: "Vault v1.18.9", refused: "is Vault 1.18.9, which is too old"},
		{name: "vault", prints: "Vault v1.08.1", refused: "is Vault 1.08.1, which is too old"},
		{name: "vault", prints: "Vault v0.11.0", refused: "is Vault 0.11.0, which is too old"},
		{name: "bao", prints: "OpenBao v2.4.4 (71e5a2e2bdb8c5ebf3a5fc5ebdc9ea1e3b3b8d0b), built 2025-11-24T15:03:31Z"},
		{name: "bao", prints: "OpenBao v2.10.0"},
		{name: "bao", prints: "OpenBao v2.3.2", refused: "is OpenBao 2.3.2, which is too old"},
		{name: "bao", prints: "OpenBao v1.21.0", refused: "is OpenBao 1.21.0, which is too old"},
		{name: "vault", prints: "OpenBao v2.4.0"}, // some systems call it so
		{name: "bao", prints: "Bao v2.4.4", refused: `is neither Vault nor OpenBao; "bao version" says: Bao v2.4.4`},
		{name: "vault", prints: "", refused: `is neither Vault nor OpenBao; "vault version" says: nothing`},
	} {
		t.Run(c.name+" "+c.prints, func(t *testing.T) {
			t.Parallel()
			programs := t.TempDir()
			fake := filepath.Join(programs, c.name)
			script := "#!/bin/sh\n[ \"$*\" = version ] && echo '" + c.prints + "'\n"
			require.NoError(t, os.WriteFile(fake, []byte(script), 0o700))

			// As VAULT_BIN names it, and a vault also without that.
			for _, named := range []string{c.name, ""} {
				if named == "" && c.name != "vault" {
					continue
				}
				cmd := exec.CommandContext(t.Context(), root+"/scripts/vault-bin")
				cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"), "VAULT_BIN="+named)
				var complaint strings.Builder
				cmd.Stderr = &complaint
				printed, err := cmd.Output()
				if c.refused == "" {
					require.NoError(t, err, complaint.String())
					require.Equal(t, fake+"\n", string(printed))
					continue
				}
				require.Error(t, err)
				require.Empty(t, printed)
				require.Contains(t, complaint.String(), fake+" "+c.refused)
				require.Contains(t, complaint.String(), "Install Vault 1.19 or OpenBao 2.4, or later")
			}
		})
	}
}
