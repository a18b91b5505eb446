#!/usr/bin/env python3
"""Predicts speeds on cards from bytes, launches and instructions: predict.py prints the tables of docs/cuda.md.

None of these numbers was measured. A generated token takes
    weights / (bandwidth * share) + launches * gap + attention
    attention = max(cache bytes / (bandwidth * share), elements * integer instructions / integer rate,
                    elements * instructions / issue rate)
where `gap` depends on whether launches overlap and on whether a launch asks for its weights before it waits, and a prompt of T tokens
    2 * parameters * T / (matrix rate * share * filled) + 4 * layers * heads * dim * T^2 / 2 / (matrix rate * share)
`filled` is the part of a tile of 64 columns that the tokens of an expert fill.
Shapes are those of rqvk-synth's presets and of the published configuration of Qwen 3.5 27B."""

# Bits per weight (bytes of a block over its elements).
Q4_K, Q6_K = 144 * 8 / 256, 210 * 8 / 256
# Q4_K_M: values and the way down are Q6_K in half of the layers, the output is Q6_K everywhere.
MIXED = (Q4_K + Q6_K) / 2

# Manufacturer's data: bandwidth (bytes/s), multiprocessors, clock (Hz), 32-bit integer lanes of a multiprocessor,
# dense f16 matrix rate with sums in f32 (flop/s). On the H200 without wgmma, which kernels here do not use, mma.sync is
# taken to reach 0.62 of it (an assumption).
CARDS = {
    "RTX 4090": (1.008e12, 128, 2.52e9, 64, 165e12),
    "RTX 5090": (1.792e12, 170, 2.41e9, 128, 209e12),
    "H200": (4.8e12, 132, 1.98e9, 64, 0.62 * 989e12),
}
SHARE = {"RTX 4090": 0.88, "RTX 5090": 0.85, "H200": 0.75}  # of the bandwidth, assumed
GAP = 1.2e-6  # seconds between dependent kernels of a graph, assumed
# Where launches overlap (from sm_90 on), assumed: what is left is the end of a launch, until its writes are seen and those
# that wait for it go on; memory reads meanwhile where the next one is a product and has asked for its first weights.
OVERLAPPED_GAP, AHEAD_GAP = 0.7e-6, 0.3e-6
OVERLAPS = ("RTX 5090", "H200")
MATRIX_SHARE = 0.4  # of the matrix rate that tiled products reach, assumed
INTEGER_SHARE = 0.7  # of the integer rate and of the issue rate that attention reaches, assumed
ISSUED = 128  # instructions of threads that a multiprocessor issues a cycle
# Instructions per element of the cache, by query heads of a KV head (docs/cuda-attention.md): of the integer units, and all.
PER_ELEMENT = {"f16": {4: (1.0, 3.9), 6: (1.0, 3.9), 8: (1.0, 3.9)},
               "3 bit": {4: (2.6, 4.9), 6: (2.8, 5.4), 8: (2.9, 5.9)}}
KV_BITS = {"f16": 16, "3 bit": 3.125}
DEPTHS = (0, 32768, 131072)
PROMPTS = (512, 4096)


class Model:
    def __init__(self, name, layers, attention_layers, width, heads, kv_heads, dim, matrices, output, launches, ahead,
                 outside, expert_share=0.0):
        """matrices: (weights of one token in all layers, bits); launches: in a token; ahead: those that ask for weights
        before they wait; outside: bytes beside; expert_share: of the experts that a token uses."""
        self.name, self.attention_layers, self.heads, self.dim = name, attention_layers, heads, dim
        self.per_kv_head, self.ahead = heads // kv_heads, ahead
        self.elements = 2 * attention_layers * kv_heads * dim  # of the cache, per token
        self.parameters = sum(n for n, _ in matrices)
        self.bytes = sum(n * bits / 8 for n, bits in matrices) + output * Q6_K / 8 + outside
        self.launches, self.expert_share = launches, expert_share


def attention(width, q, kv, dim):
    """Weights of q, k and o, and of v."""
    return width * (2 * q + kv) * dim, width * kv * dim


