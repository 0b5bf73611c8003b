#!/bin/sh
# Prints Rust's name of the target that the library is built for, or nothing if it is this machine. The target comes from
# CARGO_BUILD_TARGET, or from CROSSCOMPILE, which Nerves sets to the common prefix of its compilers' paths.
set -eu
if [ -n "${CARGO_BUILD_TARGET:-}" ]; then
    echo "$CARGO_BUILD_TARGET"
elif [ -n "${CROSSCOMPILE:-}" ]; then
    echo "${CROSSCOMPILE##*/}" | sed -e 's/^armv6/arm/' -e 's/^riscv64/riscv64gc/' -e 's/-nerves-/-unknown-/'
fi
