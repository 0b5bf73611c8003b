#!/bin/sh
# test.sh [suites [WITHOUT]]: runs the tests of the native crates and the Common Test suites, or just the suites, or
# all of these but one, and adds up. The last line reads `N passed, N failed`, and `, N skipped' where any were.
#
# Everything is built first. Then the crates and two halves of the suites run one after the other: side by side, on two
# cores, cases that wait for clients take longer than they may. Each prints what it has to say when it is done.
set -u
cd "$(dirname "$0")/.."
what=${1:-all}
without=${2:-none}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
# What runs in the background does not hear of it otherwise.
trap 'trap - INT EXIT; rm -rf "$logs"; kill 0' INT
passed=0
failed=0
skipped=0

# The suites that take half of the time. All others are the other half.
slow="attacks bad_terms faults install properties"

# suites SLOW: the files of the slow suites (yes), or of all others (no), with commas between them.
suites() {
    for file in test/*_SUITE.erl; do
        name=${file#test/rekindle_}
        case " $slow " in *" ${name%_SUITE.erl} "*) is_slow=yes ;; *) is_slow=no ;; esac
        [ "$is_slow" != "$1" ] || case $file in *"$without"*) ;; *) echo "$file" ;; esac
    done | paste -sd , -
}

# start NAME COMMAND...: in the background, with what it prints in a file, and its exit status in another.
start() {
    name=$1
    shift
    { "$@" >"$logs/$name" 2>&1; echo $? >"$logs/$name.status"; } &
}

# In a folder of its own, as rebar3 expects to be alone in one.
start_suites() {
    start slow env REBAR_BASE_DIR="$PWD/_build/slow" rebar3 ct --suite "$(suites yes)"
    wait
    start others rebar3 ct --suite "$(suites no)"
}

# add NAME COUNT: prints what NAME has said, and counts. COUNT is an awk program that prints how many tests passed,
# failed and were skipped. A command that fails without a failed test, or that runs none, is one failure.
add() {
    log=$logs/$1
    status=$(cat "$log.status")
    # What a failed case prints can be long; Common Test keeps it all.
    cut -c 1-2000 "$log"
    set -- $(sed 's/\x1b\[[0-9;]*m//g' "$log" | awk "$2")
    passed=$((passed + $1))
    failed=$((failed + $2))
    skipped=$((skipped + $3))
    if [ "$2" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$1" -eq 0 ]; }; then
        failed=$((failed + 1))
    fi
}

# What cargo ignores is no test, but what tests start.
crates='/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0, 0 }'

# Skipped 3 (1, 2): one case skipped itself, which is no failure, and two could not be set up.
common_test='
    /^(All|Passed|Failed|Skipped) [0-9]+/ {
        for (i = 1; i < NF; i++) {
            if ($i == "All" || $i == "Passed") p += $(i + 1)
            if ($i == "Failed") f += $(i + 1)
            if ($i == "Skipped") { sub(/\(/, "", $(i + 2)); s += $(i + 2); f += $(i + 3) }
        }
    }
    END { print p + 0, f + 0, s + 0 }'

# One after the other they would leave a core idle at the end of each.
echo "Building what is tested. The first time takes some minutes."
if [ "$what" = all ]; then
    start build sh -c 'cargo test --quiet --locked --workspace --no-run &&
        cargo build --quiet --locked --package rekindle_nif --features testing --target-dir target'
fi
sh native/build.sh
wait
if [ "$what" = all ] && [ "$(cat "$logs/build.status")" -ne 0 ]; then
    cat "$logs/build"
    echo "0 passed, 1 failed"
    exit 1
fi

echo "Testing, some fifteen minutes without a word. Common Test's pages grow in _build/test/logs and _build/slow/test/logs."
[ "$what" != all ] || start crates cargo test --locked --workspace
wait
start_suites
wait
[ "$what" != all ] || add crates "$crates"
add slow "$common_test"
add others "$common_test"

echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
[ "$failed" -eq 0 ]
