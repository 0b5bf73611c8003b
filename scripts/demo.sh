#!/bin/sh
# Starts a node with demo/sys.config and lets real clients resume their sessions there.
set -eu
cd "$(dirname "$0")/.."
rebar3 compile
ebin=_build/demo/ebin
mkdir -p "$ebin"
erlc -o "$ebin" demo/rekindle_demo.erl test/support/rekindle_certs.erl test/support/rekindle_servers.erl \
    test/support/rekindle_clients.erl test/support/rekindle_node.erl
exec erl -noshell -config demo/sys.config -pa _build/default/lib/rekindle/ebin -pa "$ebin" -s rekindle_demo main
