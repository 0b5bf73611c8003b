#!/bin/sh
# erl.sh MODULE ARGUMENT...: builds the library and the benchmarks, and calls `start/1` of a module of this folder.
set -eu
cd "$(dirname "$0")/.."
build=_build/bench/ebin
# If run.sh has not called alone.sh. Here it refuses nothing.
LOAD_BEFORE=${LOAD_BEFORE:-$(bench/alone.sh --busy)}
export LOAD_BEFORE

rebar3 compile
mkdir -p "$build"
erlc -o "$build" bench/*.erl \
    test/support/rekindle_servers.erl test/support/rekindle_clients.erl test/support/rekindle_node.erl \
    test/support/rekindle_valkey.erl test/support/rekindle_proxy.erl
module=$1
shift
exec erl -noinput -pa _build/default/lib/rekindle/ebin "$build" -run "$module" start "$@"
