// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// Processes that the tests start: each in a group of its own, so that ending it ends its children too, with its output in
// a file.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

type process struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended and was waited for
}

// startProcess runs a program with its output appended to the file log. env holds all of its environment.
func startProcess(name, log string, env []string, program string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.CommandContext(context.Background(), program, args...), exited: make(chan struct{})}
	p.cmd.Env = env
	// By way of a pipe, as under any service manager: Vault syncs its standard error when a plugin ends, which on a file
	// takes long enough for requests to meet the dead plugin.
	p.cmd.Stdout = &pipedTo{out}
	p.cmd.Stderr = p.cmd.Stdout
	p.cmd.WaitDelay = 5 * time.Second // for a child that outlives it and holds the pipe
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	go func() {
		_ = p.cmd.Wait()
		_ = out.Close()
		close(p.exited)
	}()
	if err := children.add(p.pid(), name); err != nil {
		_ = p.kill()
		return nil, err
	}
	return p, nil
}

// pipedTo hides that its writer is a file, which would be handed to the process itself.
type pipedTo struct{ io.Writer }

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// stop asks the process to end, waits for it, and removes by force whatever is left of its group.
func (p *process) stop(grace time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		_ = p.kill()
		return nil
	case <-time.After(grace):
		return errors.Join(fmt.Errorf("%s did not end within %s of SIGTERM", p.name, grace), p.kill())
	}
}

// kill ends the whole group at once, as a crash of the machine would.
func (p *process) kill() error {
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		return fmt.Errorf("%s survived SIGKILL for 10 s", p.name)
	}
	children.remove(p.pid())
	return nil
}

// childrenRunning lists the direct children of a process that run the given program.
func childrenRunning(parent int, program string) ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("no /proc: these tests find the plugin's process there and run on Linux only")
	}
	var pids []int
	for _, entry := range entries {
		exe, err := os.Readlink(filepath.Join(entry, "exe"))
		if err != nil || exe != program {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(entry))
		if err != nil {
			continue
		}
		if ppid, err := procStatus(pid, "PPid"); err == nil && ppid == int64(parent) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// procStatus reads one number of /proc/<pid>/status; the sizes there are in KiB.
func procStatus(pid int, field string) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && name == field {
			return strconv.ParseInt(strings.Fields(value)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s in /proc/%d/status", field, pid)
}

// memoryMeter tells how far a process's memory rose above where it stood when the meter was made.
type memoryMeter struct {
	pid      int
	field    string
	baseline int64
}

func newMemoryMeter(t *testing.T, pid int) memoryMeter {
	t.Helper()
	// Resetting the high-water mark gives the true peak; where that is not permitted, the difference in resident size
	// has to do.
	field := "VmHWM"
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		t.Logf("measuring resident memory instead of its peak: %v", err)
		field = "VmRSS"
	}
	baseline, err := procStatus(pid, "VmRSS")
	if err != nil {
		t.Fatalf("read the memory of process %d: %v", pid, err)
	}
	return memoryMeter{pid: pid, field: field, baseline: baseline}
}

// rise is the extra memory in bytes.
func (m memoryMeter) rise(t *testing.T) int64 {
	t.Helper()
	now, err := procStatus(m.pid, m.field)
	if err != nil {
		t.Fatalf("read the memory of process %d: %v", m.pid, err)
	}
	return (now - m.baseline) << 10
}

// waitFor polls a condition until it holds, and fails the test if that takes longer than the bound.
func waitFor(t *testing.T, bound time.Duration, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(bound)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", bound, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// runPlugin runs the plugin's program by hand and returns what it prints.
func runPlugin(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), pluginBin, args...).Output()
	if err != nil {
		t.Fatalf("run the plugin: %v", err)
	}
	return string(out)
}
