#!/bin/sh
# Runs the native side under shuttle, AddressSanitizer with LeakSanitizer, ThreadSanitizer and Miri, which find mistakes that
# tests do not. All but shuttle need a nightly Rust. The last line says what ran, what failed and what was skipped.
set -u
cd "$(dirname "$0")/.." || exit 1
target=$(rustc -vV | sed -n 's/^host: //p')
ran=
failed=
skipped=

# step NAME COMMAND...
step() {
    name=$1
    shift
    echo "== $name"
    if "$@"; then ran="$ran${ran:+, }$name"; else failed="$failed${failed:+, }$name"; fi
}

# skip NAME WHY
skip() {
    echo "== SKIPPED: $1: $2"
    skipped="$skipped${skipped:+, }$1 ($2)"
}

has_component() {
    rustup component list --installed --toolchain nightly 2>/dev/null | grep -q "^$1"
}

# sanitized SANITIZER CARGO_ARGUMENT...: runs cargo with the sanitizer, in a target folder of its own, because the flags differ.
sanitized() {
    sanitizer=$1
    command=$2
    shift 2
    env RUSTFLAGS="-Zsanitizer=$sanitizer" cargo +nightly "$command" --quiet --locked \
        --target "$target" --target-dir "target/$sanitizer" "$@"
}

schedules() {
    env RUSTFLAGS="--cfg shuttle" cargo test --quiet --locked --package rekindle_core --test schedules \
        --target-dir target/shuttle
}

# Leaves out the tests without memory, where the sanitizer ends the process, and the search of memory, because the sanitizer's
# shadow memory is too large.
address() {
    sanitized address test --package rekindle_core --lib --test eviction --test threads
}

# Tests with threads. The standard library must be built as well, otherwise the sanitizer does not see its locks.
thread() {
    sanitized thread test -Zbuild-std --package rekindle_core --test threads &&
        sanitized thread test -Zbuild-std --package rekindle_core --lib -- lookups_go_on registry sync nobody_has
}

miri() {
    MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-permissive-provenance -Zmiri-many-seeds=0..4" \
        cargo +nightly miri test --quiet --locked --package rekindle_core --test threads --target-dir target/miri
}

# The NIF in the emulator. A leak is the emulator's own unless our library is among its callers.
address_nif() {
    folder=$PWD/target/address-nif
    rm -rf "$folder"
    mkdir -p "$folder/rekindle/ebin" "$folder/rekindle/priv"
    sanitized address build --package rekindle_nif || return 1
    cp "target/address/$target/debug/librekindle_nif.so" "$folder/rekindle/priv/rekindle_nif.so"
    erlc -o "$folder/rekindle/ebin" lib/*.erl test/support/rekindle_references.erl test/support/rekindle_fuzz.erl || return 1
    in_emulator rekindle_references main 10000 && in_emulator rekindle_fuzz main 5000 || return 1
    if grep -l -e rekindle_nif -e 'ERROR: AddressSanitizer' "$folder"/report.* 2>/dev/null; then
        grep -h -B 12 -A 12 -m 3 rekindle_nif "$folder"/report.*
        return 1
    fi
}

# The emulator always has leaks, which must not change the exit status.
in_emulator() {
    LD_PRELOAD=$(cc -print-file-name=libasan.so) ASAN_OPTIONS="log_path=$folder/report:handle_segv=0" \
        LSAN_OPTIONS=exitcode=0 erl -noshell -pa "$folder/rekindle/ebin" -run "$@"
}

step "schedules by shuttle" schedules
if ! cargo +nightly --version >/dev/null 2>&1; then
    skip "AddressSanitizer, ThreadSanitizer and Miri" "no nightly Rust"
else
    step "core under AddressSanitizer" address
    if [ -e "$(cc -print-file-name=libasan.so)" ]; then
        step "NIF under AddressSanitizer" address_nif
    else
        skip "NIF under AddressSanitizer" "no libasan.so of the C compiler"
    fi
    if has_component rust-src; then
        step "core under ThreadSanitizer" thread
    else
        skip "core under ThreadSanitizer" "rustup component add rust-src --toolchain nightly"
    fi
    if has_component miri; then
        step "core under Miri" miri
    else
        skip "core under Miri" "rustup component add miri --toolchain nightly"
    fi
fi

echo "ran: ${ran:-nothing}; failed: ${failed:-nothing}; skipped: ${skipped:-nothing}"
[ -z "$failed" ]
