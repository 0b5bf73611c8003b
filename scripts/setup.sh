#!/bin/sh
# Sees to it that what the demo and the tests need is there: installs it with apt where it may, and
# otherwise names what is missing and stops.
set -eu

otp="erlang-base erlang-dev erlang-asn1 erlang-crypto erlang-public-key erlang-ssl erlang-inets erlang-syntax-tools
erlang-tools erlang-parsetools erlang-runtime-tools erlang-common-test erlang-eunit erlang-dialyzer erlang-edoc rebar3"

# The Debian packages of what is missing.
missing() {
    command -v cc >/dev/null 2>&1 || echo gcc libc6-dev
    for program in openssl curl python3 git make; do
        command -v "$program" >/dev/null 2>&1 || echo "$program"
    done
    if ! { command -v rebar3 && command -v erl && has_applications; } >/dev/null 2>&1; then
        echo $otp
    fi
}

has_applications() {
    erl -noinput -eval '
        Needed = [ssl, public_key, crypto, common_test, dialyzer, edoc, tools, eunit],
        halt(length([A || A <- Needed, code:lib_dir(A) =:= {error, bad_name}])).'
}

if ! command -v cargo >/dev/null 2>&1; then
    echo "Missing: Rust 1.85 or later with cargo. Install it from https://rustup.rs and run this again." >&2
    exit 1
fi

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing, by the names of Debian's packages: $packages" >&2
    echo "Install these with your package manager and run this again. Erlang/OTP 25 or later will do." >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "Missing, and only root may install it. Run this, and then the command again:" >&2
    echo "    sudo apt-get update && sudo apt-get install --no-install-recommends $packages" >&2
    exit 1
fi
echo "Installing with apt-get: $packages"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends $packages >/dev/null

left=$(missing | tr '\n' ' ')
if [ -n "$left" ]; then
    echo "Still missing after the installation: $left" >&2
    exit 1
fi
