#!/bin/sh
# Measures journals: `bench/journal_fleet.sh quick` or `bench/journal_fleet.sh full`. Writes journal_fleet.md to
# bench/results, or to the folder given as second argument. PARTS="registration storm" chooses.
set -eu
cd "$(dirname "$0")/.."
mode=${1:-quick}
case "$mode" in
    quick | full) ;;
    *) echo "Usage: bench/journal_fleet.sh quick|full [results folder]" >&2; exit 2 ;;
esac
results=${2:-bench/results}
build=_build/bench/ebin

rebar3 compile
mkdir -p "$build" "$results"
erlc -o "$build" bench/*.erl test/rekindle_servers.erl test/rekindle_clients.erl test/rekindle_node.erl test/rekindle_valkey.erl
REKINDLE_BENCH=$(pwd)/bench erl -noinput -pa _build/default/lib/rekindle/ebin "$build" \
    -run bench_journal start "$mode" "$results" "$(command -v python3)"
echo "Tables: $results/journal_fleet.md"
