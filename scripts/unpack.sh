#!/bin/sh
# Unpacks Debian packages in a folder, so that no server is installed or started: unpack.sh FOLDER PACKAGE...
# Leaves out the packages that are there already.
set -eu
folder=$1
shift
mkdir -p "$folder/unpacked"
cd "$folder/unpacked"
for package in "$@"; do
    [ ! -e "$package" ] || continue
    rm -f ./*.deb
    apt-get -qq -o APT::Sandbox::User=root download "$package"
    dpkg-deb -x "$package"_*.deb ..
    rm -f ./*.deb
    : >"$package"
done
