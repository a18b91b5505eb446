#!/usr/bin/env python3
"""Load the trained (or freshly started) network into Hugging Face transformers' own classes and compare
logits.

usage: check_hf.py SIZE [CHECKPOINT.pt]
Prints the normalised squared error; exit status 1 when it is 1e-4 or more
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import model
import start


def attention(out, p, a, add):
    for name, t in (("q_proj", a.q), ("k_proj", a.k), ("v_proj", a.v), ("o_proj", a.o)):
        out[f"{p}self_attn.{name}.weight"] = t.weight
    out[p + "self_attn.q_norm.weight"] = a.q_norm.weight - add
    out[p + "self_attn.k_norm.weight"] = a.k_norm.weight - add


def delta(out, p, d):
    """GGUF tiles V heads over K heads; transformers keeps the V heads of a K head together."""
    c = d.c
    r = c.v_heads // c.k_groups
    order = torch.tensor([(h % r) * c.k_groups + h // r for h in range(c.v_heads)])
    lanes = (order[:, None] * c.state + torch.arange(c.state)).flatten()
    keys = torch.arange(2 * c.state * c.k_groups)
    channels = torch.cat([keys, len(keys) + lanes])
    p += "linear_attn."
    out[p + "in_proj_qkv.weight"] = d.qkv.weight[channels]
    out[p + "conv1d.weight"] = d.conv[channels][:, None]
    out[p + "in_proj_z.weight"] = d.z.weight[lanes]
    out[p + "in_proj_b.weight"] = d.beta.weight[order]
    out[p + "in_proj_a.weight"] = d.alpha.weight[order]
    out[p + "dt_bias"] = d.dt[order]
    out[p + "A_log"] = d.a_log[order]
    out[p + "norm.weight"] = d.norm.weight
    out[p + "out_proj.weight"] = d.out.weight[:, lanes]


def state_dict(net):
    c = net.c
    add = 1.0 if c.arch == "qwen35" else 0.0  # transformers' Qwen3.5 norms multiply by 1 + weight
    out = {
        "model.embed_tokens.weight": net.embed.weight,
        "lm_head.weight": net.embed.weight,
        "model.norm.weight": net.norm.weight - add,
    }
    for i, b in enumerate(net.blocks):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = b.norm1.weight - add
        out[p + "post_attention_layernorm.weight"] = b.norm2.weight - add
        for name, t in (("gate_proj", b.gate), ("up_proj", b.up), ("down_proj", b.down)):
            out[f"{p}mlp.{name}.weight"] = t.weight
        if b.attends:
            attention(out, p, b.mix, add)
        else:
            delta(out, p, b.mix)
    return {k: v.detach().clone() for k, v in out.items()}


def reference(net):
    c = net.c
    common = dict(
        vocab_size=c.vocab,
        hidden_size=c.width,
        intermediate_size=c.ff,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        rms_norm_eps=c.eps,
        max_position_embeddings=c.context,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    if c.arch == "qwen3":
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(**common, rope_parameters={"rope_type": "default", "rope_theta": c.rope_base})
        ref = Qwen3ForCausalLM(config)
    else:
        from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM

        third = c.rope_dim // 6
        config = Qwen3_5TextConfig(
            **common,
            linear_conv_kernel_dim=c.conv,
            linear_key_head_dim=c.state,
            linear_value_head_dim=c.state,
            linear_num_key_heads=c.k_groups,
            linear_num_value_heads=c.v_heads,
            layer_types=["full_attention" if b.attends else "linear_attention" for b in net.blocks],
            rope_parameters={
                "rope_type": "default",
                "rope_theta": c.rope_base,
                "partial_rotary_factor": c.rope_dim / c.head_dim,
                "mrope_section": [c.rope_dim // 2 - 2 * third, third, third],
                "mrope_interleaved": True,
            },
        )
        ref = Qwen3_5ForCausalLM(config)
    missing, extra = ref.load_state_dict(state_dict(net), strict=False)
    if missing or extra:
        sys.exit(f"the two sides differ in their tensors: missing {missing}, unknown {extra}")
    return ref.float().eval()


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in model.SIZES:
        sys.exit(__doc__)
    torch.manual_seed(0)
    net = model.Net(model.SIZES[sys.argv[1]])
    start.initialise(net)
    if len(sys.argv) > 2:
        net.load_state_dict(torch.load(sys.argv[2], map_location="cpu", weights_only=True)["net"])
    else:
        with torch.no_grad():
            for p in net.parameters():  # so that nothing is zero or one by construction
                p.add_(torch.randn_like(p) * 0.03)
    tokens = torch.randint(0, net.c.vocab, (2, 150))
    with torch.no_grad():
        ours, theirs = net(tokens), reference(net)(tokens).logits
    error = ((ours - theirs).square().sum() / theirs.square().sum()).item()
    print(
        f"{sys.argv[1]}: normalised squared error {error:.3g}, largest difference "
        f"{(ours - theirs).abs().max().item():.3g}, largest logit {theirs.abs().max().item():.3g}"
    )
    sys.exit(0 if error < 1e-4 else 1)


if __name__ == "__main__":
    main()
