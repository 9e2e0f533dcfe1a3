// SPDX-License-Identifier: MPL-2.0

package main

// This file is the programs that a run starts: Vault and its Proxy.

import (
	"context"
	"fmt"
	"os"
	"time"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

// grace is how long a Vault may take to end by itself: what it would store is thrown away.
const grace = 10 * time.Second

type process struct {
	*subprocess.Process
	program, log string
}

func startProcess(log, home, program string, args ...string) (*process, error) {
	env := []string{"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH")}
	started, err := subprocess.Start(log, env, program, args...)
	if err != nil {
		return nil, err
	}
	return &process{Process: started, program: program, log: log}, nil
}

// stop asks the process to end, and then ends its whole group by force.
func (p *process) stop() error {
	_, err := p.Stop(grace)
	return err
}

// await polls until ready returns nil, for a minute at most, as long as the process runs.
func (p *process) await(ctx context.Context, ready func() error) error {
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = ready(); err == nil {
			return nil
		}
		select {
		case <-p.Exited():
			log, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s ended: %.2000s", p.program, log)
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
	}
	return fmt.Errorf("%s is not ready after a minute: %w", p.program, err)
}

// child is the first process below parent that runs the program.
func child(parent int, program string) (int, error) {
	pids, err := subprocess.Children(parent, program)
	if err == nil && len(pids) == 0 {
		err = fmt.Errorf("no process of %s below process %d", program, parent)
	}
	if err != nil {
		return 0, err
	}
	return pids[0], nil
}
