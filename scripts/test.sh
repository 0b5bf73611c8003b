#!/bin/sh
# test.sh [suites [WITHOUT]]: runs the tests of the native crates and the Common Test suites, or just the suites, or
# all of these but one, and adds up. The last line reads `N passed, N failed`, and `, N skipped' where any were.
#
# The script first builds what the suites load. Then four parts of the suites run at the same time, because they mostly wait,
# and the crates are built and run beside them with a lower priority. The script prints the output of each part at the end.
set -u
cd "$(dirname "$0")/.." || exit 1
what=${1:-all}
without=${2:-none}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
# Otherwise the background jobs would not get the signal.
trap 'trap - INT EXIT; rm -rf "$logs"; kill 0' INT
passed=0
failed=0
skipped=0

# part_of SUITE: prints its part. All take about the same time. The first has the suites that build something, because they
# build in one place.
part_of() {
    case $1 in
        boot | client | faults | install | journal | package | properties | readme) echo 1 ;;
        inet_backend | journal_faults | layout | options | trust) echo 2 ;;
        metrics | resuming_clients | revocation | server) echo 3 ;;
        *) echo 4 ;;
    esac
}

# suites PART: prints the files of that part, separated by commas.
suites() {
    for file in test/*_SUITE.erl; do
        name=${file#test/rekindle_}
        [ "$(part_of "${name%_SUITE.erl}")" = "$1" ] || continue
        case $file in *"$without"*) ;; *) echo "$file" ;; esac
    done | paste -sd , -
}

# start NAME COMMAND...: runs a command in the background, and writes its output and its exit status to files.
start() {
    name=$1
    shift
    { "$@" >"$logs/$name" 2>&1; echo $? >"$logs/$name.status"; } &
}

# add NAME COUNT: prints the output of NAME, and counts its tests. COUNT is an awk program that prints how many tests passed,
# failed and were skipped. A command that fails without a failed test, or that runs no test, counts as one failure.
add() {
    log=$logs/$1
    status=$(cat "$log.status")
    # A failed case can print long lines, which Common Test keeps.
    cut -c 1-2000 "$log"
    # shellcheck disable=SC2046 # Three numbers.
    set -- $(sed 's/\x1b\[[0-9;]*m//g' "$log" | awk "$2")
    passed=$((passed + $1))
    failed=$((failed + $2))
    skipped=$((skipped + $3))
    if [ "$2" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$1" -eq 0 ]; }; then
        failed=$((failed + 1))
    fi
}

# failures: prints what failed and why, for those who only see the end of the output.
failures() {
    sed 's/\x1b\[[0-9;]*m//g' "$logs"/crates "$logs"/part_? 2>/dev/null | cut -c 1-500 | awk '
        # A case of Common Test, with its reason; a test of a crate; a panic.
        /^%%% .* ==> .*: FAILED/ { left = 25 }
        /^test .* FAILED$/ || / panicked at / { left = 4 }
        /^error(\[|:)/ { left = 8 }
        left > 0 { print; left-- }'
}

# Tests that cargo ignores are helpers that other tests start.
crates='/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0, 0 }'

# "Skipped 3 (1, 2)" means: one case skipped itself, which is no failure, and two could not be set up.
common_test='
    /^(All|Passed|Failed|Skipped) [0-9]+/ {
        for (i = 1; i < NF; i++) {
            if ($i == "All" || $i == "Passed") p += $(i + 1)
            if ($i == "Failed") f += $(i + 1)
            if ($i == "Skipped") { sub(/\(/, "", $(i + 2)); s += $(i + 2); f += $(i + 3) }
        }
    }
    END { print p + 0, f + 0, s + 0 }'

# Both builds run at once, because each leaves a core idle at its end.
echo "Building what is tested. The first time takes some minutes."
if [ "$what" = all ]; then
    start build cargo build --quiet --locked --package rekindle_nif --features testing --target-dir target
fi
sh native/build.sh
wait
if [ "$what" = all ] && [ "$(cat "$logs/build.status")" -ne 0 ]; then
    cat "$logs/build"
    echo "0 passed, 1 failed"
    exit 1
fi

echo "Testing, some minutes without a word. Common Test's pages grow in _build/part_1/test/logs, and in those of parts 2 to 4."
# Many at once, as most wait for a server. In a folder of their own, or the suites that build would wait for them.
[ "$what" != all ] || start crates nice -n 10 env RUST_TEST_THREADS=16 cargo test --locked --workspace --no-fail-fast --target-dir target/crates
# Each rebar3 needs a folder of its own.
for part in 1 2 3 4; do
    start "part_$part" env REBAR_BASE_DIR="$PWD/_build/part_$part" rebar3 ct --suite "$(suites "$part")"
done
wait
[ "$what" != all ] || add crates "$crates"
for part in 1 2 3 4; do
    add "part_$part" "$common_test"
done

if [ "$failed" -gt 0 ]; then
    echo "What failed:"
    failures
fi
echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
[ "$failed" -eq 0 ]
