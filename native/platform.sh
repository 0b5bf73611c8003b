#!/bin/sh
# platform.sh [FILE]: prints the platform of a library or program, such as x86_64-linux-musl, from its ELF header and the C
# library that it names. Without FILE, prints the platform that the library is built for. It neither runs nor loads a file.
set -eu

# In an ELF header, byte 4 says whether it is for 32 or 64 bits, and byte 18 for which processor.
elf() {
    # shellcheck disable=SC2046 # Twenty numbers.
    set -- "$1" $(od -An -v -tu1 -N 20 "$1")
    file=$1
    [ "${2:-} ${3:-} ${4:-} ${5:-}" = "127 69 76 70" ] || { echo "rekindle: $file is no ELF file" >&2; return 1; }
    shift 5
    case "$1 ${15}" in
        "2 62") arch=x86_64 ;;
        "2 183") arch=aarch64 ;;
        "2 243") arch=riscv64 ;;
        "1 40") arch=arm ;;
        "1 3") arch=i686 ;;
        *) arch="machine${15}" ;;
    esac
    # The name of musl's library differs between distributions; that of glibc's does not.
    if LC_ALL=C grep -q 'libc\.so\.6' "$file"; then libc=gnu; else libc=musl; fi
    echo "$arch-linux-$libc"
}

# triple TARGET: prints Rust's name without the vendor, which does not matter.
triple() {
    echo "$1" | sed -e 's/^\([^-]*\)-[^-]*-\([^-]*-[^-]*\)$/\1-\2/' -e 's/-\(unknown\|pc\|apple\)-/-/' -e 's/^riscv64gc-/riscv64-/' \
        -e 's/^armv[0-9a-z]*-/arm-/' -e '/^arm-/s/eabi\(hf\)\{0,1\}$//'
}

target=$(sh "$(dirname "$0")/target.sh")
if [ $# -eq 1 ]; then
    elf "$1"
elif [ -n "$target" ]; then
    triple "$target"
elif [ "$(uname -s)" = Linux ]; then
    # The platform of the node, because a 64-bit kernel can run a 32-bit node.
    elf "$(erl -noinput -boot start_clean -eval '
        Erts = "erts-" ++ erlang:system_info(version),
        io:put_chars(filename:join([code:root_dir(), Erts, "bin", "beam.smp"])),
        halt().')"
else
    echo "$(uname -m)-$(uname -s | tr '[:upper:]' '[:lower:]')" | sed 's/^arm64-/aarch64-/'
fi
