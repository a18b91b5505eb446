#!/usr/bin/env python3
"""Checks what the compiler cannot: which room includes which (docs and DESIGN: server, tools -> engine ->
backends), banned functions, and paths of one machine. Prints every finding; exit code 1 if there is any."""
import re
import subprocess
import sys

ALLOWED = {  # room -> prefixes it may include from
    "backends": ("backends/",),
    "engine": ("engine/", "backends/"),
    "server": ("server/", "engine/rqvk.h", "backends/base/", "tools/common/"),
    "tools": ("tools/", "engine/rqvk.h", "engine/plan.h", "backends/base/"),
}
# Programs that look into files rather than run models may know the container format and the types.
EXCEPTIONS = {
    "backends/cuda/": ("cuda/",),  # the arguments of its kernels
    "tools/rqvk-inspect.c": ("engine/gguf/", "backends/formats/"),
    "tools/rqvk-synth.c": ("engine/gguf/", "backends/formats/"),
    "tools/inspect/": ("engine/gguf/", "backends/formats/"),
    "tools/kv-levels/": ("backends/formats/",),
    "tools/synth/": ("engine/gguf/", "backends/formats/"),
    "tools/kv/": ("engine/kv.h", "backends/formats/", "backends/cache.h"),
    "tools/ppl/": ("engine/kv.h", "backends/cache.h"),
    "tools/rqvk-tokenize.c": ("engine/gguf/", "engine/tokenizer/"),
}
BANNED = re.compile(r"\b(sprintf|strcpy|strcat|strtok|gets|atoi|atol|atof|alloca|abort|exit|assert)\s*\(")
PATHS = re.compile(r"/(work|root|farm)/")
PROMISES = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|not implemented")


def main():
    files = subprocess.run(["git", "ls-files", "*.c", "*.h", "*.cu", "*.cuh", "*.comp", "*.glsl"],
                           capture_output=True, text=True, check=True).stdout.split()
    bad = 0

    def report(name, number, what, line):
        nonlocal bad
        bad += 1
        print(f"{name}:{number}: {what}: {line.strip()[:100]}")

    for name in files:
        room = name.split("/")[0]
        allowed = ALLOWED.get(room)
        extra = tuple(p for prefix, paths in EXCEPTIONS.items() if name.startswith(prefix) for p in paths)
        with open(name, encoding="utf-8") as source:
            for number, line in enumerate(source, 1):
                include = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
                if include and allowed and not include.group(1).startswith(allowed + extra):
                    report(name, number, "this room must not know that header", line)
                code = re.sub(r'"(\\.|[^"\\])*"|//.*|/\*.*', "", line)
                if allowed and BANNED.search(code) and not line.lstrip().startswith("*"):
                    report(name, number, "banned function", line)
                if PATHS.search(line):
                    report(name, number, "path of one machine", line)
                if PROMISES.search(line):
                    report(name, number, "promise left in the code", line)
            if number > 1000 and "tables_" not in name:
                report(name, number, "more than 1,000 lines", "")
    print(f"{len(files)} files, {bad} findings")
    return 1 if bad else 0


sys.exit(main())
