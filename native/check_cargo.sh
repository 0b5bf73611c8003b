#!/bin/sh
# Checks that there is a cargo that is new enough, and says what to do if there is none: an older one would name crates
# that its user has never heard of, or not even read Cargo.lock.
set -eu
cd "$(dirname "$0")/.."
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
# Nothing where rustup has a cargo without a toolchain.
version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
if [ -z "$version" ] || [ "$(printf '%s\n' "$oldest" "$version" | sort -V | head -n 1)" != "$oldest" ]; then
    found=${version:+"the one on the PATH is $version"}
    echo "rekindle: the native library is built with Rust $oldest or later, and ${found:-there is none on the PATH}. Get it from https://rustup.rs" >&2
    exit 1
fi
