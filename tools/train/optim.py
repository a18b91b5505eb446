"""Muon for the matrices inside the network, AdamW for the rest.

Muon (Keller Jordan, 2024): momentum, then the nearest (semi-)orthogonal matrix of the update by a
Newton-Schulz iteration whose quintic coefficients are published with it. Matrices of one shape are stacked
and iterated together."""

import collections

import torch


def orthogonalise(g, steps=5):
    """g: N x rows x cols -> near-orthogonal matrices with the same singular vectors."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if g.is_cuda else g.clone()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(list(params), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = collections.defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, ps in shapes.items():
                updates = []
                for p in ps:
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(m, group["momentum"]))
                size = max(1, shape[0] / shape[1]) ** 0.5
                for p, u in zip(ps, orthogonalise(torch.stack(updates))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * size)


def split(net):
    """(matrices for Muon, parameters for AdamW)."""
    inner, rest = [], []
    for name, p in net.named_parameters():
        wide = p.dim() == 2 and min(p.shape) >= 16 and not name.startswith("embed")
        (inner if wide else rest).append(p)
    return inner, rest


def build(net, muon_lr, adam_lr):
    inner, rest = split(net)
    fused = next(net.parameters()).is_cuda
    return [
        Muon(inner, muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=fused or None),
    ]
