#!/bin/sh
# Draws docs/grafana/rekindle.png in some six minutes. Real clients come to a node with Rekindle, a real Prometheus scrapes
# it and draws the panels of the Grafana dashboard, and Chromium takes the picture. Debian only.
set -eu
cd "$(dirname "$0")/.."
picture=$PWD/docs/grafana/rekindle.png
root=$PWD/_build/metrics
scripts/unpack.sh "$root" prometheus libjs-bootstrap4 libjs-d3 libjs-jquery libjs-popper.js libjs-rickshaw
rebar3 compile
ebin=_build/demo/ebin
mkdir -p "$ebin"
erlc -o "$ebin" demo/rekindle_metrics_demo.erl test/support/rekindle_ca.erl test/support/rekindle_certs.erl \
    test/support/rekindle_clients.erl test/support/rekindle_node.erl test/support/rekindle_servers.erl

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/consoles"
cp demo/dashboard.html "$folder/consoles"
sed 's/{{/[[/g; s/}}/]]/g' docs/grafana/rekindle.json >"$folder/consoles/rekindle.json"
PATH=$root/usr/bin:$PATH PROMETHEUS_ROOT=$root \
    erl -noinput -pa _build/default/lib/rekindle/ebin "$ebin" -run rekindle_metrics_demo main "$folder" "$folder/picture.png"
pngquant --force --output "$picture" 64 "$folder/picture.png"
ls -l "$picture"
