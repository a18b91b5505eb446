"""GGUF files of the trained networks: F32, F16 or Q8_0 matrices, everything small in F32."""

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def tensors(net):
    """(name, array, is_matrix) for every tensor of the file, in file order."""
    c = net.c
    yield "token_embd.weight", net.embed.weight, True
    yield "output_norm.weight", net.norm.weight, False

    def block(i, b):
        p, m = f"blk.{i}.", b.mix
        yield p + "attn_norm.weight", b.norm1.weight, False
        if b.attends:
            for name, t in (("attn_q", m.q), ("attn_k", m.k), ("attn_v", m.v), ("attn_output", m.o)):
                yield p + name + ".weight", t.weight, True
            yield p + "attn_q_norm.weight", m.q_norm.weight, False
            yield p + "attn_k_norm.weight", m.k_norm.weight, False
        else:
            for name, t in (("attn_qkv", m.qkv), ("attn_gate", m.z), ("ssm_out", m.out)):
                yield p + name + ".weight", t.weight, True
            yield p + "ssm_beta.weight", m.beta.weight, False
            yield p + "ssm_alpha.weight", m.alpha.weight, False
            yield p + "ssm_conv1d.weight", m.conv, False
            yield p + "ssm_dt.bias", m.dt, False
            yield p + "ssm_a", -m.a_log.exp(), False
            yield p + "ssm_norm.weight", m.norm.weight, False
        yield (
            p + ("ffn_norm" if c.arch == "qwen3" else "post_attention_norm") + ".weight",
            b.norm2.weight,
            False,
        )
        for name, t in (("ffn_gate", b.gate), ("ffn_up", b.up), ("ffn_down", b.down)):
            yield p + name + ".weight", t.weight, True

    for i, b in enumerate(net.blocks):
        yield from block(i, b)
    if net.mtp is not None:
        i, m = c.layers, net.mtp
        yield from block(i, m.block)
        p = f"blk.{i}.nextn."
        yield p + "eh_proj.weight", m.proj.weight, True
        yield p + "enorm.weight", m.e_norm.weight, False
        yield p + "hnorm.weight", m.h_norm.weight, False
        yield p + "shared_head_norm.weight", m.norm.weight, False


def metadata(w, c, tokenizer, name, with_mtp):
    w.add_name(name)
    w.add_context_length(c.context)
    w.add_embedding_length(c.width)
    w.add_block_count(c.layers + (1 if with_mtp else 0))
    w.add_feed_forward_length(c.ff)
    w.add_head_count(c.heads)
    w.add_head_count_kv(c.kv_heads)
    w.add_key_length(c.head_dim)
    w.add_value_length(c.head_dim)
    w.add_layer_norm_rms_eps(c.eps)
    w.add_rope_dimension_count(c.rope_dim)
    w.add_rope_freq_base(c.rope_base)
    w.add_vocab_size(c.vocab)
    if c.arch == "qwen35":
        third = c.rope_dim // 6  # three position streams; text uses the same position in each
        w.add_rope_dimension_sections([c.rope_dim // 2 - 2 * third, third, third, 0])
        w.add_uint32("qwen35.ssm.conv_kernel", c.conv)
        w.add_uint32("qwen35.ssm.state_size", c.state)
        w.add_uint32("qwen35.ssm.group_count", c.k_groups)
        w.add_uint32("qwen35.ssm.time_step_rank", c.v_heads)
        w.add_uint32("qwen35.ssm.inner_size", c.state * c.v_heads)
        w.add_uint32("qwen35.full_attention_interval", c.interval)
        if with_mtp:
            w.add_uint32("qwen35.nextn_predict_layers", 1)
    control = len(tokenizer) - 3
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2" if c.arch == "qwen3" else "qwen35")
    w.add_token_list(tokenizer.tokens)
    w.add_token_types([gguf.TokenType.NORMAL] * control + [gguf.TokenType.CONTROL] * 3)
    w.add_token_merges([" ".join(m) for m in tokenizer.merges])
    w.add_bos_token_id(tokenizer.end_of_text)
    w.add_eos_token_id(tokenizer.im_end)
    w.add_pad_token_id(tokenizer.end_of_text)
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)


KINDS = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_KINDS = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def write(net, tokenizer, path, kind="q8_0", name="rqvk built-in", mtp=True):
    """Write the network to path. mtp=False leaves the draft block out, for readers that do not know it."""
    c, with_mtp = net.c, net.mtp is not None and mtp
    w = gguf.GGUFWriter(path, c.arch)
    metadata(w, c, tokenizer, name, with_mtp)
    w.add_file_type(FILE_KINDS[kind])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor, value, matrix in tensors(net):
        if not with_mtp and tensor.startswith(f"blk.{c.layers}."):
            continue
        a = value.detach().float().cpu().numpy()
        qt = KINDS[kind] if matrix else KINDS["f32"]
        if qt == KINDS["f32"]:
            w.add_tensor(tensor, np.ascontiguousarray(a))
        else:
            w.add_tensor(tensor, gguf.quantize(a, qt), raw_dtype=qt)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
