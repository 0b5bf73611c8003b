.PHONY: demo demo-fleet test metrics-test guides matrix soak fuzz sanitize lint bench bench-quick bench-journal package \
    try-package prebuilt bare docs

# TLS and DTLS clients resuming their sessions out of Rekindle, in a table.
demo:
	@scripts/setup.sh
	@scripts/demo.sh

# Three nodes that share their sessions through Valkey, and a device that goes from one to the other while they are
# restarted.
demo-fleet:
	@scripts/setup.sh valkey-server valkey-cli
	@scripts/demo_fleet.sh

# All tests. The last line reads `N passed, N failed`, and `, N skipped` where any were.
test:
	@scripts/setup.sh git elixir erlang-proper-dev faketime valkey-server valkey-cli redis-server redis-cli
	@scripts/test.sh

# The Common Test suites on other OTP releases as well, each downloaded into a folder of its own; Debian only.
# `make matrix RELEASES="27 29"` chooses.
matrix:
	@scripts/setup.sh git elixir erlang-proper-dev valkey-server valkey-cli redis-server redis-cli
	@scripts/matrix.sh $(RELEASES)

# Real clients for half an hour, or `make soak MINUTES=5`, while listeners are closed and processes killed.
soak:
	@scripts/setup.sh
	@soak/run.sh $(MINUTES)

# The metrics' tests with a real Prometheus and prometheus.erl, which `make test` skips where they are not
# installed; Debian only.
metrics-test:
	@scripts/setup.sh
	@scripts/metrics.sh

# What docs/guides tell the reader to do, done. Some five minutes; servers that cannot be installed are skipped.
guides:
	@scripts/setup.sh git elixir
	@for server in rabbitmq-server yaws haproxy; do scripts/setup.sh $$server || true; done
	rebar3 ct --dir test/guides

# Formatting, lints, warnings of the compilers, cross references, types.
lint:
	@scripts/setup.sh
	cargo fmt --check
	cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
	cargo clippy --quiet --package rekindle_nif --package rekindle_core --locked --features rekindle_nif/testing -- -D warnings
	rebar3 as ci ct --compile_only
	rebar3 xref
	rebar3 dialyzer

# Rekindle beside OTP's own caches, on a machine that has nothing else to do (`BUSY=1` runs it anyway, and the report says
# so). About an hour; the tables go to bench/results and docs/performance.md.
bench:
	@scripts/setup.sh
	@bench/run.sh $(if $(BUSY),--busy) full

# The same with fewer and smaller runs: under two minutes. The tables go to _build/bench/quick.
bench-quick:
	@scripts/setup.sh
	@bench/run.sh quick _build/bench/quick

# Journals: what they cost, how fast and how large they are, what is lost when, a fleet restarted, and handshakes while
# a log fails. Some half an hour, on a machine that has nothing else to do, or with `BUSY=1`; the tables go to bench/results.
bench-journal:
	@scripts/setup.sh valkey-server valkey-cli
	@LOAD_BEFORE=$$(bench/alone.sh $(if $(BUSY),--busy)) && export LOAD_BEFORE && python=$$(command -v python3) && \
	    bench/erl.sh bench_journal full bench/results $$python && \
	    bench/erl.sh bench_journal_faults bench/results $$python

# Random input: a short run, or `make fuzz SECONDS=600` for so long, twice.
fuzz:
	@scripts/setup.sh
	@scripts/fuzz.sh $(SECONDS)

# The native side under sanitizers, Miri and shuttle. The last line says what was skipped.
sanitize:
	@scripts/setup.sh
	@scripts/sanitize.sh

# The application with its library built, for machines without Rust: _build/package.
package:
	@scripts/setup.sh
	@scripts/package.sh

# That package in a root folder without Rust; Debian only, as root.
try-package: package
	@scripts/try_package.sh

# The library alone, for x86_64 and aarch64 Linux with glibc and with musl: _build/prebuilt.
prebuilt:
	@scripts/setup.sh
	@scripts/prebuilt.sh

# Bare Debian systems, in which the prebuilt library is used, and the library built with Debian 13's own Rust; Debian only, as
# root.
bare: package
	@scripts/setup.sh debootstrap
	@scripts/bare.sh

# The reference pages, in _build/docs.
docs:
	@scripts/setup.sh
	@scripts/docs.sh
