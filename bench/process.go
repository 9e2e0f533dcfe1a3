// SPDX-License-Identifier: MPL-2.0

package main

// This file is the programs that a run starts: each in a process group of its own, so that a plugin goes with its Vault, with its
// output in a file.

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
	"syscall"
	"time"
)

type process struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{} // closed when it has ended and was waited for
}

func startProcess(log, home, program string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), program, args...) // it ends with stop
	cmd.Env = []string{"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH")}
	// By way of a pipe, as under any service manager: Vault syncs its standard error when a plugin ends, which takes long on
	// a file.
	cmd.Stdout = &pipedTo{out}
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = 5 * time.Second // for a child that outlives it and holds the pipe
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	p := &process{cmd: cmd, log: log, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		_ = out.Close()
		close(p.exited)
	}()
	return p, nil
}

// pipedTo hides that its writer is a file, which would be handed to the process itself.
type pipedTo struct{ io.Writer }

// stop asks the process to end, and then ends its whole group by force.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second): // what it would store is thrown away
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("%s survived SIGKILL", p.cmd.Path)
	}
}

// await polls until ready returns nil, for a minute at most, as long as the process runs.
func (p *process) await(ctx context.Context, ready func() error) error {
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = ready(); err == nil {
			return nil
		}
		select {
		case <-p.exited:
			log, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s ended: %.2000s", p.cmd.Path, log)
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
	}
	return fmt.Errorf("%s is not ready after a minute: %w", p.cmd.Path, err)
}

// freePort picks a port below the range that outgoing connections use.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(12000)
		listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		return port, listener.Close()
	}
	return 0, errors.New("no free port between 20000 and 32000")
}

// child is the one process below parent that runs the program. It needs Linux, as all that reads /proc.
func child(parent int, program string) (int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		exe, err := os.Readlink(filepath.Join(entry, "exe"))
		if err != nil || exe != program {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(entry))
		if err != nil {
			continue
		}
		if of, err := procStatus(pid, "PPid"); err == nil && of == int64(parent) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process of %s below process %d", program, parent)
}

// procStatus reads a number of /proc/<pid>/status; sizes there are in KiB.
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
