// SPDX-License-Identifier: MPL-2.0

//go:build linux

package subprocess_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

func TestMain(m *testing.M) {
	subprocess.RunGuard()
	if dir := os.Getenv(ownerEnv); dir != "" {
		own(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// start runs a shell script, and waits until it says that it is ready.
func start(t *testing.T, script string) (p *subprocess.Process, log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	p, err := subprocess.Start(log, []string{"PATH=" + os.Getenv("PATH"), "GREETING=hello"}, "/bin/sh", "-c", script)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Kill()) })
	ready := func() bool { return strings.Contains(read(t, log), "ready") }
	require.Eventually(t, ready, 10*time.Second, 10*time.Millisecond)
	return p, log
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(data)
}

func TestStart_puts_both_outputs_into_the_log(t *testing.T) {
	p, log := start(t, `echo "$GREETING"; echo oh >&2; echo ready`)
	<-p.Exited()
	require.False(t, p.Running())
	require.Zero(t, p.ExitCode())
	require.Equal(t, "hello\noh\nready\n", read(t, log))
}

func TestStart_of_a_program_that_is_not_there_fails(t *testing.T) {
	_, err := subprocess.Start(filepath.Join(t.TempDir(), "log"), nil, "/no/such/program")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestStop_lets_a_process_end_by_itself(t *testing.T) {
	p, log := start(t, `trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.01; done`)
	require.True(t, p.Running())
	byItself, err := p.Stop(10 * time.Second)
	require.NoError(t, err)
	require.True(t, byItself)
	require.Contains(t, read(t, log), "bye")
}

func TestStop_ends_by_force_what_does_not_end(t *testing.T) {
	p, _ := start(t, `trap '' TERM; echo ready; while :; do sleep 0.01; done`)
	byItself, err := p.Stop(100 * time.Millisecond)
	require.NoError(t, err)
	require.False(t, byItself)
	require.False(t, p.Running())
}

func TestKill_takes_the_children_along(t *testing.T) {
	p, _ := start(t, `sleep 1000 & echo ready; wait`)
	sleep, err := os.Readlink("/proc/" + strconv.Itoa(childOf(t, p.PID())) + "/exe")
	require.NoError(t, err)
	children, err := subprocess.Children(p.PID(), sleep)
	require.NoError(t, err)
	require.Len(t, children, 1)

	require.NoError(t, p.Kill())
	require.Eventually(t, func() bool { return gone(children[0]) }, 10*time.Second, 10*time.Millisecond)
}

// childOf is the first child of a process, once it has one that runs a program of its own.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	parent, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	require.NoError(t, err)
	var child int
	require.Eventually(t, func() bool {
		fields := strings.Fields(read(t, "/proc/"+strconv.Itoa(pid)+"/task/"+strconv.Itoa(pid)+"/children"))
		if len(fields) == 0 {
			return false
		}
		child, err = strconv.Atoi(fields[0])
		exe, _ := os.Readlink("/proc/" + fields[0] + "/exe")
		return err == nil && exe != parent
	}, 10*time.Second, 10*time.Millisecond)
	return child
}

// gone reports whether a process has ended. In a container whose first process waits for nobody, it
// stays a zombie.
func gone(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(data), ") Z ")
}

func TestStatus_reads_a_number_of_a_process(t *testing.T) {
	parent, err := subprocess.Status(os.Getpid(), "PPid")
	require.NoError(t, err)
	require.Equal(t, int64(os.Getppid()), parent)
	_, err = subprocess.Status(os.Getpid(), "NoSuchField")
	require.ErrorContains(t, err, "NoSuchField")
}

func TestPorts_a_free_one_can_be_listened_on(t *testing.T) {
	port, err := subprocess.ServerPorts.Free()
	require.NoError(t, err)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:"+strconv.Itoa(port))
	require.NoError(t, err)
	require.NoError(t, listener.Close())
}

func TestPorts_a_free_one_is_another_each_time(t *testing.T) {
	seen := map[int]bool{}
	for range 300 {
		port, err := subprocess.ServerPorts.Free()
		require.NoError(t, err)
		require.False(t, seen[port], "port %d", port)
		seen[port] = true
	}
}
