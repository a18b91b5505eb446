"""rqvk-bench --context-table: its numbers are those of --plan, preset by preset."""
import csv
import io
import json
import os
import subprocess

BENCH, CLI, SYNTH, MODEL = (os.environ[name] for name in ("RQVK_BENCH", "RQVK_CLI", "RQVK_SYNTH", "RQVK_MODEL"))
FORMATS = ["f16", "q8_0", "wht4", "wht3", "wht2"]


def table(*args):
    return subprocess.run([BENCH, "--backend", "cpu", "--context-table", *args], capture_output=True, text=True, timeout=120)


def plan(model, cache, mib):
    done = subprocess.run([CLI, "-m", model, "--plan-json", "--backend", "cpu", "--host-memory", f"{mib}M", "--cache-ram",
                           "1024", "--cache-type-k", cache, "--cache-type-v", cache], capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout) if done.returncode == 0 else None


def test_as_the_plan_says(tmp_path):
    model = tmp_path / "gemma.gguf"
    subprocess.run([SYNTH, model, "--preset", "gemma-4-31b", "--sparse"], check=True, capture_output=True)
    done = table("gemma-4-31b", "--cards", "20,24,64", "-o", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(r["preset"], r["cache"], r["gb"]) for r in rows] == \
        [("gemma-4-31b", f, gb) for f in FORMATS for gb in ("20", "24", "64")]
    for row in rows[::2]:
        want = plan(model, row["cache"], int(row["gb"]) * 1024 - 512)
        assert int(row["context"]) == (want["context"] if want else 0)
        if want:
            assert int(row["cache_bytes_per_token"]) == want["cache_bytes_per_token"]
    contexts = [int(r["context"]) for r in rows if r["gb"] == "24"]
    assert contexts == sorted(contexts) and contexts[0] < contexts[-1]  # fewer bits hold more


def test_tables_and_lines():
    done = table("tiny-qwen35moe,model", "-m", MODEL, "--cards", "2")
    assert done.returncode == 0, done.stderr
    sizes, contexts = done.stdout.split("Tokens of context that fit")
    assert "| tiny-qwen35moe |" in sizes and "| model |" in sizes
    assert contexts.count("| 4,096 (all)") == 2 * len(FORMATS) and contexts.count("| model |") == 1 + len(FORMATS)
    lines = [json.loads(line) for line in table("model", "-m", MODEL, "--cards", "2,3", "-o", "jsonl").stdout.splitlines()]
    assert [(r["cache"], r["gb"]) for r in lines] == [(f, gb) for f in FORMATS for gb in (2, 3)]
    assert all(r["plan"]["type_k"] == r["cache"] for r in lines)


def test_what_does_not_fit():
    """On a card; without one that is said."""
    done = table("tiny-qwen3,gemma-4-31b", "--backend", "vulkan", "--cards", "1")
    devices = subprocess.run([BENCH, "--list-devices"], capture_output=True, text=True, timeout=60)
    if "vulkan" in devices.stdout:
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(" - |") == len(FORMATS) and done.stdout.count("(all) |") == len(FORMATS)
    else:
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "ulkan" in done.stderr


def test_mistakes():
    for args in (["tiny-nothing"], [""], ["model,"]):
        done = table(*args)
        assert done.returncode == 1 and "rqvk-synth --help" in done.stderr, done.stderr
