#!/usr/bin/env bash
# Fetches a page inside a network namespace from a web server outside it, without root.
#
# The server is this machine's own, on its loopback, so that it works without an internet connection: inside, the
# gateway 10.0.2.2 leads there.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in curl python3; do
    command -v "$program" >/dev/null && continue
    if [ "$(id -u)" -ne 0 ]; then
        printf 'first-page: %s is missing: apt-get install %s\n' "$program" "$program" >&2
        exit 1
    fi
    { apt-get update && apt-get install -y --no-install-recommends "$program"; } >/dev/null
done

cargo build --quiet --release --example rootless-shell

root=$(mktemp -d)
printf '<h1>Hello from outside the namespace</h1>\n' >"$root/index.html"
mkfifo "$root/said"
python3 -u -m http.server --bind 127.0.0.1 --directory "$root" 0 >"$root/said" 2>/dev/null &
trap 'kill %1; rm -rf "$root"' EXIT
# "Serving HTTP on 127.0.0.1 port N ...": the kernel chose the port.
read -r _ _ _ _ _ port _ <"$root/said"

"${CARGO_TARGET_DIR:-target}/release/examples/rootless-shell" --host-loopback -- curl -sS "http://10.0.2.2:$port/"
