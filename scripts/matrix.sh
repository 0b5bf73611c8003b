#!/bin/sh
# Runs the Common Test suites on each OTP release that is named, all at once: on this machine's own as it is, on another one in
# a root folder with the packages of the Debian suite that has it. Nothing is installed, and only the tests see what
# is mounted there. A line for each release; the last line reads `N passed, N failed`.
#
# The folders are kept in _build/matrix, and made anew when the suite has other packages.
set -u
cd "$(dirname "$0")/.."

# What the tests use beside Erlang, which rebar3 brings.
packages="base-files bash coreutils curl dash elixir erlang-proper erlang-proper-dev findutils git grep libc-bin openssl procps python3 rebar3 sed tar valkey-server valkey-tools"

suite_of() {
    case $1 in
        27) echo trixie ;;
        29) echo sid ;;
    esac
}

# ---- a root folder: of release $release, from Debian's $suite, made in $folder/root ----

# The machine's settings, a proxy say, hold but for these.
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

# Debian's keys. Those on the machine can be too old for the suite; they vouch for the package with newer ones.
keyrings() {
    echo /usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$matrix/keyring"
    (cd "$matrix/keyring" && apt-get -qq -o APT::Sandbox::User=root download debian-archive-keyring && dpkg-deb -x debian-archive-keyring_*.deb .) &&
        echo "$matrix/keyring/usr/share/keyrings/debian-archive-keyring.gpg"
    rm -f "$matrix"/keyring/*.deb
}

# Reads which packages the suite has. apt takes nothing that none of the keys has signed.
update() {
    for keyring in $(keyrings); do
        for mirror in $(mirrors); do
            echo "deb [signed-by=$keyring] $mirror $suite main" >"$folder/sources.list"
            apt_get update && return 0
        done
    done
    return 1
}

# The packages' places, one a line; apt finds what they need in turn.
locate() {
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
    apt_get install --print-uris -y $packages >"$folder/found" && sed -n "s/^'\([^']*\)'.*/\1/p" "$folder/found" | sort
}

unpack() {
    apt_get clean
    apt_get install --download-only -y $packages >/dev/null || return 1
    rm -rf "$root"
    mkdir "$root"
    # The first has the links that the others' paths go through.
    for package in "$folder"/archives/base-files_*.deb "$folder"/archives/*.deb; do
        dpkg-deb -x "$package" "$root" || return 1
    done
    apt_get clean
    # What the packages' scripts would have made of it.
    ln -sf dash "$root/usr/bin/sh"
    ln -sf mawk "$root/usr/bin/awk"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    # The libraries are those built here: in the root there is nothing for cargo to do.
    printf '#!/bin/sh\n[ "$1" != --version ] || echo cargo 99.0.0\n' >"$root/usr/bin/cargo"
    chmod +x "$root/usr/bin/cargo"
    [ -d "$root/usr/lib/erlang/releases/$release" ]
}

# Sees to it that the root folder is there, with the packages of today if it can be known which these are.
provide() {
    configure_apt
    if update && locate >"$folder/wanted" && [ -s "$folder/wanted" ]; then
        # How it is made counts as well.
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

# The checkout as it is, with the libraries that are built here.
copy_checkout() {
    rm -rf "$root/rekindle"
    mkdir "$root/rekindle"
    tar -cf - --exclude=./_build --exclude=./target --exclude=./.git . | tar -xf - -C "$root/rekindle"
    for library in target/release/librekindle_nif.so target/debug/librekindle_nif.so; do
        mkdir -p "$root/rekindle/${library%/*}"
        cp -p "$library" "$root/rekindle/$library"
    done
}

# How logs fail has nothing to do with the release.
test_in_root() {
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=--map-root-user
    unshare --mount $as_root sh -c '
        mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" &&
            exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 /rekindle/scripts/test.sh suites rekindle_journal_faults_SUITE
    ' sh "$root"
}

# report NAME: the release's line, after what was skipped in it, or all of its log if anything failed.
report() {
    name=$1
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

# The library, and the one for the suites that want faults and a clock they can move.
rebar3 compile &&
    cargo build --quiet --locked --package rekindle_nif --features testing --target-dir target || exit 1

# They wait more than they work, so all run at once.
tested=
for release in ${*:-$host 27 29}; do
    log=$matrix/$release.log
    suite=$(suite_of "$release")
    folder=$matrix/$suite
    root=$folder/root
    if [ "$release" = "$host" ]; then
        echo "$release (host)" >"$matrix/$release.name"
        scripts/test.sh suites >"$log" 2>&1 &
    elif [ -n "$suite" ] && provide; then
        cat "$root/usr/lib/erlang/releases/$release/OTP_VERSION" >"$matrix/$release.name"
        copy_checkout
        test_in_root >"$log" 2>&1 &
    else
        echo "OTP $release: SKIPPED. It cannot be had from this machine's Debian mirror, and NOTHING WAS TESTED ON IT."
        continue
    fi
    tested="$tested $release"
done
wait
for release in $tested; do
    log=$matrix/$release.log
    report "$(cat "$matrix/$release.name")"
done

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
