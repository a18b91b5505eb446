#!/usr/bin/env python3
"""Writes rope_expected.h: rotary frequencies as Hugging Face's transformers computes them.

    make_rope_expected.py > rope_expected.h          needs transformers and torch

The functions are those of transformers.modeling_rope_utils, called with a model's published settings. For
"llama3" the file formats differ: transformers computes frequencies from four settings, a GGUF file carries
one divisor per pair (tensor rope_freqs.weight) that its converter worked out. `factors` below works them out
from the description of Llama 3.1's scaling: wavelengths above original/low are stretched by `factor`, those
below original/high are left alone, and between them the two are mixed.
"""
import math

import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CASES = [
    # name, head size, base, context, scaling
    ("linear_llama2", 128, 10000.0, 16384, dict(rope_type="linear", factor=4.0)),
    ("linear_fraction", 64, 500000.0, 4096, dict(rope_type="linear", factor=1.5)),
    ("yarn_qwen25", 128, 1000000.0, 131072,
     dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)),
    ("yarn_llama2", 128, 10000.0, 65536,
     dict(rope_type="yarn", factor=16.0, original_max_position_embeddings=4096)),
    ("yarn_betas", 64, 10000.0, 5120,
     dict(rope_type="yarn", factor=2.5, original_max_position_embeddings=2048, beta_fast=16.0, beta_slow=2.0)),
    ("yarn_short_original", 32, 10000.0, 32,
     dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=4)),
    ("yarn_factor_1", 64, 10000.0, 2048,
     dict(rope_type="yarn", factor=1.0, original_max_position_embeddings=2048)),
    ("yarn_factor_below_1", 64, 10000.0, 1024,
     dict(rope_type="yarn", factor=0.5, original_max_position_embeddings=2048)),
    ("llama31", 128, 500000.0, 131072,
     dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
          original_max_position_embeddings=8192)),
    ("llama32_1b", 64, 500000.0, 131072,
     dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
          original_max_position_embeddings=8192)),
]


def factors(dim, base, s):
    out = []
    for i in range(dim // 2):
        wavelength = 2 * math.pi * base ** (2 * i / dim)
        turns = s["original_max_position_embeddings"] / wavelength
        smooth = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
        smooth = min(1.0, max(0.0, smooth))
        out.append(1 / ((1 - smooth) / s["factor"] + smooth))
    return out


def c_list(values):
    text = [f"{float(v):.9g}" for v in values]
    text = [t + "f" if "." in t or "e" in t else t + ".0f" for t in text]
    lines, line = [], "       "
    for t in text:
        if len(line) + len(t) + 2 > 100:
            lines.append(line)
            line = "       "
        line += f" {t},"
    lines.append(line)
    return "{\n" + "\n".join(lines) + "\n    }"


def main():
    print("/* rope_expected.h - rotary frequencies and magnitudes by transformers.modeling_rope_utils of")
    print(f" * transformers {transformers.__version__} (torch {torch.__version__}, float32). Written by make_rope_expected.py.")
    print(" * Included by test_rope.c only. */")
    print("// clang-format off")
    print("static const rope_case CASES[] = {")
    for name, dim, base, context, scaling in CASES:
        config = LlamaConfig(hidden_size=dim * 2, num_attention_heads=2, num_key_value_heads=2, head_dim=dim,
                             max_position_embeddings=context,
                             rope_parameters=dict(rope_theta=base, **scaling))
        inv, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
        assert len(inv) == dim // 2
        kind = scaling["rope_type"]
        print(f"    {{.name = \"{name}\", .type = \"{'none' if kind == 'llama3' else kind}\", .dim = {dim}, .base = {base}f,")
        print(f"     .context = {context}, .factor = {1.0 if kind == 'llama3' else scaling['factor']}f,")
        print(f"     .original = {scaling.get('original_max_position_embeddings', 0) if kind == 'yarn' else 0},")
        print(f"     .beta_fast = {scaling.get('beta_fast', 0.0)}f, .beta_slow = {scaling.get('beta_slow', 0.0)}f,")
        print(f"     .magnitude = {float(magnitude):.9g},")
        if kind == "llama3":
            print(f"     .has_factors = true, .factors = {c_list(factors(dim, base, scaling))},")
        print(f"     .inv_freq = {c_list(inv.tolist())}}},")
    print("};")


main()
