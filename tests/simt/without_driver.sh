#!/bin/sh
# What the programs say about CUDA where there is no driver: without_driver.sh FOLDER_OF_PROGRAMS kernels|none
# `none`: the build has no kernels. The programs start, list the devices there are, refuse --backend cuda in a sentence
# with its reason, and compute on the processor with --backend auto. Leaves with 77 where there is a driver.
set -eu
bin=$1 kernels=$2
if ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then
    echo "there is a driver here"
    exit 77
fi
case $kernels in
kernels) reason='libcuda.so.1' ;;
*) reason='has no CUDA kernels' ;;
esac
log=$(mktemp)
trap 'rm -f "$log"' EXIT
fail() {
    echo "$1" >&2
    cat "$log" >&2
    exit 1
}
timeout 60 "$bin/rqvk-cli" --list-devices </dev/null >"$log" 2>&1 || fail "--list-devices fails"
grep -q '^cpu0: ' "$log" || fail "--list-devices does not name the processor"
grep -q "^cuda: .*$reason" "$log" || fail "--list-devices does not say why there is no card"
for program in rqvk-cli rqvk-bench rqvk-serve; do
    set --
    [ "$program" != rqvk-cli ] || set -- -p Hello
    if timeout 60 "$bin/$program" "$@" --backend cuda </dev/null >"$log" 2>&1; then
        fail "$program --backend cuda succeeds"
    fi
    grep -q "^$program: .*CUDA" "$log" || fail "$program does not say what is wrong"
    grep -q "$reason" "$log" || fail "$program gives no reason"
done
timeout 120 "$bin/rqvk-cli" --backend auto -p Hello -n 2 -v </dev/null >"$log" 2>&1 || fail "--backend auto fails"
grep -q "not cuda: .*$reason" "$log" || fail "--backend auto does not say why it is not cuda"
grep -q '(cpu)' "$log" || fail "--backend auto does not fall to the processor"
