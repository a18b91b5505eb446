"""The real server on a small model with random weights: what the pretending engine cannot show."""
import concurrent.futures
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
import requests

from conftest import Server, program

MODEL = os.environ.get("RQVK_MODEL", "")


def user(text):
    return [{"role": "user", "content": text}]


def ask(server, text="Tell me something.", **options):
    options = {"max_tokens": 24, "seed": 1, **options}
    r = server.client().chat.completions.create(model="m", messages=user(text), **options)
    if not options.get("stream"):
        return r.choices[0].message.content
    return "".join(c.choices[0].delta.content or "" for c in r if c.choices)


def test_stream_equals_whole(real):
    for options in {"temperature": 0}, {"seed": 5}, {"temperature": 1.5, "seed": 9, "top_k": 0, "top_p": 1.0}:
        extra = {"extra_body": {"top_k": options.pop("top_k")}} if "top_k" in options else {}
        assert ask(real, **options, **extra) == ask(real, **options, **extra, stream=True)


def test_seed(real):
    assert ask(real, seed=1) == ask(real, seed=1)
    assert len({ask(real, seed=s, temperature=1.5) for s in range(5)}) > 1


def test_same_seed_same_text_in_a_crowd(real):
    """Compared as bytes of the text and of every log-probability (DESIGN 2.3)."""
    def full(i):
        r = real.post("/v1/chat/completions", {"messages": user(f"Question {i % 5}"), "seed": i % 5, "max_tokens": 32,
                                               "logprobs": True, "top_logprobs": 3, "cache_prompt": False}).json()
        return json.dumps(r["choices"])
    alone = [full(i) for i in range(5)]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        crowd = list(pool.map(full, range(20)))
    assert crowd == [alone[i % 5] for i in range(20)]


def test_choices_share_steps(real):
    before = real.metrics()
    r = real.client().chat.completions.create(model="m", messages=user("hi"), n=3, max_tokens=40, seed=1,
                                              extra_body={"ignore_eos": True})
    now = real.metrics()
    assert r.usage.completion_tokens == 120
    steps = now["rqvk_steps_total"] - before["rqvk_steps_total"]
    assert steps < 80, "three answers of 40 tokens took as many steps as if they had been written one by one"


def test_logprobs(real):
    r = real.client().chat.completions.create(model="m", messages=user("hi"), max_tokens=8, logprobs=True,
                                              top_logprobs=20, temperature=0, extra_body={"ignore_eos": True})
    assert len(r.choices[0].logprobs.content) == 8
    for token in r.choices[0].logprobs.content:
        values = [t.logprob for t in token.top_logprobs]
        assert len(values) == 20 and values == sorted(values, reverse=True)
        assert 0.02 < sum(map(math.exp, values)) <= 1.0001
        assert token.token == token.top_logprobs[0].token  # greedy


def test_logit_bias(real):
    banned = real.post("/tokenize", {"content": ask(real, temperature=0)}).json()["tokens"]
    r = real.post("/v1/chat/completions", {"messages": user("Tell me something."), "temperature": 0, "max_tokens": 24,
                                           "logprobs": True, "logit_bias": [[t, False] for t in set(banned)]}).json()
    ids = real.post("/tokenize", {"content": r["choices"][0]["message"]["content"]}).json()["tokens"]
    assert r["choices"][0]["message"]["content"] != "" and not set(ids) & set(banned)


def test_stop(real):
    whole = ask(real, temperature=0)
    stop = whole[len(whole) // 2:len(whole) // 2 + 3]
    cut = whole[:whole.index(stop)]
    for stream in False, True:
        assert ask(real, temperature=0, stop=[stop], stream=stream) == cut


def test_reuse(real):
    text = "A conversation that goes on for a while, long enough to be worth keeping. " * 3
    first = real.chat(text, max_tokens=8, seed=3).json()
    answer = first["choices"][0]["message"]["content"]
    history = user(text) + [{"role": "assistant", "content": answer}] + user("And then?")
    body = {"messages": history, "max_tokens": 8, "temperature": 0}
    second = real.post("/v1/chat/completions", body).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 20
    fresh = real.post("/v1/chat/completions", {**body, "cache_prompt": False}).json()
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert fresh["choices"][0]["message"]["content"] == second["choices"][0]["message"]["content"]


def test_prompts_are_read_once(real):
    """Choices of one prompt, and conversations behind one system prompt: counted where steps are run."""
    def evaluated(messages, **options):
        before = real.metrics()["rqvk_prompt_tokens_total"]
        r = real.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, **options}).json()
        return r["usage"], real.metrics()["rqvk_prompt_tokens_total"] - before
    system = [{"role": "system", "content": "These are rules, and all who ask live by them: be brief. " * 4}]
    usage, n = evaluated(system + user("one"), n=3, ignore_eos=True)
    assert usage["prompt_tokens"] > 150
    assert usage["prompt_tokens"] - 8 <= n <= usage["prompt_tokens"] + 3 * 16
    assert usage["prompt_tokens_details"]["cached_tokens"] < 8  # how every conversation begins
    for question in "two", "three", "four":
        usage, n = evaluated(system + user(question))
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - n
        assert n < 64 + 40  # what is new, from the start of its page
    usage, n = evaluated(system + user("one"), cache_prompt=False)
    assert n == usage["prompt_tokens"]


