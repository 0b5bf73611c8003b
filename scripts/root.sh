# shellcheck shell=sh
# shellcheck disable=SC2154 # Scripts that use this file set root.
# Functions for scripts that try something in a bare Debian system: a root folder that debootstrap makes. Such a script
# reads this file with `.'. It has to run on Debian, as root. Mounts are visible only to the command that runs there.
#
# $root is the root folder of all functions, and $roots is where such folders are kept.
[ "$(id -u)" -eq 0 ] || { echo "Only root may change the root folder." >&2; exit 1; }
roots=$PWD/_build/bare
mkdir -p "$roots"

# quietly COMMAND...: prints what the command says only if it fails.
quietly() {
    "$@" >"$roots/log" 2>&1 || { tail -n 100 "$roots/log"; return 1; }
}

# make_root SUITE: makes $root, with no more than Debian's smallest set of packages.
make_root() {
    base=$roots/base-$1
    if [ ! -e "$base.made" ]; then
        mirror=$(. /etc/os-release && apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/$VERSION_CODENAME/InRelease'.*|\1|p" | head -n 1)
        echo "Making a bare Debian $1, some minutes"
        rm -rf "$base"
        quietly debootstrap --variant=minbase "$1" "$base" "$mirror"
        touch "$base.made"
    fi
    rm -rf "$root"
    cp -a "$base" "$root"
    # A proxy between this machine and the network can have a certificate authority of its own.
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp -R /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates"
    quietly in_root 'apt-get update -qq'
}

# copy_sources: copies the sources as they are into /rekindle of the root.
copy_sources() {
    rm -rf "$root/rekindle"
    mkdir "$root/rekindle"
    tar -cf - --exclude=./_build --exclude=./target --exclude=./.git --exclude=./priv . | tar -xf - -C "$root/rekindle"
}

# commit_sources: makes this copy a repository.
commit_sources() {
    git -C "$root/rekindle" init --quiet --initial-branch=main
    git -C "$root/rekindle" add --all
    git -C "$root/rekindle" -c user.name=bare -c user.email=bare@localhost commit --quiet --message copy
}

# in_root COMMAND: runs a command of a shell in the root, without this machine's environment. If the root has a folder /rust,
# this machine's Rust is in it.
in_root() {
    unshare --mount sh -c '
        mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" &&
            { ! [ -d "$1/rust" ] || mount --bind --options ro "$(rustc --print sysroot)" "$1/rust"; } &&
            exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin:/rust/bin HOME=/root LC_ALL=C.UTF-8 sh -euc "$2"
    ' sh "$root" "$1"
}
