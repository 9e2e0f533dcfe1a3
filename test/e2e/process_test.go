// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

// The memory and the connections of the plugin's process, and the plugin run by hand.

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
	"vault-plugin-secrets-dingtalk/test/harness"
)

// memoryMeter measures how far a process's memory rose above where it stood when the meter was
// made.
type memoryMeter struct {
	pid      int
	field    string
	baseline int64
}

func newMemoryMeter(t *testing.T, pid int) memoryMeter {
	t.Helper()
	// Resetting the high-water mark gives the true peak; where that is not permitted, the difference
	// in resident size must do.
	field := "VmHWM"
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		t.Logf("measuring resident memory instead of its peak: %v", err)
		field = "VmRSS"
	}
	baseline, err := subprocess.Status(pid, "VmRSS")
	if err != nil {
		t.Fatalf("read the memory of process %d: %v", pid, err)
	}
	return memoryMeter{pid: pid, field: field, baseline: baseline}
}

// rise is the extra memory in bytes.
func (m memoryMeter) rise(t *testing.T) int64 {
	t.Helper()
	now, err := subprocess.Status(m.pid, m.field)
	if err != nil {
		t.Fatalf("read the memory of process %d: %v", m.pid, err)
	}
	return (now - m.baseline) << 10
}

// requireNoConnection waits until a process has no connection to a server on loopback, of which it
// may just be closing the last one.
func requireNoConnection(t *testing.T, pid int, url string) {
	t.Helper()
	_, address, _ := strings.Cut(url, "://")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	harness.WaitFor(t, 5*time.Second, "no connection to "+url+" is left", func() bool {
		return countConnections(t, pid, port) == 0
	})
}

// countConnections counts the process's open IPv4 connections to a port.
func countConnections(t *testing.T, pid int, port string) (count int) {
	t.Helper()
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		t.Fatalf("read the connections of process %d: %v", pid, err)
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("read the open files of process %d: %v", pid, err)
	}
	open := map[string]bool{}
	for _, file := range files {
		if target, err := os.Readlink(file); err == nil { // otherwise it was closed meanwhile
			open[target] = true
		}
	}
	for line := range strings.Lines(string(table)) {
		// number, local address, remote address, state, …, the tenth is the socket's inode
		columns := strings.Fields(line)
		to := fmt.Sprintf(":%04X", number)
		if len(columns) > 9 && strings.HasSuffix(columns[2], to) && open["socket:["+columns[9]+"]"] {
			count++
		}
	}
	return count
}

// runPlugin runs the plugin's binary by hand and returns what it prints.
func runPlugin(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), harness.PluginBin, args...).Output()
	if err != nil {
		t.Fatalf("run the plugin: %v", err)
	}
	return string(out)
}
