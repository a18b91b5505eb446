"""Starts servers for the tests.

RQVK_SERVE_FAKE  the server linked to an engine that only pretends (fake_engine.c); its prompts steer it
RQVK_SERVE       the real server, and RQVK_MODEL a small model for it; tests of the real server need both
"""
import os
import re
import signal
import subprocess
import threading
import time

import openai
import pytest
import requests


class Server:
    def __init__(self, program, *args, env=None, wait=True):
        self.lines = []
        clean = {k: v for k, v in os.environ.items() if not re.match(r"(RQVK|LLAMA)_(ARG|API)", k)}
        self.process = subprocess.Popen([program, "--port", "0", *args], stderr=subprocess.PIPE,
                                        env={**clean, **(env or {})})
        self.port = None
        self.listening = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if wait:
            assert self.listening.wait(60), "the server did not start: " + "\n".join(self.lines)
            self.wait_ready()

    def _read(self):
        for raw in self.process.stderr:
            line = raw.decode(errors="replace").rstrip("\n")
            self.lines.append(line)
            found = re.search(r"listening on http://\S+:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                self.listening.set()
        self.listening.set()

    def wait_ready(self):
        assert self.port, "the server did not start: " + "\n".join(self.lines)
        until = time.time() + 90
        while requests.get(self.url + "/health", timeout=10).status_code != 200:
            assert time.time() < until
            time.sleep(0.02)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, key="none", **options):
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, timeout=120, max_retries=0, **options)

    def post(self, path, body=None, **options):
        return requests.post(self.url + path, json=body, timeout=120, **options)

    def chat(self, text, **options):
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **options})

    def metrics(self, headers=None):
        text = requests.get(self.url + "/metrics", headers=headers, timeout=10).text
        return {name: float(value) for name, value in re.findall(r"^(rqvk_\S+) (\S+)$", text, re.M)}

    def until(self, condition, seconds=20):
        """Waits until condition(metrics) holds and returns the metrics."""
        end = time.time() + seconds
        while True:
            now = self.metrics()
            if condition(now):
                return now
            assert time.time() < end, now
            time.sleep(0.02)

    def log(self):
        return "\n".join(self.lines)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=60):
        code = self.process.wait(seconds)
        self.reader.join(5)
        return code

    def stop(self):
        """Ends the server; it must leave cleanly (a sanitizer's complaint is an exit code)."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                code = self.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
            assert code == 0, self.log()
        self.process.stderr.close()


def program(name):
    path = os.environ.get(name)
    assert path and os.path.exists(path), f"{name} names no program: {path}"
    return path


@pytest.fixture(scope="module")
def fake():
    """A server with two sessions, shared by the tests of a module."""
    server = Server(program("RQVK_SERVE_FAKE"), "-m", "fake.gguf", "-np", "2", "--ping", "1")
    yield server
    server.stop()


@pytest.fixture
def start():
    """start(flags...) starts a server of its own for a test."""
    servers = []

    def run(*args, **options):
        servers.append(Server(program("RQVK_SERVE_FAKE"), "-m", "fake.gguf", *args, **options))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def real():
    """The real server with a small random model."""
    model = os.environ.get("RQVK_MODEL")
    assert model and os.path.exists(model), f"RQVK_MODEL names no file: {model}"
    server = Server(program("RQVK_SERVE"), "-m", model, "-np", "3", "-c", "512", "-t", "2")
    yield server
    server.stop()
