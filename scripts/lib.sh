# shellcheck shell=bash
# SPDX-License-Identifier: MPL-2.0
#
# What the other scripts share; they source it first. It sets `root`, the checkout's absolute path, and keeps to
# bash 3.2 and POSIX tools, since macOS has nothing newer and a bare machine has only Go, git and make.

set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# Go keeps its caches below HOME. Where there is none they go into the ignored directory, under a name with a dot that
# Go's ./... does not enter.
if [ -z "${HOME:-}" ]; then
	export HOME="$root/bin/.home"
	mkdir -p "$HOME"
fi

# say prints a line for the person at the terminal. It goes to stderr, as stdout may be a script's result.
say() { printf '%s\n' "$*" >&2; }

# die prints what went wrong and what to do about it, and ends the script.
die() {
	say "${0##*/}: $*"
	exit 1
}

command -v go >/dev/null || die "go is not on the PATH; install Go (https://go.dev/doc/install), see go.mod for the version"

# Versions come from the linker, never from git; and in a clone that belongs to another user (CI, containers) asking git
# would fail.
GOFLAGS="$(go env GOFLAGS) -buildvcs=false"
export GOFLAGS

# sha256 prints the SHA-256 of a file, or of standard input if its name is -, as bare hexadecimal digits.
sha256() {
	local line
	if command -v sha256sum >/dev/null; then
		line=$(sha256sum -- "$1")
	else
		line=$(shasum -a 256 -- "$1")
	fi
	line=${line#\\} # set before the digits when the file's name holds a backslash
	printf '%s\n' "${line%% *}"
}

# cached prints the path of a file in the cache or, when it is not there, the path where it can be stored: in the
# user's cache directory if that is writable, so that a fresh checkout need not build it again, otherwise in bin/.
cached() {
	local name=$1 dir="${XDG_CACHE_HOME:-$HOME/.cache}/vault-plugin-secrets-dingtalk"
	case $dir in /*) ;; *) dir=$HOME/.cache/vault-plugin-secrets-dingtalk ;; esac # the XDG standard ignores relative paths
	if [ ! -x "$dir/$name" ] && ! { mkdir -p -- "$dir" && [ -w "$dir" ]; } 2>/dev/null; then
		dir=$root/bin
		mkdir -p -- "$dir"
	fi
	printf '%s\n' "$dir/$name"
}

# in_turn waits until no other process builds into the directory, and keeps others out until this one ends. Without
# flock (macOS) two may build at once, which costs time but no more: each result is renamed into its place.
in_turn() {
	command -v flock >/dev/null || return 0
	exec 9<"$1"
	flock -n 9 && return 0
	say "waiting for another build into $1"
	flock 9 || true
}

# host_go runs go for this very machine, whatever the environment cross-compiles for, and outside any workspace.
# The lock's descriptor is closed for it, lest a process that go leaves behind holds the lock.
host_go() {
	GOWORK=off GOOS=$(go env GOHOSTOS) GOARCH=$(go env GOHOSTARCH) go "$@" 9>&-
}

# cache_once prints the path of an entry of the cache, after making it where it is missing: cache_once NAME COMMAND
# [ARGS…]. The command makes it at the path in its last argument. Call it as $(cache_once …): its shell ends with it and
# releases the lock.
cache_once() {
	local target temporary
	target=$(cached "$1")
	shift
	[ -e "$target" ] || in_turn "${target%/*}"
	if [ ! -e "$target" ]; then # whoever held the lock may have made it
		say "Making $target, once: this may take minutes."
		temporary=$target.$$.tmp
		# shellcheck disable=SC2064 # a function's variable is gone when the shell ends
		trap "rm -rf -- $(printf '%q ' "$temporary" "$temporary.bin")" EXIT
		"$@" "$temporary" >&2 || die "$target could not be made, see above"
		mv -f -- "$temporary" "$target" || die "$target cannot be written" # in $(…), set -e does not end the shell
	fi
	printf '%s\n' "$target"
}

# tool prints the path of a tool, after building it where the cache lacks it: tool NAME PACKAGE@VERSION [FLAGS…]. Tools are
# kept out of go.mod: their dependencies are not the plugin's.
tool() {
	local name=$1 package=$2
	shift 2
	cache_once "$name-${package##*@}-$(go env GOVERSION)-$(go env GOHOSTOS)-$(go env GOHOSTARCH)" \
		build_tool "$name" "$package" "$@"
}

build_tool() {
	local name=$1 package=$2 target=${*: -1}
	CGO_ENABLED=0 GOBIN=$target.bin host_go install "${@:3:$#-3}" "$package" && mv -- "$target.bin/$name" "$target" &&
		rmdir -- "$target.bin"
}
