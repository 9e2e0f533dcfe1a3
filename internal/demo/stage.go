// SPDX-License-Identifier: MPL-2.0

//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

// This file runs commands as printed, checks what they print, and stops what they started. What
// fails panics with a failure, which perform reports; so does everything once the context has
// ended.

const (
	patience = 30 * time.Second // for a program to start
	grace    = 10 * time.Second // for one to end
)

type stage struct {
	settings
	ctx      context.Context //nolint:containedctx // it is the program's life
	out      io.Writer
	began    time.Time
	work     string   // the temporary directory, which is also the working directory
	env      []string // of what is started
	hidden   []string // texts that are not shown
	programs []program
	step     int
	title    string
	output   string // what the last command printed
	address  string // Vault's URL
	token    string // its root token
}

// program is one that runs in the background.
type program struct {
	*subprocess.Process
	name string
}

type failure string

// newStage leaves the user's own Vault out of it: neither its address and token nor its settings
// play a part, and ~/.vault-token stays as it is.
func newStage(ctx context.Context, set settings, work string) *stage {
	s := &stage{settings: set, ctx: ctx, out: os.Stdout, began: time.Now(), work: work}
	s.hide(s.appSecret)
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, "VAULT_") && !strings.HasPrefix(pair, "BAO_") &&
			!strings.HasPrefix(pair, "DINGTALK_") {
			s.env = append(s.env, pair)
		}
	}
	path := strings.Join([]string{filepath.Join(work, "bin"), s.bin, os.Getenv("PATH")}, ":")
	s.env = append(s.env, "HOME="+work, "TMPDIR="+work, "PATH="+path)
	return s
}

// perform plays, and reports whether that went well.
func (s *stage) perform(play func(*stage)) (ok bool) {
	defer func() {
		switch why := recover().(type) {
		case nil:
		case failure:
			s.report(string(why))
		default:
			panic(why)
		}
	}()
	s.must(os.Chdir(s.work))
	s.must(errors.Join(os.Mkdir("bin", 0o700), os.Mkdir("plugins", 0o700), os.Symlink(s.vault, "bin/vault")))
	play(s)
	return true
}

// report says why the play ended early.
func (s *stage) report(reason string) {
	select {
	case <-s.ctx.Done():
		say("\nInterrupted in step %d, %s.", s.step, s.title)
		return
	case <-time.After(time.Second): // a Ctrl-C may end a command before this program hears of it
	}
	say("\nFAILED in step %d, %s: %s.", s.step, s.title, s.masked(reason))
	for _, p := range s.programs {
		log := regexp.MustCompile(`(?m)^(Unseal Key|Root Token):.*\n`).ReplaceAllString(readFile(p.name+".log"), "")
		lines := strings.Split(strings.TrimSpace(log), "\n")
		say("\nThe end of %s.log:\n%s", p.name, s.masked(strings.Join(lines[max(0, len(lines)-20):], "\n")))
	}
}

// close stops what runs, the last first, and removes the files. The error names what had to be
// killed.
func (s *stage) close() error {
	var errs []error
	for _, p := range slices.Backward(s.programs) {
		byItself, err := p.Stop(grace)
		if !byItself {
			errs = append(errs, fmt.Errorf("%s did not end within %s and was killed", p.name, grace))
		}
		errs = append(errs, err)
	}
	s.programs = nil
	return errors.Join(append(errs, os.Chdir("/"), os.RemoveAll(s.work))...)
}

// begin begins a step: what is printed next, and what failed if the program ends now.
func (s *stage) begin(title string) {
	s.step, s.title = s.step+1, title
	s.printf("\n==> %d. %s\n", s.step, title)
}

// show prints a command as a user would type it.
func (s *stage) show(command string) { s.printf("\n$ %s\n", command) }

// note prints what was found to be so.
func (s *stage) note(text string) { s.printf("--- %s\n", text) }

// printf fails when nobody is there to read: no signal tells of a closed terminal if make is the
// leader of its session.
func (s *stage) printf(format string, args ...any) {
	_, err := io.WriteString(s.out, s.masked(fmt.Sprintf(format, args...)))
	s.must(err)
}

