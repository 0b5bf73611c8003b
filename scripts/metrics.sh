#!/bin/sh
# Runs the suite of the metrics with the parts that it would otherwise skip: a Prometheus server, and prometheus.erl from
# RabbitMQ. Their Debian packages are only unpacked, in _build/metrics, so that neither server is installed or started on this
# machine.
set -eu
cd "$(dirname "$0")/.."
root=$PWD/_build/metrics
scripts/unpack.sh "$root" prometheus rabbitmq-server
PATH=$root/usr/bin:$PATH REKINDLE_RABBITMQ=$root/usr/lib/rabbitmq exec rebar3 ct --suite test/rekindle_metrics_SUITE
