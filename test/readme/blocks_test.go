// SPDX-License-Identifier: MPL-2.0

//go:build e2e

// Package readme runs the project's pages as their reader would: every command and program in them,
// in order, in a fresh checkout, with a real Vault and the simulator in DingTalk's place. The demo,
// which the README begins with, has its own tests here.
package readme

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// This file takes a page apart. What a block is for is told by its language:
//
//	shell      is run by bash, and has to succeed; what it reads from standard input is the app's secret
//	text       is what the block before it prints
//	hcl, yaml  is a file; its first line is a comment with the name
//	json       is the file payload.json
//	go         is a program, and a file likewise; it runs until it has printed the text that follows, then it is interrupted
//	mermaid    is a drawing, in docs/architecture.md alone
//
// In a text, … stands for what differs from run to run, and on a line of its own for any lines. The
// width of columns does not count.
//
// What a block takes for granted is in comments before it, which a reader does not see, each on a
// line of its own; page_test.go has the list:
//
//	<!-- given: DingTalk answers {"kind":"throttled-qps","times":1} -->

type block struct {
	language string
	body     string
	given    []string
	line     int // of its fence
}

func (b block) String() string { return fmt.Sprintf("the %s block at line %d", b.language, b.line) }

// fileName is the name in the comment of the first line.
func (b block) fileName() (string, error) {
	if b.language == "json" {
		return "payload.json", nil
	}
	first, _, _ := strings.Cut(b.body, "\n")
	name := regexp.MustCompile(`^(?:#|//) ([a-z0-9.-]+)$`).FindStringSubmatch(first)
	if name == nil {
		return "", fmt.Errorf("%v does not name its file in the first line", b)
	}
	return name[1], nil
}

var givenComment = regexp.MustCompile(`^<!-- given: (.+) -->$`)

// parse returns the blocks in their order.
func parse(markdown string, languages ...string) ([]block, error) {
	var blocks []block
	var open *block
	var given []string
	for number, line := range strings.Split(markdown, "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && open == nil:
			open = &block{language: fence, line: number + 1, given: given}
			given = nil
		case isFence && fence == "":
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.body += line + "\n"
		case givenComment.MatchString(line):
			given = append(given, givenComment.FindStringSubmatch(line)[1])
		case strings.Contains(line, "```"),
			strings.Contains(line, "~~~"),
			strings.HasPrefix(line, "    "),
			strings.HasPrefix(line, "\t"),
			strings.Contains(line, "<pre"):
			return nil, fmt.Errorf("line %d: code that is not in a block with a language would not be run", number+1)
		case strings.Contains(line, "<!--"):
			return nil, fmt.Errorf("line %d: a comment that says nothing to the test", number+1)
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%v does not end", open)
	}
	if given != nil {
		return nil, fmt.Errorf("no block follows %q", given)
	}
	for i, b := range blocks {
		switch {
		case b.language == "text":
			if i == 0 || blocks[i-1].language != "shell" && blocks[i-1].language != "go" {
				return nil, fmt.Errorf("%v does not follow what prints it", b)
			}
		case !slices.Contains(languages, b.language):
			return nil, fmt.Errorf("%v would not be run", b)
		}
	}
	return blocks, nil
}

// matches reports whether a program printed the text.
func matches(text, printed string) bool {
	var pattern strings.Builder
	for _, line := range lines(text) {
		if line == "…" {
			pattern.WriteString(`(?:.*\n)*`)
			continue
		}
		pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".+") + `\n`)
	}
	return regexp.MustCompile(`^` + pattern.String() + `$`).MatchString(strings.Join(lines(printed), "\n") + "\n")
}

// lines are the lines that are not empty, with single spaces.
func lines(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 0 {
			all = append(all, strings.Join(words, " "))
		}
	}
	return all
}
