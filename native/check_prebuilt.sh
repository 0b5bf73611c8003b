#!/bin/sh
# check_prebuilt.sh FOLDER: whether FOLDER has a library that was built from these very sources and loads on this system.
# If not, says why.
set -eu
folder=$1
cd "$(dirname "$0")/.."

refuse() {
    echo "rekindle: the prebuilt library in $folder is not used: $1" >&2
    exit 1
}

for file in rekindle_nif.so rekindle_nif.sha256; do
    [ -f "$folder/$file" ] || refuse "there is no $file"
done
[ "$(sh native/fingerprint.sh "$folder/rekindle_nif.so")" = "$(cat "$folder/rekindle_nif.sha256")" ] ||
    refuse "it was not built from these sources"

# As a node loads it, which asks for everything else: processor, C library, NIF version, functions.
app=$(mktemp -d)
trap 'rm -rf "$app"' EXIT
mkdir -p "$app/rekindle/ebin" "$app/rekindle/priv"
cp "$folder/rekindle_nif.so" "$app/rekindle/priv"
erlc -o "$app/rekindle/ebin" lib/rekindle_nif.erl
unset ERL_LIBS ERL_FLAGS ERL_AFLAGS ERL_ZFLAGS
reason=$(erl -noinput -boot start_clean -pa "$app/rekindle/ebin" -eval '
    case rekindle_nif:loaded() of
        ok -> ok;
        {error, {_, Reason}} -> io:put_chars(Reason)
    end,
    halt().') || refuse "a node that loads it does not live"
[ -z "$reason" ] || refuse "$reason"
