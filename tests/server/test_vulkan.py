"""The real server over Vulkan, as a user without a card would meet it (llvmpipe): the built-in models answer a streamed chat
with a compressed cache, conversations go on from what is kept, and what cannot be had is said in one sentence."""
import os
import subprocess

import pytest

from conftest import Server, program

FACTS = "The gate code of Marla is 48213. She lives by the river. "
QUESTION = "What is the gate code of Marla?"
OTHER_FACTS = "The gate code of Oskar is 90125. He lives by the mill. "
OTHER_QUESTION = "What is the gate code of Oskar?"


def has_vulkan():
    devices = subprocess.run([program("RQVK_SERVE"), "--list-devices"], capture_output=True, text=True, timeout=60)
    return "vulkan" in devices.stdout + devices.stderr


@pytest.fixture(params=["qwen3", "hybrid"], scope="module")
def server(request):
    if not has_vulkan() and not os.environ.get("RQVK_VK_REQUIRED"):
        pytest.skip("there is no Vulkan driver on this machine")
    server = Server(program("RQVK_SERVE"), "--builtin", request.param, "--backend", "vulkan", "-np", "1", "-c", "512",
                    "-b", "64", "-t", "1", "-ctk", "iso3", "-ctv", "iso3", wait=False)
    assert server.listening.wait(300), server.log()  # a busy machine compiles kernels for minutes
    server.wait_ready()
    yield server
    server.stop()


def stream(server, messages, n=24):
    answer = server.client().chat.completions.create(model="any", messages=messages, stream=True, temperature=0,
                                                     max_tokens=n, stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in answer:
        usage = chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
    return text, usage


def test_a_conversation(server):
    messages = [{"role": "user", "content": FACTS + QUESTION}]
    text, usage = stream(server, messages)
    assert "48213" in text
    assert usage.prompt_tokens_details.cached_tokens == 0
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": QUESTION}]
    again, usage = stream(server, messages)
    assert "48213" in again
    known = usage.prompt_tokens_details.cached_tokens
    assert known > 20, "the first turn was read again"
    once_more, usage = stream(server, messages)  # the same bits, however much is known
    assert once_more == again and usage.prompt_tokens_details.cached_tokens >= known
    assert "vulkan" in server.log()


@pytest.mark.parametrize("server", ["hybrid"], indirect=True)
def test_eight_turns(server):
    """Each turn goes on where the last one ended, the hybrid's state included, and the first is remembered."""
    messages, before, found = [], 0, 0
    for turn in range(8):
        messages.append({"role": "user", "content": OTHER_FACTS + OTHER_QUESTION if turn == 0 else OTHER_QUESTION})
        text, usage = stream(server, messages, 16)
        known = usage.prompt_tokens_details.cached_tokens
        if turn:
            assert known >= before - 1, f"turn {turn}: {known} of {before}"
        found += "90125" in text
        before = usage.total_tokens
        messages.append({"role": "assistant", "content": text})
    assert before > 250 and found >= 7


def refused(*args, env=None):
    run = subprocess.run([program("RQVK_SERVE"), "--port", "0", *args], capture_output=True, text=True, timeout=60,
                         env={**os.environ, **(env or {})})
    assert run.returncode != 0
    lines = [line for line in run.stderr.splitlines() if line.startswith("rqvk-serve:")]
    assert len(lines) == 1 and lines[0].count(". ") == 0, run.stderr  # one sentence
    return lines[0]


def test_one_sentence_each():
    nothing = {"VK_ICD_FILENAMES": "/nonexistent.json", "VK_DRIVER_FILES": "/nonexistent.json"}
    assert "driver" in refused("--backend", "vulkan", env=nothing)
    if not has_vulkan():
        return
    assert "nosuchcard" in refused("--backend", "vulkan", "--device", "nosuchcard")
    assert "KiB" in (text := refused("--backend", "vulkan", "-ngl", "all", "--device-memory", "1M")) or "MiB" in text
    assert "telepathy" in refused("--backend", "vulkan", "--vk-disable", "telepathy")
