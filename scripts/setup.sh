#!/bin/sh
# setup.sh [--backports] [NAME...]: installs what the demo and the tests need with apt, if it may; otherwise it names what is
# missing and fails. NAME is a further program, or Debian's package of an Erlang application. A program is in the package of its
# name, unless package_of names another one. If Debian has no Valkey, the script installs Redis. With --backports, it first adds
# Debian's backports to apt's sources, for Valkey.
set -eu
backports=
if [ "${1:-}" = --backports ]; then
    backports=yes
    shift
fi
wanted="openssl curl python3 $*"

# Prints the Debian packages of all that is missing.
missing() {
    can_link >/dev/null 2>&1 || echo gcc libc6-dev
    # For cargo's downloads.
    [ ! -e /etc/debian_version ] || [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    # The package rebar3 depends on Erlang.
    { command -v rebar3 && has_applications; } >/dev/null 2>&1 || echo rebar3
    for program in $wanted; do
        case $program in
            erlang-*) has_application "$program" ;;
            valkey-*) has_pair valkey || has_pair redis || command -v "$program" ;;
            lib*-dev) dpkg -s "$program" ;;
            *) command -v "$program" ;;
        esac >/dev/null 2>&1 || package_of "$program"
    done
}

# Whether both a server and its command line client are there.
has_pair() {
    command -v "$1-server" && command -v "$1-cli"
}

package_of() {
    case $1 in
        valkey-cli) echo valkey-tools ;;
        redis-cli) echo redis-tools ;;
        gnutls-cli) echo gnutls-bin ;;
        tstclnt) echo libnss3-tools ;;
        *) echo "$1" ;;
    esac
}

# Sets $packages to the missing packages, with Redis in place of a Valkey that apt does not know.
choose() {
    packages=$(missing | tr '\n' ' ')
    case $packages in
        *valkey-*)
            if ! apt-cache show valkey-server >/dev/null 2>&1; then
                packages=$(echo "$packages" | sed -e 's/valkey-server/redis-server/' -e 's/valkey-tools/redis-tools/')
            fi
            ;;
    esac
}

# Adds Debian's backports to apt's sources, from the mirrors of the release.
add_backports() {
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    sources=$(mktemp -d)
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed -n "s/^\(deb .*[[:space:]]\)$suite\([[:space:]].*\)/\1$suite-backports\2/p" >"$sources/list"
    # The other format has a paragraph for each source.
    awk -v RS= -v suite="$suite" '
        $0 ~ "(^|\n)Suites:[^\n]*[ \t]" suite "([ \t\n]|$)" {
            sub(/Suites:[^\n]*/, "Suites: " suite "-backports")
            print $0 "\n"
        }' /etc/apt/sources.list.d/*.sources 2>/dev/null >"$sources/sources" || true
    for format in list sources; do
        [ ! -s "$sources/$format" ] ||
            $as_root install -m 644 "$sources/$format" "/etc/apt/sources.list.d/rekindle-backports.$format"
    done
    rm -r "$sources"
    if ! $as_root apt-get update -qq; then
        echo "Debian's backports of $suite cannot be had from where this machine gets its packages." >&2
        $as_root rm -f /etc/apt/sources.list.d/rekindle-backports.list /etc/apt/sources.list.d/rekindle-backports.sources
    fi
}

# The tests start servers of their own. Those of the packages start neither now nor when the system does.
install_packages() {
    policy=/usr/sbin/policy-rc.d
    if ! [ -e "$policy" ]; then
        trap '$as_root rm -f "$policy"' EXIT
        trap 'exit 1' INT TERM
        printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
        $as_root chmod 755 "$policy"
    fi
    # sudo drops variables.
    # shellcheck disable=SC2086 # A list.
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    for package in $packages; do
        $as_root systemctl disable --quiet "$package" >/dev/null 2>&1 || true
    done
}

# erlang-NAME-dev has the application NAME with its headers.
has_application() {
    name=${1#erlang-}
    erl -noinput -eval "true = filelib:is_dir(code:lib_dir(${name%-dev}) ++ \"/include\"), halt(0)."
}

can_link() {
    echo 'int main(void) { return 0; }' | cc -x c -o /dev/null -
}

# Debian has the headers in a package of their own.
has_applications() {
    erl -noinput -eval '
        Needed = [ssl, public_key, crypto, common_test, dialyzer, edoc, tools, eunit],
        Missing = [A || A <- Needed, code:lib_dir(A) =:= {error, bad_name}],
        Complete = Missing =:= [] andalso filelib:is_dir(code:lib_dir(public_key) ++ "/include"),
        halt(case Complete of true -> 0; false -> 1 end).'
}

sh "$(dirname "$0")/../native/check_cargo.sh" || exit 1

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing, by the names of Debian's packages: $packages" >&2
    echo "Install these with your package manager and run this again. rebar3 comes with Erlang/OTP, 25 or later." >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    choose
    echo "Missing, and only root may install it. Run this as root, and then the command again:" >&2
    echo "    apt-get update && apt-get install --no-install-recommends $packages" >&2
    exit 1
fi
$as_root apt-get update -qq
case "$backports $packages" in
    "yes "*valkey-*) apt-cache show valkey-server >/dev/null 2>&1 || add_backports ;;
esac
choose
echo "Installing with apt-get: $packages"
install_packages

left=$(missing | tr '\n' ' ')
if [ -n "$left" ]; then
    echo "Still missing after the installation: $left" >&2
    exit 1
fi
