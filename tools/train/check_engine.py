#!/usr/bin/env python3
"""Compare logits with another engine, which is named as a command.

usage: check_engine.py SIZE DATA [CHECKPOINT.pt] -- COMMAND WORD ...
In the words of the command, {model} becomes an F32 GGUF file without the draft block, {out} a file that the
command fills with the F32 logits after every token, {file} a file of the token ids; the word {tokens} becomes
the ids as separate arguments. Exit status 1 when the normalised squared error is 1e-4 or more.
"""

import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import export
import model
import start
import tokenizer as tok


def main():
    if "--" not in sys.argv or len(sys.argv) < 5 or sys.argv[1] not in model.SIZES:
        sys.exit(__doc__)
    cut = sys.argv.index("--")
    args, command = sys.argv[1:cut], sys.argv[cut + 1 :]
    t = tok.Tokenizer.load(os.path.join(args[1], "tokenizer.json"))
    net = model.Net(model.SIZES[args[0]])
    start.initialise(net)
    if len(args) > 2:
        net.load_state_dict(torch.load(args[2], map_location="cpu", weights_only=True)["net"])
    ids = [int(i) for i in np.random.default_rng(0).integers(0, net.c.vocab, 200)]
    with tempfile.TemporaryDirectory() as d:
        gguf, out = os.path.join(d, "m.gguf"), os.path.join(d, "logits.f32")
        export.write(net, t, gguf, "f32", mtp=False)
        listed = os.path.join(d, "ids.txt")
        with open(listed, "w") as f:
            print(*ids, file=f)
        names = {"{model}": gguf, "{out}": out, "{file}": listed}
        full = []
        for word in command:
            for mark, path in names.items():
                word = word.replace(mark, path)
            full += map(str, ids) if word == "{tokens}" else [word]
        subprocess.run(full, check=True)
        theirs = np.fromfile(out, np.float32).reshape(len(ids), -1)
    with torch.no_grad():
        ours = net(torch.tensor([ids]))[0].numpy()
    error = float(((ours - theirs) ** 2).sum() / (theirs**2).sum())
    print(f"{args[0]}: normalised squared error {error:.3g}, largest {np.abs(ours - theirs).max():.3g}")
    sys.exit(0 if error < 1e-4 else 1)


if __name__ == "__main__":
    main()
