#!/bin/sh
# prebuilt.sh [TARGET...]: builds the library for x86_64 and aarch64 Linux, with glibc and with musl, and writes the manifest that native/build.sh goes
# by: in _build/prebuilt, and as an archive beside it. On any Linux, with rustup and pip; the C compiler and the linker for
# all four is zig, which is put into target/tools/zig with what makes cargo use it.
set -eu
cd "$(dirname "$0")/.."
# Old enough for each distribution that has OTP 25.
glibc=2.28
version=$(sed -n 's/.*{vsn, "\(.*\)"}.*/\1/p' lib/rekindle.app.src)
folder=_build/prebuilt/rekindle-$version-prebuilt
tools=$PWD/target/tools/zig
rm -rf "$folder"
mkdir -p "$folder"

if ! [ -x "$tools/bin/cargo-zigbuild" ]; then
    echo "Fetching zig and cargo-zigbuild, some 100 MB, into $tools"
    python3 -m pip install --quiet --disable-pip-version-check --target "$tools" ziglang==0.17.1 cargo-zigbuild==0.24.1
fi
PATH=$tools/bin:$PATH
export PATH PYTHONPATH="$tools"
command -v rustup >/dev/null 2>&1 || { echo "rustup is needed, for the targets' standard libraries: https://rustup.rs" >&2; exit 1; }

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
if places=$(grep -lF -e "$PWD" -e "${CARGO_HOME:-$HOME/.cargo}" "$folder"/*); then
    echo "There are paths of this machine in $places" >&2
    exit 1
fi

time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
tar --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner -C _build/prebuilt -cf - "${folder##*/}" | gzip -n9 >"$folder.tar.gz"
cat "$folder/rekindle_nif.manifest"
echo "$folder.tar.gz"
