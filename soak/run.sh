#!/bin/sh
# Runs the soak for so many minutes (30 where none are given). Ends with a report, and fails where it is bad.
set -eu
cd "$(dirname "$0")/.."
rebar3 compile
mkdir -p _build/soak/ebin
erlc -o _build/soak/ebin soak/*.erl test/rekindle_node.erl test/rekindle_certs.erl test/rekindle_clients.erl
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
erl -noinput -pa _build/default/lib/rekindle/ebin _build/soak/ebin -run rekindle_soak start "${1:-30}" "$folder"
