"""Starting weights that already look things up.

Small networks find "attend to what followed the last time I saw this" (an induction head) only after many
steps; most of a processor's training time would go there. Starting it by hand is cheap: some heads look one,
two and three tokens back and write what they see into subspaces of the residual stream; heads of the next
attention layer compare the current tokens with those subspaces and copy what they find. Everything else
starts random (inputs) or at zero (outputs), and training is free to change all of it."""

import math

import torch


def orthonormal(rows, cols, gen):
    """rows <= cols: rows x cols with orthonormal rows; else with orthonormal columns."""
    m = torch.linalg.qr(torch.randn(max(rows, cols), min(rows, cols), generator=gen))[0]
    return m if rows > cols else m.T


def plain(net, gen):
    """Random inputs, zero outputs; embeddings share one direction, which gives position heads something
    constant."""
    c = net.c
    for name, p in net.named_parameters():
        if p.dim() != 2 or name.endswith("conv"):
            continue
        if name.endswith((".o.weight", ".out.weight", ".down.weight")):
            p.zero_()
        else:
            p.copy_(torch.randn(p.shape, generator=gen) / math.sqrt(p.shape[1]))
    shared = torch.randn(c.width, generator=gen)
    shared /= shared.norm()
    scale = 0.1
    net.embed.weight.copy_(
        torch.randn(c.vocab, c.width, generator=gen) * scale + shared * scale * math.sqrt(c.width)
    )
    return shared


def look_back(attn, shared, gen, base):
    """Heads 0, 1, 2 attend one, two and three tokens back; returns what they read and where they write it."""
    c = attn.c
    pairs, half, rank = 4, c.rope_dim // 2, 64
    freq = base ** (-torch.arange(half).double() / half)
    lanes = torch.tensor([i + s * half for i in range(pairs) for s in (0, 1)])
    attn.q_norm.weight[lanes] = 1.7
    attn.k_norm.weight[lanes] = 1.7
    attn.q.weight.mul_(0.02)
    attn.k.weight.mul_(0.02)
    key = torch.zeros(c.head_dim)
    key[:pairs] = 1
    q = attn.q.weight.view(c.heads, -1, c.width)
    for kv in range(c.kv_heads):
        attn.k.weight.view(c.kv_heads, c.head_dim, -1)[kv] += torch.outer(key, shared)
    write = orthonormal(c.width, 3 * rank, gen).split(rank, 1)
    read = orthonormal(rank, c.width, gen)
    for kv in range(c.kv_heads):
        attn.v.weight.view(c.kv_heads, c.head_dim, -1)[kv, :rank] = read
    o = attn.o.weight.view(c.width, c.heads, c.head_dim)
    for head, back in enumerate((1, 2, 3)):
        query = torch.zeros(c.head_dim)
        query[:pairs] = torch.cos(back * freq[:pairs]).float()
        query[half : half + pairs] = -torch.sin(back * freq[:pairs]).float()
        q[head, : c.head_dim] += torch.outer(query, shared)
        o[:, head, :rank] = 0.2 * write[head]
    return read, write


def match_and_copy(attn, read, write, gen):
    """Every head compares (this token, the one before, the one before that) with what stood one, two, three
    tokens before each candidate, in dims that rotate too slowly for the distance to matter, and copies the
    candidate."""
    c = attn.c
    slow = slow_lanes(c)
    n = len(slow) // 4
    attn.q_norm.weight[slow] = 1.6
    attn.k_norm.weight[slow] = 1.6
    q, k = attn.q.weight.view(c.heads, -1, c.width), attn.k.weight.view(c.kv_heads, c.head_dim, -1)
    q[:, : c.head_dim] *= 0.1
    k *= 0.1
    small = orthonormal(len(slow), read.shape[0], gen)  # of the 64 dims that look_back wrote
    spans = (slow[: 2 * n], slow[2 * n : 3 * n], slow[3 * n :])
    rows = (small[: 2 * n], small[2 * n : 3 * n], small[3 * n :])
    seen = (read, 2 * write[0].T, 2 * write[1].T)
    for lanes, m, now, then in zip(spans, rows, seen, write):
        q[:, lanes] += (m @ now)[None]
        k[:, lanes] += (m @ (4 * then.T))[None]
    out = orthonormal(c.head_dim, c.width, gen)
    for kv in range(c.kv_heads):
        attn.v.weight.view(c.kv_heads, c.head_dim, -1)[kv] = out
    attn.o.weight.view(c.width, c.heads, c.head_dim).copy_(
        (2 if attn.gated else 1) / c.heads * out.T[:, None].expand(-1, c.heads, -1)
    )


def slow_lanes(c):
    """64 dims of a head that rotate slowest or not at all."""
    half, want = c.rope_dim // 2, 64
    still = list(range(c.rope_dim, c.head_dim))[:want]
    turning = (want - len(still)) // 2
    pairs = range(half - turning, half)
    return torch.tensor(still + [i + s * half for i in pairs for s in (0, 1)])


def delta_shift(mix, shared, gen):
    """The same as look_back for a delta layer: what it writes is read at once and forgotten, and its values
    are those of one, two and three tokens earlier, which the short convolution reaches. Returns what is read
    and written where."""
    c = mix.c
    kd, rank = c.state * c.k_groups, 64
    w = mix.qkv.weight
    same_key(mix, gen, back=0)
    read = orthonormal(rank, c.width, gen)
    values = w[2 * kd :].view(-1, rank, c.width)  # blocks of 64 channels
    taps = mix.conv[2 * kd :].view(-1, rank, c.conv)
    write = orthonormal(c.width, 3 * rank, gen).split(rank, 1)
    out = mix.out.weight.view(c.width, -1, rank)
    for block, back in enumerate((1, 2, 3)):
        values[block] = 0.7 * read
        taps[block] = 0
        taps[block, :, -1 - back] = 1
        out[:, block] = 0.2 * write[block]
    heads = -(-3 * rank // c.state)  # that hold these blocks
    mix.a_log[:heads] = math.log(12)
    mix.dt[:heads] = 1
    open_gate(mix, shared)
    return read, write


def same_key(mix, gen, back):
    """Queries and keys from one projection: of this token, and of the one `back` tokens earlier."""
    kd = mix.c.state * mix.c.k_groups
    same = orthonormal(kd, mix.c.width, gen) * math.sqrt(2)
    mix.qkv.weight[:kd] = same
    mix.qkv.weight[kd : 2 * kd] = same
    mix.conv.normal_(0, 0.02, generator=gen)
    mix.conv[:kd, -1] += 1
    mix.conv[kd : 2 * kd, -1 - back] += 1
    mix.conv[2 * kd :, -1] += 1


def open_gate(mix, shared):
    """A constant from the shared direction, noise around it."""
    mix.z.weight.mul_(0.2).add_(torch.outer(torch.full((mix.z.weight.shape[0],), 0.12), shared))


def delta_memory(mix, shared, gen):
    """Keys from the previous token, values from this one: the state maps a token to what followed it."""
    same_key(mix, gen, back=1)
    open_gate(mix, shared)


@torch.no_grad()
def initialise(net, seed=1):
    gen = torch.Generator().manual_seed(seed)
    shared = plain(net, gen)
    looked = None
    for block in net.blocks:
        if looked is None:
            looked = (
                look_back(block.mix, shared, gen, net.c.rope_base)
                if block.attends
                else delta_shift(block.mix, shared, gen)
            )
        elif block.attends:
            if looked:
                match_and_copy(block.mix, *looked, gen)
                looked = ()
        else:
            delta_memory(block.mix, shared, gen)
