"""Parameters of transformers' models under the names, in the order and with the values that GGUF files have."""

import torch


def interleaved_heads(config):
    """Value heads: transformers keeps those of a key head together, the files tile them over the key heads. File's
    head m * n_key + g is transformers' g * n_each + m."""
    n_key, n_value = config.linear_num_key_heads, config.linear_num_value_heads
    each = n_value // n_key
    order = torch.tensor([(j % n_key) * each + j // n_key for j in range(n_value)])
    size = config.linear_value_head_dim
    lanes = (order[:, None] * size + torch.arange(size)).flatten()
    return order, lanes


def delta_net(prefix, net, config):
    order, lanes = interleaved_heads(config)
    n_keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    channels = torch.cat([torch.arange(n_keys), n_keys + lanes])
    yield prefix + "attn_qkv.weight", net.in_proj_qkv.weight[channels]
    yield prefix + "attn_gate.weight", net.in_proj_z.weight[lanes]
    yield prefix + "ssm_conv1d.weight", net.conv1d.weight[:, 0][channels]
    yield prefix + "ssm_alpha.weight", net.in_proj_a.weight[order]
    yield prefix + "ssm_beta.weight", net.in_proj_b.weight[order]
    yield prefix + "ssm_dt.bias", net.dt_bias[order]
    yield prefix + "ssm_a", -net.A_log[order].exp()
    yield prefix + "ssm_norm.weight", net.norm.weight
    yield prefix + "ssm_out.weight", net.out_proj.weight[:, lanes]


def attention(prefix, net, added):
    """`added`: what the norms of this family add to their weights."""
    yield prefix + "attn_q.weight", net.q_proj.weight
    yield prefix + "attn_q_norm.weight", net.q_norm.weight + added
    if getattr(net, "k_proj", None) is not None:
        yield prefix + "attn_k.weight", net.k_proj.weight
        yield prefix + "attn_k_norm.weight", net.k_norm.weight + added
    if getattr(net, "v_proj", None) is not None:
        yield prefix + "attn_v.weight", net.v_proj.weight
    yield prefix + "attn_output.weight", net.o_proj.weight


def dense(prefix, net, suffix=""):
    for part in ("gate", "up", "down"):
        yield f"{prefix}ffn_{part}{suffix}.weight", getattr(net, part + "_proj").weight


def qwen_ffn(prefix, net):
    if not hasattr(net, "experts"):
        yield from dense(prefix, net)
        return
    gate, up = net.experts.gate_up_proj.chunk(2, 1)
    yield prefix + "ffn_gate_inp.weight", net.gate.weight
    yield prefix + "ffn_gate_exps.weight", gate
    yield prefix + "ffn_up_exps.weight", up
    yield prefix + "ffn_down_exps.weight", net.experts.down_proj
    yield prefix + "ffn_gate_inp_shexp.weight", net.shared_expert_gate.weight[0]
    yield from dense(prefix, net.shared_expert, "_shexp")


def qwen_layer(prefix, layer, config):
    yield prefix + "attn_norm.weight", layer.input_layernorm.weight + 1
    if hasattr(layer, "linear_attn"):
        yield from delta_net(prefix, layer.linear_attn, config)
    else:
        yield from attention(prefix, layer.self_attn, 1)
    yield prefix + "post_attention_norm.weight", layer.post_attention_layernorm.weight + 1
    yield from qwen_ffn(prefix, layer.mlp)


def qwen_tensors(model, draft):
    trunk, config = model.model, model.config
    yield "token_embd.weight", trunk.embed_tokens.weight
    yield "output_norm.weight", trunk.norm.weight + 1
    if not config.tie_word_embeddings:
        yield "output.weight", model.lm_head.weight
    for i, layer in enumerate(trunk.layers):
        yield from qwen_layer(f"blk.{i}.", layer, config)
    if draft is not None:
        prefix = f"blk.{config.num_hidden_layers}."
        yield from qwen_layer(prefix, draft.layer, config)
        yield prefix + "nextn.eh_proj.weight", draft.projection.weight
        yield prefix + "nextn.enorm.weight", draft.embedding_norm.weight + 1
        yield prefix + "nextn.hnorm.weight", draft.hidden_norm.weight + 1
        yield prefix + "nextn.shared_head_norm.weight", draft.norm.weight + 1


def gemma_layer(prefix, layer, added):
    yield prefix + "attn_norm.weight", layer.input_layernorm.weight + added
    yield from attention(prefix, layer.self_attn, added)
    yield prefix + "post_attention_norm.weight", layer.post_attention_layernorm.weight + added
    yield prefix + "ffn_norm.weight", layer.pre_feedforward_layernorm.weight + added
    yield from dense(prefix, layer.mlp)
    yield prefix + "post_ffw_norm.weight", layer.post_feedforward_layernorm.weight + added
    if hasattr(layer, "layer_scalar"):
        yield prefix + "layer_output_scale.weight", layer.layer_scalar
    if getattr(layer, "enable_moe_block", False):
        yield prefix + "ffn_gate_inp.weight", layer.router.proj.weight
        yield prefix + "ffn_gate_inp.scale", layer.router.scale
        yield prefix + "ffn_gate_up_exps.weight", layer.experts.gate_up_proj
        yield prefix + "ffn_down_exps.weight", layer.experts.down_proj
        yield prefix + "ffn_down_exps.scale", layer.router.per_expert_scale
        yield prefix + "pre_ffw_norm_2.weight", layer.pre_feedforward_layernorm_2.weight
        yield prefix + "post_ffw_norm_1.weight", layer.post_feedforward_layernorm_1.weight
        yield prefix + "post_ffw_norm_2.weight", layer.post_feedforward_layernorm_2.weight
    if getattr(layer, "hidden_size_per_layer_input", 0):
        yield prefix + "inp_gate.weight", layer.per_layer_input_gate.weight
        yield prefix + "proj.weight", layer.per_layer_projection.weight
        yield prefix + "post_norm.weight", layer.post_per_layer_input_norm.weight


def gemma_tensors(model, four):
    trunk, config = model.model, model.config
    added = 0 if four else 1
    yield "token_embd.weight", trunk.embed_tokens.weight
    yield "output_norm.weight", trunk.norm.weight + added
    if four:
        # a factor so large that these pairs stand still; the exponents of the others are over the whole head
        full = config.rope_parameters["full_attention"]
        pairs = config.per_layer_config["full_attention"].head_dim // 2
        turned = int(full["partial_rotary_factor"] * pairs)
        yield "rope_freqs.weight", torch.tensor([1.0] * turned + [1e30] * (pairs - turned))
    if four and config.hidden_size_per_layer_input:
        yield "per_layer_token_embd.weight", trunk.embed_tokens_per_layer.weight
        yield "per_layer_model_proj.weight", trunk.per_layer_model_projection.weight
        yield "per_layer_proj_norm.weight", trunk.per_layer_projection_norm.weight
    for i, layer in enumerate(trunk.layers):
        yield from gemma_layer(f"blk.{i}.", layer, added)


def common_keys(config):
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }


def qwen_keys(config, n_draft):
    rope = config.rope_parameters
    keys = common_keys(config) | {
        "block_count": config.num_hidden_layers + n_draft,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": int(config.head_dim * rope["partial_rotary_factor"]),
        "rope.dimension_sections": rope["mrope_section"] + [0],
        "rope.freq_base": float(rope["rope_theta"]),
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
        "full_attention_interval": config.layer_types.index("full_attention") + 1,
    }
    if n_draft:
        keys["nextn_predict_layers"] = n_draft
    if hasattr(config, "num_experts"):
        keys["expert_count"] = config.num_experts
        keys["expert_used_count"] = config.num_experts_per_tok
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
        keys["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    else:
        keys["feed_forward_length"] = config.intermediate_size
    return keys


def gemma_keys(config, four):
    near, far = (config.rope_parameters[k] for k in ("sliding_attention", "full_attention"))
    keys = common_keys(config) | {
        "attention.sliding_window": config.sliding_window,
        "rope.freq_base": float(far["rope_theta"]),
        "rope.freq_base_swa": float(near["rope_theta"]),
        "attention.sliding_window_pattern": [t == "sliding_attention" for t in config.layer_types],
    }
    if config.final_logit_softcapping:
        keys["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if not four:
        keys["attention.sliding_window_pattern"] = config.layer_types.index("full_attention") + 1
        keys["attention.head_count_kv"] = config.num_key_value_heads
        keys["attention.key_length"] = keys["attention.value_length"] = config.head_dim
        keys["feed_forward_length"] = config.intermediate_size
        keys["rope.scaling.factor"] = float(far["factor"])
        return keys
    sizes = [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
    wide = [m == "reuse" and config.use_double_wide_mlp for m in config.kv_sharing_modes]
    near_size, far_size = (config.per_layer_config[k].head_dim for k in config.rope_parameters)
    keys["attention.head_count_kv"] = [s.num_key_value_heads for s in sizes]
    keys["attention.key_length"] = keys["attention.value_length"] = far_size
    keys["attention.key_length_swa"] = keys["attention.value_length_swa"] = near_size
    keys["rope.dimension_count"] = far_size
    keys["rope.dimension_count_swa"] = near_size
    keys["feed_forward_length"] = [config.intermediate_size * (2 if w else 1) for w in wide]
    keys["attention.shared_kv_layers"] = config.num_kv_shared_layers
    keys["embedding_length_per_layer_input"] = config.hidden_size_per_layer_input
    if config.enable_moe_block:
        keys["expert_count"] = config.num_experts
        keys["expert_used_count"] = config.top_k_experts
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    return keys


def convert(model, draft):
    """(architecture, metadata, tensors) of the file."""
    kind = model.config.model_type
    if kind.startswith("qwen3_5"):
        arch = "qwen35moe" if "moe" in kind else "qwen35"
        return arch, qwen_keys(model.config, draft is not None), list(qwen_tensors(model, draft))
    four = kind.startswith("gemma4")
    return "gemma4" if four else "gemma3", gemma_keys(model.config, four), list(gemma_tensors(model, four))
