"""Writes a GGUF file that holds a vocabulary and no tensors, and builds vocabularies from other tools' files."""
import json, struct

U32, STRING, ARRAY, BOOL, F32, I32 = 4, 8, 9, 7, 6, 5
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def _string(s):
    b = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(b)) + b


def write_gguf(path, pairs):
    """pairs: list of (key, value); str, bool, int, or ("strings" | "i32" | "f32", list)."""
    out = [struct.pack("<4sIQQ", b"GGUF", 3, 0, len(pairs))]
    for key, value in pairs:
        out.append(_string(key))
        if isinstance(value, tuple):
            kind, items = value
            if kind == "strings":
                out.append(struct.pack("<IIQ", ARRAY, STRING, len(items)))
                out.extend(_string(s) for s in items)
            else:
                out.append(struct.pack("<IIQ", ARRAY, {"i32": I32, "f32": F32}[kind], len(items)))
                out.append(struct.pack("<%d%s" % (len(items), {"i32": "i", "f32": "f"}[kind]), *items))
        elif isinstance(value, bool):
            out.append(struct.pack("<IB", BOOL, value))
        elif isinstance(value, int):
            out.append(struct.pack("<II", U32, value))
        else:
            out.append(struct.pack("<I", STRING) + _string(value))
    with open(path, "wb") as f:
        f.write(b"".join(out))


def byte_alphabet():
    """GPT-2's byte-to-character table."""
    own = [b for b in range(256) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE]
    table = {b: chr(b) for b in own}
    for i, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + i)
    return table


ALPHABET = byte_alphabet()


def spell(token):
    return "".join(ALPHABET[b] for b in token)


def last_split(ranks, token):
    """The two parts whose merge makes this token, when only tokens of lower rank exist."""
    parts = [bytes([b]) for b in token]
    limit = ranks[token]
    while len(parts) > 2:
        best, at = limit, None
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], limit)
            if rank < best:
                best, at = rank, i
        if at is None:
            return None
        parts[at:at + 2] = [parts[at] + parts[at + 1]]
    return parts


def write_ranks(path, pre, ranks, specials, all_splits, first_id=0):
    """ranks: {bytes: rank}, consecutive; specials: {text: id}. all_splits: list every way to make a token, as the
    converter of Llama 3 did, instead of the one that happens."""
    n = max([r + first_id for r in ranks.values()] + list(specials.values())) + 1
    tokens, types = ["[PAD%d]" % i for i in range(n)], [UNUSED] * n
    for token, rank in ranks.items():
        tokens[rank + first_id], types[rank + first_id] = spell(token), NORMAL
    for text, at in specials.items():
        tokens[at], types[at] = text, CONTROL
    merges = []
    for token in sorted(ranks, key=ranks.get):
        if len(token) == 1:
            continue
        if all_splits:
            pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
            pairs.sort(key=lambda p: (ranks[p[0]], ranks[p[1]]))
        else:
            split = last_split(ranks, token)
            pairs = [split] if split else []
        merges += [spell(a) + " " + spell(b) for a, b in pairs]
    write_gguf(path, [("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", pre),
                      ("tokenizer.ggml.tokens", ("strings", tokens)), ("tokenizer.ggml.token_type", ("i32", types)),
                      ("tokenizer.ggml.merges", ("strings", merges))])


def write_tokenizer_json(path, pre, source):
    with open(source, encoding="utf-8") as f:
        data = json.load(f)
    vocab = dict(data["model"]["vocab"])
    added = {t["content"]: t for t in data["added_tokens"]}
    n = max(list(vocab.values()) + [t["id"] for t in added.values()]) + 1
    tokens, types = ["[PAD%d]" % i for i in range(n)], [UNUSED] * n
    for text, at in vocab.items():
        tokens[at], types[at] = text, NORMAL
    for text, token in added.items():
        tokens[token["id"]], types[token["id"]] = text, CONTROL if token["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    write_gguf(path, [("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", pre),
                      ("tokenizer.ggml.tokens", ("strings", tokens)), ("tokenizer.ggml.token_type", ("i32", types)),
                      ("tokenizer.ggml.merges", ("strings", merges))])


def write_sentencepiece(path, model):
    """model: a loaded sentencepiece.SentencePieceProcessor."""
    tokens, types, scores = [], [], []
    for i in range(model.get_piece_size()):
        tokens.append(model.id_to_piece(i))
        scores.append(model.get_score(i))
        types.append(UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else
                     UNUSED if model.is_unused(i) else BYTE if model.is_byte(i) else NORMAL)
    write_gguf(path, [("general.architecture", "llama"), ("tokenizer.ggml.model", "llama"),
                      ("tokenizer.ggml.tokens", ("strings", tokens)), ("tokenizer.ggml.token_type", ("i32", types)),
                      ("tokenizer.ggml.scores", ("f32", scores))])
