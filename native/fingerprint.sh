#!/bin/sh
# fingerprint.sh [FILE]: the SHA-256 of a file, or of all that the library is built from and of the module that loads it,
# which is another one as soon as any of these is.
set -eu

sha256() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum "$@"; else shasum -a 256 "$@"; fi
}

if [ $# -eq 1 ]; then
    sha256 <"$1"
else
    cd "$(dirname "$0")/.."
    find Cargo.toml Cargo.lock lib/rekindle_nif.erl native/*/Cargo.toml native/*/src native/nif -type f |
        grep -v ^native/fuzz/ | LC_ALL=C sort -u | while IFS= read -r file; do sha256 "$file"; done | sha256
fi | cut -d ' ' -f 1
