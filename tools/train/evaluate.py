"""What the models can do: perplexity of held-out text, recall by length and depth, acceptance of drafts."""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F

import data

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def perplexity(net, ids, device, window=1024, rows=4):
    """Perplexity per token over consecutive windows; every window starts without context."""
    n = (len(ids) - 1) // window
    ids = torch.from_numpy(ids[: n * window + 1].astype(np.int64)).to(device)
    x, y = ids[:-1].view(n, window), ids[1:].view(n, window)
    total = sum(
        F.cross_entropy(
            net(x[i : i + rows]).float().flatten(0, 1), y[i : i + rows].flatten(), reduction="sum"
        ).item()
        for i in range(0, n, rows)
    )
    return math.exp(total / (n * window)), total, n * window


@torch.no_grad()
def acceptance(net, ids, device, window=512, rows=4):
    """Share of positions of running text where the draft's first choice is the trunk's first choice (greedy
    checking accepts exactly those), and the expected share under sampling at temperature 1: sum of min(p,
    q)."""
    n = len(ids) // window
    x = torch.from_numpy(ids[: n * window].astype(np.int64)).to(device).view(n, window)
    same = mass = count = 0.0
    for i in range(0, n, rows):
        hidden = net.hidden(x[i : i + rows])
        trunk, guess = (
            net.head(hidden)[:, 1:].float(),
            net.head(net.draft(x[i : i + rows], hidden))[:, 1:].float(),
        )
        same += (trunk.argmax(-1) == guess.argmax(-1)).sum().item()
        mass += torch.minimum(trunk.softmax(-1), guess.softmax(-1)).sum().item()
        count += trunk.shape[0] * trunk.shape[1]
    return same / count, mass / count


@torch.no_grad()
def recall(net, t, corpus, rng, length, depth, trials, device, n_facts=None, test=True, rows=8):
    """(answers right, values right) of trials contexts of about length tokens with one question at the end.

    Right means that greedy generation would write exactly the expected answer: every one of its tokens is the
    most likely one after those before it. "Values right" asks this of the value's tokens only, given the text
    before it."""
    exact = value = 0
    rows = max(1, min(rows, 8192 // length))
    todo = [
        data.recall_context(rng, t, corpus, length, test, n_facts or rng.randrange(1, 5), 1, depth, True)
        for _ in range(trials)
    ]
    for i in range(0, trials, rows):
        part = todo[i : i + rows]
        most = max(len(w.ids) for w, _, _ in part)
        x = torch.zeros(len(part), most, dtype=torch.int64)
        for r, (w, _, _) in enumerate(part):
            x[r, : len(w.ids)] = torch.tensor(w.ids)
        hidden = net.hidden(x.to(device))
        for r, (w, spans, asked) in enumerate(part):
            a, b = spans[0]
            good = net.head(hidden[r, a - 1 : b - 1]).argmax(-1).cpu() == x[r, a:b]
            before, val, _ = asked[0].answer_parts()
            s = len(t.encode(before))
            exact += bool(good.all())
            value += bool(good[s : s + len(t.encode(val))].all())
    return exact, value


@torch.no_grad()
def probe(net, t, folder, length, device, trials=32):
    """A quick look during training: test-side recall at the current length, and a little held-out
    perplexity."""
    corpus, rng = data.Corpus(folder, "held"), random.Random(7)
    exact, value = recall(net, t, corpus, rng, length, 0.5, trials, device)
    ppl, _, _ = perplexity(net, corpus.stream[:8193], device, min(length, 512))
    out = {"recall": exact / trials, "value": value / trials, "length": length, "ppl": round(ppl, 2)}
    if net.mtp is not None:
        out["accept"] = round(acceptance(net, corpus.stream[:4096], device)[0], 4)
    return out


def interval(k, n):
    """Wilson's 95 % interval of a share."""
    z, p = 1.96, k / n
    mid, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round((mid - half) / (1 + z * z / n), 4), round((mid + half) / (1 + z * z / n), 4)]


def full(net, t, folder, device, lengths, trials, text_tokens):
    corpus, rng = data.Corpus(folder, "held"), random.Random(2024)
    out = {"perplexity": {}, "recall": {}}
    for name, a, b, size in corpus.files:
        part = corpus.stream[a:b][: text_tokens + 1]
        ppl, nats, n = perplexity(net, part, device)
        bits = nats / math.log(2) / len(t.decode(part[:n].tolist()).encode())
        out["perplexity"][name] = {"per_token": round(ppl, 3), "bits_per_byte": round(bits, 4), "tokens": n}
    each = max(1, math.ceil(trials / len(lengths) / len(DEPTHS)))
    for length in lengths:
        row, sums = {}, [0, 0]
        for depth in DEPTHS:
            e, v = recall(net, t, corpus, rng, length, depth, each, device)
            row[f"depth {depth}"] = round(e / each, 4)
            sums = [sums[0] + e, sums[1] + v]
        n = each * len(DEPTHS)
        row.update(
            all=round(sums[0] / n, 4),
            interval=interval(sums[0], n),
            value_only=round(sums[1] / n, 4),
            trials=n,
        )
        out["recall"][str(length)] = row
        print(length, row, flush=True)
    if net.mtp is not None:
        for name, a, b, _ in corpus.files:
            same, mass = acceptance(net, corpus.stream[a:b][:text_tokens], device)
            out.setdefault("mtp_depth_1", {})[name] = {"greedy": round(same, 4), "sampled": round(mass, 4)}
    return out


@torch.no_grad()
def generate(net, t, ids, n, temp, device, seed=1):
    """The text that follows ids: greedy at temp 0. Recomputes everything per token; meant for a look, not for
    use."""
    gen, start = torch.Generator().manual_seed(seed), len(ids)
    for _ in range(n):
        logits = net.head(net.hidden(torch.tensor([ids], device=device))[0, -1]).float().cpu()
        nxt = (
            int(logits.argmax())
            if temp == 0
            else int(torch.multinomial((logits / temp).softmax(-1), 1, generator=gen))
        )
        if nxt in (t.im_end, t.end_of_text):
            break
        ids = ids + [nxt]
    return t.decode(ids[start:])
