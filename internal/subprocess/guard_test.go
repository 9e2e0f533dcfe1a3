// SPDX-License-Identifier: MPL-2.0

//go:build linux

package subprocess_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

// ownerEnv makes this test binary a program with a guard over the directory that it names.
const ownerEnv = "SUBPROCESS_TEST_OWNER"

// own starts one process that is ended and one that is not. It writes down their numbers and waits
// to be killed, or stops the guard.
func own(dir string) {
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	check(subprocess.StartGuard(dir))
	ended, err := subprocess.Start(filepath.Join(dir, "log"), nil, "/bin/sleep", "1000")
	check(err)
	check(ended.Kill())
	left, err := subprocess.Start(filepath.Join(dir, "log"), nil, "/bin/sh", "-c", "trap '' TERM; /bin/sleep 1000")
	check(err)
	fmt.Println(left.PID())
	if len(os.Args) > 1 && os.Args[1] == "wait" {
		select {}
	}
	fmt.Println(subprocess.StopGuard())
}

// owner is that program, ready to be started.
func owner(t *testing.T, args ...string) (cmd *exec.Cmd, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "guarded")
	require.NoError(t, os.Mkdir(dir, 0o700))
	self, err := os.Executable()
	require.NoError(t, err)
	cmd = exec.CommandContext(t.Context(), self, args...)
	cmd.Env = []string{ownerEnv + "=" + dir}
	cmd.WaitDelay = 10 * time.Second // for the guard, which has its standard error
	return cmd, dir
}

func requireGone(t *testing.T, printed, dir string) {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(printed))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return gone(pid) }, 10*time.Second, 10*time.Millisecond)
	require.NoDirExists(t, dir)
}

func TestGuard_cleans_up_after_a_program_that_is_killed(t *testing.T) {
	cmd, dir := owner(t, "wait")
	var printed, complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line := make([]byte, 64)
	n, err := out.Read(line)
	require.NoError(t, err)
	printed.Write(line[:n])

	require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	require.Empty(t, complaints.String())
	requireGone(t, printed.String(), dir)
}

func TestGuard_stopped_ends_and_names_what_was_left_running(t *testing.T) {
	cmd, dir := owner(t)
	out, err := cmd.Output()
	require.NoError(t, err)
	pid, said, _ := strings.Cut(string(out), "\n")
	require.Equal(t, "/bin/sh (process "+pid+") was left running\n", said)
	requireGone(t, pid, dir)
}
