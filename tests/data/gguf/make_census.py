#!/usr/bin/env python3
"""Lists what gguf-py (`pip install gguf`, see the first line of the output for the version) finds in GGUF files:
one line per key and tensor, tab-separated. Usage: make_census.py FILE... > census.tsv"""
import importlib.metadata
import os
import sys
import zlib

import gguf
import numpy as np

NAMES = {gguf.GGUFValueType.UINT8: "u8", gguf.GGUFValueType.INT8: "i8", gguf.GGUFValueType.UINT16: "u16",
         gguf.GGUFValueType.INT16: "i16", gguf.GGUFValueType.UINT32: "u32", gguf.GGUFValueType.INT32: "i32",
         gguf.GGUFValueType.FLOAT32: "f32", gguf.GGUFValueType.BOOL: "bool", gguf.GGUFValueType.STRING: "string",
         gguf.GGUFValueType.UINT64: "u64", gguf.GGUFValueType.INT64: "i64", gguf.GGUFValueType.FLOAT64: "f64"}


def value_bytes(kind, value):
    """Strings as they are; numbers as f64, the widest real."""
    return value.encode() if kind == "string" else np.float64(value).tobytes()


print("# written by gguf-py", importlib.metadata.version("gguf"))
print("# K file key type array? count crc32-of-values / T file name type offset bytes dims crc32-of-data")
for path in sys.argv[1:]:
    file, reader = os.path.basename(path), gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        kind = NAMES[field.types[-1]]
        values = field.contents()
        values = values if is_array else [values]
        crc = 0
        for v in values:
            crc = zlib.crc32(value_bytes(kind, v), crc)
        print("K", file, key, kind, int(is_array), len(values), crc, sep="\t")
    for t in reader.tensors:
        dims = "x".join(str(int(d)) for d in t.shape)
        print("T", file, t.name, t.tensor_type.name, t.data_offset, t.n_bytes, dims, zlib.crc32(t.data.tobytes()), sep="\t")
