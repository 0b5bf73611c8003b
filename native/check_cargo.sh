#!/bin/sh
# Checks that cargo is new enough, and otherwise says what to do. The errors of an older cargo would be hard to understand:
# they are about dependencies, or Cargo.lock.
set -eu
cd "$(dirname "$0")/.."
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
# This is empty without cargo, or if rustup has a cargo without a toolchain.
version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
if [ -z "$version" ] || [ "$(printf '%s\n' "$oldest" "$version" | sort -V | head -n 1)" != "$oldest" ]; then
    if [ -n "$version" ]; then
        found="the cargo on the PATH is $version"
    elif command -v cargo >/dev/null; then
        found="the cargo on the PATH does not run (with rustup, try \`rustup default stable')"
    else
        found="cargo is not on the PATH"
    fi
    echo "rekindle: building the native library needs Rust $oldest or later, but $found. Get Rust from https://rustup.rs" >&2
    exit 1
fi
