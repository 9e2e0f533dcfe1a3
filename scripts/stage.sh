# shellcheck shell=bash
# SPDX-License-Identifier: MPL-2.0
#
# What scripts/demo and scripts/dev share; they source it first. It sets the stage in a temporary folder: the simulator in
# DingTalk's place (or the live API), and a Vault dev server with the plugin registered, enabled and given an app. Every
# command is printed as a user would type it, and then run as printed. However the script ends, what it started is
# stopped and what it wrote is removed.
#
# With DINGTALK_APP_KEY and DINGTALK_APP_SECRET set, the live API plays itself (DINGTALK_BASE_URL is for an edition other
# than the default); then no token and no secret is shown.

# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

readonly plugin=vault-plugin-secrets-dingtalk

live=            # not empty when the live API is used
app_key=dingdemo # the app's key; its secret is DINGTALK_APP_SECRET, no longer exported
base_url=        # empty stands for the plugin's default

work=      # the temporary folder, which is also the working directory
hidden=()  # texts that are not to be shown
names=()   # the programs that run in the background, and their process ids
pids=()
title=     # the present step
number=0   #
why=       # why the script fails, where it knows
output=    # what the last command printed
status=0   # the last command's exit status
signalled= # the exit status that a signal asks for
signals=0  # how many came
group=     # the process group that was last in the background, and its exit status
ended=0    #

# on_stage performs the play, a function of the script's, and ends with its status.
#
# The play goes on in the background, in a process group of its own where no Ctrl-C comes. This shell, which signals do
# reach, only waits, and leaves a note that the play heeds where it can stop: signals that come while bash runs a program in
# the foreground, or parses, are now and then forgotten, or make a syntax error of a sound line.
on_stage() {
	# Nothing here asks questions. A closed standard input would be taken for some file opened later.
	exec </dev/null
	umask 077

	if [ -n "${DINGTALK_APP_KEY:-}${DINGTALK_APP_SECRET:-}" ]; then
		if [ -z "${DINGTALK_APP_KEY:-}" ] || [ -z "${DINGTALK_APP_SECRET:-}" ]; then
			die "set both DINGTALK_APP_KEY and DINGTALK_APP_SECRET for the live API, or neither for the simulator"
		fi
		live=yes app_key=$DINGTALK_APP_KEY base_url=${DINGTALK_BASE_URL:-}
		hidden=("$DINGTALK_APP_SECRET")
	elif [ -n "${DINGTALK_BASE_URL:-}" ]; then
		die "DINGTALK_BASE_URL is for the live API: set DINGTALK_APP_KEY and DINGTALK_APP_SECRET too"
	fi
	export -n DINGTALK_APP_SECRET # the programs started here have no use for it in their environment

	local vault=${VAULT_BIN:-} program
	if [ -z "$vault" ]; then
		vault=$("$root/scripts/vault-bin")
	fi
	for program in "$root/bin/$plugin" "$root/bin/dingtalk-simulator" "$vault"; do
		[ -x "$program" ] || die "there is no program $program: run make ${0##*/}, which builds what is missing"
	done

	cd -P -- "${TMPDIR:-/tmp}" # Vault refuses a plugin_directory that is a symbolic link
	work=$PWD/dingtalk.$$-$RANDOM
	trap 'on_signal 129' HUP
	trap 'on_signal 130' INT
	trap 'on_signal 131' QUIT
	trap 'on_signal 143' TERM
	in_background mkdir -- "$work" # fails if the name is taken
	[ "$ended" = 0 ] || [ -n "$signalled" ] || die "there is no room for the temporary files: set TMPDIR"
	local clean=yes status=$signalled
	if [ -z "$signalled" ]; then
		in_background perform
		status=$ended
		[ "$ended" = 0 ] || status=${signalled:-$ended} # zero if it was over before the signal came
	fi
	trap '' HUP INT QUIT TERM # from here on it takes no time
	end_group || clean=
	in_background rm -rf -- "$work"
	if [ -z "$clean" ] || [ "$ended" != 0 ]; then
		say "Something is left behind of what was started, or of the files in $work."
		return 1
	fi
	[ "$status" = 0 ] || say "Everything that was started is stopped, and the temporary files are removed."
	return "$status"
}

# on_signal leaves the note that a signal came, which asks for the status.
on_signal() {
	signalled=$1 signals=$((signals + 1))
	{ : >"$work/interrupted"; } 2>/dev/null || true # before and after the play, there is nothing to put it into
}

# in_background runs a function or a command with a process group of its own, $group, and leaves its exit status in $ended.
in_background() {
	local seen
	set -m
	"$@" &
	set +m
	group=$!
	while :; do
		seen=$signals ended=0
		wait "$group" || ended=$?
		[ "$seen" != "$signals" ] || break # else it was a signal that ended the wait
	done
}

