#!/bin/sh
# Runs the benchmarks of this folder: `bench/run.sh [--busy] MODE [RESULTS]`. MODE is `quick` (under two minutes), `full`
# (about an hour; refuses to run on a busy machine without --busy), or `tiny`, which shows that everything runs.
# Writes numbers, tables and plots to bench/results, or to the folder RESULTS. A full run into bench/results also puts its
# tables into docs/performance.md, and its figures into README.md and docs/sizing.md. Any other run leaves a filled copy of
# docs/performance.md beside its results.
set -eu
cd "$(dirname "$0")/.."

busy=
if [ "${1:-}" = --busy ]; then
    busy=--busy
    shift
fi
mode=${1:-quick}
case "$mode" in
    full) ;;
    # Not published.
    quick | tiny) busy=--busy ;;
    *) echo "Usage: bench/run.sh [--busy] quick|full|tiny [results folder]" >&2; exit 2 ;;
esac
published=bench/results
results=${2:-$published}

if [ ! -r /proc/self/schedstat ]; then
    echo "The benchmarks read CPU time and memory from /proc: they need Linux, with schedstat." >&2
    exit 1
fi
LOAD_BEFORE=$(bench/alone.sh $busy)
export LOAD_BEFORE

mkdir -p "$results"

# The first of these with the library for plots; any will do for the rest.
python=$(command -v python3)
for candidate in "$python" /usr/bin/python3; do
    if "$candidate" -c 'import matplotlib' 2>/dev/null; then
        python=$candidate
        break
    fi
done

# First, while nothing else has run: the core crate alone.
if [ "$mode" = full ]; then
    folder=$(cd "$results" && pwd)
    for bench in eviction memory stalls; do
        cargo bench --locked -p rekindle_core --bench "$bench" -- "$folder"
        # The report has its table as well.
        rm "$folder/$bench".md "$folder/$bench"_*.md 2>/dev/null || true
    done
    CRITERION_HOME=$PWD/_build/bench/criterion
    export CRITERION_HOME
    rm -rf "$CRITERION_HOME"
    cargo bench --locked -p rekindle_core --bench operations
    "$python" bench/criterion.py "$CRITERION_HOME" "$folder"
fi

status=0
bench/erl.sh rekindle_bench "$mode" "$results" "$python" || status=$?

# A machine may have become busy after alone.sh looked.
if [ "$mode" = full ] && [ -z "$busy" ] && grep -q '"busy": true' "$results/results.json"; then
    echo "Other programs or virtual machines took processor time during the run, so no page gets its figures:" >&2
    grep -o '"steal_percent": [0-9.]*' "$results/results.json" >&2
    echo "Run \`make bench' again at a quiet time. \`git checkout $published' restores the published results." >&2
    exit 1
fi

page=docs/performance.md
if [ "$mode" != full ] || [ "$results" != "$published" ]; then
    cp "$page" "$results/performance.md"
    page=$results/performance.md
fi
"$python" bench/report.py "$results" "$page"
if [ "$page" = docs/performance.md ]; then
    for quoting in README.md docs/sizing.md; do
        "$python" bench/figures.py "$results" "$quoting"
    done
fi
if "$python" -c 'import matplotlib' 2>/dev/null; then
    "$python" bench/plot.py "$results"
else
    echo "No plots: they need matplotlib. Install it with \`apt-get install python3-matplotlib\` or" \
        "\`pip install matplotlib\`, then run \`python3 bench/plot.py $results\`." >&2
fi
echo "Tables: $results/RESULTS.md"
exit "$status"
