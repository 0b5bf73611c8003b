#!/bin/sh
# Unpacks the package of `make package` in a root folder with only Debian's Erlang and openssl, without Rust, and lets openssl
# resume its session there. Needs Debian and root. The script installs and mounts nothing, and takes the Debian packages from
# this machine's apt.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "Only root may change the root folder." >&2; exit 1; }
archive=$(ls -t "$PWD"/_build/package/rekindle-*.tar.gz | head -n 1)
work=$PWD/_build/package/try
root=$work/root
rm -rf "$work"
mkdir -p "$root/dev" "$root/tmp" "$work/archives/partial" "$work/helpers"

: >"$work/status"
apt-get -qq install --download-only -y --no-install-recommends \
    -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" \
    base-files bash coreutils dash erlang-ssl grep libc-bin openssl sed >/dev/null
# The first package has links that the paths of the others use.
for package in "$work"/archives/base-files_*.deb "$work"/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
done
ln -sf dash "$root/bin/sh"
mknod -m 666 "$root/dev/null" c 1 3
echo '127.0.0.1 localhost' >"$root/etc/hosts"
rm -rf "$work/archives"

erlc -o "$work/helpers" test/support/rekindle_certs.erl test/support/rekindle_servers.erl test/support/rekindle_clients.erl
cp -R "$work/helpers" "$root/tmp"
cp demo/sys.config "$root/tmp"
mkdir -p "$root/opt/erlang"
tar -xzf "$archive" -C "$root/opt/erlang"

chroot "$root" env -i PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C.UTF-8 ERL_LIBS=/opt/erlang \
    erl -noinput -config /tmp/sys -pa /tmp/helpers -eval '
        false = os:find_executable("cargo"),
        {ok, _} = application:ensure_all_started(rekindle),
        "/opt/erlang/rekindle-" ++ _ = code:which(rekindle_nif),
        #{server := #{ec := #{cert := Cert, key := Key}}} = rekindle_certs:make("/tmp"),
        Options = [{versions, ['\'tlsv1.2\'']}, {certfile, Cert}, {keyfile, Key}],
        {_, Port} = rekindle_servers:start(tls, Options),
        #{full := 1, resumed := 5} = rekindle_clients:openssl_reconnect(Port, #{}),
        [5] = [Hits || #{role := server, hits := Hits} <- rekindle_admin:info()],
        rekindle_admin:print(),
        io:format("OTP ~s, without Rust: 1 full handshake, 5 resumed~n", [erlang:system_info(otp_release)]),
        halt().'
rm -rf "$work"
