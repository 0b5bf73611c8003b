#!/bin/sh
# portable.sh LIBRARY [GLIBC]: whether a library for Linux loads wherever a supported release of OTP runs: it needs nothing
# but the C library, and that not newer than GLIBC, or Debian 12's.
set -eu
library=$1
oldest=${2:-2.36}
needed=$(readelf -VW "$library" | sed -n 's/.*GLIBC_\([0-9.]*\).*/\1/p' | sort -V | tail -n 1)
[ "$(printf '%s\n' "$needed" "$oldest" | sort -V | tail -n 1)" = "$oldest" ] || {
    echo "$library needs glibc $needed, and is to load with $oldest." >&2
    exit 1
}
others=$(readelf -dW "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    grep -Ev '^(libc|libgcc_s|libm|ld-linux[-a-z0-9_]*|libpthread|libdl)\.so(\.[0-9]+)?$') || true
[ -z "$others" ] || {
    echo "$library needs other libraries: $others" >&2
    exit 1
}