def test_usage_is_what_tokenize_says(real):
    text = "Some text of several words, and a number: 1234."
    tokens = real.post("/tokenize", {"content": text, "add_special": True}).json()["tokens"]
    r = real.post("/v1/completions", {"prompt": text, "max_tokens": 1}).json()
    assert r["usage"]["prompt_tokens"] == len(tokens)
    ids = real.post("/v1/completions", {"prompt": tokens, "max_tokens": 4, "temperature": 0}).json()
    same = real.post("/v1/completions", {"prompt": text, "max_tokens": 4, "temperature": 0}).json()
    assert ids["choices"][0]["text"] == same["choices"][0]["text"]
    assert real.post("/detokenize", {"tokens": tokens}).json()["content"] == text


def test_control_tokens_cannot_be_smuggled_in(real):
    def count(content):
        return real.chat(content, max_tokens=1).json()["usage"]["prompt_tokens"]
    rendered = real.post("/apply-template", {"messages": user("<|im_end|>x<|im_start|>")}).json()["prompt"]
    assert "<|im_end|>x<|im_start|>" in rendered
    assert count("<|im_end|>" * 10) > count("x") + 20  # ten times several plain tokens


def test_overflow(real):
    r = real.chat("word " * 2000)
    error = r.json()["error"]
    assert r.status_code == 400 and error["type"] == "exceed_context_size_error"
    assert error["n_ctx"] == 512 and error["n_prompt_tokens"] > 2000
    r = real.post("/v1/chat/completions", {"messages": user("hi"), "ignore_eos": True}).json()
    assert r["choices"][0]["finish_reason"] == "length" and r["usage"]["total_tokens"] in (511, 512)


def test_twenty_clients(real):
    before = real.metrics()
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        texts = list(pool.map(lambda i: ask(real, f"number {i}", stream=i % 2 == 0, seed=i), range(20)))
    assert len(texts) == 20
    now = real.until(lambda m: m["rqvk_requests_active"] == 0)
    assert now["rqvk_generated_tokens_total"] - before["rqvk_generated_tokens_total"] <= 20 * 24


@pytest.mark.parametrize("stream", [True, False])
def test_vanished_client(stream):
    server = Server(program("RQVK_SERVE"), "-m", MODEL, "-t", "1", "-np", "2", "-c", "4096")
    body = json.dumps({"messages": user("hi"), "stream": stream, "ignore_eos": True}).encode()
    s = socket.create_connection(("127.0.0.1", server.port))
    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    server.until(lambda m: m["rqvk_generated_tokens_total"] > 20)
    s.close()
    server.until(lambda m: m["rqvk_requests_active"] == 0 and m["rqvk_sessions_running"] == 0, 2)
    before = server.metrics()["rqvk_generated_tokens_total"]
    assert before < 3000, "the answer had ended before the client went away"
    time.sleep(0.2)
    now = server.metrics()
    assert now["rqvk_generated_tokens_total"] == before and now["rqvk_requests_vanished_total"] == 1
    server.stop()


def test_vanished_client_during_prompt():
    server = Server(program("RQVK_SERVE"), "-m", MODEL, "-t", "1", "-np", "1", "-c", "200000", "-b", "64")
    words = real_words(server, 150000)
    body = json.dumps({"prompt": words, "max_tokens": 1}).encode()
    s = socket.create_connection(("127.0.0.1", server.port))
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    server.until(lambda m: m["rqvk_step_tokens_total"] > 640)
    s.close()
    server.until(lambda m: m["rqvk_requests_active"] == 0, 3)
    before = server.metrics()["rqvk_step_tokens_total"]
    assert before < 140000
    time.sleep(0.2)
    assert server.metrics()["rqvk_step_tokens_total"] == before
    server.stop()


def real_words(server, n):
    tokens = server.post("/tokenize", {"content": "one two three four five six"}).json()["tokens"]
    return (tokens * (n // len(tokens) + 1))[:n]


def test_shutdown_while_streaming():
    server = Server(program("RQVK_SERVE"), "-m", MODEL, "-t", "1", "-np", "2", "-c", "30000", "--stop-timeout", "0")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(server.chat, "hi", stream=True, ignore_eos=True) for _ in range(3)]
        server.until(lambda m: m["rqvk_generated_tokens_total"] > 20 and m["rqvk_requests_active"] == 3)
        start = time.time()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0 and time.time() - start < 5
        for job in jobs:
            assert "shutting down" in job.result().text


def test_file_that_shrinks(tmp_path):
    """The engine fails, the process does not."""
    path = tmp_path / "model.gguf"
    shutil.copy(MODEL, path)
    server = Server(program("RQVK_SERVE"), "-m", str(path), "-t", "1", "-c", "30000")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(server.chat, "hi", ignore_eos=True)
        server.until(lambda m: m["rqvk_generated_tokens_total"] > 5)
        os.truncate(path, 4096)
        assert job.result(20).status_code == 503
    assert requests.get(server.url + "/health", timeout=5).status_code == 503
    r = server.chat("hi")
    assert r.status_code == 503 and r.json()["error"]["message"]
    server.stop()


@pytest.mark.parametrize("kind", ["truncated", "directory", "picture", "missing", "empty"])
def test_no_model(tmp_path, kind):
    path = tmp_path / "thing.gguf"
    if kind == "truncated":
        data = open(MODEL, "rb").read()
        path.write_bytes(data[:len(data) * 2 // 3])
    elif kind == "directory":
        path.mkdir()
    elif kind == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    elif kind == "empty":
        path.write_bytes(b"")
    r = subprocess.run([program("RQVK_SERVE"), "-m", str(path), "--port", "0"], capture_output=True, text=True, timeout=20)
    assert r.returncode == 1 and r.stderr.count("\n") == 1 and "thing.gguf" in r.stderr, r.stderr
