"""Token streams and batches: running text, planted facts with questions, short chats."""

import collections
import glob
import multiprocessing
import os
import random

import numpy as np
import regex

import recall
import tokenizer as tok

HELD_OUT = ("wikitext2-test.txt", "TheLittleColonelsHero")  # a name, or how a name begins: never trained on


def read(path):
    with open(path, encoding="utf-8-sig", errors="replace") as f:
        text = f.read().replace("\r\n", "\n")
    # Only the work itself of a Project Gutenberg file.
    a = regex.search(r"\*\*\* ?START OF[^\n]*\n", text)
    b = regex.search(r"\*\*\* ?END OF", text) or regex.search(r"\nEnd of (the )?Project Gutenberg", text)
    text = text[a.end() if a else 0 : b.start() if b else len(text)]
    return regex.sub(r"\n{3,}", "\n\n", text).strip()


def unwrap(text):
    """Books are wrapped at 70 columns: join the lines of a paragraph, so that sentences read on."""
    return regex.sub(r"(?<=[^\n])\n(?=[^\n\s])", " ", text)


def files(folder):
    """(training files, held-out files) of a folder of text."""
    train, held = [], []
    for path in sorted(glob.glob(os.path.join(folder, "*.txt"))):
        (held if os.path.basename(path).startswith(HELD_OUT) else train).append(path)
    return train, held


def sentences(text):
    flat = regex.sub(r"\s+", " ", text)
    return [s for s in regex.split(r"(?<=[.!?;:])\s+", flat) if 20 < len(s) < 300]


def prepare(folder, out, vocab_size):
    """Train the tokenizer and store the token streams under out."""
    os.makedirs(out, exist_ok=True)
    train, held = files(folder)
    texts = {p: unwrap(read(p)) for p in train + held}
    rng = random.Random(0)
    made = []
    for _ in range(3000):
        f = recall.Fact(rng, False, set())
        a, b = recall.chat_pair(rng)
        made += [f.told, f.asked, "".join(f.answer_parts()), a, b]
    t = tok.train("\n".join([texts[p] for p in train] + made), vocab_size)
    t.save(os.path.join(out, "tokenizer.json"))
    for side, paths in (("train", train), ("held", held)):
        index, stream, cut, at = [], [], [], 0
        for p in paths:
            ids = t.encode(texts[p]) + [t.end_of_text]
            index.append((os.path.basename(p), at, at + len(ids), len(texts[p].encode())))
            stream += ids
            at += len(ids)
            for s in sentences(texts[p]):
                cut.append(t.encode(" " + s))
        np.save(os.path.join(out, side + ".npy"), np.array(stream, dtype=np.uint16))
        np.save(
            os.path.join(out, side + "-sentences.npy"), np.array([i for s in cut for i in s], dtype=np.uint16)
        )
        np.save(
            os.path.join(out, side + "-starts.npy"), np.cumsum([0] + [len(s) for s in cut]).astype(np.int64)
        )
        with open(os.path.join(out, side + "-files.txt"), "w") as f:
            for row in index:
                print(*row, sep="\t", file=f)
                print(side, *row)


class Corpus:
    def __init__(self, folder, side):
        get = lambda n: np.load(os.path.join(folder, f"{side}{n}.npy"))
        self.stream, self.sentence_ids, self.starts = get(""), get("-sentences"), get("-starts")
        with open(os.path.join(folder, side + "-files.txt")) as f:
            self.files = [
                (n, int(a), int(b), int(c)) for n, a, b, c in (x.rstrip("\n").split("\t") for x in f)
            ]

    def filler(self, rng, n):
        """About n tokens of consecutive sentences, as lists."""
        out, i = [], rng.randrange(len(self.starts) - 1)
        while n > 0:
            s = self.sentence_ids[self.starts[i] : self.starts[i + 1]].tolist()
            out.append(s)
            n -= len(s)
            i = (i + 1) % (len(self.starts) - 1)
        return out


