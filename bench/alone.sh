#!/bin/sh
# Prints the load average, and fails if the machine has other work, because published benchmarks must run alone. With `--busy'
# it only prints a warning, and the report says the same.
set -eu
load=$(cut -d ' ' -f 1 /proc/loadavg)
if [ "$(printf '%s\n' 0.50 "$load" | sort -n | tail -n 1)" != 0.50 ]; then
    if [ "${1:-}" != --busy ]; then
        echo "The load average is $load, and published benchmarks run alone. Wait until it is below 0.5, or call" \
            "make with BUSY=1: then the report says that the machine was busy." >&2
        exit 1
    fi
    echo "The load average is $load: the report will say that the machine was busy." >&2
fi
echo "$load"
