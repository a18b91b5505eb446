#!/usr/bin/env bash
# Builds the ground floor and the processor backend for aarch64 and runs their tests under emulation, so that the
# NEON sources are known to compile and to be right.
set -eu
cmake -S . -B build-neon -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc \
    -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu" -DRQVK_KERNEL_TESTS_ONLY=ON >/dev/null
cmake --build build-neon --target neon_tests
ctest --test-dir build-neon -L neon --output-on-failure
