#!/bin/sh
# bare.sh [NAME...]: does in bare Debian systems what their users would do, to see that it works there: `no-rust', with
# Erlang, rebar3 and Elixir and without Rust, takes the prebuilt library as a dependency of each kind; `old-rust', with
# Debian 13's own Rust, builds it. On Debian, as root; the systems are root folders made by debootstrap in _build/bare.
#
# What is mounted there is seen by nobody else, and nothing is left running. The last line names what was tried.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "Only root may change the root folder." >&2; exit 1; }
bare=$PWD/_build/bare
mkdir -p "$bare/helpers"

# provide NAME SUITE PACKAGES: the folder $root, made anew when this script has changed.
provide() {
    root=$bare/$1
    if [ "$(cat "$bare/$1.made" 2>/dev/null)" != "$(cksum <scripts/bare.sh)" ]; then
        mirror=$(. /etc/os-release && apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/$VERSION_CODENAME/InRelease'.*|\1|p" | head -n 1)
        echo "Making a bare Debian $2 with $3, some minutes"
        rm -rf "$root"
        debootstrap --variant=minbase "$2" "$root" "$mirror" >"$bare/log" 2>&1 || { tail "$bare/log"; exit 1; }
        # Erlang's graphics would bring a desktop along: a package that is not there stands in for them.
        in_root "
            apt-get update -qq
            printf '\\nPackage: without-wx\\nStatus: install ok installed\\nMaintainer: nobody\\nArchitecture: all\\nVersion: 1\\nProvides: erlang-wx (= %s)\\nDescription: stands in\\n' \
                \"\$(apt-cache show --no-all-versions erlang-wx | sed -n 's/^Version: //p')\" >>/var/lib/dpkg/status
            DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $3 && apt-get clean
        " >"$bare/log" 2>&1 || { tail "$bare/log"; exit 1; }
        cksum <scripts/bare.sh >"$bare/$1.made"
    fi
    # The sources as they are, and what looks whether they work.
    rm -rf "$root/rekindle" "$root/try"
    mkdir "$root/rekindle" "$root/try"
    tar -cf - --exclude=./_build --exclude=./target --exclude=./.git --exclude=./priv . | tar -xf - -C "$root/rekindle"
    cp "$bare"/helpers/*.beam demo/sys.config "$root/try"
}

# in_root COMMAND: of a shell there, with nothing of our environment.
in_root() {
    unshare --mount sh -c '
        mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" &&
            exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 sh -euc "$2"
    ' sh "$root" "$1"
}

# resumes FOLDER: whether openssl resumes its session in a node with the application in FOLDER.
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
    in_root '
        cd /rekindle
        git init --quiet --initial-branch=main
        git add --all
        git -c user.name=bare -c user.email=bare@localhost commit --quiet --message copy
        # As the Hex package has it.
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
        # Beside the sources, the library is found; for a repository, the user says where it is.
        case $how in
            git) in_root 'cd /try/git-rebar3; echo "{deps, [{rekindle, {git, \"file:///rekindle\", {branch, \"main\"}}}]}." >rebar.config
                    REKINDLE_PREBUILT=/prebuilt rebar3 compile' ;;
            hex) in_root 'cd /try/hex-rebar3; echo "{deps, [rekindle]}." >rebar.config; mkdir _checkouts; cp -R /try/hex _checkouts/rekindle
                    rebar3 compile' ;;
        esac >"$bare/log" 2>&1 || { cat "$bare/log"; return 1; }
        grep 'rekindle: took the prebuilt library' "$bare/log"
        case $how in git) resumes /try/git-rebar3/_build/default/lib/rekindle ;; hex) resumes /try/hex-rebar3/_build/default/checkouts/rekindle ;; esac
    done

    for dependency in 'git: "file:///rekindle", branch: "main"' 'path: "/try/hex"'; do
        in_root 'rm -rf /try/mix && mkdir /try/mix && cat >/try/mix/mix.exs' <<END
defmodule User.MixProject do
  use Mix.Project
  def project, do: [app: :user, version: "1.0.0", deps: [{:rekindle, $dependency, manager: :rebar3}]]
  def application, do: [extra_applications: [:ssl]]
end
END
        in_root 'cd /try/mix; export MIX_HOME=/try/mix-home MIX_REBAR3=/usr/bin/rebar3 REKINDLE_PREBUILT=/prebuilt
            mix deps.get; mix deps.compile' >"$bare/log" 2>&1 || { cat "$bare/log"; return 1; }
        grep 'rekindle: took the prebuilt library' "$bare/log"
        resumes /try/mix/_build/dev/lib/rekindle
    done
}

old_rust() {
    provide old-rust trixie 'rebar3 cargo gcc libc6-dev openssl'
    in_root 'cargo --version'
    # What cargo has downloaded here it need not there.
    mkdir -p "$root/root/.cargo"
    rm -rf "$root/root/.cargo/registry"
    cp -R "${CARGO_HOME:-$HOME/.cargo}/registry" "$root/root/.cargo/registry"
    in_root 'cd /rekindle; CARGO_NET_OFFLINE=true rebar3 compile'
    resumes /rekindle/_build/default/lib/rekindle
}

erlc -o "$bare/helpers" test/rekindle_certs.erl test/rekindle_servers.erl test/rekindle_clients.erl
# All that `make prebuilt' has made, or the one library of `make package'.
prebuilt=$(ls -d _build/prebuilt/*-prebuilt _build/package/rekindle-*/priv 2>/dev/null | head -n 1)
[ $# -gt 0 ] || set -- no-rust old-rust
for name; do
    case $name in
        no-rust) no_rust ;;
        old-rust) old_rust ;;
        *) echo "$name is not known" >&2; exit 2 ;;
    esac
done
echo "worked: $*"
