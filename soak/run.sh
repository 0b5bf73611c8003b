#!/bin/sh
# run.sh [MINUTES]: runs the soak, for 30 minutes by default. It ends with a report, and fails if the report is bad.
set -eu
cd "$(dirname "$0")/.."
rebar3 compile
mkdir -p _build/soak/ebin
erlc -o _build/soak/ebin soak/*.erl test/support/rekindle_node.erl test/support/rekindle_certs.erl test/support/rekindle_clients.erl
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
erl -noinput -pa _build/default/lib/rekindle/ebin _build/soak/ebin -run rekindle_soak start "${1:-30}" "$folder"