class Weighted:
    """Token ids with the weight of predicting each of them."""

    def __init__(self):
        self.ids, self.weight = [], []

    def add(self, ids, weight):
        self.ids += ids
        self.weight += [weight] * len(ids)


ANSWER_WEIGHT, VALUE_WEIGHT, CHAT_WEIGHT, FILLER_WEIGHT = 1.0, 4.0, 1.0, 0.5


def add_turn(w, t, question, parts, opened=False):
    """A user turn (already opened or not) and the assistant's answer; parts: [(text, weight)]."""
    if not opened:
        w.add([t.im_start] + t.encode("user\n"), 0.3)
        w.add(t.encode(question), 0.1)
    w.add([t.im_end] + t.encode("\n") + [t.im_start] + t.encode("assistant\n"), 0.3)
    for text, weight in parts:
        w.add(t.encode(text), weight)
    w.add([t.im_end], ANSWER_WEIGHT)
    w.add(t.encode("\n"), 0.3)


def recall_context(rng, t, corpus, length, test, n_facts, n_asks, depth=None, number_only=False, plain=False):
    """A user turn with facts in filler text and a question, further questions in further turns, at most
    length tokens.

    plain: no turns, the answers follow as sentences (cheaper in tokens, so that more of them fit). depth:
    where the first fact stands (0 start, 1 end); it is then the one asked for first. Returns the Weighted ids
    and, for each asked fact, the (start, end) of its answer's tokens."""
    names = set()
    facts = [recall.Fact(rng, test, names, number_only) for _ in range(n_facts)]
    asked = (
        facts[:1] + rng.sample(facts[1:], min(n_asks, n_facts) - 1)
        if depth is not None
        else rng.sample(facts, min(n_asks, n_facts))
    )
    told = [t.encode(" " + f.told) for f in facts]
    # Turn overhead and answers, measured once, leave room for filler.
    tail = Weighted()
    spans = []
    for i, f in enumerate(asked):
        before, value, after = f.answer_parts()
        parts = [(before, ANSWER_WEIGHT), (value, VALUE_WEIGHT), (after, ANSWER_WEIGHT)]
        if plain:
            tail.add(t.encode((" " if i else "") + before), ANSWER_WEIGHT)
            tail.add(t.encode(value), VALUE_WEIGHT)
            tail.add(t.encode(after), ANSWER_WEIGHT)
            continue
        if i == 0:
            tail.add(t.encode(f.asked), 0.1)
        add_turn(tail, t, f.asked, parts, opened=i == 0)
        end = len(tail.ids) - len(t.encode("\n"))
        spans.append((end - 1 - sum(len(t.encode(x)) for x, _ in parts), end))
    head = Weighted()
    if not plain:
        head.add([t.im_start] + t.encode("user\n"), 0.3)
    room = length - len(head.ids) - len(tail.ids) - sum(map(len, told)) - (8 if test else 2) * n_facts - 2
    pieces = [(s, FILLER_WEIGHT) for s in corpus.filler(rng, room)] if room > 8 else []
    while pieces and sum(len(s) for s, _ in pieces) > room:
        pieces.pop()
    first = None
    if depth is not None:
        first = min(int(depth * (len(pieces) + 1)), len(pieces))
    where = sorted(
        (
            (rng.randrange(len(pieces) + 1) if first is None or i else first, rng.random(), i)
            for i in range(n_facts)
        ),
        reverse=True,
    )
    for at, _, i in where:
        pieces.insert(at, (told[i], None))
    # Line ends after a full stop join it in one piece of the pre-tokenizer, so they are encoded together.
    pieces[-1] = (t.encode(t.decode(pieces[-1][0]) + "\n\n"), pieces[-1][1])
    pad = t.encode(" and")[-1:]  # one token, so that every position can be reached
    for ids, weight in pieces:
        if weight is None:
            while (len(head.ids) % 8 == 5) != test:  # positions of the test set are its own
                head.add(pad, 0.0)
            head.add(ids, 0.1)
        else:
            head.add(ids, weight)
    shift = len(head.ids)
    head.ids += tail.ids
    head.weight += tail.weight
    return head, [(a + shift, b + shift) for a, b in spans], asked