# end_group sees to it that nothing is left of the group that was last in the background.
end_group() {
	local tenths
	for ((tenths = 0; tenths < 100; tenths++)); do
		kill -TERM -- "-$group" 2>/dev/null || return 0
		sleep 0.1
	done
	! kill -KILL -- "-$group" 2>/dev/null
}

# perform plays, and sees to the end.
perform() {
	trap '' TTOU # else a terminal may be set to stop what prints from the background
	trap close_stage EXIT
	cd -- "$work"

	# The user's own Vault must play no part: neither its address and token nor its settings, and ~/.vault-token stays
	# as it is.
	local name
	for name in "${!VAULT_@}"; do
		unset "$name"
	done
	export HOME=$work TMPDIR=$work
	export VAULT_CLIENT_TIMEOUT=30s # since only then is an interrupt heeded
	mkdir bin plugins
	ln -s -- "$vault" bin/vault
	ln -s -- "$root/bin/dingtalk-simulator" bin/dingtalk-simulator
	export PATH="$work/bin:$PATH"

	play
}

# interrupted tells whether a signal came, or whether there is nobody any more to note one.
interrupted() { [ -e "$work/interrupted" ] || ! kill -0 $$ 2>/dev/null; }

# heed ends the play if it is interrupted.
heed() { ! interrupted || exit 130; }

# step begins a step: what is printed next, and what failed if the script ends now.
step() {
	number=$((number + 1)) title=$1
	printf '\n==> %d. %s\n' "$number" "$title"
}

# show prints a command as a user would type it.
show() { printf '\n$ %s\n' "$(masked "$1")"; }

# note says what was found to be so.
note() { printf -- '--- %s\n' "$(masked "$1")"; }

# capture runs a command, and leaves what it prints in $output and its exit status in $status.
capture() {
	local token
	heed
	status=0
	eval "$1" >output 2>&1 || status=$?
	heed
	output=$(<output)
	token=$(field access_token)
	if [ -n "$live" ] && [ -n "$token" ]; then
		hidden+=("$token")
	fi
}

# run shows a command, runs it, and prints what it printed.
run() {
	show "$1"
	capture "$1"
	[ -z "$output" ] || masked "$output"
}

# succeed is run for a command that has to succeed.
succeed() {
	run "$1"
	[ "$status" = 0 ] || fail "the command above ended with status $status"
}

# fail ends the script with a reason, which close_stage prints.
fail() {
	why=$1
	exit 1
}

# expect fails unless the two texts are the same.
expect() { [ "$2" = "$3" ] || fail "$1: expected \"$3\", got \"$2\""; }

# expect_output fails unless the last command's output holds a text.
expect_output() {
	case $output in
	*"$1"*) ;;
	*) fail "the output above does not hold \"$1\"" ;;
	esac
}

# field prints the value beside a name in the last command's output.
field() {
	local name value
	while read -r name value; do
		if [ "$name" = "$1" ]; then
			printf '%s\n' "$value"
			return
		fi
	done <<<"$output" # and no process of its own, which would be left to itself by the return above
}

