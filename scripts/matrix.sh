#!/bin/sh
# Runs the Common Test suites on each OTP release that is named: on this machine's own as it is, on another one in
# a root folder with the packages of the Debian suite that has it. Nothing is installed, and what is mounted there is
# seen by the tests only. A line for each release; the last line reads `N passed, N failed`.
#
# The folders are kept in _build/matrix, and made anew when the suite has other packages.
set -u
cd "$(dirname "$0")/.."

matrix=$PWD/_build/matrix
host=$(erl -noinput -eval 'io:put_chars(erlang:system_info(otp_release)), halt().')
passed=0
failed=0

debian_suite() {
    case $1 in
        27) echo trixie ;;
        29) echo sid ;;
    esac
}

# What the tests use beside Erlang.
packages="base-files bash coreutils curl dash elixir findutils git grep libc-bin openssl procps python3 rebar3 sed tar"

# ---- a root folder with a release ----

# apt's tools with a state of their own, for the suite whose folder is $1.
apt_get() {
    apt_folder=$1
    shift
    apt-get -c "$apt_folder/apt.conf" "$@"
}

# The machine's mirrors. Only Debian's can have what Debian's keys have signed.
mirrors() {
    . /etc/os-release
    apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/${VERSION_CODENAME:-}/InRelease'.*|\1|p"
}

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Reads the suite's package lists, which apt verifies, from the first mirror that has them.
update() {
    folder=$1 suite=$2
    mkdir -p "$folder/lists/partial" "$folder/archives/partial"
    touch "$folder/status"
    # The machine's own settings, a proxy say, hold but for these.
    cat >"$folder/apt.conf" <<END
#clear APT::Update;
#clear DPkg;
Dir::Etc::SourceList "$folder/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$folder";
Dir::State::Status "$folder/status";
Dir::Cache "$folder";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
END
    for mirror in $(mirrors); do
        echo "deb [signed-by=$keyring] $mirror $suite main" >"$folder/sources.list"
        apt_get "$folder" -qq update && return 0
    done
    return 1
}

# The packages' places, one a line; apt finds what else they need.
locate() {
    folder=$1
    # Erlang's graphics would bring a desktop along.
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
    apt_get "$folder" -qq install --print-uris -y $packages >"$folder/found" || return 1
    sed -n "s/^'\([^']*\)'.*/\1/p" "$folder/found" | sort
}

unpack() {
    folder=$1 root=$2
    apt_get "$folder" clean
    apt_get "$folder" -qq install --download-only -y $packages || return 1
    rm -rf "$root"
    mkdir -p "$root"
    # It has the links that the others' paths go through.
    for package in "$folder"/archives/base-files_*.deb "$folder"/archives/*.deb; do
        dpkg-deb -x "$package" "$root" || return 1
    done
    apt_get "$folder" clean
    # What the packages' scripts would have made of it.
    ln -sf dash "$root/usr/bin/sh"
    ln -sf mawk "$root/usr/bin/awk"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    # The library is the one built here: in the root there is nothing for cargo to do.
    printf '#!/bin/sh\nexit 0\n' >"$root/usr/bin/cargo"
    chmod +x "$root/usr/bin/cargo"
}

# Sees to it that the root folder of release $1 is there, with the packages of today if they can be had.
provide() {
    release=$1
    folder=$matrix/$(debian_suite "$release")
    root=$folder/root
    if update "$folder" "$(debian_suite "$release")" && locate "$folder" >"$folder/wanted"; then
        cmp -s "$folder/wanted" "$folder/unpacked" && return 0
        rm -f "$folder/unpacked"
        unpack "$folder" "$root" && [ -d "$root/usr/lib/erlang/releases/$release" ] &&
            mv "$folder/wanted" "$folder/unpacked"
    elif [ -e "$folder/unpacked" ]; then
        echo "OTP $release: packages as downloaded before, there is no knowing whether there are newer ones" >&2
    else
        return 1
    fi
}

# ---- the tests ----

# The checkout as it is, with the libraries that are built here.
copy_checkout() {
    copy=$1
    rm -rf "$copy"
    mkdir -p "$copy"
    tar -cf - --exclude=./_build --exclude=./target --exclude=./.git . | tar -xf - -C "$copy"
    for library in target/release/librekindle_nif.so target/debug/librekindle_nif.so; do
        mkdir -p "$copy/${library%/*}"
        cp -p "$library" "$copy/$library"
    done
}

test_in_root() {
    root=$1
    copy_checkout "$root/rekindle"
    [ "$(id -u)" -eq 0 ] && as_root= || as_root=--map-root-user
    unshare --mount $as_root sh -c '
        mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" &&
            exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 /rekindle/scripts/test.sh suites
    ' sh "$root"
}

# report NAME LOG: the line of a release, what was skipped in it, and all of it if anything failed.
report() {
    set -- "$1" "$2" $(tail -n 1 "$2" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p')
    [ $# -eq 4 ] || set -- "$1" "$2" 0 1
    [ "$4" -eq 0 ] || cat "$2"
    grep -A 1 'SKIPPED' "$2"
    echo "OTP $1: $3 passed, $4 failed"
    passed=$((passed + $3))
    failed=$((failed + $4))
}

mkdir -p "$matrix"
# The library, and the one for the suite that wants faults.
rebar3 compile &&
    cargo build --quiet --locked --package rekindle_nif --features faults --target-dir target || exit 1

for release in ${*:-$host 27 29}; do
    log=$matrix/$release.log
    if [ "$release" = "$host" ]; then
        scripts/test.sh suites >"$log" 2>&1
        report "$release (host)" "$log"
    elif [ -z "$(debian_suite "$release")" ]; then
        echo "OTP $release: there is no Debian suite known to have it" >&2
        failed=$((failed + 1))
    elif provide "$release"; then
        test_in_root "$root" >"$log" 2>&1
        report "$(cat "$root/usr/lib/erlang/releases/$release/OTP_VERSION")" "$log"
    else
        echo "OTP $release: SKIPPED, IT CANNOT BE HAD FROM THIS MACHINE'S DEBIAN MIRROR. NOTHING WAS TESTED ON IT."
    fi
done

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
