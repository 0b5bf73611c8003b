#!/bin/sh
# Runs the benchmarks of this folder: `bench/run.sh quick` (under two minutes) or `bench/run.sh full`.
# Writes tables, numbers and plots to bench/results, or to the folder given as second argument.
set -eu
cd "$(dirname "$0")/.."

mode=${1:-quick}
case "$mode" in
    quick | full) ;;
    *) echo "Usage: bench/run.sh quick|full [results folder]" >&2; exit 2 ;;
esac
results=${2:-bench/results}
build=_build/bench/ebin

if [ ! -r /proc/self/schedstat ]; then
    echo "The benchmarks read CPU time and memory from /proc: they need Linux, with schedstat." >&2
    exit 1
fi

rebar3 compile
mkdir -p "$build" "$results"
erlc -o "$build" bench/*.erl test/rekindle_servers.erl

# The first of these with the library for plots; any will do for the handshakes.
python=$(command -v python3)
for candidate in "$python" /usr/bin/python3; do
    if "$candidate" -c 'import matplotlib' 2>/dev/null; then
        python=$candidate
        break
    fi
done

REKINDLE_BENCH=$(pwd)/bench erl -noinput -pa _build/default/lib/rekindle/ebin "$build" \
    -run rekindle_bench start "$mode" "$results" "$python"

if "$python" -c 'import matplotlib' 2>/dev/null; then
    "$python" bench/plot.py "$results"
else
    echo "No plots: they need matplotlib. Install it with \`apt-get install python3-matplotlib\` or" \
        "\`pip install matplotlib\`, then run \`python3 bench/plot.py $results\`." >&2
fi
echo "Tables: $results/RESULTS.md"
