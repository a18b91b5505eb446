#!/usr/bin/env python3
"""Writes the seeds of fuzz_tokenizer: make_tokenizer_seeds.py FOLDER

Format: model, pattern, flags, ids of BOS, EOS, UNK (255: none), number of tokens, number of merges, one byte each; per
token type, score, length, bytes; per merge length, bytes; the rest is text. Flags: 1 the 256 byte tokens come first,
2 no types, 4 no space prefix, 8 parse special tokens, 16 add BOS and EOS, 32 a Phi-3, 64 a score is missing."""
import os, sys

TEXTS = [
    "Hello, world! It's 12345 degrees; THEY'LL say\r\n\r\n  \"no\"\t\t<c> x<u>  y",
    "\u4e2d\u6587\u5b57 \u3042\u3044 \ud55c\uad6d e\u0301\u0302 \U0001f469\u200d\U0001f467 \u0661\u0662 \u00a0\u2003 fin",
    "def f(x):\n    return x ** 2  # aaaa abab <|im_end|>\n",
]
BROKEN = b"a\xed\xa0\x80\xff\xc0\x80\xe4\xb8 \x00b\xf0\x9f\x98\x80"


def seed(model, pre, flags, tokens, merges, text, ids=(255, 255, 255)):
    out = bytes([model, pre, flags, *ids, len(tokens), len(merges)])
    for kind, score, name in tokens:
        out += bytes([kind, score & 255, len(name)]) + name
    for m in merges:
        out += bytes([len(m)]) + m
    return out + text


def main(folder):
    os.makedirs(folder, exist_ok=True)
    n = 0
    special = [(3, 0, b"<c>"), (4, 0, b"<u>"), (2, 0, b"<unk>"), (3, 0, b"<|im_end|>"), (3, 0, b"</s>"), (5, 0, b"xx")]
    words = [(1, 9, "\u0120x".encode()), (1, 8, b"ab"), (1, 7, b"abab"), (1, 6, b"aa")]
    spm = [(1, 9, "\u2581x".encode()), (1, 8, b"ab"), (1, 7, b"abab"), (1, 6, "\u2581".encode()), (1, 5, "\u4e2d\u6587".encode())]
    for pre in range(15):
        for text in TEXTS:
            data = seed(0, pre, 1 | 8 | 16 * (pre % 2), special + words,
                        ["\u0120 x".encode(), b"a b", b"ab ab", b"a a", b"q q", b"bad"], text.encode() + BROKEN * (pre % 2),
                        (0, 1, 2))
            open(os.path.join(folder, "bpe-%02d" % n), "wb").write(data)
            n += 1
    for model in (1, 2):
        for i, text in enumerate(TEXTS + ["ab " * 40 + "\n\n"]):
            for flags in (1 | 8, 4 | 1, 8 | 16 | 32, 2 | 1):
                data = seed(model, 0, flags, special + spm, [b"a b", "\u2581 x".encode(), b"ab ab", "\u4e2d \u6587".encode()],
                            text.encode() + BROKEN, (3, 4, 2))
                open(os.path.join(folder, "spm-%d-%d-%02d" % (model, i, flags)), "wb").write(data)
    open(os.path.join(folder, "unequal"), "wb").write(seed(1, 0, 64, spm, [], b"x"))
    open(os.path.join(folder, "unknown"), "wb").write(seed(3, 0, 0, spm, [], b"x"))


main(sys.argv[1])
