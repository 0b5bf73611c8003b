#!/bin/sh
# Builds the library and what measures it, and calls `start/1` of a module of this folder: bench/erl.sh MODULE ARGUMENT...
set -eu
cd "$(dirname "$0")/.."
build=_build/bench/ebin
# Where run.sh has not: alone.sh refuses nothing here.
LOAD_BEFORE=${LOAD_BEFORE:-$(bench/alone.sh --busy)}
export LOAD_BEFORE

rebar3 compile
mkdir -p "$build"
erlc -o "$build" bench/*.erl \
    test/rekindle_servers.erl test/rekindle_clients.erl test/rekindle_node.erl test/rekindle_valkey.erl \
    test/rekindle_proxy.erl
module=$1
shift
exec erl -noinput -pa _build/default/lib/rekindle/ebin "$build" -run "$module" start "$@"
