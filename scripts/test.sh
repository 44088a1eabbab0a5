#!/usr/bin/env bash
# Runs everything that `make test` promises and prints what ran, what was skipped and why, per class.
#
#   ATOLL_REQUIRE_CLASSES="container gvisor"   a skipped test of these classes is a failure (set by .ci/run)
#   ATOLL_FUZZ_SECONDS=60                      how long each fuzz target runs
set -uo pipefail
cd "$(dirname "$0")/.."

log_dir=target/test-logs
mkdir -p "$log_dir"
rm -f "$log_dir"/*.log
failed=()

step() {
    local name=$1
    shift
    local begun=$SECONDS
    printf '\n=== %s\n' "$name"
    "$@" 2>&1 | tee "$log_dir/$name.log" | filter_noise
    local status=${PIPESTATUS[0]}
    printf '=== %s: %s in %d s\n' "$name" "$([ "$status" = 0 ] && echo passed || echo FAILED)" $((SECONDS - begun))
    [ "$status" = 0 ] || failed+=("$name")
}

# The whole output is in the log; on the screen only what tells how it goes.
filter_noise() {
    grep -vE '^(test .* \.\.\. ok|running [0-9]+ tests?|successes:|)$' || true
}

rust_tests() {
    # --show-output: a test that skips itself says so on its output, and that must be counted.
    timeout --kill-after=30s 35m cargo test --workspace --locked --no-fail-fast -- --show-output
}

foreign_architecture() {
    local target=aarch64-unknown-linux-gnu
    if ! rustc --print target-libdir --target "$target" 2>/dev/null | xargs -r ls >/dev/null 2>&1; then
        command -v rustup >/dev/null && timeout 60 rustup target add "$target" >/dev/null 2>&1
    fi
    if rustc --print target-libdir --target "$target" 2>/dev/null | xargs -r ls 2>/dev/null | grep -q libcore; then
        CC_aarch64_unknown_linux_gnu=${CC_aarch64_unknown_linux_gnu:-aarch64-linux-gnu-gcc} \
            cargo check --locked --target "$target" --package atoll-sys --package atoll-guest --package atoll-shim
    else
        echo "SKIPPED: aarch64: this machine has no target $target and rustup cannot fetch it"
    fi
}

step check scripts/check.sh
step rust rust_tests
if [ -d fuzz ]; then
    step fuzz scripts/fuzz.sh "${ATOLL_FUZZ_SECONDS:-60}"
fi
step aarch64 foreign_architecture
step debian-guest scripts/debian-guest/suite.sh

printf '\n=== summary\n'
python3 scripts/summarize-tests.py "$log_dir" || failed+=(summary)
if [ ${#failed[@]} -gt 0 ]; then
    # Whoever sees only the end of this output must see what failed: the tests that began and never ended too.
    for name in "${failed[@]}"; do
        [ -f "$log_dir/$name.log" ] || continue
        printf '\n=== the end of %s\n' "$name"
        grep -E '^test .* (FAILED|has been running)|panicked at' "$log_dir/$name.log" | tail -n 40
        tail -n 40 "$log_dir/$name.log"
    done
    printf 'FAILED: %s (logs in %s)\n' "${failed[*]}" "$log_dir" >&2
    exit 1
fi
echo "all passed in $SECONDS s"
