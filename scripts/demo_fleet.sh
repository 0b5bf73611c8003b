#!/bin/sh
# Starts three nodes that share their sessions, and lets a device go from one to the other while they are restarted.
set -eu
cd "$(dirname "$0")/.."
rebar3 compile
ebin=_build/demo/ebin
mkdir -p "$ebin"
erlc -o "$ebin" demo/rekindle_fleet_demo.erl test/support/rekindle_certs.erl test/support/rekindle_servers.erl \
    test/support/rekindle_clients.erl test/support/rekindle_node.erl test/support/rekindle_valkey.erl
exec erl -noshell -pa _build/default/lib/rekindle/ebin -pa "$ebin" -s rekindle_fleet_demo main
