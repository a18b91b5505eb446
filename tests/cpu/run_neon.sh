#!/bin/sh
# Builds the matrix kernel tests and those of attention over codes for aarch64 with the cross compiler and runs
# them under qemu-aarch64.
# Usage: run_neon.sh SOURCE_DIR WORK_DIR
set -e
src=$1
work=$2
cc=${AARCH64_CC:-aarch64-linux-gnu-gcc}
mkdir -p "$work"
flags="-std=gnu17 -O2 -ftree-vectorize -Wall -Wextra -Wno-unused-parameter -ffp-contract=off -fno-math-errno
       -D_GNU_SOURCE -static -I$src/tests/cpu/plain -I$src"
"$cc" $flags -march=armv8.2-a+dotprod -c "$src/backends/cpu/kernels/neon_dot.c" -o "$work/neon_dot.o"
"$cc" $flags -o "$work/test_matmul" "$src/tests/cpu/test_matmul.c" "$work/neon_dot.o" \
    "$src/backends/cpu/kernels/neon.c" "$src/backends/cpu/kernels/scalar.c" "$src/backends/cpu/isa.c" \
    "$src/backends/cpu/matmul.c" "$src"/backends/formats/types.c "$src"/backends/formats/tables_*.c \
    "$src"/backends/formats/dequantize*.c "$src"/backends/base/mem.c -lm
"$cc" $flags -o "$work/test_attend_coded" "$src/tests/cpu/test_attend_coded.c" "$work/neon_dot.o" \
    "$src"/backends/cpu/vec/neon.c "$src"/backends/cpu/vec/scalar.c "$src"/backends/cpu/vec/vec.c \
    "$src"/backends/cpu/kernels/neon.c "$src"/backends/cpu/kernels/scalar.c "$src"/backends/cpu/isa.c \
    "$src"/backends/cpu/matmul.c "$src"/backends/formats/kv_codec.c "$src"/backends/formats/kv_codec_[nps]*.c \
    "$src"/backends/formats/types.c "$src"/backends/formats/tables_*.c \
    "$src"/backends/formats/dequantize*.c "$src"/backends/base/mem.c -lm
qemu-aarch64 -cpu cortex-a53 "$work/test_attend_coded" | tee "$work/log"
grep -q "ran neon" "$work/log"
# A core without the dot-product instructions, and one with.
qemu-aarch64 -cpu cortex-a53 "$work/test_matmul"
qemu-aarch64 -cpu max "$work/test_matmul" | tee "$work/log"
grep -q "ran neon_dot" "$work/log"
# The codecs of the cache, which live with the formats.
"$src/tests/formats/run_neon.sh" "$src" "$work"
