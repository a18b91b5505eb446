#!/usr/bin/env python3
"""Keeps a server busy and looks for slow change: memory that grows, speed that falls.

    soak.py BIN_DIR [--minutes 10] [--clients 3] [--model FILE]

Starts BIN_DIR/rqvk-serve on a small random model, lets clients stream answers of mixed lengths (some vanish in the
middle), samples resident memory and generated tokens every five seconds, and fits a line through each. The first
minute (a fifth of short runs) is warming up and does not count. Fails when memory grows by more than 1 MiB a minute,
when speed falls by more than 1 % a minute beyond twice the fit's own error, or when a request fails."""
import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

PORT = 18431


def rss_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS")


def metric(name):
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
    raise RuntimeError(f"no metric {name}")


def client(seed, stop, failures):
    rng = random.Random(seed)
    while not stop.is_set():
        body = {"messages": [{"role": "user", "content": "word " * rng.randint(1, 300)}], "stream": True,
                "max_tokens": rng.randint(1, 96), "seed": rng.randint(0, 1 << 30), "temperature": rng.choice([0, 0.8])}
        vanish = rng.random() < 0.1
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}: {answer.read()[:200]}")
            if vanish:
                answer.read(200)
            elif b"[DONE]" not in answer.read():
                raise RuntimeError("a stream ended without [DONE]")
            connection.close()
        except Exception as problem:  # noqa: BLE001 - any failure at all is a finding
            if not stop.is_set():
                failures.append(str(problem))


def line_fit(xs, ys):
    """Slope, and its standard error."""
    n = len(xs)
    mx, my = sum(xs) / n, sum(ys) / n
    sxx = sum((x - mx) ** 2 for x in xs)
    slope = sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sxx
    residue = sum((y - my - slope * (x - mx)) ** 2 for x, y in zip(xs, ys))
    return slope, (residue / max(1, n - 2) / sxx) ** 0.5


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bin_dir")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if not model:
            model = os.path.join(folder, "tiny.gguf")
            subprocess.run([f"{args.bin_dir}/rqvk-synth", model, "--preset", "tiny-qwen3"], check=True,
                           stdout=subprocess.DEVNULL)
        server = subprocess.Popen([f"{args.bin_dir}/rqvk-serve", "-m", model, "--port", str(PORT), "-np", "2", "-c", "1024"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return soak(args, server)
        finally:
            server.terminate()
            server.wait(30)


def soak(args, server):
    for _ in range(100):
        try:
            if metric("rqvk_generated_tokens_total") >= 0:
                break
        except Exception:  # noqa: BLE001 - not up yet
            time.sleep(0.2)
    stop, failures = threading.Event(), []
    threads = [threading.Thread(target=client, args=(i, stop, failures)) for i in range(args.clients)]
    for t in threads:
        t.start()
    start = time.monotonic()
    end, warm = start + args.minutes * 60, start + min(60, args.minutes * 12)
    times, memory, speed = [], [], []
    last_time, last_tokens = time.monotonic(), metric("rqvk_generated_tokens_total")
    while time.monotonic() < end and server.poll() is None:
        time.sleep(5)
        now, tokens = time.monotonic(), metric("rqvk_generated_tokens_total")
        if now > warm:
            times.append((now - start) / 60)
            memory.append(rss_bytes(server.pid) / 2**20)
            speed.append((tokens - last_tokens) / (now - last_time))
        last_time, last_tokens = now, tokens
    alive = server.poll() is None
    stop.set()
    for t in threads:
        t.join()
    if not alive or len(times) < 4:
        print(f"soak: the server ended early (exit {server.poll()}) or too few samples")
        return 1
    mean = sum(speed) / len(speed)
    grow, grow_error = line_fit(times, memory)
    fall, fall_error = line_fit(times, [s / mean * 100 for s in speed])
    print(f"soak: {len(times)} samples over {times[-1]:.1f} minutes, {mean:.0f} generated tokens/s, {len(failures)} failed "
          f"requests\nmemory: {memory[0]:.1f} -> {memory[-1]:.1f} MiB, slope {grow:+.3f} (error {grow_error:.3f}) MiB/min\n"
          f"speed: slope {fall:+.2f} (error {fall_error:.2f}) %/min")
    for text in failures[:5]:
        print("failed:", text)
    return 1 if failures or grow > 1 or fall + 2 * fall_error < -1 else 0


sys.exit(main())
