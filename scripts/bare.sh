#!/bin/sh
# bare.sh [NAME...]: tests Rekindle in bare Debian systems. `no-rust' has Erlang, rebar3 and Elixir but no Rust, and uses the
# prebuilt library with each kind of dependency. `elixir-only' has no rebar3 either. `old-rust' builds the library with Debian 13's
# own Rust. In `no-root', a user who may install nothing runs `make demo'. `tests-12' and `tests-13' run `make test' on Debian 12,
# with this machine's Rust, and on Debian 13, with its own. Needs Debian and root; debootstrap makes the systems as root folders in
# _build/bare.
#
# Mounts are visible only to this script, and it leaves nothing running. The last line names what worked.
set -eu
cd "$(dirname "$0")/.."
. scripts/root.sh
mkdir -p "$roots/helpers"

# provide NAME SUITE PACKAGES: makes the folder $root, again when a script has changed.
provide() {
    root=$roots/$1
    version=$(cat scripts/bare.sh scripts/root.sh | cksum)
    if [ "$(cat "$root.made" 2>/dev/null)" != "$version" ]; then
        make_root "$2"
        echo "Installing $3, some minutes"
        # Erlang's graphics would install a desktop, so a dummy package stands in for them.
        quietly in_root "
            printf '\\nPackage: without-wx\\nStatus: install ok installed\\nMaintainer: nobody\\nArchitecture: all\\nVersion: 1\\nProvides: erlang-wx (= %s)\\nDescription: stands in\\n' \
                \"\$(apt-cache show --no-all-versions erlang-wx | sed -n 's/^Version: //p')\" >>/var/lib/dpkg/status
            DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $3 && apt-get clean"
        echo "$version" >"$root.made"
    fi
    copy_sources
    # The modules that test them.
    rm -rf "$root/try"
    mkdir "$root/try"
    cp "$roots"/helpers/*.beam demo/sys.config "$root/try"
}

# copy_registry HOME: copies the crates that cargo has here to this home folder of the root, so that cargo need not download them.
copy_registry() {
    mkdir -p "$root$1/.cargo"
    rm -rf "$root$1/.cargo/registry"
    cp -R "${CARGO_HOME:-$HOME/.cargo}/registry" "$root$1/.cargo/registry"
}

# resumes FOLDER: checks that openssl resumes its session in a node with the application in FOLDER.
resumes() {
    in_root "cd /try && exec erl -noinput -config sys -env ERL_CRASH_DUMP_SECONDS 0 -pa /try $1/ebin -eval '
        {ok, _} = application:ensure_all_started(rekindle),
        true = lists:prefix(\"$1/\", code:which(rekindle_nif)),
        #{server := #{ec := #{cert := Cert, key := Key}}} = rekindle_certs:make(\"/try\"),
        {_, Port} = rekindle_servers:start(tls, [{versions, [list_to_atom(\"tlsv1.2\")]}, {certfile, Cert}, {keyfile, Key}]),
        #{full := 1, resumed := 5} = rekindle_clients:openssl_reconnect(Port, #{}),
        halt(0).'"
}

no_rust() {
    provide no-rust trixie 'rebar3 elixir git openssl ca-certificates'
    in_root '! command -v cargo && ! command -v cc'
    rm -rf "$root/prebuilt"
    cp -R "$prebuilt" "$root/prebuilt"
    commit_sources
    in_root '
        cd /rekindle
        # The files of the Hex package.
        mkdir -p /try/hex/src /try/hex/native
        cp -R lib native Cargo.toml Cargo.lock rebar.config rebar.lock README.md CHANGELOG.md LICENSE docs /try/hex
        cp lib/rekindle.app.src /try/hex/src
        rm -rf /try/hex/native/fuzz
        cp -R /prebuilt /try/hex/native/prebuilt
        for name in git hex; do
            mkdir -p /try/$name-rebar3/src
            echo "{application, user, [{description, \"\"}, {vsn, \"1\"}, {registered, []}, {applications, [kernel, stdlib, rekindle]}]}." >/try/$name-rebar3/src/user.app.src
        done'

    for how in git hex; do
        # The Hex package has the library beside the sources; with a repository, the user says where it is.
        case $how in
            git) in_root 'cd /try/git-rebar3; echo "{deps, [{rekindle, {git, \"file:///rekindle\", {branch, \"main\"}}}]}." >rebar.config
                    REKINDLE_PREBUILT=/prebuilt rebar3 compile' ;;
            hex) in_root 'cd /try/hex-rebar3; echo "{deps, [rekindle]}." >rebar.config; mkdir _checkouts; cp -R /try/hex _checkouts/rekindle
                    rebar3 compile' ;;
        esac >"$roots/log" 2>&1 || { cat "$roots/log"; return 1; }
        grep 'rekindle: took the prebuilt library' "$roots/log"
        case $how in git) resumes /try/git-rebar3/_build/default/lib/rekindle ;; hex) resumes /try/hex-rebar3/_build/default/checkouts/rekindle ;; esac
    done

    for dependency in 'git: "file:///rekindle", branch: "main"' 'path: "/try/hex"'; do
        builds_with_mix "$dependency" /usr/bin/rebar3
    done
}

# builds_with_mix DEPENDENCY [REBAR3]: makes a project that has this dependency, and checks that it works with the prebuilt library.
builds_with_mix() {
    in_root 'rm -rf /try/mix && mkdir /try/mix && cat >/try/mix/mix.exs' <<END
defmodule User.MixProject do
  use Mix.Project
  def project, do: [app: :user, version: "1.0.0", deps: [{:rekindle, $1, manager: :rebar3}]]
  def application, do: [extra_applications: [:ssl]]
end
END
    quietly in_root "cd /try/mix; export MIX_HOME=/try/mix-home REKINDLE_PREBUILT=/prebuilt${2:+ MIX_REBAR3=$2}
        mix deps.get; mix deps.compile"
    grep 'rekindle: took the prebuilt library' "$roots/log"
    resumes /try/mix/_build/dev/lib/rekindle
}

# Debian's Elixir comes without OTP's header files. Mix fetches a rebar3 of its own with `mix local.rebar'; here it gets Debian's.
elixir_only() {
    provide elixir-only trixie 'elixir erlang-dev git openssl ca-certificates'
    in_root '! command -v rebar3 && ! command -v cargo && ! command -v cc'
    rm -rf "$root/prebuilt"
    cp -R "$prebuilt" "$root/prebuilt"
    commit_sources
    quietly in_root 'cd /try; apt-get -qq download rebar3; dpkg-deb -x rebar3_*.deb rebar3
        MIX_HOME=/try/mix-home mix local.rebar rebar3 /try/rebar3/usr/bin/rebar3 --force'
    builds_with_mix 'git: "file:///rekindle", branch: "main"'
}

# What `make demo' prints for a user who is not root has to suffice, and the demo may leave nothing that it did not announce.
no_root() {
    root=$roots/no-root
    make_root trixie
    quietly in_root 'DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends make cargo'
    # The user's administrator says yes to what apt asks.
    echo 'APT::Get::Assume-Yes "true";' >"$root/etc/apt/apt.conf.d/yes"
    apt=$(in_root 'ls -lR /etc/apt')
    copy_sources
    copy_registry /home/user
    chown -R 1000:1000 "$root/rekindle" "$root/home/user"
    as_user='cd /rekindle; HOME=/home/user CARGO_NET_OFFLINE=true setpriv --reuid 1000 --regid 1000 --clear-groups make demo'
    ! in_root "$as_user" >"$roots/log" 2>&1 || { echo "The demo works although packages are missing." >&2; return 1; }
    advice=$(sed -n 's/^    \(apt-get .*\)/\1/p' "$roots/log")
    echo "As root: ${advice:?}"
    quietly in_root "export DEBIAN_FRONTEND=noninteractive; $advice"
    in_root "$as_user"
    leaves_nothing
    rm -rf "$root"
}

# leaves_nothing: checks that apt's settings are those of before ($apt), and that no node has left a dump.
leaves_nothing() {
    [ "$(in_root 'ls -lR /etc/apt')" = "$apt" ] || { echo "The command changed apt's settings." >&2; return 1; }
    dumps=$(find "$root/rekindle" "$root/home" "$root/root" "$root/tmp" -name erl_crash.dump)
    [ -z "$dumps" ] || { echo "The command left $dumps" >&2; return 1; }
}

# tests SUITE PACKAGE...: installs the packages, and then only what `make test' installs itself.
tests() {
    root=$roots/tests-$1
    make_root "$1"
    shift
    quietly in_root "DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends make $*"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    [ $# -gt 0 ] || mkdir "$root/rust"
    apt=$(in_root 'ls -lR /etc/apt')
    copy_sources
    copy_registry /root
    in_root 'cd /rekindle; make test' >"$roots/log" 2>&1 || { cat "$roots/log"; return 1; }
    grep -A 1 SKIPPED "$roots/log"
    tail -n 1 "$roots/log"
    leaves_nothing
    rm -rf "$root"
}

old_rust() {
    provide old-rust trixie 'rebar3 cargo gcc libc6-dev openssl'
    in_root 'cargo --version'
    copy_registry /root
    in_root 'cd /rekindle; CARGO_NET_OFFLINE=true rebar3 compile'
    resumes /rekindle/_build/default/lib/rekindle
}

erlc -o "$roots/helpers" test/support/rekindle_certs.erl test/support/rekindle_servers.erl test/support/rekindle_clients.erl
# All libraries of `make prebuilt', or the one of `make package'.
prebuilt=$(ls -d _build/prebuilt/*-prebuilt _build/package/rekindle-*/priv 2>/dev/null | head -n 1)
[ $# -gt 0 ] || set -- no-rust elixir-only old-rust no-root tests-12 tests-13
for name; do
    case $name in
        no-rust) no_rust ;;
        elixir-only) elixir_only ;;
        old-rust) old_rust ;;
        no-root) no_root ;;
        tests-12) tests bookworm ;;
        tests-13) tests trixie cargo ;;
        *) echo "$name is not known" >&2; exit 2 ;;
    esac
done
echo "worked: $*"
