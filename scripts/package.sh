#!/bin/sh
# Makes _build/package/rekindle-VERSION-ARCH-OS-otpRELEASE.tar.gz, the application for machines with Erlang and without Rust.
# Its modules work on this OTP release and the next two. The same sources and compilers make the same files on any machine,
# and the files contain no path of this machine.
set -eu
cd "$(dirname "$0")/.."

tar --version 2>/dev/null | grep -q GNU || { echo "GNU tar is needed, so that all machines make the same archive" >&2; exit 1; }
version=$(sed -n 's/.*{vsn, "\(.*\)"}.*/\1/p' lib/rekindle.app.src)
os=$(uname -s | tr '[:upper:]' '[:lower:]')
work=$PWD/_build/package
app=$work/rekindle-$version
otp=$(erl -noinput -eval 'io:put_chars(erlang:system_info(otp_release)), halt().')
archive=$work/rekindle-$version-$(uname -m)-$os-otp$otp.tar.gz
rm -rf "$app" "$archive"
mkdir -p "$app/priv" "$app/ebin" "$app/licenses"

# ---- the library ----

unset CARGO_BUILD_TARGET CROSSCOMPILE
cp "$(sh native/cargo.sh build)" "$app/priv/rekindle_nif.so"
sh native/manifest.sh "$app/priv/rekindle_nif.so" >"$app/priv/rekindle_nif.manifest"
# Otherwise some systems with a supported OTP release could not load it.
[ "$os" != linux ] || sh scripts/portable.sh "$app/priv/rekindle_nif.so" "${OLDEST_GLIBC:-}"

# ---- the modules ----

# Deterministic: without the folder they were compiled in.
REKINDLE_PREBUILT=$app/priv REBAR_BASE_DIR=$work/rebar ERL_COMPILER_OPTIONS=deterministic rebar3 compile
cp "$work"/rebar/default/lib/rekindle/ebin/* "$app/ebin"

# ---- documents and licences ----

crates=${CARGO_HOME:-$HOME/.cargo}/registry/src

cp -R LICENSE README.md SECURITY.md CHANGELOG.md CONTRIBUTING.md TESTING.md docs "$app"
mkdir "$app/bench"
cp -R bench/results "$app/bench"

# The licences of the crates that are linked into the library.
linked() {
    cargo tree --locked --no-dedupe --package rekindle_nif --edges normal,no-proc-macro --prefix none --format "$1" |
        grep -v ^rekindle | sort -u
}
{
    echo 'The Rust standard library, MIT OR Apache-2.0, https://github.com/rust-lang/rust'
    linked '{p}, {l}, {r}'
} >"$app/licenses/LIST"
linked '{p}' | while IFS=' ' read -r crate crate_version; do
    find "$crates"/*/"$crate-${crate_version#v}" -maxdepth 1 \( -iname 'license*' -o -iname 'copying*' \) |
        while IFS= read -r text; do cp "$text" "$app/licenses/$crate.${text##*/}"; done
done

# In documents, another folder can have the same name.
if places=$(grep -rlF -e "$PWD/lib/" -e "$PWD/native/" -e "$PWD/target/" -e "$PWD/_build/" -e "$crates" "$app/ebin" "$app/priv"); then
    echo "There are paths of this machine in $places" >&2
    exit 1
fi

time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
chmod -R u=rwX,go=rX "$app"
tar --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner -C "$work" -cf - "rekindle-$version" | gzip -n9 >"$archive"
echo "${archive#"$PWD/"}"
