# Every target installs what is missing (tests/scripts/setup.sh), builds, runs and ends by itself.
# CARGO_TARGET_DIR is honoured, so that RocksDB is compiled once for several clones.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

export CARGO_TARGET_DIR ?= $(CURDIR)/target
export PATH := $(PATH):$(HOME)/.cargo/bin
export CUSTODY_BIN := $(CARGO_TARGET_DIR)/debug
export CUSTODY_PYTHON := $(CURDIR)/.cache/venv/bin/python
export CUSTODY_NODE_DIR := $(CURDIR)/.cache/node
export CUSTODY_EXAMPLES_DIR := $(CURDIR)/.cache/examples
export CUSTODY_CONFORMANCE_DIR := $(CURDIR)/.cache/conformance
export CUSTODY_MCP_PROXY := $(CURDIR)/.cache/mcp-proxy/bin/mcp-proxy
export NO_COLOR := 1
SEED ?= 1
ROUND ?= 0
ROUNDS ?= 100
# Seconds that all tests together may take, builds and installs apart: three minutes each for ledger and gateway-shim, two for asking.
TEST_SECONDS_MAX := 480

.PHONY: help build demo test lint bench soak setup-build setup-demo setup-test setup-bench

help:
	@echo 'make demo    one real chain of custody: calls, crash, archive, verification, evidence, a lie refused'
	@echo 'make test    all tests'
	@echo 'make lint    formatting, and clippy with warnings as errors'
	@echo 'make bench   measurements, for docs/BENCHMARKS.md'
	@echo 'make soak    the long tests, for docs/RELIABILITY.md (SEED=n ROUND=n to resume)'
	@echo 'make build   the programs: ledger, gateway-shim, verifier'

setup-build:
	@tests/scripts/setup.sh build

setup-demo:
	@tests/scripts/setup.sh build python node

setup-test:
	@tests/scripts/setup.sh build python node examples conformance test

setup-bench:
	@tests/scripts/setup.sh build bench

# Test-only features are built by an invocation of their own, so that they never reach a program that ships.
build: setup-build
	cargo build --locked --workspace --bins

demo: setup-demo build
	"$(CUSTODY_PYTHON)" tests/demo/run.py

# All is built first, so that the time that is told is the tests' own. The second verifier comes before them, so that cargo's
# own closing lines are the last but for that time, whatever it says.
test: setup-test build
	cargo build --locked -p custody-tests --features omit-check --bin verify-omit
	cargo test --locked --workspace --no-run
	@failed=0; SECONDS=0; \
	"$(CUSTODY_PYTHON)" tests/scripts/agree.py "$(CUSTODY_BIN)/golden" "$(CUSTODY_BIN)/verifier" || failed=1; \
	cargo test --locked --workspace --no-fail-fast || failed=1; \
	echo "the tests took $$SECONDS s"; \
	if [ $$SECONDS -gt $(TEST_SECONDS_MAX) ]; then echo "warning: they may take $(TEST_SECONDS_MAX) s"; fi; \
	exit $$failed

# Also what only a feature builds, and the verifier without what others need of the contract.
lint: setup-build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p verifier-cli --all-targets -- -D warnings
	cargo clippy --locked -p custody-tests --all-targets --features bench,omit-check -- -D warnings

bench: setup-bench build
	cargo build --locked -p custody-tests --features bench --bin bench
	python3 tests/scripts/bench.py

soak: setup-test build
	SEED="$(SEED)" ROUND="$(ROUND)" ROUNDS="$(ROUNDS)" tests/scripts/soak.sh
