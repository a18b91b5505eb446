"""The two networks, in the conventions of their GGUF files (norm weights multiply as stored, V heads tiled
over K heads).

Qwen3: pre-norm blocks of grouped-query attention (RMS norm per head on q and k, rotary over the whole head)
and SwiGLU. Qwen35: gated delta net layers, every interval-th layer gated attention (rotary over part of the
head), SwiGLU, and an MTP block that drafts the token after next. Equations: the Gated DeltaNet paper (arXiv
2412.06464), its chunked form, and the facts of the Qwen3.5 architecture.
"""

import dataclasses
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclasses.dataclass
class Config:
    arch: str  # "qwen3" or "qwen35"
    vocab: int = 4096
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 128
    rope_dim: int = 128
    rope_base: float = 1e7
    ff: int = 512
    eps: float = 1e-6
    context: int = 4096
    # qwen35 only
    interval: int = 4  # layer i attends iff (i + 1) % interval == 0
    state: int = 64  # head dimension of q, k and v in the delta layers
    k_groups: int = 2  # key heads of a delta layer
    v_heads: int = 4
    conv: int = 4
    mtp: bool = False


# The cpu sizes are what one or two processor cores can train in hours; the others use the room that 12 MB of
# Q8_0 leaves and want a GPU. Row lengths are multiples of 256, so that every block format can store them.
SIZES = {
    "qwen3-cpu": Config("qwen3", kv_heads=1, ff=256),
    "qwen3": Config("qwen3", layers=10, ff=768),
    "qwen35-cpu": Config("qwen35", interval=2, kv_heads=1, rope_dim=32, ff=256, mtp=True),
    "qwen35": Config("qwen35", layers=8, interval=4, rope_dim=32, state=128, mtp=True),
}


class Norm(nn.Module):
    def __init__(self, n, eps, start=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((n,), start))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


def rotate(x, cos, sin):
    """Rotary embedding, half-split pairs over the first 2 * cos.shape[-1] dims. x: B T H D; cos, sin: T 1
    D/2."""
    n = cos.shape[-1]
    a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Attention(nn.Module):
    def __init__(self, c, gated):
        super().__init__()
        self.c, self.gated = c, gated
        self.q = linear(c.width, c.heads * c.head_dim * (2 if gated else 1))
        self.k = linear(c.width, c.kv_heads * c.head_dim)
        self.v = linear(c.width, c.kv_heads * c.head_dim)
        self.o = linear(c.heads * c.head_dim, c.width)
        self.q_norm, self.k_norm = Norm(c.head_dim, c.eps), Norm(c.head_dim, c.eps)

    def forward(self, x, cos, sin):
        c = self.c
        b, t, _ = x.shape
        q = self.q(x).view(b, t, c.heads, -1)
        if self.gated:
            q, gate = q.split(c.head_dim, -1)  # per head: query, then gate
        k = self.k(x).view(b, t, c.kv_heads, c.head_dim)
        v = self.v(x).view(b, t, c.kv_heads, c.head_dim)
        q = rotate(self.q_norm(q), cos, sin).transpose(1, 2)
        k = rotate(self.k_norm(k), cos, sin).transpose(1, 2)
        v = v.transpose(1, 2)
        group = c.heads // c.kv_heads
        if group > 1:
            k, v = (
                z[:, :, None].expand(-1, -1, group, -1, -1).reshape(b, c.heads, t, c.head_dim) for z in (k, v)
            )
        y = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True).transpose(1, 2)
        if self.gated:
            y = y * torch.sigmoid(gate)
        return self.o(y.reshape(b, t, -1))


@torch.compiler.disable  # its loop over chunks would be unrolled
def delta_rule(q, k, v, beta, decay, chunk):
    """Gated delta rule over B H T D tensors (beta, decay: B H T; decay is the log of the factor, <= 0), from
    a zero state.

    Per token: S = e^decay S; S += k (beta (v - S^T k))^T; out = S^T q. In chunks of C tokens the writes of a
    chunk solve a unit lower triangular system (the WY form), so only the state between chunks is sequential.
    T % chunk == 0."""
    b, h, t, d = q.shape
    n = t // chunk
    q, k, v = (z.view(b, h, n, chunk, -1) for z in (q, k, v))
    beta, g = beta.view(b, h, n, chunk, 1), decay.view(b, h, n, chunk).cumsum(-1)
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    # Masked before the exponential: above the diagonal the differences are positive and could overflow.
    fade = (g[..., :, None] - g[..., None, :]).masked_fill(~lower, -math.inf).exp()
    kb = k * beta
    system = (kb @ k.transpose(-1, -2) * fade).tril(-1) + torch.eye(chunk, device=q.device)
    from_start = g.exp()[..., None]
    solved = torch.linalg.solve_triangular(
        system, torch.cat([v * beta, kb * from_start], -1), upper=False, unitriangular=True
    )
    u, w = solved.split([v.shape[-1], d], -1)
    within = (q @ k.transpose(-1, -2)) * fade
    q_start = q * from_start
    k_end = (k * (g[..., -1:] - g).exp()[..., None]).transpose(-1, -2)
    whole = g[..., -1].exp()[..., None, None]
    state, out = None, []
    for i in range(n):
        new = u[:, :, i] if state is None else u[:, :, i] - w[:, :, i] @ state
        y = within[:, :, i] @ new
        if state is None:
            state = k_end[:, :, i] @ new
        else:
            y = y + q_start[:, :, i] @ state
            state = state * whole[:, :, i] + k_end[:, :, i] @ new
        out.append(y)
    return torch.stack(out, 2).reshape(b, h, t, -1)


class DeltaNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        kd, vd = c.state * c.k_groups, c.state * c.v_heads
        self.sizes = [kd, kd, vd]
        self.qkv, self.z, self.out = linear(c.width, 2 * kd + vd), linear(c.width, vd), linear(vd, c.width)
        self.beta, self.alpha = linear(c.width, c.v_heads), linear(c.width, c.v_heads)
        self.conv = nn.Parameter(torch.zeros(2 * kd + vd, c.conv))
        self.dt = nn.Parameter(torch.zeros(c.v_heads))
        self.a_log = nn.Parameter(torch.linspace(math.log(1e-3), math.log(0.3), c.v_heads))
        self.norm = Norm(c.state, c.eps)

    def forward(self, x):
        c = self.c
        b, t, _ = x.shape
        u = F.pad(self.qkv(x).transpose(1, 2), (c.conv - 1, 0))
        u = (
            F.silu(F.conv1d(u, self.conv[:, None].to(u.dtype), groups=self.conv.shape[0]))
            .transpose(1, 2)
            .float()
        )
        q, k, v = (z.reshape(b, t, -1, c.state) for z in u.split(self.sizes, -1))
        q, k = (z * torch.rsqrt(z.square().sum(-1, keepdim=True) + c.eps) for z in (q, k))
        tile = c.v_heads // c.k_groups  # V head j reads K head j % k_groups
        q, k = (q / math.sqrt(c.state)).repeat(1, 1, tile, 1), k.repeat(1, 1, tile, 1)
        beta = torch.sigmoid(self.beta(x).float())
        decay = -self.a_log.exp() * F.softplus(self.alpha(x).float() + self.dt)
        q, k, v, beta, decay = (z.transpose(1, 2) for z in (q, k, v, beta, decay))
        chunk = 64 if x.is_cuda else 32
        pad = -t % chunk  # zero rows with beta = decay = 0 change nothing
        if pad:
            q, k, v = (F.pad(z, (0, 0, 0, pad)) for z in (q, k, v))
            beta, decay = F.pad(beta, (0, pad)), F.pad(decay, (0, pad))
        with torch.autocast(x.device.type, enabled=False):
            y = delta_rule(q, k, v, beta, decay, chunk)[:, :, :t].transpose(1, 2)
            y = self.norm(y)
        y = y * F.silu(self.z(x).float().view(b, t, c.v_heads, c.state))
        return self.out(y.reshape(b, t, -1))


class Block(nn.Module):
    def __init__(self, c, attends):
        super().__init__()
        self.attends = attends
        self.norm1, self.norm2 = Norm(c.width, c.eps), Norm(c.width, c.eps)
        self.mix = Attention(c, gated=c.arch == "qwen35") if attends else DeltaNet(c)
        self.gate, self.up, self.down = linear(c.width, c.ff), linear(c.width, c.ff), linear(c.ff, c.width)

    def forward(self, x, cos, sin):
        y = self.norm1(x)
        x = x + (self.mix(y, cos, sin) if self.attends else self.mix(y))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Mtp(nn.Module):
    """Draft head: token x_p and the trunk's final hidden vector at p - 1 (after the output norm) -> token
    x_{p+1}."""

    def __init__(self, c):
        super().__init__()
        self.e_norm, self.h_norm, self.norm = (
            Norm(c.width, c.eps),
            Norm(c.width, c.eps),
            Norm(c.width, c.eps, 0.3),
        )
        self.proj = linear(2 * c.width, c.width)
        self.block = Block(c, attends=True)

    def forward(self, embedded, hidden, cos, sin):
        x = self.proj(torch.cat([self.e_norm(embedded), self.h_norm(hidden)], -1))
        return self.norm(self.block(x, cos, sin))


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocab, c.width)
        self.blocks = nn.ModuleList(
            Block(c, c.arch == "qwen3" or (i + 1) % c.interval == 0) for i in range(c.layers)
        )
        self.norm = Norm(c.width, c.eps, 0.3)
        self.mtp = Mtp(c) if c.mtp else None

    def rotary(self, t, device):
        c = self.c
        freq = c.rope_base ** (
            -torch.arange(0, c.rope_dim, 2, device=device, dtype=torch.float64) / c.rope_dim
        )
        angle = torch.arange(t, device=device, dtype=torch.float64)[:, None, None] * freq
        return angle.cos().float(), angle.sin().float()

    def hidden(self, tokens):
        """B T ids -> B T width: the vectors that the head multiplies."""
        cos, sin = self.rotary(tokens.shape[1], tokens.device)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)

    def head(self, hidden):
        return hidden @ self.embed.weight.T

    def draft(self, tokens, hidden):
        """Hidden vectors of the drafts: entry p sees tokens up to p and predicts the token at p + 1, like
        entry p of hidden does one token earlier than it could. Row 0 has no predecessor and gets a zero
        vector."""
        cos, sin = self.rotary(tokens.shape[1], tokens.device)
        before = F.pad(hidden, (0, 0, 1, 0))[:, :-1]
        return self.mtp(self.embed(tokens), before, cos, sin)

    def forward(self, tokens):
        return self.head(self.hidden(tokens))


def parameters(net):
    return sum(p.numel() for p in net.parameters())
