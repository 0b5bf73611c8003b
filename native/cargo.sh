#!/bin/sh
# cargo.sh COMMAND [ARGUMENT...]: makes a release build of the library with a cargo command such as build, for the target that
# native/target.sh names. Prints the library's path.
#
# The library contains no path of this machine. Packages need that, and users get the same build.
set -eu
cd "$(dirname "$0")/.."
command=$1
shift
target=$(sh native/target.sh)
features=$(sh native/features.sh)
case $features in
    none) set -- --no-default-features "$@" ;;
    *) set -- --no-default-features --features "$features" "$@" ;;
esac

# The flags name the folders of the crates, so these come first. If they cannot be fetched, cargo says so below.
cargo fetch --quiet --locked 2>/dev/null || true
# As in CARGO_ENCODED_RUSTFLAGS, a control character stands between two flags.
separator=$(printf '\037')
flags=
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags="$flags$separator--remap-path-prefix=$registry=."
done
# By default Rust links musl statically, and then cannot build a shared library.
case "${target:-$(rustc -vV | sed -n 's/^host: //p')}" in
    *musl*) flags="$flags$separator-Ctarget-feature=-crt-static" ;;
esac
# Flags in the environment would replace those in a configuration, and cargo adds none of its own to them.
if [ -n "${CARGO_ENCODED_RUSTFLAGS:-}${RUSTFLAGS:-}" ]; then
    CARGO_ENCODED_RUSTFLAGS=${CARGO_ENCODED_RUSTFLAGS:-$(printf %s "$RUSTFLAGS" | tr -s ' ' "$separator")}$flags
    export CARGO_ENCODED_RUSTFLAGS
fi

# Sets the linker unless the caller has. Crates with C sources take the compiler from CC, which Nerves sets.
if [ -n "${CROSSCOMPILE:-}" ]; then
    linker=CARGO_TARGET_$(echo "$target" | tr 'a-z-' 'A-Z_')_LINKER
    eval "export $linker=\"\${$linker:-\$CROSSCOMPILE-gcc}\""
fi

# Parts of SQLite that a journal does not use, and rusqlite would build.
LIBSQLITE3_FLAGS="-USQLITE_ENABLE_COLUMN_METADATA -USQLITE_ENABLE_DBSTAT_VTAB -USQLITE_ENABLE_FTS3
    -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5 -USQLITE_ENABLE_LOAD_EXTENSION -USQLITE_ENABLE_RTREE
    -USQLITE_ENABLE_STAT4 -USQLITE_SOUNDEX -DSQLITE_OMIT_DEPRECATED -DSQLITE_OMIT_JSON -DSQLITE_OMIT_LOAD_EXTENSION"
export LIBSQLITE3_FLAGS

# The target folder must not depend on this variable, so that the library is found.
unset CARGO_BUILD_TARGET
cargo "$command" --quiet --release --locked --package rekindle_nif --target-dir target ${target:+--target "$target"} \
    --config "build.rustflags=[$(printf %s "$flags" | sed "s/$separator\([^$separator]*\)/'\1',/g")]" "$@" >&2

# For cargo zigbuild, a target can end with a version of glibc, as in x86_64-unknown-linux-gnu.2.17.
folder=target/$(echo "$target" | sed 's/\.[0-9.]*$//')/release
for built in "$folder/librekindle_nif.so" "$folder/librekindle_nif.dylib"; do
    [ -f "$built" ] || continue
    echo "$built"
    exit 0
done
echo "rekindle: cargo built no library in $folder" >&2
exit 1
