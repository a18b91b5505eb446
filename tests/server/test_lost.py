"""A server whose graphics device is lost (tests/vulkan/lose.c): requests get 503 and a sentence, everything that needs no
device goes on, and the program ends as always."""
import concurrent.futures
import json
import os
import signal
import subprocess

import pytest
import requests

from conftest import Server, program


@pytest.fixture
def server(request):
    devices = subprocess.run([program("RQVK_SERVE_LOSING"), "--list-devices"], capture_output=True, text=True, timeout=60)
    if "vulkan" not in devices.stdout + devices.stderr and not os.environ.get("RQVK_VK_REQUIRED"):
        pytest.skip("there is no Vulkan driver on this machine")
    cache = request.param
    server = Server(program("RQVK_SERVE_LOSING"), "-m", os.environ["RQVK_MODEL"], "--backend", "vulkan", "-np", "3",
                    "-c", "512", "-b", "64", "-t", "1", "-ctk", cache, "-ctv", cache, wait=False)
    assert server.listening.wait(300), server.log()  # a busy machine compiles kernels for minutes
    server.wait_ready()
    yield server
    server.stop()


def body(text, n):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": n, "ignore_eos": True, "temperature": 0}


def said(response):
    error = response.json()["error"]
    assert response.status_code == 503, response.text
    assert "lost" in error["message"] and len(error["message"]) > 20, error
    return error["message"]


@pytest.mark.parametrize("server", ["f16"], indirect=True)
def test_lost_while_it_answers(server):
    assert server.chat("before", max_tokens=4).status_code == 200
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(server.post, "/v1/chat/completions", body(f"tell {i}", 400)) for i in range(2)]
        stream = server.post("/v1/chat/completions", {**body("tell me", 400), "stream": True}, stream=True)
        lines = stream.iter_lines()
        assert stream.status_code == 200
        first = next(line for line in lines if line.startswith(b"data: "))
        assert json.loads(first[6:])["object"] == "chat.completion.chunk"
        server.until(lambda m: m["rqvk_sessions_running"] == 3)
        server.signal(signal.SIGUSR2)
        last = [line for line in lines if line.startswith(b"data: ")]
        for answer in waiting:
            said(answer.result(60))
    text = b"\n".join(last).decode()
    assert "lost" in text, "a stream that breaks off says why"

    for _ in range(3):  # and all that follow, at once
        said(server.chat("after"))
    metrics = server.metrics()
    assert metrics["rqvk_failed"] == 1 and metrics["rqvk_sessions_running"] == 0
    health = requests.get(server.url + "/health", timeout=10)
    assert health.status_code == 503 and "lost" in health.text
    assert requests.get(server.url + "/v1/models", timeout=10).status_code == 200
    assert server.post("/tokenize", {"content": "words"}).json()["tokens"]


@pytest.mark.parametrize("server", ["iso3"], indirect=True)
def test_lost_before_the_first_request(server):
    server.signal(signal.SIGUSR2)
    said(server.chat("hello"))
    said(server.chat("hello again"))
