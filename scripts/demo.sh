#!/usr/bin/env bash
# Shows atoll at work, from a registry to an exit code, in each class that this machine offers, and leaves nothing behind.
#
#   scripts/demo.sh [ATOLL]      (default: target/release/atoll)
set -euo pipefail
cd "$(dirname "$0")/.."
atoll=$(realpath "${1:-target/release/atoll}")
images=target/demo-images

work=$(mktemp -d)
export ATOLL_DATA_DIR=$work/data
registry_pid=
up=no
finish() {
    local status=$?
    if [ "$up" = yes ]; then "$atoll" down || status=1; fi
    if [ -n "$registry_pid" ]; then kill "$registry_pid" 2>/dev/null || true; fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
show() {
    printf '$ %s\n' "$*"
    "$@"
}

say "What this machine offers"
show "$atoll" doctor || true

say "Two images, assembled from Debian packages, in a registry of their own"
scripts/make-images.sh "$images"
scripts/start-registry.sh "$work/registry" >"$work/registry.env"
# shellcheck disable=SC1091
. "$work/registry.env"
registry_pid=$REGISTRY_PID
for image in busybox python; do
    skopeo copy --quiet --dest-tls-verify=false "docker-archive:$images/$image.tar" "docker://$REGISTRY/$image:latest"
    echo "pushed $REGISTRY/$image:latest"
done

say "One machine, one process"
up=yes
show "$atoll" up --listen 127.0.0.1:0 --detach
for image in busybox python; do
    show "$atoll" image pull --plain-http "$REGISTRY/$image:latest"
done
show "$atoll" image ls

for class in $("$atoll" doctor --classes); do
    say "Class $class"
    show "$atoll" run --class "$class" "$REGISTRY/busybox:latest" -- uname -a
    printf '$ echo "print(6 * 7)" | atoll run -i --class %s %s -- python3 -\n' "$class" "$REGISTRY/python:latest"
    echo 'print(6 * 7)' | "$atoll" run -i --class "$class" "$REGISTRY/python:latest" -- python3 -
    status=0
    show "$atoll" run --class "$class" --keep --name "demo-$class" "$REGISTRY/busybox:latest" -- sh -c 'echo on its way out; exit 7' || status=$?
    echo "exit code $status"
    [ "$status" = 7 ] || { echo "expected exit code 7" >&2; exit 1; }
    show "$atoll" describe "sandbox/demo-$class"
    show "$atoll" delete "sandbox/demo-$class"
done

say "Everything ends, nothing is left"
show "$atoll" down
up=no
