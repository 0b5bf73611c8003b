#!/bin/sh
# Lints the Python scripts with ruff: with the one on the PATH, or with one from PyPI in _build/ruff. If neither can be had, a
# line says that nothing was linted.
set -eu
cd "$(dirname "$0")/.."
scripts/from_pypi.sh ruff ruff==0.17.6 ||
    { echo "SKIPPED: ruff is not installed and cannot be had from PyPI. NO PYTHON SCRIPT WAS LINTED."; exit 0; }
PATH=$PATH:$PWD/_build/ruff/bin
git ls-files -z '*.py' | xargs -0 ruff check --quiet
