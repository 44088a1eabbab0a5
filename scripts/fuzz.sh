#!/usr/bin/env bash
# Runs every fuzz target for so many seconds each, two at a time, from the corpora in fuzz/corpus/<target>.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]      (default: 60, all)
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/^name = "\(.*\)"/\1/p' Cargo.toml | tail -n +2)

# What libFuzzer needs from the compiler. SOURCE: clang's SanitizerCoverage; all of them are stable options of rustc.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
RUSTFLAGS=$(echo $RUSTFLAGS)
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --locked --target "$host" --quiet

# Seeds that would be binary files in the repository are made here.
make_seeds() {
    local target=$1 directory=$2 tree
    [ "$target" = tar ] || return 0
    tree=$(mktemp -d)
    mkdir -p "$tree/etc" "$tree/dev"
    echo content >"$tree/etc/file"
    ln -s ../../outside "$tree/link"
    ln "$tree/etc/file" "$tree/hard"
    touch "$tree/etc/.wh.gone" "$tree/.wh..wh..opq"
    mknod "$tree/dev/null" c 1 3 2>/dev/null || true
    for format in ustar gnu pax; do
        tar --create --format="$format" --file "$directory/seed-$format" --directory "$tree" .
    done
    rm -rf "$tree"
}

fuzz_one() {
    local target=$1 found
    found=$(mktemp -d)
    make_seeds "$target" "$found"
    # Inputs that libFuzzer finds interesting stay outside the repository; the corpus is only read.
    if "target/$host/release/$target" "$found" $([ -d "corpus/$target" ] && echo "corpus/$target") \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="target/crash-$target-" >"target/$target.log" 2>&1; then
        printf 'fuzz %-12s %s executions in %s s, nothing found\n' "$target" \
            "$(sed -n 's/^stat::number_of_executed_units: *//p' "target/$target.log")" "$seconds"
        rm -rf "$found"
    else
        printf 'fuzz %-12s FAILED, see fuzz/target/%s.log and fuzz/target/crash-%s-*\n' "$target" "$target" "$target"
        tail -n 30 "target/$target.log"
        rm -rf "$found"
        return 1
    fi
}

status=0
running=()
for target in "${targets[@]}"; do
    fuzz_one "$target" &
    running+=($!)
    if [ ${#running[@]} -ge 2 ]; then
        wait "${running[0]}" || status=1
        running=("${running[@]:1}")
    fi
done
for job in "${running[@]}"; do
    wait "$job" || status=1
done
exit "$status"
