#!/bin/sh
# Builds the native library and puts it into priv/. Called by rebar3's compile hook.
set -eu
cd "$(dirname "$0")/.."

if ! command -v cargo >/dev/null 2>&1; then
    echo "rekindle: cargo is not on the PATH. Install Rust (https://rustup.rs) to build the native library." >&2
    exit 1
fi

# The target folder is ours whatever the caller's environment says, so that the library is where it is looked for.
unset CARGO_BUILD_TARGET
cargo build --quiet --release --locked --package rekindle_nif --target-dir target

for built in target/release/librekindle_nif.so target/release/librekindle_nif.dylib; do
    [ -f "$built" ] || continue
    mkdir -p priv
    # Renamed over the old one: a node that has it mapped keeps the old file.
    cp "$built" "priv/rekindle_nif.so.$$"
    mv -f "priv/rekindle_nif.so.$$" priv/rekindle_nif.so
    exit 0
done
echo "rekindle: cargo built no library in target/release" >&2
exit 1
