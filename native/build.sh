#!/bin/sh
# Puts the native library into priv/: a prebuilt one if one fits, otherwise one that cargo builds. rebar3's compile hook calls
# this, also under Mix. One line says which library it is.
#
# REKINDLE_PREBUILT names a folder with prebuilt libraries, or is `none'. If none of those libraries fits, the build stops.
# Libraries in native/prebuilt came with the sources; if none of them fits, cargo builds one.
#
# REKINDLE_FEATURES says which journals the library has: see native/features.sh.
set -eu
cd "$(dirname "$0")/.."
features=$(sh native/features.sh)

# install_library FILE LINE: renames a copy over the old library, so that a running node keeps the old file. Prints LINE
# unless the same library is already there.
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
    # The user expected a prebuilt library to fit.
    [ ! -d native/prebuilt ] || echo "rekindle: $found" >&2
    exit 1
fi
[ -f priv/rekindle_nif.so ] || echo "rekindle: building the native library with cargo, which takes some minutes the first time ($found)"
built=$(sh native/cargo.sh build)
install_library "$built" "built the native library with cargo${REKINDLE_FEATURES:+, features $features}"
