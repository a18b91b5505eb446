#!/usr/bin/env python3
"""What the draft block of a GGUF file of ours predicts, for the tests of the engine.

usage: draft_golden.py MODEL.gguf SIZE IDS.txt OUT
       draft_golden.py MODEL.gguf SIZE --rate TEXT.txt TOKENIZER.json
Reads the file's tensors back into the network of model.py and writes, for the token ids of IDS.txt, the draft block's
logits after every token: OUT.f16 holds every 16th column of every row (F16), OUT.best the first choice of every row and
the trunk's. The first line of OUT.best names the program and the version of PyTorch. With --rate: how often both choices
are the same in 16 windows of 512 tokens, evenly spread over the text (what evaluate.py measures over all of them).
"""

import os
import sys

import gguf
import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import data
import evaluate
import export
import model
import tokenizer as tok


def load(path, size):
    net = model.Net(model.SIZES[size])
    have = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for name, tensor, _ in export.tensors(net):
            t = have.pop(name)
            value = torch.from_numpy(np.array(gguf.dequantize(t.data, t.tensor_type), dtype=np.float32))
            if name.endswith(".ssm_a"):  # made from a_log on the way out
                block = net.blocks[int(name.split(".")[1])]
                block.mix.a_log.copy_((-value).log())
            else:
                tensor.copy_(value.reshape(tensor.shape))
    if have:
        sys.exit(f"tensors that the network does not have: {', '.join(have)}")
    return net.eval()


@torch.no_grad()
def main():
    rate = len(sys.argv) == 6 and sys.argv[3] == "--rate"
    if (len(sys.argv) != 5 and not rate) or sys.argv[2] not in model.SIZES:
        sys.exit(__doc__)
    net = load(sys.argv[1], sys.argv[2])
    if rate:
        with open(sys.argv[4], encoding="utf-8") as f:
            ids = np.array(tok.Tokenizer.load(sys.argv[5]).encode(data.unwrap(f.read())))
        n = len(ids) // 512
        windows = np.concatenate([ids[(i * n // 16) * 512 :][:512] for i in range(16)])
        same, _ = evaluate.acceptance(net, windows, "cpu")
        sys.exit(print(f"{100 * same:.1f} % of {16 * 511} first choices are the same"))
    with open(sys.argv[3]) as f:
        ids = [int(i) for i in f.read().split()]
    x = torch.tensor([ids])
    hidden = net.hidden(x)
    trunk, guess = net.head(hidden)[0].float(), net.head(net.draft(x, hidden))[0].float()
    guess[:, ::16].numpy().astype(np.float16).tofile(sys.argv[4] + ".f16")
    with open(sys.argv[4] + ".best", "w") as f:
        print(f"# tools/train/draft_golden.py, PyTorch {torch.__version__}: draft, trunk", file=f)
        for d, t in zip(guess.argmax(-1).tolist(), trunk.argmax(-1).tolist()):
            print(d, t, file=f)
    same = (guess.argmax(-1) == trunk.argmax(-1))[1:].float().mean().item()
    print(f"{len(ids)} tokens, the first choices are the same after {100 * same:.1f} %")


if __name__ == "__main__":
    main()
