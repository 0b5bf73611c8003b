#!/bin/sh
# portable.sh LIBRARY [GLIBC]: checks that a Linux library loads wherever a supported OTP release runs. It may need only the C
# library, and no version newer than GLIBC, or than Debian 12's.
set -eu
command -v readelf >/dev/null || { echo "readelf is missing, which is in the package binutils" >&2; exit 1; }
library=$1
oldest=${2:-2.36}
needed=$(readelf -VW "$library" | sed -n 's/.*GLIBC_\([0-9.]*\).*/\1/p' | sort -V | tail -n 1)
[ "$(printf '%s\n' "$needed" "$oldest" | sort -V | tail -n 1)" = "$oldest" ] || {
    echo "$library needs glibc $needed, and is to load with $oldest." >&2
    exit 1
}
others=$(readelf -dW "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    grep -Ev '^(libc|libc\.musl-[a-z0-9_]+|libgcc_s|libm|ld-linux[-a-z0-9_]*|libpthread|libdl)\.so(\.[0-9]+)?$') || true
[ -z "$others" ] || {
    echo "$library needs other libraries: $others" >&2
    exit 1
}
