#!/usr/bin/env bash
# Runs the `container` suite and the systemd unit's check on another kernel: a Debian machine with systemd and pure cgroup v2.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v qemu-system-x86_64 >/dev/null || [ "$(uname -m)" != x86_64 ]; then
    echo "SKIPPED: container/debian-guest: this machine has no qemu-system-x86_64 for its own architecture"
    exit 0
fi
scripts/debian-guest/make-image.sh target/debian-guest
suite=$(mktemp -d)
trap 'rm -rf "$suite"' EXIT
mkdir -p "$suite/tests" "$suite/filters"

# Package, target and, where not all of it is about class `container` or control groups, a filter of test names.
add_tests() {
    local package=$1 target=$2 filter=${3:-} executable
    executable=$(cargo test --locked --no-run --message-format=json --package "$package" 2>/dev/null |
        python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"] and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$target")
    [ -n "$executable" ] || { echo "package $package has no test target $target" >&2; exit 1; }
    strip --strip-debug -o "$suite/tests/$package-$target" "$executable"
    [ -z "$filter" ] || echo "$filter" >"$suite/filters/$package-$target"
}
add_tests atoll-sys atoll_sys
# btrfs of this kernel lets go of a quota group only when it is asked again, at the next removal or start: tested on newer ones.
echo "SKIPPED: conformance/container/disks/btrfs-of-linux-6.1: it keeps quota groups until the next removal or start"
add_tests atoll-runtime conformance 'container:: --skip btrfs::'
add_tests atoll-shim container

# What the engine's own tests run: a driver, a program that attacks, and a static busybox.
cargo build --locked --package atoll-shim --example container_driver
strip --strip-debug -o "$suite/container_driver" target/debug/examples/container_driver
gcc -static -O1 -w -o "$suite/container-probe" crates/shim/tests/container/probe.c
cp "$(command -v busybox)" "$suite/busybox"

cargo build --locked --package atoll
strip --strip-debug -o "$suite/atoll" target/debug/atoll
cp deploy/systemd/atoll.service scripts/debian-guest/systemd.sh "$suite/"
cp scripts/debian-guest/main.sh "$suite/run.sh"
scripts/make-images.sh target/demo-images busybox
tar --extract --to-stdout --file target/demo-images/busybox.tar --wildcards '*/layer.tar' >"$suite/busybox.layer"
scripts/debian-guest/boot.sh target/debian-guest "$suite" 1200
