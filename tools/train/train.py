#!/usr/bin/env python3
"""Make the two built-in models: train.py prepare | train | eval | export | say   (see README.md beside this
file)."""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import data
import evaluate
import export
import model
import optim
import start
import tokenizer as tok

# (until this share of the steps, row length); the tokens of a step stay the same. The mix is text, recall,
# chat.
CURRICULA = {
    "cpu": [(0.3, 128), (0.55, 256), (0.75, 512), (1.0, 1024)],
    "gpu": [(0.25, 256), (0.50, 1024), (0.80, 2048), (1.0, 4096)],
}


def autocast(device):
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def learning_rate(step, steps, warmup, decay_share):
    """Share of the full rate: a short rise, a plateau, a straight fall to nothing at the end."""
    left = (steps - step) / max(1, steps * decay_share)
    return min(1.0, (step + 1) / warmup) * max(0.0, min(1.0, left))


def stage(curriculum, share):
    return next(length for until, length in curriculum if share < until or until == 1.0)


def loss_of(net, ids, weight, mtp_weight):
    """Weighted cross entropy per token, and that of the draft head (0 without one)."""
    tokens, target, weight = ids[:, :-1], ids[:, 1:], weight[:, 1:]
    hidden = net.hidden(tokens)
    logits = net.head(hidden).float()
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
    loss = (each * weight).sum() / weight.sum()
    draft = torch.zeros((), device=ids.device)
    if net.mtp is not None and mtp_weight > 0:
        # The draft learns what the trunk would say, not the text: acceptance compares it with the trunk.
        guess = net.head(net.draft(tokens, hidden.detach())).float()
        wanted = logits.detach().softmax(-1)
        each = -(wanted * guess.log_softmax(-1)).sum(-1)
        draft = (each * weight).sum() / weight.sum()
    return loss, draft


