#!/usr/bin/env bash
# TCP throughput out of a namespace, nsnet beside its peers, in one run.
#
# usage: benches/iperf3.sh [SECONDS [ROUNDS]]
#
# Needs no root: everything happens in namespaces of its own. The server sits behind a veth pair; between it and the
# client is what is measured: nsnet in both carriages, slirp4netns and pasta where installed, and veth with NAT as root would
# set it up. Rounds are interleaved; the table shows medians in Gbit/s.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-3} rounds=${2:-3}

if [ -z "${NSNET_BENCH:-}" ]; then
    for program in iperf3 ip nsenter; do
        command -v "$program" >/dev/null || { echo "iperf3.sh: $program is missing" >&2; exit 1; }
    done
    cargo build --quiet --release --example rootless-shell
    export NSNET_BENCH=1
    exec unshare --user --map-root-user --net --mount --pid --fork --mount-proc --kill-child "$0" "$seconds" "$rounds"
fi

shell=${CARGO_TARGET_DIR:-target}/release/examples/rootless-shell
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mount -t tmpfs tmpfs /run

# Makes a network namespace that lives as long as this script, and sets the variable to a process in it.
namespace() {
    unshare --net sleep infinity &
    printf -v "$1" %d $!
}
inside() { nsenter --target "$1" --net "${@:2}"; }
settle() { until "$@" >/dev/null 2>&1; do sleep 0.05; done; }
is_elsewhere() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }

for name in server nat slirp; do
    namespace "$name"
    settle is_elsewhere "${!name}"
done
ip link set lo up
ip link add va type veth peer name vb netns "$server"
ip addr add 10.99.0.1/24 dev va && ip link set va up && ip route add default via 10.99.0.2
inside "$server" sh -c 'ip link set lo up; ip addr add 10.99.0.2/24 dev vb; ip link set vb up'
inside "$server" iperf3 --server --daemon --logfile /dev/null

subjects=()
client_nsnet() { "$shell" -- "$@"; }
client_shuttled() { "$shell" --shuttle -- "$@"; }
client_veth() { inside "$nat" "$@"; }
client_slirp4netns() { inside "$slirp" "$@"; }
client_pasta() { pasta --config-net --quiet -- "$@"; }

if ip link add vc type veth peer name eth0 netns "$nat" && command -v nft >/dev/null; then
    ip addr add 10.99.1.1/24 dev vc && ip link set vc up
    inside "$nat" sh -c 'ip addr add 10.99.1.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.99.1.1'
    echo 1 >/proc/sys/net/ipv4/ip_forward
    nft 'table ip nat { chain post { type nat hook postrouting priority 100; oifname "va" masquerade; }; }' &&
        subjects+=(veth)
fi
subjects+=(nsnet shuttled)
if command -v slirp4netns >/dev/null; then
    slirp4netns --configure --mtu=65520 "$slirp" tap0 >/dev/null 2>&1 &
    settle inside "$slirp" ip link show tap0
    subjects+=(slirp4netns)
fi
if command -v pasta >/dev/null; then
    # Some versions connect in nested namespaces and then carry nothing.
    if client_pasta timeout 5 iperf3 --client 10.99.0.2 --bytes 1M >/dev/null 2>&1; then
        subjects+=(pasta)
    else
        echo "pasta is installed but does not get 1 MiB across in 5 s; left out" >&2
    fi
fi

# Gbit/s at the receiver.
measure() {
    "client_$1" timeout $((seconds + 20)) iperf3 --client 10.99.0.2 --time "$seconds" "${@:2}" --format m 2>/dev/null |
        awk '/receiver/ { line = $0 } END { if (match(line, /[0-9.]+ Mbits/)) print substr(line, RSTART, RLENGTH) / 1000 }'
}

cases=('up 1:-P1' 'up 8:-P8' 'down 1:-P1 -R' 'down 8:-P8 -R')
for ((round = 0; round < rounds; round++)); do
    for i in "${!cases[@]}"; do
        for subject in "${subjects[@]}"; do
            # shellcheck disable=SC2086 # the flags are words
            measure "$subject" ${cases[$i]#*:} >>"$work/$subject.$i" || true
        done
    done
done

median() { sort -n "$1" 2>/dev/null | awk '{ v[NR] = $1 } END { if (NR) printf "%.2f", v[int((NR + 1) / 2)]; else printf "failed" }'; }
printf '| Gbit/s |'
for case in "${cases[@]}"; do printf ' %s |' "${case%%:*}"; done
printf '\n|---|---|---|---|---|\n'
for subject in "${subjects[@]}"; do
    printf '| %s |' "$subject"
    for i in "${!cases[@]}"; do printf ' %s |' "$(median "$work/$subject.$i")"; done
    printf '\n'
done
