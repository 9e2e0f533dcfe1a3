# SPDX-License-Identifier: MPL-2.0
#
# The entry point for people and for CI; `make` alone lists the targets. It needs Go, git, make and bash. Paths are
# relative, so the path of the checkout may contain spaces.

SHELL := bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
# With -j the targets still run one after the other: each uses all cores, and the output stays in order.
.NOTPARALLEL:

# The version that the plugin reports: v and a semantic version, as `vault plugin register -version` requires. The source
# has it, so a plain `go build` reports the same.
VERSION ?= $(shell sed -n 's/^var Version = "\(.*\)"$$/\1/p' backend.go)
PLUGIN := bin/vault-plugin-secrets-dingtalk
SIMULATOR := bin/dingtalk-simulator

# The race detector needs a C compiler. Without one the unit tests run without it, unless RACE=-race is set.
RACE ?= $(if $(filter 1,$(shell go env CGO_ENABLED)),-race,$(warning no C compiler: the race detector is left out))

# Go keeps its caches below HOME; scripts/lib.sh does the same where it is not set.
ifeq ($(HOME),)
export HOME := $(CURDIR)/bin/.home
endif

# The other modules, but for test/vault, which only builds a Vault.
modules := bench examples/clients image test/examples

# Sets VAULT_BIN to the absolute path of a Vault.
with_vault = vault=$$(scripts/vault-bin) && VAULT_BIN="$$vault"

# Finds what the tests of the clients and of other programs run: consul-template, and DingTalk's SDK for Node.js.
with_consumers = template=$$(scripts/consul-template) && modules=$$(scripts/node-modules) && \
	export CONSUL_TEMPLATE_BIN="$$template" NODE_MODULES="$$modules"

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-16s  %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build the plugin into bin/ and print its SHA-256; VERSION=v1.2.3 sets its version
	@printf '%s\n' "$$version" | grep -Eqx 'v(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?' || \
		{ echo "VERSION is \"$$version\"; Vault wants v and a semantic version, such as v1.2.3" >&2; exit 1; }
	CGO_ENABLED=0 go build -trimpath -buildvcs=false \
		-ldflags "-s -w -X vault-plugin-secrets-dingtalk.Version=$$version" -o $(PLUGIN) ./cmd/vault-plugin-secrets-dingtalk
	@. scripts/lib.sh && echo "SHA-256 of $(PLUGIN) $$version: $$(sha256 $(PLUGIN))"
build: export version = $(VERSION)

.PHONY: release-snapshot
release-snapshot: ## build the files of a release into dist/ and test them; publishes nothing
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
vault: ## print the path of the Vault that is used; build one first (minutes, once) if there is none
	@scripts/vault-bin

.PHONY: demo
demo: build simulator bin/demo ## show the plugin at work in a real Vault, and clean up
	@$(with_vault) exec bin/demo

.PHONY: dev
dev: build simulator bin/demo ## run the demo's Vault and simulator in the foreground, to try things by hand
	@$(with_vault) exec bin/demo dev

.PHONY: lint
lint: ## check the code, the modules, the workflows and the scripts; changes nothing
	@scripts/lint $(modules)

.PHONY: vulncheck
vulncheck: ## look for known vulnerabilities in what is shipped; needs vuln.go.dev
	@. scripts/lib.sh && govulncheck=$$(tool govulncheck golang.org/x/vuln/cmd/govulncheck@v1.9.0) && \
		for module in . image examples/clients; do GOWORK=off "$$govulncheck" -C $$module ./... || exit 1; done

.PHONY: fmt
fmt: ## format the Go code
	@scripts/golangci-lint fmt
	@scripts/golangci-lint fmt test/vault
	@for module in $(modules); do scripts/golangci-lint fmt $$module || exit 1; done

.PHONY: test
test: test-unit test-e2e ## run all tests

.PHONY: test-unit
test-unit: ## run the tests that need no Vault, with the race detector, in random order
	go test $(RACE) -shuffle=on -timeout 20m ./...
	@for module in $(modules); do echo "go -C $$module test ./..."; GOWORK=off go -C $$module test ./... || exit 1; done

# -count=1, as go test would cache a result although the binaries it ran have changed.
.PHONY: test-e2e
test-e2e: build simulator bin/demo ## run the tests against a real Vault; VAULT_BIN=... names one
	$(with_consumers) && $(with_vault) go test -tags e2e -count=1 -timeout 40m ./test/...
	$(with_vault) GOWORK=off go -C image test -tags e2e -count=1 -timeout 20m ./...

.PHONY: simulation
simulation: ## simulate 30 days of 200 apps under faults, in virtual time; test-unit simulates one day
	go test -count=1 -timeout 15m -run "^TestSimulation" -v . -simulation.seed=0 -simulation.days=30

.PHONY: mutants
mutants: ## break the engine on purpose, one rule at a time, and check that a test fails; minutes
	go test -tags mutants -count=1 -timeout 60m ./test/mutants

.PHONY: fuzz
fuzz: ## look for inputs that break the engine, a minute for each target
	@for f in ReadResponse ShownText BaseURL ConfigWrite Operations; do \
		go test -run '^$$' -fuzz "^Fuzz$$f\$$" -fuzztime 60s -fuzzminimizetime 10x -parallel 2 . || exit 1; done

.PHONY: soak
soak: build ## put 15 minutes of load on a real Vault, E2E_SOAK=30m for longer; test-e2e does two minutes
	$(with_vault) E2E_SOAK=$${E2E_SOAK:-15m} go test -tags e2e -count=1 -timeout 2h -run '^TestSoak' -v ./test/e2e

.PHONY: bench
bench: build ## measure what a read costs, next to a plugin that does nothing; BENCH=-quick takes a minute
	CGO_ENABLED=0 GOWORK=off go -C bench build -trimpath -buildvcs=false -ldflags "-s -w" -o ../bin/bench/ ./...
	@$(with_vault) bin/bench/bench $(BENCH)

.PHONY: bench-compare
bench-compare: ## compare the Go benchmarks of BASE=<commit> and HEAD=<commit> (or the working tree)
	@scripts/bench-compare "$(BASE)" $(HEAD)

.PHONY: acceptance
acceptance: ## compare the live API with what is known of it; see docs/reliability.md
	go test -tags acceptance -count=1 ./internal/fidelity -run '^TestAcceptance' -v

.PHONY: clean
clean: ## remove what was built; Vault and the tools stay in the cache
	@if [ -d bin ]; then chmod -R u+w bin; fi
	rm -rf bin dist
