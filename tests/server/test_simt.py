"""The real server on the CUDA backend whose driver is the simulator (tests/simt): it answers as on other backends, and when
a call of the driver fails, whoever asked gets a sentence, what needs no card goes on, and nothing is left at the end.

RQVK_SERVE_SIMT  the server (tests/simt/serve_faults.c decides which call fails), RQVK_MODELS the folder of its models
RQVK_FAULTS      "sample", or "every": each call of the table, at its first, second, ... and last time"""
import json
import os
import re
import signal

import pytest
import requests

from conftest import Server, program

EVERY = os.environ.get("RQVK_FAULTS") == "every"
FLAGS = ("--backend", "cuda", "-np", "2", "-c", "128", "-b", "16", "-t", "1")
CACHES = {"qwen3": "iso3", "qwen35": "f16"}

# What is called while answering: all of it is looked at.
ANSWERING = ["graph_launch", "copy_to_device", "copy_to_host", "event_record", "event_wait", "stream_wait"]
# While starting, and which time of it.
STARTING = ["memory_alloc:9", "graph_instantiate:4", "graph_add_kernel:50", "copy_to_device:30", "stream_wait:1"]
if EVERY:
    names = ("init driver_version device_count device_get device_name device_attribute context_retain context_set memory_info "
             "module_load module_function function_attribute memory_alloc memory_set copy_to_device copy_to_host host_alloc "
             "stream_create stream_wait event_create event_record event_wait graph_create graph_add_kernel "
             "graph_add_edges graph_instantiate graph_launch").split()
    STARTING = [f"{name}:{n}" for name in names for n in (1, 2, 5, 20)]


started = []


@pytest.fixture(autouse=True)
def none_stays():
    """A server whose test failed does not stay behind."""
    yield
    while started:
        started.pop().process.kill()


def start(model, fail=None, **options):
    cache = CACHES[model]
    started.append(Server(program("RQVK_SERVE_SIMT"), "-m", os.path.join(os.environ["RQVK_MODELS"], model + ".gguf"), *FLAGS,
                          "-ctk", cache, "-ctv", cache, env={"RQVK_SIMT_FAIL": fail} if fail else None, **options))
    return started[-1]


def ask(server, text, n=3):
    """A prompt of a few tokens alone: the simulator takes its time."""
    return server.post("/v1/completions", {"prompt": text, "max_tokens": n, "ignore_eos": True, "temperature": 0})


def sentence(text):
    assert len(text) > 20 and " " in text and "%" not in text, text
    return text


def left(server):
    """(calls that failed, objects left), once it has ended."""
    found = re.search(r"simulator: (\d+) calls failed, (\d+) objects left", server.log())
    assert found, server.log()
    return int(found.group(1)), int(found.group(2))


@pytest.mark.parametrize("model", ["qwen3", "qwen35"])
def test_it_serves(model):
    server = start(model)
    assert "simulator" in server.log(), "it runs on another device"
    first = server.chat("hello", max_tokens=6, ignore_eos=True, temperature=0)
    assert first.status_code == 200 and first.json()["usage"]["completion_tokens"] == 6
    chunks = list(server.client().chat.completions.create(model="any", messages=[{"role": "user", "content": "hello"}],
                                                          max_tokens=6, temperature=0, stream=True,
                                                          extra_body={"ignore_eos": True}))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == first.json()["choices"][0]["message"]["content"]
    assert server.metrics()["rqvk_failed"] == 0
    server.stop()
    assert left(server) == (0, 0)


def goes_on(server, failed):
    """What needs no card; and /health and /metrics agree on whether the engine is of use."""
    health = requests.get(server.url + "/health", timeout=30)
    assert health.status_code == (503 if failed else 200), health.text
    if failed:
        sentence(health.json()["error"]["message"])
    metrics = server.metrics()
    assert metrics["rqvk_failed"] == failed and metrics["rqvk_sessions_running"] == 0
    assert requests.get(server.url + "/v1/models", timeout=30).status_code == 200
    assert server.post("/tokenize", {"content": "words"}).json()["tokens"]


@pytest.mark.parametrize("model", ["qwen3", "qwen35"] if EVERY else ["qwen3"])
@pytest.mark.parametrize("call", ANSWERING)
def test_a_call_fails_while_answering(call, model):
    server = start(model, call)
    assert ask(server, "before").status_code == 200
    server.signal(signal.SIGUSR2)
    answers = [ask(server, f"question {i}") for i in range(3)]
    failed = False
    for answer in answers:
        assert answer.status_code == 503 or (answer.status_code == 200 and not failed), answer.text
        if answer.status_code == 503:
            sentence(answer.json()["error"]["message"])
        else:
            assert answer.json()["usage"]["completion_tokens"] == 3
        failed = requests.get(server.url + "/health", timeout=30).status_code == 503
    goes_on(server, failed)
    server.stop()
    n_failed, objects = left(server)
    assert n_failed == 1, f"{call} is not called while answering"
    assert objects == 0
    assert any(answer.status_code == 503 for answer in answers), f"nobody was told that {call} failed"


def test_a_stream_says_why_it_breaks_off():
    server = start("qwen3", "graph_launch")
    stream = server.post("/v1/completions", {"prompt": "tell me", "max_tokens": 100, "ignore_eos": True, "stream": True},
                         stream=True)
    assert stream.status_code == 200
    lines = stream.iter_lines()
    next(line for line in lines if line.startswith(b"data: "))
    server.signal(signal.SIGUSR2)
    rest = [line for line in lines if line.startswith(b"data: ")]
    error = next(json.loads(line[6:])["error"] for line in rest if b'"error"' in line)
    assert "simulator" in sentence(error["message"]) or "CUDA" in error["message"], error
    goes_on(server, True)
    server.stop()
    assert left(server) == (1, 0)


@pytest.mark.parametrize("call", STARTING)
def test_a_call_fails_while_starting(call):
    server = start("qwen3", call, wait=False)
    server.listening.wait(120)
    if server.port:  # it did without, or the call is not made so often before requests come
        server.wait_ready()
        answer = ask(server, "hello")
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 503:
            sentence(answer.json()["error"]["message"])
        goes_on(server, requests.get(server.url + "/health", timeout=30).status_code == 503)
        server.stop()
        assert EVERY or left(server)[0] == 1, f"{call} was not reached"
    else:
        assert server.wait() == 1, server.log()
        said = [line for line in server.lines if line.startswith("rqvk-serve:")]
        assert len(said) == 1, server.log()
        sentence(said[0])
        assert left(server)[0] == 1
        server.process.stderr.close()
    assert left(server)[1] == 0
