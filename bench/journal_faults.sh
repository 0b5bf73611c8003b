#!/bin/sh
# Handshakes while a journal's log fails, some five minutes: writes bench/results/journal_faults.md, or into the folder
# given as argument. A full disk is only tried as root, who may mount one.
set -eu
cd "$(dirname "$0")/.."

results=${1:-bench/results}
build=_build/bench/ebin

rebar3 compile
mkdir -p "$build" "$results"
erlc -o "$build" bench/*.erl test/rekindle_servers.erl test/rekindle_clients.erl test/rekindle_node.erl test/rekindle_valkey.erl
REKINDLE_BENCH=$(pwd)/bench erl -noinput -pa _build/default/lib/rekindle/ebin "$build" \
    -run bench_journal_faults start "$results" "$(command -v python3)"
echo "Table: $results/journal_faults.md"
