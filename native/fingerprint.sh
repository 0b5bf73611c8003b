#!/bin/sh
# fingerprint.sh LIBRARY: one line for the library, the sources it is built from, and the module that loads it. It is
# another one as soon as any of these is.
set -eu
library=$1
cd "$(dirname "$0")/.."

sha256() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum "$@"; else shasum -a 256 "$@"; fi
}

{
    find Cargo.toml Cargo.lock lib/rekindle_nif.erl native/core/Cargo.toml native/core/src native/crl/Cargo.toml native/crl/src native/journal/Cargo.toml native/journal/src native/nif -type f |
        LC_ALL=C sort | while IFS= read -r file; do sha256 "$file"; done
    sha256 <"$library"
} | sha256 | cut -d ' ' -f 1
