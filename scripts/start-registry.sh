#!/usr/bin/env bash
# Starts Debian's docker-registry on a free port of loopback, with its data in DIR, and prints
# REGISTRY=127.0.0.1:PORT and REGISTRY_PID=PID for the caller, who ends it.
#
#   scripts/start-registry.sh DIR
set -euo pipefail
directory=${1:?usage: $0 DIR}
mkdir -p "$directory/data"

for _ in 1 2 3 4 5; do
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$directory/config.yml" <<CONFIG
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $(realpath "$directory")/data}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$port"}
CONFIG
    docker-registry serve "$directory/config.yml" >"$directory/log" 2>&1 </dev/null &
    pid=$!
    for _ in $(seq 100); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            printf 'REGISTRY=127.0.0.1:%s\nREGISTRY_PID=%s\n' "$port" "$pid"
            exit 0
        fi
        # Another program may have taken the port in between: try the next one.
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill "$pid" 2>/dev/null || true
done
echo "docker-registry does not start: see $directory/log" >&2
exit 1
