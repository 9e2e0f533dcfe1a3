// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package harness

// Processes that the tests start, waiting, and an address where nobody listens.

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

// Process is a process that a test started.
type Process struct {
	*subprocess.Process
	name string
}

// StartProcess runs a program and appends its output to the file log. env is its whole environment.
func StartProcess(name, log string, env []string, program string, args ...string) (*Process, error) {
	started, err := subprocess.Start(log, env, program, args...)
	if err != nil {
		return nil, err
	}
	return &Process{Process: started, name: name}, nil
}

// Terminate sends SIGTERM, waits for the end, and kills the rest of the process group.
func (p *Process) Terminate(grace time.Duration) error {
	byItself, err := p.Stop(grace)
	if !byItself {
		err = errors.Join(fmt.Errorf("%s did not end within %s of SIGTERM", p.name, grace), err)
	}
	return err
}

// WaitFor polls a condition until it holds, and fails the test if that takes longer than the bound.
func WaitFor(t *testing.T, bound time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(bound)
	for {
		// Before the check, so that a machine that stands still meanwhile fails nothing.
		last := time.Now().After(deadline)
		if holds() {
			return
		}
		if last {
			t.Fatalf("not within %s: %s", bound, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// DeadAddress returns an address on loopback where nobody listens. The test reserves it, as
// otherwise somebody might.
func DeadAddress(t *testing.T) string {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	syscall.CloseOnExec(socket)
	t.Cleanup(func() { assert.NoError(t, syscall.Close(socket)) })
	require.NoError(t, syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	bound, err := syscall.Getsockname(socket)
	require.NoError(t, err)
	return fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
}
