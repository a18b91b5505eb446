#!/bin/sh
# Builds the tests of the cache's codecs for aarch64 with the cross compiler and runs them under qemu-aarch64.
# Usage: run_neon.sh SOURCE_DIR WORK_DIR
set -e
src=$1
work=$2
cc=${AARCH64_CC:-aarch64-linux-gnu-gcc}
mkdir -p "$work"
"$cc" -std=gnu17 -O2 -Wall -Wextra -Wno-unused-parameter -ffp-contract=off -fno-math-errno -D_GNU_SOURCE -static \
    -I"$src/tests/cpu/plain" -I"$src" -o "$work/test_kv_codec" "$src/tests/formats/test_kv_codec.c" \
    "$src"/backends/formats/kv_codec.c "$src"/backends/formats/kv_codec_scalar.c \
    "$src"/backends/formats/kv_codec_page.c "$src"/backends/formats/kv_codec_neon.c \
    "$src"/backends/formats/types.c "$src"/backends/formats/tables_*.c "$src"/backends/formats/dequantize*.c \
    "$src"/backends/base/mem.c -lm
qemu-aarch64 "$work/test_kv_codec" | tee "$work/log"
grep -q "ran neon" "$work/log"
