#!/bin/sh
# Runs the suite of the metrics with what it would otherwise skip: a Prometheus server, and prometheus.erl as
# RabbitMQ has it. Their Debian packages are unpacked in _build/metrics, as neither server is to be installed
# and started here.
set -u
cd "$(dirname "$0")/.."
root=$PWD/_build/metrics

fetch() {
    mkdir -p "$root"
    (cd "$root" && rm -f ./*.deb && apt-get -qq -o APT::Sandbox::User=root download "$@") || return 1
    for package in "$root"/*.deb; do
        dpkg-deb -x "$package" "$root" || return 1
    done
    rm -f "$root"/*.deb
}

[ -x "$root/usr/bin/prometheus" ] && [ -d "$root/usr/lib/rabbitmq" ] || fetch prometheus rabbitmq-server || exit 1
PATH=$root/usr/bin:$PATH REKINDLE_RABBITMQ=$root/usr/lib/rabbitmq exec rebar3 ct --suite test/rekindle_metrics_SUITE
