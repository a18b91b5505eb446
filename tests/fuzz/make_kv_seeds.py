#!/usr/bin/env python3
"""Writes the seeds of fuzz_kv_files: small profiles of both versions (engine/kv/profile_file.c has the layout; the target
makes the checksum right itself) and a table."""
import os
import struct

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seeds", "fuzz_kv_files")


def basis(dim):
    return [float(i % (dim + 1) == 0) for i in range(dim * dim)]


def layer(heads, dim_k, dim_v, parts, pairs=()):
    """`pairs`: n_rot and n_turned, which version 2 has."""
    mean_k, lambda_k, mean_v, so8_k, so8_v, klt_k, klt_v = (bool(parts & 1 << i) for i in range(7))
    identity = [float(i % 9 == 0) for i in range(64)]
    floats = []
    floats += [0.5] * (heads * dim_k * mean_k)
    floats += [2.0] * (heads * dim_k * lambda_k)
    floats += [-1.0] * (heads * dim_v * mean_v)
    floats += identity * (heads * dim_k // 8 * so8_k)
    floats += identity * (heads * dim_v // 8 * so8_v)
    floats += basis(dim_k) * (heads * klt_k)
    floats += basis(dim_v) * (heads * klt_v)
    shape = (heads, dim_k, dim_v, *pairs, parts)
    return struct.pack(f"<{len(shape)}I", *shape) + struct.pack(f"<{len(floats)}f", *floats)


def profile(layers, n_rot, flags, note, version=1):
    head = b"RQKVPROF" + struct.pack("<IIQQIIII", version, len(layers), 11, 12, 4096, n_rot, flags, len(note)) + note
    return head + b"".join(layers) + bytes(8)


SEEDS = {
    "empty.kvprofile": profile([layer(1, 8, 8, 0)], 8, 0, b""),
    "means.kvprofile": profile([layer(2, 8, 16, 5), layer(1, 16, 8, 1)], 8, 1, b"a note"),
    "all.kvprofile": profile([layer(1, 16, 8, 31)], 16, 0, b""),
    "bases.kvprofile": profile([layer(2, 8, 8, 96)], 8, 1, b""),
    "hybrid.kvprofile": profile([layer(0, 0, 0, 0, (0, 0)), layer(1, 16, 16, 103, (8, 3))], 0, 1, b"", 2),
    "windows.kvprofile": profile([layer(2, 8, 16, 7, (8, 4)), layer(1, 16, 8, 127, (16, 2)),
                                  layer(0, 0, 0, 0, (0, 0))], 0, 0, b"a note", 2),
    "pairs.kvtable": b"rqvk-kvtable 1\nmodel 0123456789abcdef\nbound 0.02\nnote words\n# remark\n"
                     b"pair wht3 planar4 3.625 0.011\npair q8_0 f16 12.25 1e-5\n",
}

os.makedirs(FOLDER, exist_ok=True)
for name, data in SEEDS.items():
    with open(os.path.join(FOLDER, name), "wb") as file:
        file.write(data)
