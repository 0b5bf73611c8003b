#!/bin/sh
# prebuilt.sh [TARGET...]: builds the library for x86_64 and aarch64 Linux, with glibc and with musl, and writes the manifest
# that native/build.sh reads, in _build/prebuilt and as an archive beside it. Needs Linux, rustup and pip. The C compiler and
# linker for all four is zig, which the script installs with cargo-zigbuild in target/tools/zig.
set -eu
cd "$(dirname "$0")/.."
# Every distribution with OTP 25 has this glibc or a later one.
glibc=2.28
version=$(sed -n 's/.*{vsn, "\(.*\)"}.*/\1/p' lib/rekindle.app.src)
folder=_build/prebuilt/rekindle-$version-prebuilt
tools=$PWD/target/tools/zig
command -v rustup >/dev/null || { echo "rustup is needed, for the targets' standard libraries: https://rustup.rs" >&2; exit 1; }
python3 -m pip --version >/dev/null 2>&1 || { echo "pip is needed, for zig: install the package python3-pip" >&2; exit 1; }
rm -rf "$folder"
mkdir -p "$folder"

if ! [ -x "$tools/bin/cargo-zigbuild" ]; then
    echo "Fetching zig and cargo-zigbuild, some 100 MB, into $tools"
    python3 -m pip install --quiet --disable-pip-version-check --target "$tools" ziglang==0.17.1 cargo-zigbuild==0.24.1
fi
PATH=$tools/bin:$PATH
export PATH PYTHONPATH="$tools"

[ $# -gt 0 ] || set -- x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu x86_64-unknown-linux-musl aarch64-unknown-linux-musl
for target; do
    rustup --quiet target add "$target"
    echo "Building for $target"
    case $target in *gnu) with=$target.$glibc ;; *) with=$target ;; esac
    built=$(CARGO_BUILD_TARGET=$with sh native/cargo.sh zigbuild)
    platform=$(sh native/platform.sh "$built")
    cp "$built" "$folder/rekindle_nif-$platform.so"
    sh scripts/portable.sh "$folder/rekindle_nif-$platform.so" "$glibc"
done
sh native/manifest.sh "$folder"/*.so >"$folder/rekindle_nif.manifest"
if places=$(grep -lF -e "$PWD/native/" -e "$PWD/target/" -e "${CARGO_HOME:-$HOME/.cargo}" "$folder"/*); then
    echo "There are paths of this machine in $places" >&2
    exit 1
fi

time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
tar --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner -C _build/prebuilt -cf - "${folder##*/}" | gzip -n9 >"$folder.tar.gz"
cat "$folder/rekindle_nif.manifest"
echo "$folder.tar.gz"
