.PHONY: help demo demo-fleet test metrics-test picture guides matrix soak fuzz sanitize lint bench bench-quick bench-journal \
    package try-package prebuilt bare newcomer docs

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: ## Let TLS and DTLS clients resume sessions in a node with Rekindle, and print a table
	@scripts/setup.sh
	@scripts/demo.sh

demo-fleet: ## The same with three nodes that share sessions through Valkey and restart one after the other
	@scripts/setup.sh valkey-server valkey-cli
	@scripts/demo_fleet.sh

# The last line reads `N passed, N failed`, and `, N skipped` where any were. Clients that cannot be installed are skipped.
test: ## Run the native tests and all Common Test suites on this machine's OTP, in some ten minutes
	@scripts/setup.sh git elixir erlang-proper-dev faketime valkey-server valkey-cli
	@scripts/setup.sh gnutls-cli tstclnt libbearssl-dev libmbedtls-dev libwolfssl-dev || true
	@scripts/test.sh

# Each release is downloaded into a folder of its own.
matrix: ## Run the Common Test suites on several OTP releases; Debian only (RELEASES="27 28")
	@scripts/setup.sh git elixir erlang-proper-dev valkey-server valkey-cli
	@scripts/matrix.sh $(RELEASES)

soak: ## Run real clients for half an hour while listeners close and processes are killed (MINUTES=5)
	@scripts/setup.sh
	@soak/run.sh $(MINUTES)

# `make test` skips these tests where Prometheus and prometheus.erl are not installed.
metrics-test: ## Test the metrics with a real Prometheus and prometheus.erl; Debian only
	@scripts/setup.sh
	@scripts/metrics.sh

picture: ## Draw the picture of docs/metrics.md with a real Prometheus, in some six minutes; Debian only
	@scripts/setup.sh chromium pngquant
	@scripts/metrics_picture.sh

# Servers that cannot be installed are skipped.
guides: ## Run the guides of docs/guides as they are written, in some five minutes
	@scripts/setup.sh git elixir
	@for server in rabbitmq-server yaws haproxy; do scripts/setup.sh $$server || true; done
	rebar3 ct --dir test/guides

lint: ## Check formatting, lints, warnings, cross references, types, scripts, repeated passages, crates' licences and advisories
	@scripts/setup.sh git shellcheck
	cargo fmt --check
	cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
	cargo clippy --quiet --package rekindle_nif --package rekindle_core --locked --features rekindle_nif/testing -- -D warnings
	rebar3 as ci ct --compile_only
	rebar3 xref
	rebar3 dialyzer
	shellcheck scripts/*.sh bench/*.sh soak/*.sh native/*.sh test/guides/bin/systemctl .ci/run
	@scripts/ruff.sh
	@scripts/erlfmt.sh
	python3 scripts/repeated.py
	@scripts/deny.sh

# Needs a machine that has nothing else to do. With BUSY=1 it runs on a busy one, and the report says so. Tables and figures go
# to bench/results, docs/performance.md, docs/sizing.md and README.md.
bench: ## Compare Rekindle with OTP's own caches, in about an hour (BUSY=1)
	@scripts/setup.sh
	@bench/run.sh $(if $(BUSY),--busy) full

# The tables go to _build/bench/quick.
bench-quick: ## The same with fewer and smaller runs, in under two minutes
	@scripts/setup.sh
	@bench/run.sh quick _build/bench/quick

# What journals cost, how fast and how large they are, what is lost when, a fleet that restarts, and handshakes while a log
# fails. On a machine that has nothing else to do, or with BUSY=1. The tables go to bench/results.
bench-journal: ## Measure journals, in some half an hour (BUSY=1)
	@scripts/setup.sh valkey-server valkey-cli
	@LOAD_BEFORE=$$(bench/alone.sh $(if $(BUSY),--busy)) && export LOAD_BEFORE && python=$$(command -v python3) && \
	    bench/erl.sh bench_journal full bench/results $$python && \
	    bench/erl.sh bench_journal_faults bench/results $$python

# SECONDS is the length of each of two runs.
fuzz: ## Try random input (SECONDS=600)
	@scripts/setup.sh
	@scripts/fuzz.sh $(SECONDS)

# The last line says what was skipped.
sanitize: ## Run the native tests under sanitizers, Miri and shuttle
	@scripts/setup.sh
	@scripts/sanitize.sh

package: ## Make an archive of the application with its library in _build/package, for machines without Rust
	@scripts/setup.sh
	@scripts/package.sh

try-package: package ## Try that archive in a root folder without Rust; Debian only, as root
	@scripts/try_package.sh

prebuilt: ## Build the library for x86_64 and aarch64 Linux, glibc and musl, in _build/prebuilt
	@scripts/setup.sh
	@scripts/prebuilt.sh

bare: package ## Install, build and run the demo in bare Debian systems; Debian only, as root
	@scripts/setup.sh debootstrap
	@scripts/bare.sh

newcomer: ## Follow the README in bare Debian systems; Debian only, as root (DEBIAN="12 13")
	@scripts/setup.sh git debootstrap
	@scripts/newcomer.sh $(DEBIAN)

docs: ## Make the reference pages in _build/docs
	@scripts/setup.sh
	@scripts/docs.sh
