#!/usr/bin/env python3
"""Small random models of Hugging Face transformers' own classes, as GGUF files, and the logits those classes give.

usage: make.py FOLDER

Every random weight is rounded to what the file keeps (F16 matrices, F32 vectors) before the model runs, so
both sides compute with the same numbers. The conversion is written out here, after the layouts of published files.
"""

import sys
from pathlib import Path

import convert
import gguf
import numpy as np
import torch
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeForCausalLM

VOCAB = 64
N_TOKENS = 100  # more than a page of the cache, and several windows

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    rms_norm_eps=1e-6,
    max_position_embeddings=512,
    attn_implementation="eager",
    experts_implementation="eager",
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)

QWEN = dict(
    **COMMON,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,  # heads x size is not the width
    linear_conv_kernel_dim=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    layer_types=["linear_attention", "linear_attention", "full_attention"],
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
)

GEMMA4 = dict(
    **COMMON,
    num_attention_heads=4,
    head_dim=16,
    global_head_dim=32,
    sliding_window=24,
    final_logit_softcapping=4.0,  # of the size of the logits, so that it does something
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e5},
    },
)

WINDOWS = ["sliding_attention", "sliding_attention", "full_attention"]


def models():
    yield (
        "hf-qwen35",  # three value heads to a key head; a block behind the trunk
        qwen3_5.Qwen3_5ForCausalLM,
        Qwen3_5TextConfig(
            **QWEN,
            intermediate_size=40,
            linear_num_key_heads=2,
            linear_num_value_heads=6,
            tie_word_embeddings=False,
        ),
    )
    yield (
        "hf-qwen35moe",
        Qwen3_5MoeForCausalLM,
        Qwen3_5MoeTextConfig(
            **QWEN,
            linear_num_key_heads=4,
            linear_num_value_heads=8,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=24,
            tie_word_embeddings=True,
        ),
    )
    yield (
        "hf-gemma3",
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **COMMON,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=40,
            query_pre_attn_scalar=16,
            sliding_window=24,
            sliding_window_pattern=3,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
            },
        ),
    )
    yield (
        "hf-gemma4-dense",  # keys as values in layers that see everything, which have fewer and larger heads
        Gemma4ForCausalLM,
        Gemma4TextConfig(
            **GEMMA4,
            num_hidden_layers=3,
            num_key_value_heads=4,
            num_global_key_value_heads=2,
            attention_k_eq_v=True,
            intermediate_size=40,
            layer_types=WINDOWS,
            hidden_size_per_layer_input=0,
            vocab_size_per_layer_input=VOCAB,
        ),
    )
    yield (
        "hf-gemma4-moe",
        Gemma4ForCausalLM,
        Gemma4TextConfig(
            **GEMMA4,
            num_hidden_layers=3,
            num_key_value_heads=2,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            intermediate_size=24,
            layer_types=WINDOWS,
            hidden_size_per_layer_input=0,
            vocab_size_per_layer_input=VOCAB,
            enable_moe_block=True,
            num_experts=6,
            top_k_experts=3,
            moe_intermediate_size=16,
        ),
    )
    yield (
        "hf-gemma4-ple",  # the last layers share keys and values and have wider blocks
        Gemma4ForCausalLM,
        Gemma4TextConfig(
            **GEMMA4,
            num_hidden_layers=6,
            num_key_value_heads=2,
            num_kv_shared_layers=3,
            use_double_wide_mlp=True,
            intermediate_size=24,
            layer_types=WINDOWS * 2,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCAB,
        ),
    )


