# SPDX-License-Identifier: MPL-2.0
#
# The entry point for people and for CI; `make` alone lists the targets. Needs Go, git, make and bash. Paths are
# relative and quoted, so that the checkout may lie under a path with spaces.

SHELL := bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
# With -j the targets still run one after the other: each uses all the cores itself, and output stays in order.
.NOTPARALLEL:

# What the plugin tells Vault: v and a semantic version, as `vault plugin register -version` wants it. The source has it, so
# that a plain `go build` says the same.
VERSION ?= $(shell sed -n 's/^var Version = "\(.*\)"$$/\1/p' backend.go)
PLUGIN := bin/vault-plugin-secrets-dingtalk
SIMULATOR := bin/dingtalk-simulator

# The race detector needs a C compiler; where there is none the unit tests run without it. RACE=-race insists.
RACE ?= $(if $(filter 1,$(shell go env CGO_ENABLED)),-race,$(warning no C compiler: the race detector is left out))

# Go keeps its caches below HOME. Where there is none, see scripts/lib.sh.
ifeq ($(HOME),)
export HOME := $(CURDIR)/bin/.home
endif

# The modules besides the plugin's own; test/vault is no more than the way to build a Vault.
modules := bench examples/clients image test/examples

# What a step needs to run against a real Vault: the path of one, absolute, in VAULT_BIN.
with_vault = vault=$$(scripts/vault-bin) && VAULT_BIN="$$vault"

# What the tests of other people's programs run besides: consul-template, and DingTalk's SDK for Node.js.
with_consumers = template=$$(scripts/consul-template) && modules=$$(scripts/node-modules) && \
	export CONSUL_TEMPLATE_BIN="$$template" NODE_MODULES="$$modules"

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-16s  %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build the plugin into bin/ and print its SHA-256; VERSION=v1.2.3 sets the version that it reports
	@printf '%s\n' "$$version" | grep -Eqx 'v(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?' || \
		{ echo "VERSION is \"$$version\"; Vault wants v and a semantic version, such as v1.2.3" >&2; exit 1; }
	CGO_ENABLED=0 go build -trimpath -buildvcs=false \
		-ldflags "-s -w -X vault-plugin-secrets-dingtalk.Version=$$version" -o $(PLUGIN) ./cmd/vault-plugin-secrets-dingtalk
	@. scripts/lib.sh && echo "SHA-256 of $(PLUGIN) $$version: $$(sha256 $(PLUGIN))"
build: export version = $(VERSION)

.PHONY: release-snapshot
release-snapshot: ## a release's files of this commit, into dist/, and check them; publishes nothing
	scripts/release --snapshot --skip=sign
	go test -tags release -count=1 -timeout 20m -run '^TestSnapshot' ./test/release
release-snapshot: export GORELEASER_CURRENT_TAG = $(VERSION)

.PHONY: simulator
simulator: ## build the DingTalk simulator into bin/
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -o $(SIMULATOR) ./cmd/dingtalk-simulator

# What demo and dev run.
.PHONY: bin/demo
bin/demo:
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -o $@ ./internal/demo

.PHONY: vault
vault: ## say which Vault the tests and the demo use, after building bin/vault once (minutes) if there is none
	@scripts/vault-bin

.PHONY: demo
demo: build simulator bin/demo ## show the plugin at work in a real Vault, from registering it to a rendered token, and clean up
	@$(with_vault) exec bin/demo

.PHONY: dev
dev: build simulator bin/demo ## the demo's set-up, left running in the foreground to try things in
	@$(with_vault) exec bin/demo dev

.PHONY: lint
lint: ## check the Go code, go.mod, the workflows and the shell scripts, changing nothing
	@scripts/lint $(modules)

.PHONY: vulncheck
vulncheck: ## look for known vulnerabilities in what the plugin, the image and the clients call; needs vuln.go.dev
	@. scripts/lib.sh && govulncheck=$$(tool govulncheck golang.org/x/vuln/cmd/govulncheck@v1.9.0) && \
		for module in . image examples/clients; do GOWORK=off "$$govulncheck" -C $$module ./... || exit 1; done

.PHONY: fmt
fmt: ## format the Go code
	@scripts/golangci-lint fmt
	@scripts/golangci-lint fmt test/vault
	@for module in $(modules); do scripts/golangci-lint fmt $$module || exit 1; done

.PHONY: test
test: test-unit test-e2e ## all the tests

.PHONY: test-unit
test-unit: ## the tests that need no Vault server, with the race detector, in random order
	go test $(RACE) -shuffle=on -timeout 5m ./...
	@for module in $(modules); do echo "go -C $$module test ./..."; GOWORK=off go -C $$module test ./... || exit 1; done

# -count=1, as go test would cache a result although the binaries it ran have changed.
.PHONY: test-e2e
test-e2e: build simulator bin/demo ## the end-to-end tests, against a real Vault server; VAULT_BIN=... names one
	$(with_consumers) && $(with_vault) go test -tags e2e -count=1 -timeout 20m ./test/...
	$(with_vault) GOWORK=off go -C image test -tags e2e -count=1 -timeout 5m ./...

.PHONY: simulation
simulation: ## 30 days of 200 apps under faults, in virtual time; test-unit does one of them
	go test -count=1 -timeout 15m -run "^TestSimulation" -v . -simulation.seed=0 -simulation.days=30

.PHONY: mutants
mutants: ## break the engine on purpose, a rule at a time, and see that the tests notice; minutes
	go test -tags mutants -count=1 -timeout 60m ./test/mutants

.PHONY: fuzz
fuzz: ## look for new failing inputs, a minute for each fuzz target
	@for f in ReadResponse ShownText BaseURL ConfigWrite Operations; do \
		go test -run '^$$' -fuzz "^Fuzz$$f\$$" -fuzztime 60s -fuzzminimizetime 10x -parallel 2 . || exit 1; done

.PHONY: soak
soak: build ## 15 minutes of load on a real Vault, which test-e2e does two of; E2E_SOAK=30m for longer
	$(with_vault) E2E_SOAK=$${E2E_SOAK:-15m} go test -tags e2e -count=1 -timeout 2h -run '^TestSoak' -v ./test/e2e

.PHONY: bench
bench: build ## what reads cost in a real Vault, next to a plugin that does nothing; BENCH=-quick takes a minute
	CGO_ENABLED=0 GOWORK=off go -C bench build -trimpath -buildvcs=false -ldflags "-s -w" -o ../bin/bench/ ./...
	@$(with_vault) bin/bench/bench $(BENCH)

.PHONY: bench-compare
bench-compare: ## the Go benchmarks of BASE=<commit> and HEAD=<commit> (or the working tree) compared
	@scripts/bench-compare "$(BASE)" $(HEAD)

.PHONY: acceptance
acceptance: ## compare the live API with what is known of it; DINGTALK_APP_KEY, DINGTALK_APP_SECRET, DINGTALK_BASE_URL and, for the unified call, DINGTALK_CORP_ID in the environment
	go test -tags acceptance -count=1 ./internal/fidelity -run '^TestAcceptance' -v

.PHONY: clean
clean: ## remove what was built; Vault and the tools stay in the user's cache
	@if [ -d bin ]; then chmod -R u+w bin; fi
	rm -rf bin dist
