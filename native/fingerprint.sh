#!/bin/sh
# fingerprint.sh [FILE]: prints the SHA-256 of a file; or of all sources of the library, its features and the module that
# loads it, so that it changes when any of these changes.
set -eu

sha256() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum "$@"; else shasum -a 256 "$@"; fi
}

if [ $# -eq 1 ]; then
    sha256 <"$1"
else
    cd "$(dirname "$0")/.."
    features=$(sh native/features.sh)
    {
        find Cargo.toml Cargo.lock lib/rekindle_nif.erl native/cargo.sh native/*/Cargo.toml native/*/src native/nif -type f |
            grep -v ^native/fuzz/ | LC_ALL=C sort -u | while IFS= read -r file; do sha256 "$file"; done
        echo "$features"
    } | sha256
fi | cut -d ' ' -f 1
