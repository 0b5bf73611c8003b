#!/bin/sh
# cargo.sh COMMAND [ARGUMENT...]: builds the library for release with a command of cargo's, such as build, for the target
# that native/target.sh names. Prints where it is.
#
# No path of this machine is in it, also for those who build it for themselves: so there is one build, and not another
# one for packages.
set -eu
cd "$(dirname "$0")/.."
command=$1
shift
target=$(sh native/target.sh)

# The crates first, whose folders the flags name. Where they cannot be had, cargo says so below.
cargo fetch --quiet --locked 2>/dev/null || true
flags=
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags="$flags'--remap-path-prefix=$registry=.',"
done
# Rust links musl into what it builds, and then cannot build a library.
case "${target:-$(rustc -vV | sed -n 's/^host: //p')}" in
    *musl*) flags="$flags'-Ctarget-feature=-crt-static'," ;;
esac

# Where the caller set no linker. The crates with C sources take the compiler from CC, which Nerves sets.
if [ -n "${CROSSCOMPILE:-}" ]; then
    linker=CARGO_TARGET_$(echo "$target" | tr 'a-z-' 'A-Z_')_LINKER
    eval "export $linker=\"\${$linker:-\$CROSSCOMPILE-gcc}\""
fi

# The target folder is ours whatever the caller's environment says, so that the library is where it is looked for.
unset CARGO_BUILD_TARGET
cargo "$command" --quiet --release --locked --package rekindle_nif --target-dir target ${target:+--target "$target"} \
    --config "build.rustflags=[$flags]" "$@" >&2

# A target can say which glibc, as x86_64-unknown-linux-gnu.2.17 does for cargo zigbuild.
folder=target/$(echo "$target" | sed 's/\.[0-9.]*$//')/release
for built in "$folder/librekindle_nif.so" "$folder/librekindle_nif.dylib"; do
    [ -f "$built" ] || continue
    echo "$built"
    exit 0
done
echo "rekindle: cargo built no library in $folder" >&2
exit 1
