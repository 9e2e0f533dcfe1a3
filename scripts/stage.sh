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
command_pid= # the command that is being waited for
title=     # the present step
number=0   #
why=       # why the script fails, where it knows
output=    # what the last command printed
status=0   # the last command's exit status
busy=      # not empty while a signal has to wait for something to be noted down
signalled= # the exit status that a signal asks for

# open_stage prepares everything that does not show, and sees to the end.
open_stage() {
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

	trap 'on_signal 130' INT
	trap 'on_signal 143' TERM
	trap 'on_signal 129' HUP
	trap close_stage EXIT
	busy=yes
	work=$(mktemp -d "${TMPDIR:-/tmp}/dingtalk.XXXXXX")
	work=$(CDPATH='' cd -- "$work" && pwd -P) # Vault refuses a plugin_directory that is a symbolic link
	quiet_signals
	cd -- "$work"

	# The user's own Vault must play no part: neither its address and token nor its settings, and ~/.vault-token stays
	# as it is.
	local name
	for name in "${!VAULT_@}"; do
		unset "$name"
	done
	export HOME=$work TMPDIR=$work
	mkdir bin plugins
	ln -s -- "$vault" bin/vault
	ln -s -- "$root/bin/dingtalk-simulator" bin/dingtalk-simulator
	export PATH="$work/bin:$PATH"
}

# step begins a step: what is printed next, and what failed if the script ends now.
step() {
	number=$((number + 1)) title=$1
	printf '\n==> %d. %s\n' "$number" "$title"
}

# show prints a command as a user would type it.
show() { printf '\n$ %s\n' "$(masked "$1")"; }

# note says what was found to be so.
note() { printf -- '--- %s\n' "$(masked "$1")"; }

# capture runs a command, and leaves what it prints in $output and its exit status in $status. It waits as for a program
# in the background, since bash forgets a Ctrl-C that comes while it waits for one in the foreground that takes no notice;
# vault is such a one.
capture() {
	local token
	spawn "$1" output
	command_pid=$!
	quiet_signals
	status=0
	wait "$command_pid" || status=$?
	command_pid=
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

# spawn starts a command in the background, with its output in a file. It gets a process group of its own: then Ctrl-C is
# for this script alone, which stops things in order, and whatever the command has started itself can be ended with it.
# Signals wait until the caller, having noted $! down, calls quiet_signals.
spawn() {
	busy=yes
	set -m
	eval "{ $1; } >\"\$2\" 2>&1 &"
	set +m
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
	done < <(printf '%s\n' "$output")
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
	spawn "exec $2" "$1.log" # the process that is signalled is the program itself
	names+=("$1") pids+=("$!")
	quiet_signals
}

# on_signal ends the script with the status, now or once what is busy is noted down.
on_signal() {
	signalled=$1
	[ -n "$busy" ] || exit "$1"
}

quiet_signals() {
	busy=
	[ -z "$signalled" ] || exit "$signalled"
}

# running tells whether the program that was launched last still runs.
running() { kill -0 "${pids[${#pids[@]} - 1]}" 2>/dev/null; }

# await polls a condition, and fails with a reason after half a minute or when the program launched last has ended.
await() {
	local tenths
	for ((tenths = 0; tenths < 300; tenths++)); do
		if "${@:2}"; then
			return
		fi
		running || break
		sleep 0.1
	done
	"${@:2}" || fail "$1"
}

# stop_all stops what was launched, the last first, and removes the folder. It fails if something had to be killed.
stop_all() {
	local i pid tenths clean=yes
	if [ -n "$command_pid" ]; then
		kill -TERM -- "-$command_pid" 2>/dev/null || true
		wait "$command_pid" 2>/dev/null || true
	fi
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
		pid=${pids[i]}
		kill -TERM "$pid" 2>/dev/null || true
		for ((tenths = 0; tenths < 100; tenths++)); do
			kill -0 -- "-$pid" 2>/dev/null || break
			sleep 0.1
		done
		if kill -KILL -- "-$pid" 2>/dev/null; then
			say "${names[i]} did not end within 10 s and was killed"
			clean=
		fi
		wait "$pid" 2>/dev/null || true
	done
	names=() pids=()
	cd /
	if [ -n "$work" ]; then
		rm -rf -- "$work" || clean=
	fi
	[ -n "$clean" ]
}

# close_stage runs however the script ends.
close_stage() {
	local ended=$?
	trap - EXIT
	busy=yes
	: # lets bash come to a signal that ended the last command
	trap '' INT TERM HUP PIPE # a second Ctrl-C must not cut the end short, nor must a reader that has gone
	set +e
	if [ "$ended" != 0 ]; then
		say ""
		if [ -n "$signalled" ] || [ "$ended" -gt 128 ]; then
			say "Interrupted in step $number, $title."
		else
			say "$(masked "FAILED in step $number, $title: ${why:-see above}.")"
			local name
			for name in ${names[@]+"${names[@]}"}; do
				say ""
				say "The end of $name.log:"
				say "$(masked "$(sed '/^Unseal Key:/d; /^Root Token:/d' "$work/$name.log" | tail -n 20)")"
			done
		fi
	fi
	if ! stop_all && [ "$ended" = 0 ]; then
		ended=1
	fi
	[ "$ended" = 0 ] || say "Everything that was started is stopped, and the temporary files are removed."
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
		port=$((20000 + RANDOM % 12000)) # below the ports that outgoing connections use
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
