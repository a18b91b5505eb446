"""Byte-level BPE: training, encoding, decoding. The vocabulary is the 256 bytes, then merges, then the
specials."""

import collections
import heapq
import json

import regex

# The pre-tokenizer of the qwen2 family with marks counted as letters (the qwen35 form). The training text
# holds no combining marks, so both families split it alike and one vocabulary serves both models.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def printable_bytes():
    """GPT-2's table: every byte as one printable character, so that tokens can be written as text."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, spare = {b: chr(b) for b in keep}, 0x100
    for b in range(256):
        if b not in table:
            table[b] = chr(spare)
            spare += 1
    return [table[b] for b in range(256)]


class Tokenizer:
    def __init__(self, merges):
        """merges: list of (left, right) pairs in printable form, most frequent first."""
        self.byte = printable_bytes()
        self.merges = [tuple(m) for m in merges]
        # Two merges may make the same text ("a"+"bc", "ab"+"c"): that is one token.
        self.tokens = list(dict.fromkeys(self.byte + [a + b for a, b in self.merges])) + SPECIALS
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        self.rank = {m: i for i, m in enumerate(self.merges)}
        self.split = regex.compile(SPLIT)
        self.special_split = regex.compile("(" + "|".join(map(regex.escape, SPECIALS)) + ")")
        self.cache = {}
        self.unbyte = {c: b for b, c in enumerate(self.byte)}
        self.end_of_text, self.im_start, self.im_end = (self.ids[s] for s in SPECIALS)

    def __len__(self):
        return len(self.tokens)

    def _word(self, word):
        parts = [self.byte[b] for b in word.encode("utf-8")]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda p: self.rank.get(p, 1 << 30))
            if best not in self.rank:
                break
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return [self.ids[p] for p in parts]

    def encode(self, text, specials=False):
        """Token ids of a text; specials=True reads the marks of SPECIALS as single tokens."""
        if specials:
            out = []
            for piece in self.special_split.split(text):
                out += [self.ids[piece]] if piece in SPECIALS else self.encode(piece)
            return out
        out, cache = [], self.cache
        for word in self.split.findall(text):
            ids = cache.get(word)
            if ids is None:
                ids = self._word(word)
                if len(cache) < 500_000:
                    cache[word] = ids
            out += ids
        return out

    def decode(self, ids):
        raw = bytearray()
        for i in ids:
            token = self.tokens[i]
            raw += token.encode() if token in SPECIALS else bytes(self.unbyte[c] for c in token)
        return raw.decode("utf-8", errors="replace")

    def save(self, path):
        with open(path, "w", encoding="utf-8") as f:
            json.dump({"merges": self.merges}, f, ensure_ascii=False)

    @classmethod
    def load(cls, path):
        with open(path, encoding="utf-8") as f:
            return cls(json.load(f)["merges"])


def train(text, vocab_size):
    """Byte-pair merges of a text: repeatedly join the most frequent neighbours inside the pieces of SPLIT."""
    byte = printable_bytes()
    counts = collections.Counter(regex.findall(SPLIT, text))
    words = [[byte[b] for b in w.encode("utf-8")] for w in counts]
    count = list(counts.values())
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for i, w in enumerate(words):
        for p in zip(w, w[1:]):
            pairs[p] += count[i]
            where[p].add(i)
    heap = [(-n, p) for p, n in pairs.items()]
    heapq.heapify(heap)
    merges, made = [], set(byte)
    while len(made) < vocab_size - len(SPECIALS) and heap:
        n, pair = heapq.heappop(heap)
        if pairs[pair] != -n:  # a stale entry: its count has changed since
            if pairs[pair] > 1:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -n < 2:
            break
        merges.append(pair)
        joined, changed = pair[0] + pair[1], set()
        made.add(joined)
        for i in where.pop(pair):
            old = words[i]
            new, j = [], 0
            while j < len(old):
                if j + 1 < len(old) and (old[j], old[j + 1]) == pair:
                    new.append(joined)
                    j += 2
                else:
                    new.append(old[j])
                    j += 1
            for p in zip(old, old[1:]):
                pairs[p] -= count[i]
            for p in zip(new, new[1:]):
                pairs[p] += count[i]
                where[p].add(i)
                changed.add(p)
            words[i] = new
        pairs.pop(pair, None)
        for p in changed:
            if p != pair:
                heapq.heappush(heap, (-pairs[p], p))
    return Tokenizer(merges)
