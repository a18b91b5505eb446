#!/usr/bin/env python3
"""Tests of tools/train. Exit status 77 (skipped) where PyTorch or the other requirements are missing."""

import os
import random
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tools", "train"))
try:
    import gguf
    import numpy as np
    import regex  # noqa: F401
    import torch
except ImportError as e:
    print("skipped:", e)
    sys.exit(77)

import data
import export
import model
import optim
import recall
import start
import tokenizer

torch.set_num_threads(1)
TEXT = "The quick brown fox jumps over the lazy dog. It's 1234 o'clock, naïve — 日本.\n\n  It and what and that and so.\n" * 30


class Tokens(unittest.TestCase):
    def setUp(self):
        self.t = tokenizer.train(TEXT, 320)

    def test_round_trip(self):
        text = TEXT[:500] + "\x00\t unseen bytes: ÿ 🜚 \r\n x"
        self.assertEqual(self.t.decode(self.t.encode(text)), text)

    def test_merges_shorten(self):
        self.assertLess(len(self.t.encode(TEXT)), len(TEXT.encode()) / 2)
        self.assertEqual(len(set(self.t.tokens)), len(self.t))

    def test_digits_stand_alone(self):
        for i in self.t.encode("12345"):
            self.assertEqual(len(self.t.decode([i])), 1)

    def test_specials(self):
        ids = self.t.encode("<|im_start|>a<|im_end|>", specials=True)
        self.assertEqual([ids[0], ids[-1]], [self.t.im_start, self.t.im_end])
        self.assertNotIn(self.t.im_start, self.t.encode("<|im_start|>"))


class Recall(unittest.TestCase):
    def test_sides_are_disjoint(self):
        rng = random.Random(1)
        sides = [{recall.make_name(rng, test) for _ in range(500)} for test in (False, True)]
        self.assertFalse(sides[0] & sides[1])
        self.assertFalse(set(recall.FACTS[0]) & set(recall.FACTS[1]))
        self.assertFalse(set(recall.ASKS[0]) & set(recall.ASKS[1]))

    def test_contexts(self):
        t = tokenizer.train(TEXT, 320)

        class Filler:
            def filler(self, rng, n):
                return [t.encode(" It was not.")] * (n // 8)

        for test in (False, True):
            for seed in range(20):
                rng = random.Random(seed)
                w, spans, asked = data.recall_context(rng, t, Filler(), 400, test, 2, 2, None, True)
                self.assertEqual(len(w.ids), len(w.weight))
                self.assertLessEqual(len(w.ids), 400)
                text = t.decode(w.ids)
                self.assertEqual(t.encode(text, specials=True), w.ids)  # as a server would read it
                for (a, b), fact in zip(spans, asked):
                    self.assertEqual(t.decode(w.ids[a:b]), "".join(fact.answer_parts()) + "<|im_end|>")
                    told = t.encode(" " + fact.told)[:-1]  # a line end may join the full stop
                    at = [i for i in range(len(w.ids)) if w.ids[i : i + len(told)] == told]
                    self.assertTrue(at and all((i % 8 == 5) == test for i in at), text)


class Networks(unittest.TestCase):
    def test_chunked_delta_rule(self):
        torch.manual_seed(0)
        b, h, t, d = 2, 3, 48, 8
        q, k, v = torch.randn(3, b, h, t, d, dtype=torch.float64)
        k = torch.nn.functional.normalize(k, dim=-1)
        beta, decay = torch.rand(b, h, t).double(), -torch.rand(b, h, t).double()
        state, want = torch.zeros(b, h, d, d, dtype=torch.float64), []
        for i in range(t):
            state = state * decay[:, :, i].exp()[..., None, None]
            read = (state * k[:, :, i, :, None]).sum(-2)
            new = beta[:, :, i, None] * (v[:, :, i] - read)
            state = state + k[:, :, i, :, None] * new[..., None, :]
            want.append((state * q[:, :, i, :, None]).sum(-2))
        want = torch.stack(want, 2)
        for chunk in (8, 16, 48):
            got = model.delta_rule(q, k, v, beta, decay, chunk)
            self.assertLess((got - want).abs().max().item(), 1e-5)  # the identity matrix inside is F32

    def test_causal_and_length_independent(self):
        for size in ("qwen3-cpu", "qwen35-cpu"):
            torch.manual_seed(0)
            net = model.Net(model.SIZES[size])
            start.initialise(net)
            x = torch.randint(0, 4096, (1, 70))
            with torch.no_grad():
                whole, part = net.hidden(x), net.hidden(x[:, :41])
            self.assertLess((whole[:, :41] - part).abs().max().item(), 1e-4, size)

    def test_half_precision(self):
        for size in ("qwen3-cpu", "qwen35-cpu"):
            torch.manual_seed(0)
            net = model.Net(model.SIZES[size])
            start.initialise(net)
            x = torch.randint(0, 4096, (1, 64))
            with torch.no_grad():
                want = net(x)
                with torch.autocast("cpu", torch.bfloat16):
                    got = net(x).float()
            error = ((got - want).square().sum() / want.square().sum()).item()
            self.assertLess(error, 1e-3, size)  # 8 bits of mantissa, a few roundings in a row

    def test_starts_with_induction(self):
        """A random sequence repeated: the second half is often continued rightly without training."""
        for size in ("qwen3-cpu", "qwen35-cpu"):
            net = model.Net(model.SIZES[size])
            start.initialise(net)
            torch.manual_seed(0)
            r = torch.randint(0, 4000, (2, 60))
            x = torch.cat([r, r], 1)
            with torch.no_grad():
                guess = net(x)[:, 60:-1].argmax(-1)
            self.assertGreater((guess == x[:, 61:]).float().mean().item(), 0.1, size)  # chance 0.00025

    def test_orthogonalise(self):
        torch.manual_seed(0)
        for shape in ((2, 16, 40), (2, 40, 16)):
            s = torch.linalg.svdvals(optim.orthogonalise(torch.randn(shape)))
            self.assertTrue(0.5 < s.min().item() and s.max().item() < 1.5, s)

    def test_file(self):
        t = tokenizer.train(TEXT, 320)
        c = model.Config("qwen35", vocab=len(t), interval=2, rope_dim=32, ff=256, mtp=True)
        net = model.Net(c)
        start.initialise(net)
        with tempfile.TemporaryDirectory() as d:
            for kind, most in (("f32", 0.0), ("f16", 1e-3), ("q8_0", 1e-2)):
                path = os.path.join(d, kind)
                export.write(net, t, path, kind)
                r = gguf.GGUFReader(path)
                got = {x.name: gguf.dequantize(x.data, x.tensor_type) for x in r.tensors}
                self.assertEqual(set(got), {n for n, _, _ in export.tensors(net)})
                self.assertEqual(int(r.get_field("qwen35.block_count").parts[-1][0]), c.layers + 1)
                for name, value, _ in export.tensors(net):
                    v = value.detach().numpy()
                    self.assertLessEqual(
                        np.abs(got[name].reshape(v.shape) - v).max(), most * max(1, np.abs(v).max())
                    )


if __name__ == "__main__":
    unittest.main()