# masked prints a text without what is hidden.
masked() {
	local text=$1 secret
	for secret in ${hidden[@]+"${hidden[@]}"}; do
		text=${text//"$secret"/********}
	done
	printf '%s\n' "$text"
}

# launch shows a command and starts it in the background for good, with its output in <name>.log.
launch() {
	show "$2 &"
	heed
	eval "exec $2 >\"\$1.log\" 2>&1 &" # the process that is signalled is the program itself
	names+=("$1") pids+=("$!")
}

# running tells whether the program that was launched last still runs.
running() { kill -0 "${pids[${#pids[@]} - 1]}" 2>/dev/null; }

# await polls a condition, and fails with a reason after half a minute or when the program launched last has ended.
await() {
	local tenths
	for ((tenths = 0; tenths < 300; tenths++)); do
		heed
		if "${@:2}"; then
			return
		fi
		running || break
		sleep 0.1
	done
	"${@:2}" || fail "$1"
}

# stop_all stops what was launched, the last first. It fails if something had to be killed.
stop_all() {
	local i pid tenths clean=yes
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
		pid=${pids[i]}
		kill -TERM "$pid" 2>/dev/null || true
		for ((tenths = 0; tenths < 100; tenths++)); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
		if kill -KILL "$pid" 2>/dev/null; then
			say "${names[i]} did not end within 10 s and was killed"
			clean=
		fi
		wait "$pid" 2>/dev/null || true
	done
	names=() pids=()
	[ -n "$clean" ]
}

# close_stage runs however the play ends.
close_stage() {
	local ended=$?
	trap - EXIT
	trap '' PIPE # a reader that has gone must not cut the end short
	set +e
	if [ "$ended" != 0 ] && interrupted; then
		say ""
		say "Interrupted in step $number, $title."
	elif [ "$ended" != 0 ]; then
		say ""
		say "$(masked "FAILED in step $number, $title: ${why:-see above}.")"
		local name
		for name in ${names[@]+"${names[@]}"}; do
			say ""
			say "The end of $name.log:"
			say "$(masked "$(sed '/^Unseal Key:/d; /^Root Token:/d' "$work/$name.log" | tail -n 20)")"
		done
	fi
	if ! stop_all && [ "$ended" = 0 ]; then
		ended=1
	fi
	cd /
	rm -rf -- "$work"
	exit "$ended"
}

# start_dingtalk starts the simulator with one app, unless the live API is used.
start_dingtalk() {
	if [ -n "$live" ]; then
		step "DingTalk is the live API${base_url:+ at $base_url}"
		note "the app's key and secret come from the environment; tokens and the secret are not shown"
		return
	fi
	step "Start the simulator in DingTalk's place"
	DINGTALK_APP_SECRET=$(od -An -N16 -tx1 /dev/urandom)
	DINGTALK_APP_SECRET=${DINGTALK_APP_SECRET//[^0-9a-f]/}
	succeed "printf %s \"\$DINGTALK_APP_SECRET\" >app-secret"
	launch simulator "dingtalk-simulator -address 127.0.0.1:0 -app $app_key=@app-secret"
	await "the simulator did not start" simulator_answers
	printf '%s\n' "$base_url"
}

simulator_answers() {
	base_url=$(sed -n '/^http:/{p;q;}' simulator.log)
	[ -n "$base_url" ]
}

# start_vault starts a dev server that may run plugins from the folder plugins.
start_vault() {
	step "Start Vault with a plugin directory"
	printf 'plugin_directory = "%s/plugins"\n' "$work" >vault.hcl
	succeed "cat vault.hcl"
	succeed "cp $(printf %q "$root/bin/$plugin") plugins/"
	version=$("plugins/$plugin" -version) ||
		fail "the plugin does not run in $work; point TMPDIR at a folder where programs may run"

	local port tries
	for ((tries = 0; tries < 5; tries++)); do
		port=$((20000 + RANDOM % 5000)) # below the ports that outgoing connections use
		launch vault "vault server -dev -dev-no-store-token -config=vault.hcl -dev-listen-address=127.0.0.1:$port"
		await "Vault did not start" vault_settled
		if running; then
			break
		fi
		# Another program has the port.
		unset "names[${#names[@]}-1]" "pids[${#pids[@]}-1]"
	done
	running || fail "no port was free in $tries tries"

	export VAULT_ADDR="http://127.0.0.1:$port" VAULT_TOKEN
	VAULT_TOKEN=$(sed -n 's/^Root Token: //p' vault.log)
	if [ -n "$live" ]; then
		hidden+=("$VAULT_TOKEN")
	fi
	show "export VAULT_ADDR=$VAULT_ADDR VAULT_TOKEN=$VAULT_TOKEN"
	succeed "vault status"
}

# vault_settled tells whether Vault runs, or has ended for want of a free port.
vault_settled() {
	grep -qs '^Development mode should NOT be used' vault.log && return
	! running && grep -qs 'address already in use' vault.log
}

# install_plugin registers the plugin in Vault's catalog and mounts it.
install_plugin() {
	step "Register the plugin in Vault's catalog, with its SHA-256 and version"
	local sum sum_tool=sha256sum
	command -v sha256sum >/dev/null || sum_tool="shasum -a 256"
	succeed "$sum_tool plugins/$plugin"
	sum=${output%% *}
	succeed "vault plugin register -sha256=$sum -version=$version secret $plugin"
	succeed "vault plugin info -version=$version secret $plugin"
	expect "the catalog's SHA-256" "$(field sha256)" "$sum"
	expect "the catalog's version" "$(field version)" "$version"

	step "Enable it at dingtalk/"
	succeed "vault secrets enable -path=dingtalk $plugin"
	succeed "vault read sys/mounts/dingtalk"
	expect "the mount's type" "$(field type)" "$plugin"
	expect "the running version" "$(field running_plugin_version)" "$version"
	expect "the running program's SHA-256" "$(field running_sha256)" "$sum"
}

# store_app stores the app's credentials. The secret goes in by standard input: a command line is there for all to see.
store_app() {
	step "Store an app; the secret goes in by standard input, and never comes out again"
	succeed "printf %s \"\$DINGTALK_APP_SECRET\" | vault write dingtalk/config/myapp $(app_fields)"
	succeed "vault read dingtalk/config/myapp"
	expect "app_key" "$(field app_key)" "$app_key"
	case $output in
	*"$DINGTALK_APP_SECRET"*) fail "the answer holds the app's secret" ;;
	esac
}

# app_fields prints what a write of the app gives besides the secret itself.
app_fields() {
	printf 'app_key=%q app_secret=-' "$app_key"
	[ -z "$base_url" ] || printf ' base_url=%q' "$base_url"
}
