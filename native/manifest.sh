#!/bin/sh
# manifest.sh LIBRARY...: prints a line for each library, which native/prebuilt.sh reads: its file, platform, version of the
# NIF interface, the glibc it needs or -, its SHA-256, and the fingerprint of the sources that it was built from.
set -eu
here=$(dirname "$0")
command -v readelf >/dev/null || { echo "readelf is missing, which is in the package binutils" >&2; exit 1; }

# Rustler has a feature for each version.
nif=$(cargo tree --locked --manifest-path "$here/nif/Cargo.toml" --edges features --prefix none |
    sed -n 's/^rustler feature "nif_version_\([0-9]*\)_\([0-9]*\)".*/\1.\2/p' | sort -V | tail -n 1)
[ -n "$nif" ] || { echo "cargo tree does not say which version of the NIF interface rustler uses" >&2; exit 1; }
sources=$(sh "$here/fingerprint.sh")
for library; do
    glibc=$(readelf -VW "$library" | sed -n 's/.*GLIBC_\([0-9.]*\).*/\1/p' | sort -V | tail -n 1)
    platform=$(env -u CARGO_BUILD_TARGET -u CROSSCOMPILE sh "$here/platform.sh" "$library")
    content=$(sh "$here/fingerprint.sh" "$library")
    echo "${library##*/} $platform $nif ${glibc:--} $content $sources"
done