def fill(module, generator):
    """Random values at which every weight matters, rounded as the file keeps them."""
    zero_centred = ("Qwen3_5RMSNorm", "Qwen3_5MoeRMSNorm", "Gemma3RMSNorm")
    for owner in module.modules():
        weights = list(owner.named_parameters(recurse=False))
        weights += [(n, b) for n, b in owner.named_buffers(recurse=False) if n == "layer_scalar"]
        for name, p in weights:
            x = torch.randn(p.shape, generator=generator)
            if name in ("A_log", "dt_bias"):
                x = x * 0.7
            elif name in ("scale", "per_expert_scale", "layer_scalar"):
                x = 1 + 0.2 * x.clamp(-2, 2)
            elif p.dim() == 1:
                x = 0.2 * x + (0 if type(owner).__name__ in zero_centred else 1)
            elif isinstance(owner, torch.nn.Conv1d):
                x = 0.5 * x
            elif isinstance(owner, torch.nn.Embedding):
                x = (x / p.shape[-1] ** (0.5 if hasattr(owner, "embed_scale") else 0)).half().float()
            else:
                x = (x * 1.5 / p.shape[-1] ** 0.5).half().float()
            with torch.no_grad():
                p.copy_(x)


class Draft(torch.nn.Module):
    """The block behind Qwen 3.5's trunk. transformers drops its weights when it loads a file ("mtp.*"), so only its
    parts are theirs: the decoder layer and the norms. How they are joined follows vLLM's and llama.cpp's."""

    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.layer = qwen3_5.Qwen3_5DecoderLayer(config, config.layer_types.index("full_attention"))
        self.embedding_norm = qwen3_5.Qwen3_5RMSNorm(width, eps)
        self.hidden_norm = qwen3_5.Qwen3_5RMSNorm(width, eps)
        self.norm = qwen3_5.Qwen3_5RMSNorm(width, eps)
        self.projection = torch.nn.Linear(2 * width, width, bias=False)

    def forward(self, model, ids):
        """Logits of the token after the next, for every position: of token x[p] and the trunk's row p - 1."""
        hidden = model.model(ids).last_hidden_state
        hidden = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)
        x = model.model.embed_tokens(ids)
        x = self.projection(torch.cat([self.embedding_norm(x), self.hidden_norm(hidden)], -1))
        n = ids.shape[1]
        positions = torch.arange(n).view(1, 1, -1).expand(3, 1, -1)
        mask = torch.full((n, n), float("-inf"), dtype=x.dtype).triu(1)[None, None]
        x = self.layer(x, model.model.rotary_emb(x, positions), attention_mask=mask)
        return model.lm_head(self.norm(x))


def write(path, arch, keys, tensors):
    w = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        name = f"{arch}.{key}"
        if isinstance(value, list):
            w.add_array(name, value)
        elif isinstance(value, float):
            w.add_float32(name, value)
        else:
            w.add_uint32(name, value)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(["a", "b", "ab"] + [f"t{i}" for i in range(3, VOCAB)])
    w.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
    w.add_token_merges(["a b"])
    w.add_add_bos_token(False)
    for name, value in tensors:
        a = value.detach().float().numpy()
        half = a.ndim > 1 and not name.endswith(("ssm_conv1d.weight", "ssm_norm.weight"))
        w.add_tensor(name, np.ascontiguousarray(a.astype(np.float16 if half else np.float32)))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    generator = torch.Generator().manual_seed(20)
    ids = torch.randint(0, VOCAB, (1, N_TOKENS), generator=generator)
    (folder / "tokens.txt").write_text(" ".join(map(str, ids[0].tolist())) + "\n")
    for name, classes, config in models():
        model = classes(config).eval()
        draft = Draft(config).eval() if name == "hf-qwen35" else None
        fill(model, generator)
        if draft:
            fill(draft, generator)
        arch, keys, tensors = convert.convert(model, draft)
        write(folder / f"{name}.gguf", arch, keys, tensors)
        with torch.no_grad():
            logits = model.double()(ids).logits[0]
            logits.numpy().astype("<f4").tofile(folder / f"{name}.logits.f32")
            if draft:
                rows = draft.double()(model, ids)[0, -32:]
                rows.numpy().astype("<f4").tofile(folder / f"{name}.draft.f32")
        print(f"{name}: logits up to {logits.abs().max():.2f}, deviation {logits.std():.2f}")


if __name__ == "__main__":
    main()
