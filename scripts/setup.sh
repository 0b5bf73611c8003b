#!/bin/sh
# Sees to it that what the demo and the tests need is there: installs it with apt where it may, and
# otherwise names what is missing and stops. Arguments: programs wanted as well, each in a package of its
# name or one that package_of names, and Debian's packages of Erlang applications. Where valkey-server or
# valkey-cli is not to be had, redis-server or redis-cli is taken.
set -eu
wanted="openssl curl python3 $*"

# The Debian packages of what is missing.
missing() {
    can_link >/dev/null 2>&1 || echo gcc libc6-dev
    # To fetch what cargo builds.
    [ ! -e /etc/debian_version ] || [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    # The package brings Erlang.
    { command -v rebar3 && has_applications; } >/dev/null 2>&1 || echo rebar3
    for program in $wanted; do
        case $program in
            erlang-*) has_application "$program" ;;
            *) command -v "$program" ;;
        esac >/dev/null 2>&1 || package_of "$program"
    done
}

package_of() {
    case $1 in
        valkey-cli) echo valkey-tools ;;
        redis-cli) echo redis-tools ;;
        *) echo "$1" ;;
    esac
}

# Which of the packages apt does not know.
unknown() {
    for package in $packages; do
        apt-cache show "$package" >/dev/null 2>&1 || echo "$package"
    done
}

# Has apt look at Debian's backports as well, from where it has the release itself.
add_backports() {
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    sources=$(mktemp -d)
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed -n "s/^\(deb .*[[:space:]]\)$suite\([[:space:]].*\)/\1$suite-backports\2/p" >"$sources/list"
    # A paragraph each.
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
    echo "Missing, and only root may install it. Run this as root, and then the command again:" >&2
    echo "    apt-get update && apt-get install --no-install-recommends $packages" >&2
    exit 1
fi
echo "Installing with apt-get: $packages"
$as_root apt-get update -qq
if [ -n "$(unknown)" ]; then
    echo "Not in this release, so looked for in its backports: $(unknown | tr '\n' ' ')"
    add_backports
    for package in $(unknown); do
        case $package in
            valkey-*)
                echo "apt has no $package: taking Redis instead." >&2
                wanted=$(echo "$wanted" | sed 's/valkey-\(server\|cli\)/redis-\1/g')
                ;;
        esac
    done
    packages=$(missing | tr '\n' ' ')
    [ -n "$packages" ] || exit 0
fi
# sudo keeps no variables.
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null

left=$(missing | tr '\n' ' ')
if [ -n "$left" ]; then
    echo "Still missing after the installation: $left" >&2
    exit 1
fi
