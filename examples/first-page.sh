#!/usr/bin/env bash
# Fetches a page inside a network namespace from a web server outside it, without root.
#
# Usage: examples/first-page.sh [--install]
#
# It needs curl and python3. With --install, root's run installs what is missing of them as Debian packages; otherwise
# it names them and fails.
#
# The server listens on this machine's loopback, so no internet connection is needed: inside the namespace, the gateway
# 10.0.2.2 leads there.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'first-page: %s\n' "$*" >&2
    exit 1
}

# Sees to it that these programs are there, whose Debian packages have the same names.
require_programs() {
    local program missing=()
    for program in "$@"; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$install" = true ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >/dev/null
    else
        fail "programs are missing. As root, install them with \"examples/first-page.sh --install\", or with" \
            "\"apt-get install --no-install-recommends ${missing[*]}\""
    fi
}

install=false
case "$*" in
    '') ;;
    --install) install=true ;;
    *) fail "usage: examples/first-page.sh [--install]" ;;
esac
require_programs curl python3

cargo build --quiet --release --example rootless-shell

root=$(mktemp -d)
printf '<h1>Hello from outside the namespace</h1>\n' >"$root/index.html"
mkfifo "$root/said"
python3 -u -m http.server --bind 127.0.0.1 --directory "$root" 0 >"$root/said" 2>/dev/null &
trap 'kill %1; rm -rf "$root"' EXIT
# "Serving HTTP on 127.0.0.1 port N ...": the kernel chose the port.
read -r _ _ _ _ _ port _ <"$root/said"

"${CARGO_TARGET_DIR:-target}/release/examples/rootless-shell" --host-loopback -- curl -sS "http://10.0.2.2:$port/"
