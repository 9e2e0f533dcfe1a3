// SPDX-License-Identifier: MPL-2.0

//go:build unix

// Package subprocess starts the programs that the demo, the end-to-end tests and the benchmarks
// need, Vault above all: each in a process group of its own, so that ending it ends its children
// too (a plugin goes with its Vault), with its output in a file. A guard ends them even if the
// program that started them is killed.
package subprocess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// survival is how long a process may take to be gone once it was killed.
const survival = 10 * time.Second

// Process is a program that was started, and may have ended since.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start runs a program with its output appended to the file log. env holds all of its environment.
// The program runs until it ends by itself, or by Stop or Kill.
func Start(log string, env []string, program string, args ...string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p := &Process{cmd: exec.CommandContext(context.Background(), program, args...), exited: make(chan struct{})}
	p.cmd.Env = env
	// By way of a pipe, as under any service manager: Vault syncs its standard error when a plugin
	// ends, which on a file takes long enough for requests to meet the dead plugin.
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
	if err := guarded(p); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

// pipedTo hides that its writer is a file, which would be handed to the process itself.
type pipedTo struct{ io.Writer }

// PID is the number of the process, and of its group.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended and was waited for.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running reports whether it has not.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// ExitCode is the exit status of a process that has exited, and -1 after a signal.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Signal sends a signal to the process itself.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the process to end, waits for it as long as grace, and then ends by force whatever is
// left of its group. It reports whether the process ended by itself.
func (p *Process) Stop(grace time.Duration) (byItself bool, err error) {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		byItself = true
	case <-time.After(grace):
	}
	return byItself, p.Kill()
}

// Kill ends the whole group at once, as a crash of the machine would.
func (p *Process) Kill() error {
	if err := syscall.Kill(-p.PID(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", p.cmd.Path, err)
	}
	select {
	case <-p.exited:
		unguarded(p)
		return nil
	case <-time.After(survival):
		return fmt.Errorf("%s survived SIGKILL for %s", p.cmd.Path, survival)
	}
}

// Children lists the direct children of a process that run the given program, named by its absolute
// path. It needs Linux, as does Status.
func Children(parent int, program string) ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("no /proc: a plugin's process is found there, on Linux only")
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
		if of, err := Status(pid, "PPid"); err == nil && of == int64(parent) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Status reads one number of /proc/<pid>/status; the sizes there are in KiB.
func Status(pid int, field string) (int64, error) {
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

// Ports are a range of TCP ports. All are below those that outgoing connections use, and no two
// programs that run at once pick from the same, so that a server that is stopped finds its port
// free again.
type Ports struct{ first, last int }

var (
	// DemoPorts are for internal/demo, and for the test that runs it and the pages.
	DemoPorts = Ports{20000, 24999}
	// ServerPorts are for the end-to-end tests and the benchmarks.
	ServerPorts = Ports{26000, 31999}
)

// given are the ports that have been picked, each of which may belong to a server that is stopped
// just now.
var given sync.Map

// Free picks a port of 127.0.0.1 that nobody listens on, and that was not picked before in this
// process.
func (p Ports) Free() (int, error) {
	for range 1000 {
		port := p.first + rand.IntN(p.last-p.first+1)
		if _, before := given.LoadOrStore(port, true); before {
			continue
		}
		listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		return port, listener.Close()
	}
	return 0, fmt.Errorf("no free port between %d and %d", p.first, p.last)
}
