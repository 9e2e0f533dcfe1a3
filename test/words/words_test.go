// SPDX-License-Identifier: MPL-2.0

// Package words holds every text of the project against a list of words: pages, comments, help
// texts, errors, log lines and names. A reader who knows Vault, Go or DingTalk should never have to
// stop at a word.
package words

import (
	"bytes"
	"cmp"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const root = "../.."

// rule is a word that is not used, and what to write for it. Its pattern finds it in any case of
// letters.
type rule struct {
	not string // a regular expression
	but string

	// around are the words around which the pattern looks, in lower case: it takes all of a minute to
	// try them all everywhere. Where the pattern is a plain text, it is that.
	around []string

	// unless is a regular expression of what the pattern finds but is fine.
	unless string

	// in is a regular expression of the files that the rule is about; empty for all.
	in string

	// found and fine are what the pattern has to find, and what it has to leave alone.
	found, fine []string
}

const code = `\.(go|md)$`

// rules are the words. Of words with a good meaning too, the patterns find the bad one alone.
var rules = []rule{
	{
		not: `(\w+['’]?s? )?\banswer\b|\b(the|its|their|these|those|whose|all|every|of|and|no|leased|cached|wrapped|good|` +
			`bad|right|wrong|correct|slow|whole|\d+) answers\b|\| answer `,
		unless: `(?i)^(to|not|can|cannot|could|may|might|must|should|will|would|apps|hosts|paths|requests|they|and) answer$|` +
			`^(and|all) answers$`,
		around: []string{"answer"}, but: "response",
		found: []string{"the answer of the API", "An answer", "var answer string", "the answers", "leased answers"},
		fine:  []string{"DingTalk answers with a 400", "it cannot answer", "is answered at once"},
	},
	{
		not:    `\blogin methods?\b`,
		around: []string{"login method"},
		but:    "auth method",
		found:  []string{"the login method AppRole"},
	},
	{
		not: `\bplugin(['’]s)? program\b|\b(copy|install|register) the program\b|` +
			`\bprograms? (that|which) (you|was|were|has been) (downloaded|built|registered)\b|` +
			`\bthe plugin is a program\b|\bprogram of the plugin\b`,
		around: []string{"program"}, but: "binary",
		found: []string{"the plugin's program", "Copy the program to", "the program that you downloaded"},
		fine:  []string{"a program that reads the token"},
	},
	{
		not:    `\bfolders?\b`,
		around: []string{"folder"},
		but:    "directory",
		found:  []string{"a folder", "folder := t.TempDir()"},
	},
	{
		not:    `\bmend(s|ed|ing)?\b`,
		around: []string{"mend"},
		but:    "fix",
		found:  []string{"has mended it"},
		fine:   []string{"amend", "recommended"},
	},
	{
		not:    `\btokens? in hand\b`,
		around: []string{"in hand"},
		but:    "the current token, the cached token",
		found:  []string{"the token in hand"},
	},
	{
		not:    `\b(life|lives) ((it|they|the \w+) )?((is|are|has|have) )?left\b|\bleft of (its|the token's|a token's) life\b`,
		around: []string{"left"},
		but:    "remaining TTL; in code, remaining",
		found:  []string{"the life left", "What life is left", "how much life the token has left"},
	},
	{
		not:    `\bbills? of materials?\b`,
		around: []string{"of material"},
		but:    "SBOM",
		found:  []string{"a bill of materials"},
	},
	{
		not: `\b(has|have|had|having) (it|them|somebody|nobody|Vault|DingTalk|curl|git|Agent|Proxy|Terraform|Prometheus|` +
			`the (CLI|call|caller|client|engine|linker|plugin|reader|server|simulator)|every \w+|one call) (ask|ban|begin|` +
			`call|check|do|drop|end|fail|fetch|follow|give|go|keep|make|open|print|read|refresh|reload|render|renew|return|revoke|` +
			`run|send|serve|start|stop|store|take|try|use|wait|write)\b`,
		around: []string{"has ", "have ", "had ", "having "}, but: "make X do, let X do",
		found: []string{"have DingTalk ban it", "has curl send it", "had it serve them", "have every client read"},
		fine:  []string{"you have to send it", "has a renew", "it has more calls than they make"},
	},
	{
		not: `\b(tells?|says) (whether|if)\b`, around: []string{"tell", "says"}, but: "reports whether",
		found: []string{"// isToken tells whether"}, fine: []string{"says what"},
	},
	{
		not: `(no token of app … could )?\b(be|is|are|was|were) had\b`, unless: `…`, // as the changelog quotes the error of an earlier release
		around: []string{" had"}, but: "fetch, get", found: []string{"could be had from"}, fine: []string{"had been"},
	},
	{
		not:    `(?-i:(^|[^\w.*$])Else\b)`,
		around: []string{"else"},
		but:    "Otherwise",
		found:  []string{"text. Else it ends."},
		fine:   []string{"} else {"},
	},
	{
		not:    `[,;] else\b`,
		around: []string{"else"},
		but:    "otherwise",
		found:  []string{"create for a new app, else update"},
	},
	{
		not:    `\bbesides\b`,
		around: []string{"besides"},
		but:    "also, in addition to, other than",
		found:  []string{"Besides, it ends"},
		fine:   []string{"beside"},
	},
	{
		not:    `\band (its|their|the) like\b`,
		around: []string{"like"},
		but:    "for example",
		found:  []string{"cron and the like"},
	},
	{not: `\bas a rule\b`, around: []string{"as a rule"}, but: "usually", found: []string{"As a rule, it is"}},

	// Phrases that were here before.
	{not: `looks like a wrong secret`, but: "DingTalk reports a wrong secret"},
	{not: `give the right to write`, but: "restrict write access to"},
	{not: `does not wait for the back-off, but`, but: "ignores the back-off"},
	{not: `the app of their own`, but: "the app named in its metadata"},
	{not: `as many seconds ago as`, but: "lease_duration minus the Age header"},
	{not: `a host of (their|his|her) own`, around: []string{"a host of"}, but: "a host they control"},
	{
		not:    `\b(moved?|to) (the app )?to a host of theirs`,
		around: []string{"a host of"},
		but:    "a host they control",
	},
	{
		not:    `\bno token (of|for) app [^…]{1,40} could be`,
		around: []string{"no token"},
		but:    "could not get a token for app … from …",
	},
	{not: `what a caller was left with`, but: "what the caller got"},
	{not: `lost is what`, but: "… is lost"},

	// Names in code.
	{
		not: `\b(takeOff|newGeneration128|leastServed|mostMinTTL|holdFor)\b`, in: code,
		around: []string{"takeoff", "newgeneration128", "leastserved", "mostminttl", "holdfor"},
		but:    "startFetch, newGeneration, minServed, maxMinTTL",
		found:  []string{"a.takeOff(f)"},
	},
	{
		not: `\.(trouble|fly|settle|guard|slot|pauses)\b|\b(type|func) (guard|slot|pauses|need|verdict|purpose|hold)\b|` +
			`\) (fly|settle|held|holds?For|purpose|verdict)\(|\b(trouble|slot) :?=|\b(slot|guard) sync\.|` +
			`\bpauses +map\[`,
		in:     code,
		around: []string{"trouble", "fly", "settle", "guard", "slot", "pauses", "need", "verdict", "purpose", "hold", "held"},
		but:    "lastFailure, runFetch, finishFetch, a lock named for what it locks, cooldowns",
		found:  []string{"`app.trouble`", "func (f *flight) fly() {", "type slot struct", "slot := 1"},
		fine:   []string{"the pauses take no time", "var guard struct"},
	},
	{
		not:    `func \(\w+ \*?(lifecycle|client)\) end\(|\blifecycle\.end\b`,
		around: []string{"end"},
		in:     code, but: "close",
		found: []string{"func (l *lifecycle) end() {"},
	},

	{not: `应答`, but: "响应", found: []string{"缓存应答"}},
	{not: `读取方`, but: "客户端, 调用方", found: []string{"其他读取方"}},
	{not: `(现有|手上|手头)的? ?token`, around: []string{"token"}, but: "当前 token", found: []string{"现有的 token"}},
	{not: `登录方式|登录方法`, around: []string{"登录方"}, but: "认证方法", found: []string{"AppRole 登录方式"}},
	{
		not: `(插件|编译|构建|下载)(好)?的?程序(?:[^员]|$)|系统的程序|启动的程序|[把将]程序`, around: []string{"程序"}, but: "二进制文件",
		found: []string{"插件程序", "编译的程序", "把程序复制到"}, fine: []string{"应用程序", "运行程序"},
	},
	{not: `能撑多久`, but: "可容忍的故障时长", found: []string{"能撑多久"}},
}

// finder returns a function that returns where in a text each thing begins that the rule finds.
func (r rule) finder() func(text string) []int {
	pattern, unless := regexp.MustCompile("(?i)"+r.not), regexp.MustCompile(cmp.Or(r.unless, "^$"))
	around := r.around
	if around == nil {
		around = []string{r.not}
	}
	return func(text string) []int {
		found := map[int]bool{}
		lower := strings.Map(lowerASCII, text)
		for _, word := range around {
			for at := strings.Index(lower, word); at >= 0; {
				from, to := max(0, at-reach), min(len(text), at+len(word)+reach)
				for _, match := range pattern.FindAllStringIndex(text[from:to], -1) {
					begin, end := from+match[0], from+match[1]
					if begin <= at && at < end && !unless.MatchString(text[begin:end]) {
						found[begin] = true
					}
				}
				next := strings.Index(lower[at+len(word):], word)
				if next < 0 {
					break
				}
				at += len(word) + next
			}
		}
		return slices.Sorted(maps.Keys(found))
	}
}

// reach is how far from a word a pattern looks, in bytes: farther than any of them goes.
const reach = 80

func lowerASCII(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

func TestWords_each_rule_finds_what_it_is_about_and_no_more(t *testing.T) {
	t.Parallel()
	for _, r := range rules {
		find := r.finder()
		for _, text := range r.found {
			assert.NotEmpty(t, find(text), "%s: %s", r.not, text)
		}
		for _, text := range r.fine {
			assert.Empty(t, find(text), "%s: %s", r.not, text)
		}
	}
}

func TestWords_are_those_of_Vault_Go_and_DingTalk(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(filepath.Join(root, ".git")); os.IsNotExist(err) {
		t.Skip("these sources came without git, which knows which files are the project's")
	}
	// In containers the checkout often belongs to another user, in which case git asks for this.
	list := exec.CommandContext(t.Context(), "git", "-c", "safe.directory=*", "ls-files", "-z")
	list.Dir = root
	out, err := list.Output()
	require.NoError(t, err, "the files are those that git knows")
	files := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	require.Greater(t, len(files), 200)
	type page struct {
		text  string
		lines lineStarts
	}
	pages := map[string]page{}
	for _, file := range files {
		if file == "test/words/words_test.go" || file == "LICENSE" || strings.HasSuffix(file, "go.sum") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(root, file))
		if os.IsNotExist(err) {
			continue // deleted, and not yet committed
		}
		require.NoError(t, err)
		if !bytes.ContainsRune(content, 0) { // a text
			text, lines := flat(string(content))
			pages[file] = page{text, lines}
		}
	}
	for _, r := range rules {
		find, in := r.finder(), regexp.MustCompile(r.in)
		for file, p := range pages {
			if !in.MatchString(file) {
				continue
			}
			for _, at := range find(p.text) {
				near := strings.ToValidUTF8(p.text[max(0, at-30):min(len(p.text), at+50)], "")
				t.Errorf("%s:%d: not these words, but %q: … %s …", file, p.lines.at(at), r.but, near)
			}
		}
	}
}

// lineStarts are the places in a flat text at which the lines of the file begin.
type lineStarts []int

// at returns the number of the line that a place is in.
func (l lineStarts) at(place int) int { return sort.SearchInts(l, place+1) }

var (
	mark      = regexp.MustCompile(`^\s*(//|#+|--|/?\*+|>)?\s*`)
	testNames = regexp.MustCompile(`\b(Test|Fuzz|Benchmark)\w*_\w+`)
)

// spaced is the sentence that a test's name is.
func spaced(name string) string { return strings.ReplaceAll(name, "_", " ") }

// flat joins a text's lines by single spaces, without the marks of comments, so that a phrase is
// found wherever the line breaks.
func flat(text string) (string, lineStarts) {
	var joined strings.Builder
	var lines lineStarts
	for line := range strings.Lines(testNames.ReplaceAllStringFunc(text, spaced)) {
		lines = append(lines, joined.Len())
		joined.WriteString(strings.TrimSpace(mark.ReplaceAllString(line, "")))
		joined.WriteString(" ")
	}
	return joined.String(), lines
}

func TestWords_are_found_wherever_the_line_breaks(t *testing.T) {
	t.Parallel()
	text, lines := flat("package x\n\n// Of materials,\n// a bill\n// of materials is\n//\n\tlist\n")
	require.Equal(t, "package x  Of materials, a bill of materials is  list ", text)
	at := rule{not: `bill of materials`}.finder()(text)
	require.Len(t, at, 1)
	require.Equal(t, 4, lines.at(at[0]))
	require.Equal(t, 1, lines.at(0))
}