def cmd_train(a):
    torch.manual_seed(a.seed)
    if a.threads:
        torch.set_num_threads(a.threads)
    device = torch.device(a.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    t = tok.Tokenizer.load(os.path.join(a.data, "tokenizer.json"))
    c = model.SIZES[a.size]
    c.vocab = len(t)
    net = model.Net(c)
    start.initialise(net, a.seed)
    net.to(device)
    opts = optim.build(net, a.muon_lr, a.adam_lr)
    full = [[g["lr"] for g in o.param_groups] for o in opts]
    os.makedirs(a.out, exist_ok=True)
    checkpoint = os.path.join(a.out, a.size + ".pt")
    step, seen = 0, 0
    if os.path.exists(checkpoint) and not a.fresh:
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(saved["net"])
        for o, s in zip(opts, saved["opts"]):
            o.load_state_dict(s)
        step, seen = saved["step"], saved["seen"]
    if a.only_mtp:
        for name, p in net.named_parameters():
            p.requires_grad_(name.startswith("mtp."))
    log = open(os.path.join(a.out, a.size + ".log"), "a", buffering=1)

    def say(text):
        print(text, flush=True)
        print(text, file=log)

    say(
        f"# {a.size} on {device}: {model.parameters(net) / 1e6:.2f} M parameters, step {step} to {a.steps}, "
        f"{a.tokens} tokens a step, muon {a.muon_lr} adam {a.adam_lr}"
    )
    forward = torch.compile(loss_of) if a.compile else loss_of

    def save():
        state = {
            "net": net.state_dict(),
            "opts": [o.state_dict() for o in opts],
            "step": step,
            "seen": seen,
            "size": a.size,
        }
        torch.save(state, checkpoint + ".new")
        os.replace(checkpoint + ".new", checkpoint)

    mix = tuple(float(x) for x in a.mix.split(","))
    curriculum = CURRICULA[a.curriculum or ("gpu" if device.type == "cuda" else "cpu")]

    def shape_of(step):
        length = a.length or stage(curriculum, step / a.steps)
        return max(1, a.tokens // length), length

    batches = data.Ahead(a.data, a.seed, mix, shape_of, step, a.steps, a.workers)
    t0, tokens0, sums, saved_at = time.time(), seen, [0.0, 0.0, 0], time.time()
    stop = []
    for s in (signal.SIGTERM, signal.SIGINT):  # finish the step, save, end
        signal.signal(s, lambda *_: stop.append(1))
    while step < a.steps and not stop:
        while a.pause_file and os.path.exists(a.pause_file) and not stop:
            time.sleep(1)
        if a.minutes and time.time() - t0 > a.minutes * 60:
            break
        share = step / a.steps
        rows, length = shape_of(step)
        ids, weight = batches.get(step)
        ids = torch.from_numpy(ids).to(device, non_blocking=True)
        weight = torch.from_numpy(weight).to(device, non_blocking=True)
        mtp_weight = a.mtp_weight if share >= a.mtp_from or a.only_mtp else 0.0
        for o, rates in zip(opts, full):
            for g, r in zip(o.param_groups, rates):
                g["lr"] = r * learning_rate(step, a.steps, a.warmup, a.decay)
        # Several small pieces instead of one when the rows do not fit into memory together.
        parts = max(1, rows * length // a.micro_tokens) if a.micro_tokens else 1
        parts = min(parts, rows)
        total = draft_total = 0.0
        for o in opts:
            o.zero_grad(set_to_none=True)
        for x, w in zip(ids.chunk(parts), weight.chunk(parts)):
            with autocast(device):
                loss, draft = forward(net, x, w, mtp_weight)
            ((0 if a.only_mtp else loss) / parts + mtp_weight * draft / parts).backward()
            total += loss.detach() / parts
            draft_total += draft.detach() / parts
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for o in opts:
            o.step()
        step += 1
        seen += rows * length
        sums = [sums[0] + float(total), sums[1] + float(draft_total), sums[2] + 1]
        if not math.isfinite(sums[0]):
            sys.exit(f"loss is not finite at step {step}; the checkpoint before it is kept")
        if step % a.log_every == 0 or step == a.steps:
            dt = time.time() - t0
            say(
                json.dumps(
                    {
                        "step": step,
                        "tokens": seen,
                        "length": length,
                        "loss": round(sums[0] / sums[2], 4),
                        "draft": round(sums[1] / sums[2], 4),
                        "lr": round(opts[0].param_groups[0]["lr"], 6),
                        "seconds": round(dt),
                        "tok/s": round((seen - tokens0) / dt),
                    }
                )
            )
            sums = [0.0, 0.0, 0]
        if step % a.probe_every == 0:
            say("probe " + json.dumps(evaluate.probe(net, t, a.data, length, device)))
        if time.time() - saved_at > a.save_minutes * 60:
            save()
            saved_at = time.time()
    batches.close()
    save()
    say(f"# stopped at step {step}")


def load(a):
    saved = torch.load(os.path.join(a.out, a.size + ".pt"), map_location="cpu", weights_only=True)
    t = tok.Tokenizer.load(os.path.join(a.data, "tokenizer.json"))
    c = model.SIZES[saved["size"]]
    c.vocab = len(t)
    net = model.Net(c)
    net.load_state_dict(saved["net"])
    device = torch.device(a.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if a.threads:
        torch.set_num_threads(a.threads)
    return net.to(device).eval(), t, device, saved


def cmd_eval(a):
    net, t, device, saved = load(a)
    result = {
        "size": a.size,
        "step": saved["step"],
        "tokens": saved["seen"],
        **evaluate.full(
            net, t, a.data, device, [int(x) for x in a.lengths.split(",")], a.trials, a.text_tokens
        ),
    }
    print(json.dumps(result, indent=1))
    with open(os.path.join(a.out, a.size + ".eval.json"), "w") as f:
        json.dump(result, f, indent=1)


def cmd_export(a):
    net, t, _, _ = load(a)
    path = a.file or os.path.join(a.out, f"{a.size}-{a.kind}.gguf")
    export.write(net, t, path, a.kind, "rqvk built-in " + net.c.arch, mtp=not a.no_mtp)
    print(path, os.path.getsize(path))


def cmd_say(a):
    net, t, device, _ = load(a)
    text = a.text.encode().decode("unicode_escape")
    if a.chat:
        text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    print(evaluate.generate(net, t, t.encode(text, specials=True), a.n, a.temp, device, a.seed))


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    sub = ap.add_subparsers(dest="cmd", required=True)

    def command(name, run, trained=True):
        p = sub.add_parser(name)
        p.set_defaults(run=run)
        p.add_argument("--data", required=True, help="folder of the prepared token streams")
        if trained:
            p.add_argument("--out", required=True, help="folder of checkpoints, logs and results")
            p.add_argument("--size", required=True, choices=model.SIZES)
            p.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
            p.add_argument("--threads", type=int, default=0)
            p.add_argument("--seed", type=int, default=1)
        return p

    p = command("prepare", lambda a: data.prepare(a.text, a.data, a.vocab), trained=False)
    p.add_argument("text", help="folder of .txt files")
    p.add_argument("--vocab", type=int, default=4096)
    p = command("train", cmd_train)
    p.add_argument("--steps", type=int, required=True, help="of the whole schedule, resumed or not")
    p.add_argument("--tokens", type=int, default=4096, help="per step")
    p.add_argument(
        "--micro-tokens", type=int, default=0, help="split a step into pieces of at most so many tokens"
    )
    p.add_argument("--minutes", type=float, default=0, help="stop (and save) after so many minutes")
    p.add_argument("--muon-lr", type=float, default=0.01)
    p.add_argument("--adam-lr", type=float, default=0.003)
    p.add_argument("--warmup", type=int, default=40)
    p.add_argument("--decay", type=float, default=0.3, help="share of the steps over which the rate falls")
    p.add_argument("--mix", default="0.4,0.5,0.1", help="shares of text, recall, chat")
    p.add_argument("--curriculum", choices=CURRICULA)
    p.add_argument("--length", type=int, default=0, help="of every row, instead of the curriculum")
    p.add_argument("--mtp-weight", type=float, default=0.3)
    p.add_argument("--mtp-from", type=float, default=0.0, help="share of the steps without the draft head")
    p.add_argument("--only-mtp", action="store_true", help="freeze the trunk, train the draft head")
    p.add_argument("--compile", action="store_true", help="torch.compile the step")
    p.add_argument("--fresh", action="store_true", help="ignore an existing checkpoint")
    p.add_argument("--workers", type=int, default=0, help="processes that make batches ahead (for a GPU: 8)")
    p.add_argument("--pause-file", help="while this file exists, wait")
    p.add_argument("--log-every", type=int, default=20)
    p.add_argument("--probe-every", type=int, default=200)
    p.add_argument("--save-minutes", type=float, default=5)
    p = command("eval", cmd_eval)
    p.add_argument("--lengths", default="256,512,1024,2048,4096")
    p.add_argument("--trials", type=int, default=2000, help="over all lengths and depths")
    p.add_argument("--text-tokens", type=int, default=100_000, help="of each held-out text")
    p = command("export", cmd_export)
    p.add_argument("--kind", choices=export.KINDS, default="q8_0")
    p.add_argument("--file")
    p.add_argument("--no-mtp", action="store_true")
    p = command("say", cmd_say)
    p.add_argument("text")
    p.add_argument("--chat", action="store_true")
    p.add_argument("-n", type=int, default=80)
    p.add_argument("--temp", type=float, default=0.0)
    a = ap.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()
