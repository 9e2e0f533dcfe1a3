// SPDX-License-Identifier: MPL-2.0

//go:build unix

// Package main is what `make demo` and `make dev` run. Both start the simulator in DingTalk's place
// and a Vault dev server with the plugin and one app, in a temporary directory. The demo then shows
// the plugin's main job, checks each step by its outcome, and cleans up; the exit status is 0 only
// if every step did what it says. dev waits for Ctrl-C. Every command is run as it is printed.
// However either ends, what it started is stopped and what it wrote is removed.
//
// With DINGTALK_APP_KEY and DINGTALK_APP_SECRET set, the live API is used (DINGTALK_BASE_URL is for
// an edition other than the default, DINGTALK_CORP_ID for the unified call). Then no token and no
// secret is shown.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

func main() {
	subprocess.RunGuard()
	status, err := run(os.Args[1:])
	if err != nil {
		say("demo: %v", err)
	}
	os.Exit(status)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// run returns the exit status.
func run(args []string) (int, error) {
	play := (*stage).demo
	if len(args) == 1 && args[0] == "dev" {
		play = (*stage).dev
	} else if len(args) > 0 {
		return 1, errors.New("the only argument is dev")
	}
	set, err := readSettings(os.Getenv)
	if err != nil {
		return 1, err
	}
	ctx := untilSignal()
	syscall.Umask(0o077)
	temp, err := filepath.EvalSymlinks(os.TempDir()) // Vault refuses a plugin_directory that is a symbolic link
	if err != nil {
		return 1, err
	}
	work, err := os.MkdirTemp(temp, "dingtalk.")
	if err != nil {
		return 1, err
	}
	if err := subprocess.StartGuard(work); err != nil {
		return 1, errors.Join(err, os.RemoveAll(work))
	}

	s := newStage(ctx, set, work)
	ok := s.perform(play)
	if err := errors.Join(s.close(), subprocess.StopGuard()); err != nil {
		return 1, fmt.Errorf("something did not end, or is left behind: %w", err)
	}
	if ok {
		return 0, nil
	}
	say("Everything that was started is stopped, and the temporary files are removed.")
	if cause := interrupt(0); errors.As(context.Cause(ctx), &cause) {
		return 128 + int(cause), nil
	}
	return 1, nil
}

// settings are what the environment says.
type settings struct {
	live              bool
	appKey, appSecret string
	baseURL, corpID   string // empty for the plugin's defaults
	vault             string // Vault's binary
	bin               string // the directory of the plugin's binary and the simulator's
}

func readSettings(getenv func(string) string) (set settings, err error) {
	set.appKey, set.appSecret = getenv("DINGTALK_APP_KEY"), getenv("DINGTALK_APP_SECRET")
	set.baseURL, set.corpID = getenv("DINGTALK_BASE_URL"), getenv("DINGTALK_CORP_ID")
	set.live = set.appKey != "" && set.appSecret != ""
	if !set.live {
		if set.appKey+set.appSecret+set.baseURL+set.corpID != "" {
			return set, errors.New("set both DINGTALK_APP_KEY and DINGTALK_APP_SECRET for the live API, or neither " +
				"for the simulator; DINGTALK_BASE_URL is for the live API, and so is DINGTALK_CORP_ID")
		}
		set.appKey, set.appSecret = "dingdemo", rand.Text()
	}
	self, err := os.Executable()
	if err != nil {
		return set, err
	}
	set.bin = filepath.Dir(self)
	if set.vault, err = exec.LookPath(getenv("VAULT_BIN")); err != nil {
		return set, fmt.Errorf("VAULT_BIN: %w; make demo and make dev set it", err)
	}
	set.vault, err = filepath.Abs(set.vault)
	return set, err
}

// interrupt is the signal that ends the program early.
type interrupt syscall.Signal

func (i interrupt) Error() string { return syscall.Signal(i).String() }

// untilSignal returns a context that a signal ends.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	all := []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE}
	for _, sig := range all {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	go func() {
		sig, _ := (<-signals).(syscall.Signal)
		cancel(interrupt(sig))
	}()
	return ctx
}
