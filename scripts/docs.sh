#!/bin/sh
# Makes the reference pages of the Erlang modules with edoc, and of the store with cargo doc. A warning or a broken link is an
# error.
set -eu
cd "$(dirname "$0")/.."
pages=_build/docs/erlang
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rm -rf _build/docs
rebar3 edoc >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
! grep -iE 'warning|error' "$log" >&2 || exit 1

# edoc's links to OTP's pages, and to types of other modules, are outdated.
otp=https://www.erlang.org/doc/apps
for page in "$pages"/*.html; do
    sed -e 's|http://www.erlang.org/edoc/doc/rekindle/doc/||g' \
        -e "s|http://www.erlang.org/edoc/doc/\([a-z_]*\)/doc/|$otp/\1/|g" \
        -e "s|href=\"ssl_session_cache_api.html\"|href=\"$otp/ssl/ssl_session_cache_api.html\"|g" \
        -e "s|\($otp/[^\"#]*\)#type-\([a-z_]*\)|\1#t:\2/0|g" "$page" >"$log"
    cat "$log" >"$page"
done

grep -o ' href="[^"]*"' "$pages"/*.html | grep -v '"https\?:' | sort -u |
    sed 's|^\(.*\)/\([^/]*\.html\): href="\([^"#]*\)#\{0,1\}\(.*\)"$|\1 \2 \3 \4|' | while IFS=' ' read -r folder from to anchor; do
    # A link within one page has no file name, and the anchor in its place.
    [ -e "$folder/$to" ] || { anchor=$to; to=$from; }
    [ -z "$anchor" ] || grep -q "name=\"$anchor\"" "$folder/$to" || { echo "$from: a link leads nowhere: $to#$anchor" >&2; exit 1; }
done

RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps --package rekindle_core --target-dir target
cp -R target/doc _build/docs/rust
echo "$pages/index.html"
echo _build/docs/rust/rekindle_core/index.html
