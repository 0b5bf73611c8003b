#!/bin/sh
# Starts three nodes that share their sessions, and lets a device go from one to the other while they are restarted.
set -eu
cd "$(dirname "$0")/.."
rebar3 compile
ebin=_build/demo/ebin
mkdir -p "$ebin"
erlc -o "$ebin" demo/rekindle_fleet_demo.erl test/rekindle_certs.erl test/rekindle_servers.erl test/rekindle_clients.erl \
    test/rekindle_node.erl test/rekindle_valkey.erl
exec erl -noshell -pa _build/default/lib/rekindle/ebin -pa "$ebin" -s rekindle_fleet_demo main
