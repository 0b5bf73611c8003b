#!/bin/sh
# test.sh [suites [WITHOUT]]: runs the tests of the native crates and the Common Test suites, or just the suites, or
# all of these but one, and adds up.
set -u
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0

# run COUNT COMMAND...: COUNT is an awk program that prints how many tests passed and failed. A command
# that fails without a failed test, or that runs none, is one failure.
run() {
    count=$1
    shift
    "$@" >"$log" 2>&1
    status=$?
    # What a failed case prints can be long; Common Test keeps it all in _build/test/logs.
    cut -c 1-2000 "$log"
    set -- $(sed 's/\x1b\[[0-9;]*m//g' "$log" | awk "$count")
    passed=$((passed + $1))
    failed=$((failed + $2))
    if [ "$2" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$1" -eq 0 ]; }; then
        failed=$((failed + 1))
    fi
}

[ "${1:-}" = suites ] ||
    run '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' \
        cargo test --locked --workspace

# Skipped 3 (1, 2): one case skipped itself, which is no failure, and two could not be set up.
run '/^(All|Passed|Failed|Skipped) [0-9]+/ {
         for (i = 1; i < NF; i++) {
             if ($i == "All" || $i == "Passed") p += $(i + 1)
             if ($i == "Failed") f += $(i + 1)
             if ($i == "Skipped") f += $(i + 3)
         }
     }
     END { print p + 0, f + 0 }' \
    rebar3 ct ${2:+--suite "$(ls test/*_SUITE.erl | grep -v "$2" | paste -sd , -)"}

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
