#!/bin/sh
# Puts the native library into priv/: one built elsewhere where there is one that fits, otherwise by cargo. Called by
# rebar3's compile hook.
set -eu
cd "$(dirname "$0")/.."

# Renamed over the old one: a node that has it mapped keeps the old file.
install_library() {
    mkdir -p priv
    ! cmp -s "$1" priv/rekindle_nif.so || return 0
    cp "$1" "priv/rekindle_nif.so.$$"
    mv -f "priv/rekindle_nif.so.$$" priv/rekindle_nif.so
}

# One that was asked for has to fit; one that came with the sources need not.
shipped=native/prebuilt/$(uname -m)-$(uname -s | tr '[:upper:]' '[:lower:]')
if [ -n "${REKINDLE_PREBUILT:-}" ]; then
    sh native/check_prebuilt.sh "$REKINDLE_PREBUILT"
    install_library "$REKINDLE_PREBUILT/rekindle_nif.so"
    exit 0
elif [ -d "$shipped" ] && sh native/check_prebuilt.sh "$PWD/$shipped"; then
    install_library "$shipped/rekindle_nif.so"
    exit 0
fi

# The target folder is ours whatever the caller's environment says, so that the library is where it is looked for.
unset CARGO_BUILD_TARGET
sh native/check_cargo.sh
[ -d target/release ] || echo "rekindle: building the native library with cargo, which takes some minutes the first time"
sh native/cargo.sh

for built in target/release/librekindle_nif.so target/release/librekindle_nif.dylib; do
    [ -f "$built" ] || continue
    install_library "$built"
    exit 0
done
echo "rekindle: cargo built no library in target/release" >&2
exit 1