def models():
    out = []
    qo, v = attention(4096, 32, 8, 128)
    ff = 3 * 4096 * 12288
    out.append(Model("8B Q4_K_M", 36, 36, 4096, 32, 8, 128,
                     [(36 * (qo + ff * 2 / 3), Q4_K), (36 * (v + ff / 3), MIXED)], 4096 * 151936, 36 * 8 + 4, 36 * 5 + 1, 0))
    qo, v = attention(2048, 32, 4, 128)
    ff = 8 * 3 * 2048 * 768
    out.append(Model("30B-A3B Q4_K_M", 48, 48, 2048, 32, 4, 128,
                     [(48 * (qo + ff * 2 / 3), Q4_K), (48 * (v + ff / 3), MIXED), (48 * 2048 * 128, 32)],
                     2048 * 151936, 48 * 10 + 4, 48 * 3 + 1, 0, 8 / 128))
    # 27B: 16 layers of gated attention (q twice as wide), 48 of the delta rule, whose state is read and written.
    qo, v = 5120 * (2 * 24 + 4 + 24) * 256, 5120 * 4 * 256
    delta = 5120 * (10240 + 6144 + 96) + 6144 * 5120
    ff = 3 * 5120 * 17408
    state = 48 * 48 * 128 * 128 * 4 * 2
    out.append(Model("27B Q4_K_M", 64, 16, 5120, 24, 4, 256,
                     [(16 * qo + 48 * delta + 64 * ff * 2 / 3, Q4_K), (16 * v + 64 * ff / 3, MIXED)],
                     5120 * 248320, 64 * 9 + 4, 64 * 4 + 1, state))
    return out


def generation(model, card, form, depth):
    bandwidth, processors, clock, lanes, _ = CARDS[card]
    share = bandwidth * SHARE[card]
    read = model.elements * depth
    integers, issued = PER_ELEMENT[form][model.per_kv_head]
    rate = processors * clock * INTEGER_SHARE
    attended = max(read * KV_BITS[form] / 8 / share, read * integers / (rate * lanes), read * issued / (rate * ISSUED))
    return model.bytes / share + gaps(model, card) + attended


def gaps(model, card):
    if card not in OVERLAPS:
        return model.launches * GAP
    return (model.launches - model.ahead) * OVERLAPPED_GAP + model.ahead * AHEAD_GAP


def attention_ratio(model, card, depth):
    """How much faster attention is over three bits than over f16."""
    def attended(form):
        return generation(model, card, form, depth) - generation(model, card, form, 0)
    return attended("f16") / attended("3 bit")


def prompt(model, card, tokens):
    rate = CARDS[card][4] * MATRIX_SHARE
    pairs = 4 * model.attention_layers * model.heads * model.dim * tokens * tokens / 2
    filled = min(1.0, tokens * model.expert_share / 64) if model.expert_share else 1.0
    return (2 * model.parameters * tokens / filled + pairs) / rate


def main():
    print("Generation, tokens per second; in brackets the share of the card's bandwidth that the weights alone are read at:")
    print()
    print("| model | cache | depth | " + " | ".join(CARDS) + " |")
    print("|---|---|---:|" + "---:|" * len(CARDS))
    for m in models():
        for depth in DEPTHS:
            for form in KV_BITS:
                if depth == 0 and form != "f16":
                    continue
                cells = []
                for card in CARDS:
                    t = generation(m, card, form, depth)
                    cells.append(f"{1 / t:.0f} ({m.bytes / t / CARDS[card][0]:.2f})")
                print(f"| {m.name} | {form if depth else 'any'} | {depth} | " + " | ".join(cells) + " |")
    print()
    print("Prompts, tokens per second:")
    print()
    print("| model | tokens | " + " | ".join(CARDS) + " |")
    print("|---|---:|" + "---:|" * len(CARDS))
    for m in models():
        for n in PROMPTS:
            print(f"| {m.name} | {n} | " + " | ".join(f"{n / prompt(m, c, n):.0f}" for c in CARDS) + " |")
    print()
    print("Attention over three bits at a depth of 131072 tokens, times as fast as over f16:")
    print()
    print("| model | " + " | ".join(CARDS) + " |")
    print("|---|" + "---:|" * len(CARDS))
    for m in models():
        print(f"| {m.name} | " + " | ".join(f"{attention_ratio(m, c, 131072):.1f}" for c in CARDS) + " |")
    print()
    for m in models():
        print(f"{m.name}: {m.bytes / 1e9:.2f} GB and {m.launches} launches a token, {m.elements} elements of cache a token.")


main()
