#!/bin/sh
# Puts the native library into priv/: one built elsewhere where one fits, otherwise by cargo. Called by rebar3's compile
# hook, also under Mix. One line says which it was.
#
# REKINDLE_PREBUILT names a folder with libraries built elsewhere, of which one has to fit, or is `none'. Those in
# native/prebuilt came with the sources, and need not fit.
set -eu
cd "$(dirname "$0")/.."

# install_library FILE SAYING: renamed over the old one, as a node that has it mapped keeps the old file. What is there
# already needs no words.
install_library() {
    if [ -f priv/rekindle_nif.so ] && [ "$(cksum <"$1")" = "$(cksum <priv/rekindle_nif.so)" ]; then
        return 0
    fi
    mkdir -p priv
    cp "$1" "priv/rekindle_nif.so.$$"
    mv -f "priv/rekindle_nif.so.$$" priv/rekindle_nif.so
    echo "rekindle: $2"
}

if [ "${REKINDLE_PREBUILT:-}" = none ]; then
    found="REKINDLE_PREBUILT is none"
elif found=$(sh native/prebuilt.sh "${REKINDLE_PREBUILT:-native/prebuilt}"); then
    install_library "$found" "took the prebuilt library $found"
    exit 0
elif [ -n "${REKINDLE_PREBUILT:-}" ]; then
    echo "rekindle: $found" >&2
    exit 1
fi

if ! sh native/check_cargo.sh; then
    # Somebody meant to spare us this.
    [ ! -d native/prebuilt ] || echo "rekindle: $found" >&2
    exit 1
fi
[ -f priv/rekindle_nif.so ] || echo "rekindle: building the native library with cargo, which takes some minutes the first time ($found)"
built=$(sh native/cargo.sh build)
install_library "$built" "built the native library with cargo"
