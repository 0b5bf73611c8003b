#!/bin/sh
# cargo.sh [ARGUMENT...]: builds the library for release with cargo, in target, with further arguments of cargo's.
#
# No path of this machine is in it, also for those who build it for themselves: so there is one build, and not another
# one for packages.
set -eu
cd "$(dirname "$0")/.."

# The crates first, whose folders the flags name. Where they cannot be had, cargo says so below.
cargo fetch --quiet --locked 2>/dev/null || true
flags=
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags="$flags'--remap-path-prefix=$registry=.',"
done
exec cargo build --quiet --release --locked --package rekindle_nif --target-dir target --config "build.rustflags=[$flags]" "$@"
