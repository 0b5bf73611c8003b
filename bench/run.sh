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

if [ ! -r /proc/self/schedstat ]; then
    echo "The benchmarks read CPU time and memory from /proc: they need Linux, with schedstat." >&2
    exit 1
fi

mkdir -p "$results"

# The first of these with the library for plots; any will do for the handshakes.
python=$(command -v python3)
for candidate in "$python" /usr/bin/python3; do
    if "$candidate" -c 'import matplotlib' 2>/dev/null; then
        python=$candidate
        break
    fi
done

# First, while nothing else has run: the core crate alone. Its tables come after the others.
core=
if [ "$mode" = full ]; then
    core="eviction memory stalls"
    folder=$(cd "$results" && pwd)
    for bench in $core; do
        cargo bench --locked -p rekindle_core --bench "$bench" -- "$folder"
    done
    export CRITERION_HOME="$(pwd)/_build/bench/criterion"
    rm -rf "$CRITERION_HOME"
    cargo bench --locked -p rekindle_core --bench operations
    "$python" bench/criterion.py "$CRITERION_HOME" "$folder"
    core="operations $core"
fi

bench/erl.sh rekindle_bench "$mode" "$results" "$python"

for table in $core; do
    { echo; cat "$results/$table.md"; } >>"$results/RESULTS.md"
    rm "$results/$table.md"
done

if "$python" -c 'import matplotlib' 2>/dev/null; then
    "$python" bench/plot.py "$results"
else
    echo "No plots: they need matplotlib. Install it with \`apt-get install python3-matplotlib\` or" \
        "\`pip install matplotlib\`, then run \`python3 bench/plot.py $results\`." >&2
fi
echo "Tables: $results/RESULTS.md"
