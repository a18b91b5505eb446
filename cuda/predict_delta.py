#!/usr/bin/env python3
"""Predicts what chunks gain in delta rules of prompts: prints the table of docs/cuda-delta.md. None of it was measured.

Both forms are chains: a block goes through a run in order, and there are fewer blocks than a card holds. So time is the
chain's length in cycles over the clock:
    token form   tokens * TOKEN
    chunk form   tokens / 32 * max(products * cycles of a product, instructions of a warp / per cycle) + preparing
    preparing    chunks * key heads * instructions of a block / (processors * 4 * per cycle)"""

# Clock (Hz), multiprocessors, cycles of a product m16n8k16 in a quarter of a multiprocessor (manufacturers' rates of
# dense products with sums in f32; on the H200 0.62 of it, as in predict.py).
CARDS = {"RTX 4090": (2.52e9, 128, 16.0), "RTX 5090": (2.41e9, 170, 16.0), "H200": (1.98e9, 132, 6.5)}
# Cycles of a token, assumed: loads of k, q and v from the second-level cache 270, the gates 100, two sums over 16 rows
# 100, two sums over 8 warps' parts through shared memory 160, two barriers 60.
TOKEN = 690
# Of delta_chunk_128 and delta_prepare_128, counted from the machine code (check_kernels.py -v, sm_90).
PRODUCTS, WALK, PREPARE = 324, 2400, 5300
PER_CYCLE = 0.5  # instructions that a warp alone issues a cycle, assumed
CHUNK, TOKENS = 32, 2048
# Value heads, key heads, layers of the rule, seconds of all else for a step on each card: 2048 over the prompts of 4096
# tokens a second in docs/cuda.md.
HEADS, KEY_HEADS, LAYERS = 48, 16, 48
ELSE = {"RTX 4090": TOKENS / 1333, "RTX 5090": TOKENS / 1689, "H200": TOKENS / 4954}


def main():
    print("| card | layer, token by token | layer, in chunks | all layers, of the step before | and now |")
    print("|---|---:|---:|---:|---:|")
    for card, (clock, processors, product) in CARDS.items():
        token = TOKENS * TOKEN / clock
        chunk = TOKENS / CHUNK * max(PRODUCTS * product, WALK / PER_CYCLE) / clock
        chunk += TOKENS / CHUNK * KEY_HEADS * 4 * PREPARE / (processors * 4 * PER_CYCLE) / clock
        before, now = LAYERS * token, LAYERS * chunk
        print(f"| {card} | {token * 1e6:.0f} us | {chunk * 1e6:.0f} us | {before / (before + ELSE[card]):.3f} | "
              f"{now / (now + ELSE[card]):.3f} |")
    prepared = KEY_HEADS * 8 * 128 + HEADS * 272
    read = HEADS * 2 * (8 * 128 + 272)
    print(f"\nPrepared: {prepared} bytes a token and layer, {prepared * TOKENS / 1e6:.0f} MB for a step of {TOKENS}; "
          f"read again {read / prepared:.1f} times.")


main()
