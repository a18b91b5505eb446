#!/usr/bin/env python3
"""Writes the seeds of fuzz_gguf with gguf-py (the format's own library, `pip install gguf`), so that they are
valid by somebody else's account. Usage: make_gguf_seeds.py OUT_DIR"""
import os
import sys

import gguf
import numpy as np

out = sys.argv[1]
os.makedirs(out, exist_ok=True)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def values(path):
    w = gguf.GGUFWriter(path, "llama")
    w.add_uint8("u8", 200), w.add_int8("i8", -100), w.add_uint16("u16", 60000), w.add_int16("i16", -30000)
    w.add_uint32("u32", 4000000000), w.add_int32("i32", -5), w.add_uint64("u64", 2**64 - 1), w.add_int64("i64", -(2**63))
    w.add_float32("f32", 1.5), w.add_float64("f64", -0.25), w.add_bool("bool", True), w.add_string("string", "text")
    w.add_array("strings", ["one", "", "drei"]), w.add_array("ints", [1, -2, 3]), w.add_array("reals", [0.5, 1e9])
    w.add_array("bools", [True, False])
    finish(w)


def tensors(path):
    w = gguf.GGUFWriter(path, "qwen3")
    w.add_uint32("qwen3.block_count", 1)
    w.add_tensor("token_embd.weight", np.zeros((2, 32), np.float16))
    w.add_tensor("blk.0.attn_norm.weight", np.ones(4, np.float32))
    for name, kind, row in (("q4_0", gguf.GGMLQuantizationType.Q4_0, 18), ("q8_0", gguf.GGMLQuantizationType.Q8_0, 34),
                            ("q4_k", gguf.GGMLQuantizationType.Q4_K, 144), ("iq2_s", gguf.GGMLQuantizationType.IQ2_S, 82)):
        w.add_tensor(name, np.zeros((2, 3, row), np.uint8), raw_dtype=kind)
    finish(w)


def tokenizer(path):
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(["a", "b", "ab", "<|end|>"]), w.add_token_types([1, 1, 1, 3]), w.add_token_merges(["a b"])
    w.add_token_scores([0.0, -1.0, -2.0, 0.0]), w.add_bos_token_id(3), w.add_chat_template("{{ messages }}")
    finish(w)


def aligned(path):
    w = gguf.GGUFWriter(path, "gemma4")
    w.add_custom_alignment(128)
    w.add_array("gemma4.attention.head_count_kv", [8, 2])
    w.add_tensor("a", np.zeros(3, np.float32)), w.add_tensor("b", np.zeros((2, 2, 2, 2), np.float32))
    finish(w)


for make in (values, tensors, tokenizer, aligned):
    make(os.path.join(out, make.__name__ + ".gguf"))
