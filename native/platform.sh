#!/bin/sh
# platform.sh [FILE]: the platform of a library or program, from its ELF header and the C library that it names, such as
# x86_64-linux-musl. Without FILE, the one that the library is built for here. Nothing of a file is run or loaded.
set -eu

# An ELF header's byte 4 tells 32 from 64 bits, and byte 18 the processor.
elf() {
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
    # What musl calls its library differs among distributions; what glibc does, does not.
    if LC_ALL=C grep -q 'libc\.so\.6' "$file"; then libc=gnu; else libc=musl; fi
    echo "$arch-linux-$libc"
}

# triple TARGET: Rust's name without the vendor, who makes no difference.
triple() {
    echo "$1" | sed -e 's/^\([^-]*\)-[^-]*-\([^-]*-[^-]*\)$/\1-\2/' -e 's/-\(unknown\|pc\|apple\)-/-/' -e 's/^riscv64gc-/riscv64-/'
}

target=$(sh "$(dirname "$0")/target.sh")
if [ $# -eq 1 ]; then
    elf "$1"
elif [ -n "$target" ]; then
    triple "$target"
elif [ "$(uname -s)" = Linux ]; then
    # That of the node. The kernel can be another: 64 bits under 32.
    elf "$(erl -noinput -boot start_clean -eval '
        Erts = "erts-" ++ erlang:system_info(version),
        io:put_chars(filename:join([code:root_dir(), Erts, "bin", "beam.smp"])),
        halt().')"
else
    echo "$(uname -m)-$(uname -s | tr '[:upper:]' '[:lower:]')" | sed 's/^arm64-/aarch64-/'
fi
