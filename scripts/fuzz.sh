#!/bin/sh
# fuzz.sh [SECONDS]: random input, for SECONDS, or for a fixed number of executions. libFuzzer compares the store with a naive
# one, and runs client certificates, revocation lists and the journal's reader, for a quarter of the time each. Then options
# and sessions are random terms, for as long again. The last line says what ran and what was skipped.
set -u
cd "$(dirname "$0")/.." || exit 1
seconds=${1:-}
status=0

terms() {
    mkdir -p _build/fuzz
    rebar3 compile && erlc -o _build/fuzz test/support/rekindle_fuzz.erl &&
        erl -noshell -pa _build/default/lib/rekindle/ebin -pa _build/fuzz -run rekindle_fuzz "$@"
}

# LeakSanitizer does not search the pages of the store's tables, so it would count memory as leaked that only these point to.
# New input goes to target/fuzz; the corpus in the repository does not change.
native() {
    name=$1
    shift
    mkdir -p "target/fuzz/$name"
    env PATH="$PWD/target/tools/bin:$PATH" CARGO_TARGET_DIR=target/fuzz \
        cargo +nightly fuzz run --fuzz-dir native/fuzz "$name" "target/fuzz/$name" "native/fuzz/corpus/$name" -- \
        -detect_leaks=0 -max_len=1024 -len_control=0 -print_final_stats=1 "$@"
}

can_fuzz() {
    cargo +nightly --version >/dev/null 2>&1 || return 1
    env PATH="$PWD/target/tools/bin:$PATH" cargo fuzz --version >/dev/null 2>&1 ||
        cargo install --quiet --locked cargo-fuzz --root target/tools
}

if can_fuzz; then
    ran="store, certificates, lists, journal, terms"
    skipped=nothing
    for name in store certificates lists journal; do
        if [ -n "$seconds" ]; then
            native "$name" -max_total_time=$((seconds / 4 + 1))
        else
            native "$name" -runs=1000
        fi || status=1
    done
else
    ran=terms
    skipped="store, certificates, lists, journal (need a nightly Rust and cargo-fuzz)"
fi
if [ -n "$seconds" ]; then terms seconds "$seconds"; else terms main 10000; fi || status=1

echo "ran: $ran; skipped: $skipped; $([ "$status" -eq 0 ] && echo "nothing found" || echo "FAILED")"
exit "$status"
