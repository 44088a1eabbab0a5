#!/usr/bin/env bash
# The written rules that a program can check. Runs all of them, then says which failed.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=()
run() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || failed+=("$name")
}

run "formatting" cargo fmt --all --check
run "lints" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
# A crate's new dependency changes the other workspace's lock too.
run "lock of the fuzz workspace" sh -c 'cargo metadata --manifest-path fuzz/Cargo.toml --locked --format-version 1 >/dev/null'
run "dependency direction and licences" python3 scripts/check-dependencies.py
run "sizes and words" python3 scripts/check-sources.py

if [ ${#failed[@]} -gt 0 ]; then
    printf 'check: failed: %s\n' "$(IFS=,; echo "${failed[*]}")" >&2
    exit 1
fi
echo "check: all rules hold"
