// SPDX-License-Identifier: MPL-2.0

//go:build unix

package subprocess

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// This file is the guard: this program started again, as a small process that waits until the first
// one ends. The guard holds the reading end of a pipe, which closes even when the program is
// killed, and then kills every process group that was started and not ended, and removes a
// directory. A killed program cannot do that, nor a test run that ends by its own timeout.

// guardEnv is set in the guard's environment only.
const guardEnv = "SUBPROCESS_GUARD"

// dying is how long the guard waits for killed processes to be gone. They stay zombies where PID 1
// reaps nobody.
const dying = 2 * time.Second

var guard struct {
	mu      sync.Mutex
	cmd     *exec.Cmd
	pipe    io.WriteCloser
	running map[int]*Process
}

// RunGuard must be the first call in main, or in TestMain, of a program that calls StartGuard. In
// the guard it does not return.
func RunGuard() {
	if os.Getenv(guardEnv) == "" {
		return
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	if err := watch(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// StartGuard starts the guard over all processes that Start starts from now on, and over the
// directory dir.
func StartGuard(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	guard.mu.Lock()
	defer guard.mu.Unlock()
	guard.cmd = exec.CommandContext(context.Background(), self) // it ends with the pipe
	guard.cmd.Env = []string{guardEnv + "=1"}
	guard.cmd.Stderr = os.Stderr
	guard.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // no Ctrl-C reaches it
	if guard.pipe, err = guard.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := guard.cmd.Start(); err != nil {
		return err
	}
	guard.running = map[int]*Process{}
	_, err = fmt.Fprintln(guard.pipe, "dir", dir)
	return err
}

// StopGuard lets the guard do its work now, and waits for it. The error names what was left
// running.
func StopGuard() error {
	guard.mu.Lock()
	defer guard.mu.Unlock()
	var err error
	for pid, p := range guard.running {
		if p.Running() {
			err = errors.Join(err, fmt.Errorf("%s (process %d) was left running", p.cmd.Path, pid))
		}
	}
	guard.running = nil
	return errors.Join(err, guard.pipe.Close(), guard.cmd.Wait())
}

// guarded notes that a process was started.
func guarded(p *Process) error {
	guard.mu.Lock()
	defer guard.mu.Unlock()
	if guard.running == nil {
		return nil
	}
	guard.running[p.PID()] = p
	_, err := fmt.Fprintln(guard.pipe, "add", p.PID())
	return err
}

// unguarded notes that a process and its group have ended.
func unguarded(p *Process) {
	guard.mu.Lock()
	defer guard.mu.Unlock()
	if guard.running[p.PID()] == p {
		delete(guard.running, p.PID())
		_, _ = fmt.Fprintln(guard.pipe, "del", p.PID())
	}
}

// watch is the guard's life: it reads the notes until their end, and cleans up.
func watch(notes io.Reader) error {
	groups := map[int]bool{}
	var dir string
	for lines := bufio.NewScanner(notes); lines.Scan(); {
		verb, value, _ := strings.Cut(lines.Text(), " ")
		group, _ := strconv.Atoi(value)
		switch {
		case verb == "dir":
			dir = value
		case verb == "add" && group > 1:
			groups[group] = true
		case verb == "del":
			delete(groups, group)
		}
	}
	deadline := time.Now().Add(dying)
	for len(groups) > 0 && time.Now().Before(deadline) {
		for group := range groups {
			if syscall.Kill(-group, syscall.SIGKILL) != nil {
				delete(groups, group)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return os.RemoveAll(dir)
}
