#!/bin/sh
# manifest.sh LIBRARY...: prints what native/prebuilt.sh has to know of each: a line with its file, platform, version of the
# NIF interface, the glibc it needs or -, its SHA-256, and the fingerprint of the sources that it was built from.
set -eu
here=$(dirname "$0")

# Rustler has a feature for each.
nif=$(cargo tree --locked --manifest-path "$here/nif/Cargo.toml" --edges features --prefix none |
    sed -n 's/^rustler feature "nif_version_\([0-9]*\)_\([0-9]*\)".*/\1.\2/p' | sort -V | tail -n 1)
[ -n "$nif" ]
sources=$(sh "$here/fingerprint.sh")
for library; do
    glibc=$(readelf -VW "$library" | sed -n 's/.*GLIBC_\([0-9.]*\).*/\1/p' | sort -V | tail -n 1)
    echo "${library##*/} $(env -u CARGO_BUILD_TARGET -u CROSSCOMPILE sh "$here/platform.sh" "$library") $nif ${glibc:--} $(sh "$here/fingerprint.sh" "$library") $sources"
done
