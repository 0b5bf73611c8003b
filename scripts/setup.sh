#!/bin/sh
# Sees to it that what the demo and the tests need is there: installs it with apt where it may, and
# otherwise names what is missing and stops. Arguments: programs wanted as well, each in a package of its
# name, and Debian's packages of Erlang applications.
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
        esac >/dev/null 2>&1 || echo "$program"
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

rust=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
if [ "$(printf '%s\n' 1.85 "$rust" | sort -V | head -n 1)" != 1.85 ]; then
    echo "Missing: Rust 1.85 or later${rust:+, this is $rust}. Get it from https://rustup.rs and run this again." >&2
    exit 1
fi

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
# sudo keeps no variables.
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null

left=$(missing | tr '\n' ' ')
if [ -n "$left" ]; then
    echo "Still missing after the installation: $left" >&2
    exit 1
fi
