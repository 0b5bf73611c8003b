#!/bin/sh
# Checks the format of Erlang's files with erlfmt: with the one on the PATH, or with rebar3's plugin from hex.pm. `--write`
# changes the files. If neither can be had, a line says that nothing was checked.
set -eu
cd "$(dirname "$0")/.."
mode=${1:---check}
if command -v erlfmt >/dev/null; then
    git ls-files -z '*.erl' '*.hrl' '*.app.src' rebar.config | xargs -0 erlfmt "$mode" --print-width 130
elif rebar3 as erlfmt help fmt 2>&1 | grep -q '^Usage: rebar3 fmt'; then
    rebar3 as erlfmt fmt "$mode"
else
    echo "SKIPPED: erlfmt is not installed and cannot be had from hex.pm. THE FORMAT OF NO ERLANG FILE WAS CHECKED."
fi