def chat(rng, t, w, room):
    """Short question-answer turns until about room tokens are used."""
    while room > 0:
        start = len(w.ids)
        for _ in range(rng.choice((1, 1, 2, 3))):
            q, a = recall.chat_pair(rng)
            add_turn(w, t, q, [(a, CHAT_WEIGHT)])
        w.add([t.end_of_text], 0.1)
        room -= len(w.ids) - start


def sample(rng, t, corpus, length, mix):
    """One training row of length + 1 ids with weights. mix: (text, recall, chat) shares."""
    n = length + 1
    r = rng.random()
    if r < mix[0]:
        i = rng.randrange(len(corpus.stream) - n)
        return corpus.stream[i : i + n].tolist(), [1.0] * n
    w = Weighted()
    if r < mix[0] + mix[1]:
        while len(w.ids) < n - 60:
            room = n - len(w.ids)
            span = room if rng.random() < 0.6 else rng.randrange(60, room + 1)
            # Many facts and questions teach most per token; a few long searches keep the mechanism honest.
            dense = rng.random() < (0.8 if span <= 300 else 0.5)
            plain = dense and rng.random() < 0.5
            facts = max(1, min(span // (36 if plain else 60), 12)) if dense else rng.randrange(1, 4)
            asks = facts if dense else rng.randrange(1, facts + 1)
            got, _, _ = recall_context(rng, t, corpus, span, False, facts, asks, plain=plain)
            w.ids += got.ids
            w.weight += got.weight
            w.add([t.end_of_text], 0.1)
    else:
        chat(rng, t, w, n)
    if len(w.ids) < n:
        w.add(
            corpus.stream[(i := rng.randrange(len(corpus.stream) - n)) : i + n - len(w.ids)].tolist(),
            FILLER_WEIGHT,
        )
    return w.ids[:n], w.weight[:n]


class Ahead:
    """Batches of consecutive steps, made by other processes while the device computes, or on demand."""

    def __init__(self, folder, seed, mix, shape_of, first, last, workers):
        """shape_of(step) -> (rows, length). Every step has a generator of its own: a resumed run sees what an
        unbroken one would have seen."""
        self.job = (folder, seed, mix)
        self.shape_of, self.next, self.last, self.waiting = shape_of, first, last, collections.deque()
        self.pool = None
        if workers:
            self.pool = multiprocessing.get_context("spawn").Pool(workers, _open, self.job)
            self.most = 3 * workers
        else:
            _open(*self.job)

    def get(self, step):
        """The batch of a step; steps are asked for in order, beginning with the first."""
        if self.pool is None:
            return _make(step, *self.shape_of(step))
        while len(self.waiting) < self.most and self.next < self.last:
            job = (self.next, *self.shape_of(self.next))
            self.waiting.append(self.pool.apply_async(_make, job))
            self.next += 1
        return self.waiting.popleft().get()

    def close(self):
        if self.pool is not None:
            self.pool.terminate()


_here = {}


def _open(folder, seed, mix):
    t = tok.Tokenizer.load(os.path.join(folder, "tokenizer.json"))
    _here.update(t=t, corpus=Corpus(folder, "train"), seed=seed, mix=mix)


def _make(step, rows, length):
    rng = random.Random(_here["seed"] * 1_000_003 + step)
    return batch(rng, _here["t"], _here["corpus"], rows, length, _here["mix"])


def batch(rng, t, corpus, rows, length, mix):
    got = [sample(rng, t, corpus, length, mix) for _ in range(rows)]
    return (np.array([g[0] for g in got], dtype=np.int64), np.array([g[1] for g in got], dtype=np.float32))
