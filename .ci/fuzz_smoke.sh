#!/usr/bin/env bash
# fuzz_smoke.sh BUILD SECONDS: runs every target of tests/fuzz/edges.txt for so many seconds on a copy of its seeds,
# prints executions and edges, and fails on a crash or below the recorded number of edges.
set -u
build=$1 seconds=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

one() {
    local target=$1 least=$2 program log edges runs
    program=$(find "$build" -type f -name "$target" -perm -u+x | head -1)
    [ -n "$program" ] || { echo "$target: not built"; return 1; }
    mkdir -p "$work/$target" "$work/$target-seeds"
    cp -r "tests/fuzz/seeds/$target/." "$work/$target-seeds/" 2>/dev/null
    local dict=()
    [ -f "tests/fuzz/$target.dict" ] && dict=(-dict="tests/fuzz/$target.dict")
    log=$work/$target.log
    "$program" "$work/$target" "$work/$target-seeds" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 "${dict[@]}" >"$log" 2>&1
    local rc=$?
    edges=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$target: ${runs:-0} executions, ${edges:-0} edges (at least $least), exit $rc"
    if [ $rc -ne 0 ] || [ "${edges:-0}" -lt "$least" ]; then
        tail -n 40 "$log"
        return 1
    fi
}
failed=0
pids=()
while read -r target least; do
    case $target in '' | '#'*) continue ;; esac
    one "$target" "$least" &
    pids+=($!)
    if [ ${#pids[@]} -eq 2 ]; then
        for p in "${pids[@]}"; do wait "$p" || failed=1; done
        pids=()
    fi
done <tests/fuzz/edges.txt
for p in "${pids[@]}"; do wait "$p" || failed=1; done
exit $failed
