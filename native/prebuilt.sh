#!/bin/sh
# prebuilt.sh FOLDER: prints the library in FOLDER that fits these sources and the node on the PATH, or the target that is
# built for. If none fits, prints why and fails. It loads no library, because one that does not fit could crash the building
# node.
#
# It reads the manifest that native/manifest.sh writes.
set -eu
case $1 in /*) folder=$1 ;; *) folder=$PWD/$1 ;; esac
cd "$(dirname "$0")/.."
manifest=$folder/rekindle_nif.manifest

refuse() {
    echo "$1"
    exit 1
}

# is_at_least VERSION NEEDED
is_at_least() {
    [ "$(printf '%s\n' "$1" "$2" | sort -V | tail -n 1)" = "$1" ]
}

[ -f "$manifest" ] || refuse "no prebuilt libraries in $1"
platform=$(sh native/platform.sh)
# shellcheck disable=SC2046 # The fields of a line.
set -- "$1" $(awk -v platform="$platform" '$2 == platform { print; exit }' "$manifest")
[ $# -eq 7 ] || refuse "none of the prebuilt libraries in $1 is for $platform"
library=$folder/$2
nif=$4
glibc=$5
[ "$(sh native/fingerprint.sh)" = "$7" ] || refuse "the prebuilt library $library was not built from these sources with the features $(sh native/features.sh)"
{ [ -f "$library" ] && [ "$(sh native/fingerprint.sh "$library")" = "$6" ]; } ||
    refuse "the prebuilt library $library is not the one of its manifest"
case $platform in
    *-linux-*)
        [ "$(sh native/platform.sh "$library")" = "$platform" ] || refuse "the prebuilt library $library is not for $platform"
        ;;
esac

# For another target, the versions of the NIF interface and of glibc are unknown here. The libraries need only old ones.
if [ -z "$(sh native/target.sh)" ]; then
    offered=$(erl -noinput -boot start_clean -eval 'io:put_chars(erlang:system_info(nif_version)), halt().')
    { [ "${offered%%.*}" = "${nif%%.*}" ] && is_at_least "$offered" "$nif"; } ||
        refuse "the prebuilt library $library needs version $nif of the NIF interface, and erl has $offered"
    if [ "$glibc" != - ]; then
        offered=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2)
        is_at_least "$offered" "$glibc" || refuse "the prebuilt library $library needs glibc $glibc, and this system has $offered"
    fi
fi
echo "$library"