// hide keeps a secret of the live API, if there is one, out of what is printed from now on.
func (s *stage) hide(secret string) {
	if s.live && secret != "" {
		s.hidden = append(s.hidden, secret)
	}
}

// masked returns a text without what is hidden.
func (s *stage) masked(text string) string {
	for _, secret := range s.hidden {
		text = strings.ReplaceAll(text, secret, "********")
	}
	return text
}

// capture runs a command, keeps what it prints, and returns its exit status. DINGTALK_APP_SECRET is
// a variable of the shell alone, as the programs have no use for it.
func (s *stage) capture(command string) int {
	const unexport = "secret=$DINGTALK_APP_SECRET; unset DINGTALK_APP_SECRET; DINGTALK_APP_SECRET=$secret\n"
	s.heed()
	_ = os.Remove("output")
	env := append(slices.Clone(s.env), "DINGTALK_APP_SECRET="+s.appSecret)
	p, err := subprocess.Start("output", env, "sh", "-c", unexport+command)
	s.must(err)
	select {
	case <-p.Exited():
	case <-s.ctx.Done():
	}
	s.must(p.Kill()) // whatever is left of it
	s.heed()
	s.output = strings.TrimRight(readFile("output"), "\n")
	s.hide(s.field("access_token"))
	return p.ExitCode()
}

// run shows a command that has to succeed, runs it, and prints what it printed.
func (s *stage) run(command string) { s.runFor(0, command) }

// runFor is run for a command that has to end with a status.
func (s *stage) runFor(status int, command string) {
	s.show(command)
	got := s.capture(command)
	if s.output != "" {
		s.printf("%s\n", s.output)
	}
	if got != status {
		s.fail("the command above ended with status %d instead of %d", got, status)
	}
}

// write writes a file, and shows it.
func (s *stage) write(name, content string) {
	s.must(os.WriteFile(name, []byte(content), 0o600))
	s.run("cat " + name)
}

// field returns the value beside a name in the last command's output.
func (s *stage) field(name string) string { return find(`(?m)^\s*`+name+` +(.*?)\s*$`, s.output) }

// find returns what the group of a pattern matches first in a text; empty if it does not match.
func find(pattern, text string) string {
	if found := regexp.MustCompile(pattern).FindStringSubmatch(text); found != nil {
		return found[1]
	}
	return ""
}

func (s *stage) expect(what, got, want string) {
	if got != want {
		s.fail("%s: expected %q, got %q", what, want, got)
	}
}

// expectOutput fails unless the last command's output holds the texts.
func (s *stage) expectOutput(texts ...string) {
	for _, text := range texts {
		if !strings.Contains(s.output, text) {
			s.fail("the output above does not hold %q", text)
		}
	}
}

// heed ends the play if it is interrupted.
func (s *stage) heed() { s.must(context.Cause(s.ctx)) }

func (s *stage) must(err error) {
	if err != nil {
		s.fail("%v", err)
	}
}

func (s *stage) fail(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

// launch shows a command and starts it in the background, with its output in <name>.log. One that
// had that name before has ended.
func (s *stage) launch(name, command string) {
	s.show(command + " &")
	s.heed()
	_ = os.Remove(name + ".log")
	// With exec, the process that is signalled is the program itself.
	p, err := subprocess.Start(name+".log", s.env, "sh", "-c", "exec "+command)
	s.must(err)
	s.programs = append(s.programs, program{p, name})
}

// await waits until a file matches a pattern, and returns what its group matches. It fails when that
// takes too long, or when the program launched last has ended.
func (s *stage) await(reason, file, pattern string) string {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		s.heed()
		last := !s.programs[len(s.programs)-1].Running() || time.Now().After(deadline)
		if text := readFile(file); regexp.MustCompile(pattern).MatchString(text) {
			return find(pattern, text)
		}
		if last {
			s.fail("%s", reason)
		}
	}
}

// readFile returns a file's text, which is empty as long as there is none.
func readFile(name string) string {
	text, _ := os.ReadFile(name) //nolint:gosec // a file in the temporary directory
	return string(text)
}

// quote makes one word of the shell's of a text.
func quote(text string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:"
	if text != "" && strings.Trim(text, plain) == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
