#!/usr/bin/env python3
"""Checks compiled kernels without a card: check_kernels.py FOLDER ARCH [-v]

FOLDER holds, for each source, NAME.ptxas (what `ptxas -v` said) and NAME.cubin (machine code for ARCH). No kernel may
spill or keep anything on a stack; products of many columns must use the matrix units, products of few the 16-byte
asynchronous copies and integer dot products. Opcodes are the low 12 bits of an instruction of 16 bytes (sm_75 and up)."""
import pathlib
import re
import struct
import sys

# Seen in code made for one intrinsic each by nvcc 13.0, sm_80 to sm_120.
OPCODES = {"HMMA": (0x23C,), "IMMA": (0x237,), "IDP": (0x226, 0x426, 0x826), "LDGSTS": (0xFAE,), "LDSM": (0x83B,),
           "LDL": (0x983,), "STL": (0x387,), "PRMT": (0x216, 0x416, 0x816), "BAR": (0xB1D,)}
MOST_REGISTERS = 255
MOST_ATTENTION = 200
# Loads, stores and what fills the last line: not counted as unpacking. Shuffles are: keys get the octet before by one.
OTHER = (0x981, 0x986, 0x918)
PROBED_ELEMENTS = 32 * 16  # of a thread of probes.cu
MOST_PER_ELEMENT = {"probe_keys_3": 2.5, "probe_values_3": 2.5}


def sections(data):
    """(name, bytes) of an ELF file of 64 bits."""
    at, = struct.unpack_from("<Q", data, 40)
    size, n, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, at + i * size) for i in range(n)]
    base = headers[names][4]
    for name, _, _, _, offset, length in headers:
        end = data.index(b"\0", base + name)
        yield data[base + name:end].decode(), data[offset:offset + length]


def kernels(cubin):
    """name -> list of opcodes."""
    out = {}
    for name, code in sections(cubin.read_bytes()):
        if name.startswith(".text."):
            out[name[6:]] = [struct.unpack_from("<H", code, i)[0] & 0xFFF for i in range(0, len(code) - 15, 16)]
    return out


def resources(text):
    """name -> (registers, stack bytes, spilled bytes)."""
    out = {}
    for block in text.split("Compiling entry function '")[1:]:
        name = block.split("'")[0]
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        out[name] = (int(registers.group(1)), int(stack.group(1)), int(stack.group(2)) + int(stack.group(3)))
    return out


def main():
    folder, arch, verbose = pathlib.Path(sys.argv[1]), int(sys.argv[2]), "-v" in sys.argv[3:]
    bad, n, attention = [], 0, 0
    for said in sorted(folder.glob("*.ptxas")):
        code = kernels(said.with_suffix(".cubin"))
        for name, (registers, stack, spilled) in sorted(resources(said.read_text()).items()):
            count = {op: sum(c in numbers for c in code[name]) for op, numbers in OPCODES.items()}
            n += 1
            if verbose:
                used = ", ".join(f"{c} {op}" for op, c in count.items() if c)
                print(f"{name}: {registers} registers, {len(code[name])} instructions; {used}")
            if stack or spilled:
                bad.append(f"{name}: {stack} bytes of stack, {spilled} spilled")
            if registers > MOST_REGISTERS or not code[name]:
                bad.append(f"{name}: {registers} registers, {len(code[name])} instructions")
            if name.startswith("probe_"):
                each = sum(c not in OTHER for c in code[name]) / PROBED_ELEMENTS
                print(f"{name}: {each:.2f} instructions per element, {len(code[name]) / PROBED_ELEMENTS:.2f} with loads "
                      "and stores")
                if each > MOST_PER_ELEMENT.get(name, each):
                    bad.append(f"{name}: more than {MOST_PER_ELEMENT[name]} instructions per element")
            kind, *rest = name.split("_")
            block_type = rest and rest[0].isdigit() and rest[0] not in ("0", "1", "28", "30")
            wanted = []
            if kind == "matmul" and (block_type or rest[0] == "30") and arch >= 80:
                wanted = ["HMMA", "LDSM"]
            if kind == "matvec" and block_type:
                wanted = ["IDP"] + (["LDGSTS"] if arch >= 80 else [])
            if name == "matmul_1":
                wanted = ["HMMA", "LDSM"]
            if kind == "delta" and rest[0] in ("prepare", "chunk") and arch >= 80:
                wanted = ["HMMA", "LDSM"] + (["LDGSTS"] if rest[0] == "chunk" else [])
            if name.startswith("attend_coded"):
                wanted = ["IMMA", "HMMA", "PRMT"]
            if name == "attend_group":
                wanted = ["HMMA"]
            attention += name.startswith("attend_")
            bad += [f"{name}: no {op}" for op in wanted if not count[op]]
    if attention > MOST_ATTENTION:
        bad.append(f"{attention} kernels of attention, more than {MOST_ATTENTION}")
    for line in bad:
        print(line)
    print(f"{n} kernels for sm_{arch}, {len(bad)} findings")
    return 1 if bad or n < 100 else 0


sys.exit(main())
