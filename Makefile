# Everything that is done with this repository. `make help` lists it.
CARGO ?= cargo
.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu setup build lint bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | column -t -s @ 2>/dev/null || sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' $(MAKEFILE_LIST)

demo: ## watch four services share a simulated 24 GB card (needs no GPU, no Docker, no root)
	@examples/demo/run

test: setup ## format, lints, build and all tests, with private servers that end with it
	@tests/run

test-gpu: ## the check on a real NVIDIA GPU (needs PyTorch; skipped without a GPU)
	@tests/gpu/run

setup: ## install the system packages that the tests need
	@tests/setup

build: ## the release binary, target/release/gpuctl
	$(CARGO) build --locked --release --package gpuctl

lint: ## format check and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

bench: ## what gpuctl adds to the time that others take, and how fast the lock changes hands
	$(CARGO) bench --locked --bench overhead --bench handover

clean: ## remove what was built
	$(CARGO) clean
