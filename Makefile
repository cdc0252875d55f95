# Everything that is done with this repository. `make help` lists it.
CARGO ?= cargo
.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu setup build generated install uninstall pictures dist deb wheel test-package faults fuzz lint deny bench bench-baseline clean

PREFIX ?= /usr/local
BUILT = $(or $(CARGO_TARGET_DIR),target)
to = $(DESTDIR)$(PREFIX)
# What `make install` leaves, below PREFIX.
INSTALLED = bin/gpuctl share/bash-completion/completions/gpuctl share/zsh/site-functions/_gpuctl \
	share/fish/vendor_completions.d/gpuctl.fish $(patsubst man/%.1,share/man/man1/%.1,$(wildcard man/*.1)) \
	$(patsubst man/%.5,share/man/man5/%.5,$(wildcard man/*.5)) share/doc/gpuctl

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | column -t -s @ 2>/dev/null || sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' $(MAKEFILE_LIST)

demo: ## watch four services share a simulated 24 GB card (needs no GPU, no Docker, no root)
	@examples/demo/run

test: setup ## format, lints, build and all tests, with private servers that end with it
	@tests/all

test-gpu: ## the check on a real NVIDIA GPU (needs PyTorch; skipped without a GPU)
	@tests/gpu/run

setup: ## install the system packages that the tests need
	@tests/setup

build: ## the release binary, target/release/gpuctl
	$(CARGO) build --locked --release --package gpuctl

install: $(BUILT)/release/gpuctl ## binary, manuals, completions and examples below PREFIX (/usr/local), or DESTDIR/PREFIX
	install -D -m 755 $(BUILT)/release/gpuctl $(to)/bin/gpuctl
	install -D -m 644 completions/gpuctl.bash $(to)/share/bash-completion/completions/gpuctl
	install -D -m 644 completions/_gpuctl $(to)/share/zsh/site-functions/_gpuctl
	install -D -m 644 completions/gpuctl.fish $(to)/share/fish/vendor_completions.d/gpuctl.fish
	install -d $(to)/share/man/man1 $(to)/share/man/man5 $(to)/share/doc/gpuctl
	install -m 644 man/*.1 $(to)/share/man/man1
	install -m 644 man/*.5 $(to)/share/man/man5
	for folder in docs examples/ci examples/slurm examples/systemd; do install -d $(to)/share/doc/gpuctl/$$folder; done
	install -m 644 README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE $(to)/share/doc/gpuctl
	install -m 644 docs/*.md $(to)/share/doc/gpuctl/docs
	install -m 644 examples/*.toml $(to)/share/doc/gpuctl/examples
	install -m 644 examples/ci/* $(to)/share/doc/gpuctl/examples/ci
	install -m 755 examples/slurm/* $(to)/share/doc/gpuctl/examples/slurm
	for unit in examples/systemd/*; do sed 's,/usr/bin/gpuctl,$(PREFIX)/bin/gpuctl,' $$unit >$(to)/share/doc/gpuctl/$$unit; done
	chmod 644 $(to)/share/doc/gpuctl/examples/systemd/*

uninstall: ## remove what `make install` left
	cd $(to) && rm -rf $(INSTALLED)

# Asked each time, or an update would install an old one. `sudo make install` after `make build` has no cargo, and needs
# none.
.PHONY: $(BUILT)/release/gpuctl
$(BUILT)/release/gpuctl:
	@if command -v $(CARGO) >/dev/null; then $(MAKE) --no-print-directory build; else \
		test -f $@ || { echo "$@ is missing, and so is $(CARGO), which builds it: https://www.rust-lang.org/tools/install; or run \`make build\` as who has it" >&2; exit 1; }; fi

pictures: ## draw the pictures of the README anew (needs python3-pyte)
	@docs/pictures/render

# As `make install` leaves it in /usr/local: tar -C /usr/local --strip-components=1 -xzf gpuctl-….tar.gz
# Files only: a folder in it would give an existing one its mode.
RELEASE = gpuctl-$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)-linux-$(shell uname -m)

dist: $(BUILT)/release/gpuctl ## a tarball of what `make install` leaves, and its checksum, in target/dist
	rm -rf $(BUILT)/dist
	$(MAKE) --no-print-directory --silent install PREFIX=/usr/local DESTDIR=$(abspath $(BUILT))/dist/stage
	mv $(BUILT)/dist/stage/usr/local $(BUILT)/dist/$(RELEASE)
	cd $(BUILT)/dist && find $(RELEASE) -type f | LC_ALL=C sort | tar --owner=0 --group=0 --numeric-owner \
		--mtime=@$(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null),0) -czf $(RELEASE).tar.gz -T -
	rm -r $(BUILT)/dist/stage $(BUILT)/dist/$(RELEASE)
	cd $(BUILT)/dist && sha256sum *.tar.gz | tee SHA256SUMS

deb: ## a Debian package, in target/debian (needs cargo-deb)
	@PATH=$(abspath $(BUILT))/tools/bin:$$PATH; $(CARGO) deb --version >/dev/null 2>&1 || \
		{ echo "make deb needs cargo-deb: \`cargo install --locked cargo-deb\` builds it, in minutes" >&2; exit 1; }; \
		$(CARGO) deb --locked

# One that is installed, or else one of our own.
MATURIN ?= $(shell command -v maturin || echo $(BUILT)/tools/maturin/bin/maturin)

wheel: $(MATURIN) ## the program and its client for Python in one wheel, in target/wheels (needs maturin, or Python with venv)
	$(MATURIN) build --release --out $(BUILT)/wheels

$(BUILT)/tools/maturin/bin/maturin:
	python3 -m venv $(BUILT)/tools/maturin
	$(BUILT)/tools/maturin/bin/pip install --quiet 'maturin>=1.9,<2'

test-package: ## install package, tarball and wheel in a fresh Debian, use and remove them; and `make install`
	@tests/package/run

faults: ## the fault table with what is seen of each row, made for real; writes docs/faults.md
	@tests/faults/scorecard

generated: ## the manual pages in man/, made by the program; a test holds them to it
	$(CARGO) build --locked --quiet --package gpuctl
	rm -f man/*
	$(CARGO) run --locked --quiet --package gpuctl -- man --out man

fuzz: ## mangle everything that gpuctl reads, FUZZ_SECONDS (20) a target (needs a C++ compiler)
	@fuzz/run

lint: ## format check and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

deny: ## licences, duplicates, sources and known advisories of all dependencies (builds cargo-deny once: minutes)
	@tests/deny

bench: ## what gpuctl takes beside its floors and what it replaces; writes docs/benchmarks.md
	$(CARGO) bench --locked --bench table -- --write

bench-baseline: ## count the instructions of the hot paths anew, for benches/instructions.toml (needs valgrind)
	$(CARGO) bench --locked --bench table -- --update

clean: ## remove what was built
	$(CARGO) clean
