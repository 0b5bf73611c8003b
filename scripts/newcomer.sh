#!/bin/sh
# newcomer.sh [12|13]...: follows the README as a new reader would, in a bare Debian of these versions: from the packages to
# resumed sessions and a clean doctor, and back to OTP's own cache. It prints how long each step took.
#
# All code and commands come from the pages, and only the repository's address is replaced, by that of a copy of these sources.
# Debian 12's Rust is too old, and its reader would get one from rustup: there, the script mounts the Rust of this machine.
set -eu
cd "$(dirname "$0")/.."
. scripts/root.sh

# ---- what the pages say ----

# block PAGE SECTION LANGUAGE: prints the first code block of a language in a section.
block() {
    awk -v title="## $2" -v fence="\`\`\`$3" '
        /^## / { in_section = $0 == title }
        in_block && $0 == "```" { exit }
        in_block
        in_section && $0 == fence { in_block = 1 }
    ' "$1" | grep '' || { echo "$1 has no block of $3 in the section \"$2\"" >&2; return 1; }
}

# put FILE PAGE SECTION LANGUAGE: makes such a block a file of the project.
put() {
    block "$2" "$3" "$4" >"$project/$1"
}

# ---- steps ----

# step NAME COMMAND...: runs one step, and prints how long it took.
step() {
    name=$1
    shift
    began_at=$(date +%s)
    "$@"
    seconds=$(($(date +%s) - began_at))
    total_seconds=$((total_seconds + seconds))
    printf '%6d s  %s\n' "$seconds" "$name"
}

# in_project COMMAND: runs a command of a shell in the project's folder.
in_project() {
    in_root "cd /root/hello; $1"
}

install_packages() {
    quietly in_root "export DEBIAN_FRONTEND=noninteractive; apt-get update; $packages"
}

build_project() {
    quietly in_root 'cd /root; rebar3 new app hello'
    put rebar.config README.md Install erlang
    sed -i 's|"https://[^"]*/rekindle\.git"|"file:///rekindle"|' "$project/rebar.config"
    quietly in_project 'rebar3 compile'
    grep 'rekindle:' "$roots/log"
}

write_server() {
    put plain.erl docs/guides/otp.md 'A server' erlang
    quietly in_project "$(block docs/guides/otp.md 'A server' sh)"
}

# Starts a node whose shell reads what is written to descriptor 3.
start_node() {
    ! is_listening || { echo "Something else listens at 127.0.0.1:8443." >&2; return 1; }
    rm -f "$roots/typed"
    mkfifo "$roots/typed"
    in_project "$(block README.md 'Turn it on' sh)" <"$roots/typed" >"$roots/shell" 2>&1 &
    node=$!
    exec 3>"$roots/typed"
    type_in 'plain:start().'
    tries=300
    until is_listening; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { echo "The server does not start:"; cat "$roots/shell"; return 1; }
        sleep 0.1
    done
}

type_in() {
    echo "$1" >&3
}

# A connection to find out would be one more that the server counts.
is_listening() {
    grep -q ' 0100007F:20FB 00000000:0000 0A ' /proc/net/tcp
}

# Ends the node, and prints what was in its shell.
stop_node() {
    type_in 'q().'
    exec 3>&-
    wait "$node"
    cat "$roots/shell"
}

# Connects as the README says.
connect() {
    in_project "$(block README.md 'See that it works' sh)" | tee "$roots/connected"
    block README.md 'See that it works' text | diff - "$roots/connected"
}

# requires PATTERN: what the shell has to have printed.
requires() {
    grep -Eq "$1" "$roots/shell" || { echo "The shell did not print: $1" >&2; return 1; }
}

turn_on() {
    put sys.config README.md 'Turn it on' erlang
    start_node
    connect
    type_in "$(block README.md 'See that it works' erlang | sed 's/^[0-9]*> //')"
    stop_node
    requires '^tls 127\.0\.0\.1:8443 +5 '
    requires "$(sed -n 's/.*`\(Nothing wrong[^`]*\)`.*/\1/p' README.md)\$"
}

# OTP's own cache resumes sessions as well, and then nothing has called Rekindle.
turn_off() {
    echo '[].' >"$project/sys.config"
    start_node
    connect
    type_in '{rekindle, code:is_loaded(rekindle)}.'
    stop_node
    requires '\{rekindle,false\}$'
}

# ---- one Debian ----

follow() {
    packages=$(sed -n 's/^    \(apt-get install .*\)/\1/p' docs/installing.md)
    case $1 in
        12) suite=bookworm packages=$(echo "$packages" | sed 's/ cargo//') ;;
        13) suite=trixie ;;
        *) echo "Debian $1 is not known" >&2; exit 2 ;;
    esac
    root=$roots/newcomer
    project=$root/root/hello
    total_seconds=0
    make_root "$suite"
    [ "$1" != 12 ] || mkdir "$root/rust"
    # The reader says yes to what apt asks.
    echo 'APT::Get::Assume-Yes "true";' >"$root/etc/apt/apt.conf.d/yes"
    copy_sources
    commit_sources
    git -C "$root/rekindle" tag "$(block README.md Install erlang | sed -n 's/.*{tag, "\(.*\)"}.*/\1/p')"

    echo "Debian $1:"
    step "$packages" install_packages
    step 'rebar3 compile' build_project
    step "the server of docs/guides/otp.md" write_server
    step 'turn it on, connect, print() and doctor()' turn_on
    echo "Debian $1: from nothing to a clean doctor in $total_seconds s"
    # Two processors that have nothing else to do need less.
    [ "$total_seconds" -le 600 ] || echo "That is MORE THAN TEN MINUTES, at a load of $(cut -d ' ' -f 3 /proc/loadavg)."
    step 'turn it off, and connect' turn_off
    rm -rf "$root"
}

[ $# -gt 0 ] || set -- 12 13
for debian; do
    follow "$debian"
done
echo "worked: Debian $*"
