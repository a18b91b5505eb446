"""Clients that vanish, dawdle or crowd; keys, hosts and origins; starting and stopping; failing engines."""
import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import time

import openai
import pytest
import requests

from conftest import Server, program


def send(server, body, path="/v1/chat/completions", headers=""):
    """A raw request on a socket of its own."""
    text = json.dumps(body).encode()
    s = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    s.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    return s


def chat(text, **options):
    return {"messages": [{"role": "user", "content": text}], **options}


def quiet(server):
    """Waits until nothing runs, then makes sure that it stays so."""
    server.until(lambda m: m["rqvk_requests_active"] == 0 and m["rqvk_sessions_running"] == 0)
    before = server.metrics()["rqvk_generated_tokens_total"]
    time.sleep(0.1)
    assert server.metrics()["rqvk_generated_tokens_total"] == before


# ---- clients that go away ----------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [True, False])
def test_vanishes_while_answered(fake, stream, n):
    before = fake.metrics()
    s = send(fake, chat("x @tokens=100000 @delay=5", stream=stream, n=n, ignore_eos=True))
    fake.until(lambda m: m["rqvk_generated_tokens_total"] > before["rqvk_generated_tokens_total"] + 5)
    s.close()
    start = time.time()
    now = fake.until(lambda m: m["rqvk_sessions_running"] == 0)
    assert time.time() - start < 3
    assert now["rqvk_requests_vanished_total"] == before["rqvk_requests_vanished_total"] + 1
    quiet(fake)


@pytest.mark.parametrize("stream", [True, False])
def test_vanishes_during_the_prompt(fake, stream):
    s = send(fake, chat("x @prompt=20000", stream=stream))
    fake.until(lambda m: m["rqvk_sessions_running"] == 1)
    s.close()
    start = time.time()
    fake.until(lambda m: m["rqvk_sessions_running"] == 0)
    assert time.time() - start < 3
    quiet(fake)


@pytest.mark.parametrize("stream", [True, False])
def test_vanishes_while_waiting(fake, stream):
    busy = [send(fake, chat("x @tokens=100000 @delay=5", stream=True)) for _ in range(2)]
    fake.until(lambda m: m["rqvk_sessions_running"] == 2)
    s = send(fake, chat("x", stream=stream))
    fake.until(lambda m: m["rqvk_requests_waiting"] == 1)
    s.close()
    fake.until(lambda m: m["rqvk_requests_waiting"] == 0)
    for b in busy:
        b.close()
    quiet(fake)


def test_reset(fake):
    import struct
    s = send(fake, chat("x @tokens=100000 @delay=5", stream=True))
    fake.until(lambda m: m["rqvk_sessions_running"] == 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
    quiet(fake)


def test_openai_client_closes_its_stream(fake):
    stream = fake.client().chat.completions.create(model="m", messages=chat("x @tokens=100000 @delay=5")["messages"],
                                                   stream=True)
    next(iter(stream))
    stream.close()
    quiet(fake)


def test_client_that_does_not_read(start):
    server = start("--timeout", "2", "-np", "1", "-c", "20000")
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect(("127.0.0.1", server.port))
    body = json.dumps(chat("x @tokens=100000 @delay=0", stream=True, logprobs=True, top_logprobs=20)).encode()
    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
    s.sendall(body)
    # The engine may run ahead, but the server sends nothing more and lets go after its time-out.
    server.until(lambda m: m["rqvk_requests_vanished_total"] == 1, 40)
    assert server.chat("@say=next").json()["choices"][0]["message"]["content"] == "next"
    s.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nA: b\r\n",
                                  b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"])
def test_silent_client(slow_server, sent):
    with socket.create_connection(("127.0.0.1", slow_server.port), timeout=9) as s:
        s.sendall(sent)
        start = time.time()
        while s.recv(4096):
            pass
        assert time.time() - start < 8


@pytest.mark.parametrize("head", [b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: ",
                                  b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n"])
def test_dripping_client(slow_server, head):
    """A byte now and then keeps nobody alive: the whole request has a time limit."""
    with socket.create_connection(("127.0.0.1", slow_server.port), timeout=9) as s:
        s.sendall(head)
        start = time.time()
        s.settimeout(0.2)
        while time.time() - start < 9:
            try:
                s.sendall(b"a")
                if s.recv(4096) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.time() - start < 8


@pytest.fixture(scope="module")
def slow_server():
    server = Server(program("RQVK_SERVE_FAKE"), "-m", "fake.gguf", "--timeout", "1", "--ping", "1")
    yield server
    server.stop()


def test_long_work_is_no_timeout(slow_server):
    for stream in False, True:
        r = slow_server.chat("x @prompt=2100 @say=late", stream=stream)
        assert r.status_code == 200 and "e" in r.text
        if stream:
            assert r.text.startswith(": still at work\n\n") and "[DONE]" in r.text
        else:
            assert r.json()["choices"][0]["message"]["content"] == "late"


def test_too_many_connections(start):
    server = start("--max-connections", "4", "--timeout", "2")
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(20)]
    time.sleep(0.2)
    # They are dropped in time, and the server serves again.
    end = time.time() + 15
    while True:
        try:
            assert requests.get(server.url + "/health", timeout=3).status_code == 200
            break
        except requests.RequestException:
            assert time.time() < end
    for s in idle:
        s.close()


# ---- many at once --------------------------------------------------------------------------------------------

def test_twenty_clients_share_two_sessions(fake):
    def ask(i):
        options = {"stream": i % 2 == 0, "seed": i}
        r = fake.client().chat.completions.create(model="m", messages=chat(f"number {i} @say=answer_{i}")["messages"],
                                                  **options)
        if i % 2:
            return r.choices[0].message.content
        return "".join(c.choices[0].delta.content or "" for c in r)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == [f"answer {i}" for i in range(20)]
    quiet(fake)


def test_sessions_work_side_by_side(fake):
    start = time.time()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: fake.chat(f"x{i} @tokens=50 @delay=30"), range(2)))
    assert time.time() - start < 2.9  # one after the other: 3


def test_same_seed_same_text_in_a_crowd(fake):
    alone = fake.chat("x", seed=7).json()["choices"][0]["message"]["content"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(lambda i: fake.chat("x", seed=7 if i % 2 else i).json(), range(16)))
    assert all(r["choices"][0]["message"]["content"] == alone for r in crowd[1::2])


def test_queue_limit(start):
    server = start("-np", "1", "--max-queue", "2")
    busy = [send(server, chat("x @tokens=100000 @delay=5", stream=True)) for _ in range(3)]
    server.until(lambda m: m["rqvk_requests_waiting"] == 2)
    r = server.chat("x")
    assert r.status_code == 503 and int(r.headers["Retry-After"]) >= 1
    with pytest.raises(openai.InternalServerError):
        server.client().chat.completions.create(model="m", messages=chat("x")["messages"], stream=True)
    assert server.metrics()["rqvk_requests_refused_total"] == 2
    # The client's own retries get through once there is room.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        patient = openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=5)
        answer = pool.submit(lambda: patient.chat.completions.create(model="m", messages=chat("@say=ok")["messages"]))
        time.sleep(0.2)
        for b in busy:
            b.close()
        assert answer.result(40).choices[0].message.content == "ok"


def test_first_come_first_served(start):
    server = start("-np", "1")
    busy = send(server, chat("x @tokens=100000 @delay=5", stream=True))
    server.until(lambda m: m["rqvk_sessions_running"] == 1)
    order = []
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        jobs = []
        for i in range(4):
            jobs.append(pool.submit(lambda i=i: (server.chat(f"{i} @tokens=30 @delay=10"), order.append(i))))
            server.until(lambda m: m["rqvk_requests_waiting"] == i + 1)
        busy.close()
        for job in jobs:
            job.result()
    assert order == [0, 1, 2, 3]


def test_request_deadline(start):
    server = start("--request-timeout", "1", "-np", "1")
    r = server.chat("x @tokens=100000 @delay=5", ignore_eos=True)
    assert r.status_code == 503 and "1 seconds" in r.json()["error"]["message"]
    r = server.chat("x @tokens=100000 @delay=5", stream=True)
    assert r.status_code == 200 and '"error"' in r.text and "[DONE]" not in r.text
    with pytest.raises(openai.APIError):
        for _ in server.client().chat.completions.create(model="m", stream=True,
                                                         messages=chat("@tokens=100000 @delay=5")["messages"]):
            pass
    assert server.metrics()["rqvk_requests_timed_out_total"] == 3


# ---- who may ask ---------------------------------------------------------------------------------------------

def test_api_key(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("third\r\n\nfourth\n")
    server = start("--api-key", "first,second", "--api-key-file", str(keys))
    for path in "/v1/models", "/metrics", "/v1/models/fake", "/nothing":
        r = requests.get(server.url + path, timeout=5)
        assert r.status_code == 401 and r.headers["WWW-Authenticate"] == "Bearer", path
        assert "first" not in r.text
    for path in "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/apply-template":
        assert server.post(path, {"prompt": "x"}).status_code == 401
    assert requests.get(server.url + "/health", timeout=5).status_code == 200
    for key in "first", "second", "third", "fourth":
        for headers in {"Authorization": "Bearer " + key}, {"Authorization": "bearer  " + key}, {"X-Api-Key": key}:
            assert requests.get(server.url + "/v1/models", headers=headers, timeout=5).status_code == 200
        assert server.client(key).models.list().data
    for key in "", "firs", "firstt", "first,second", "FIRST", "second ", "a" * 5000:
        for headers in {"Authorization": "Bearer " + key}, {"X-Api-Key": key}, {"Authorization": "Basic " + key}:
            if headers != {"X-Api-Key": "second "} and headers != {"Authorization": "Bearer second "}:
                assert requests.get(server.url + "/v1/models", headers=headers, timeout=5).status_code == 401, key
    with pytest.raises(openai.AuthenticationError) as caught:
        server.client("wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    assert not re.search("first|second|third|fourth", server.log())


def test_key_from_environment(start):
    server = start(env={"RQVK_API_KEY": "secret"})
    assert requests.get(server.url + "/v1/models", timeout=5).status_code == 401
    assert server.client("secret").models.list().data


def run(*args, **env):
    """Runs the server to its end."""
    clean = {k: v for k, v in os.environ.items() if not re.match(r"(RQVK|LLAMA)_(ARG|API)", k)}
    return subprocess.run([program("RQVK_SERVE_FAKE"), *args], capture_output=True, text=True, timeout=90,
                          env={**clean, **env})


def test_other_addresses_need_a_key(start):
    r = run("-m", "x", "--host", "0.0.0.0", "--port", "0")
    assert r.returncode == 2 and "--api-key" in r.stderr and r.stderr.count("\n") == 1
    assert start("--host", "0.0.0.0", "--api-key", "k").port
    assert start("--host", "0.0.0.0", "--no-auth").port


def test_host_names(start):
    server = start("--allowed-hosts", "llm.lan,other.lan")
    def ask(host):
        return requests.get(server.url + "/health", headers={"Host": host}, timeout=5).status_code
    for host in "localhost", "localhost:1234", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:80", "llm.lan:9", "OTHER.lan":
        assert ask(host) == 200, host
    for host in "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.evil.example", "lan", "", "[::2]":
        assert ask(host) == 403, host


def test_web_pages_of_strangers(start):
    server = start()
    def ask(origin, method="POST", **headers):
        return requests.request(method, server.url + "/v1/chat/completions", timeout=5, json=chat("x"),
                                headers={"Origin": origin, **headers})
    assert ask("https://evil.example").status_code == 403
    assert ask("null").status_code == 403
    assert ask(server.url).status_code == 200
    r = ask("https://evil.example", "OPTIONS", **{"Access-Control-Request-Method": "POST"})
    assert r.status_code == 403 and "Access-Control-Allow-Origin" not in r.headers


def test_cors(start):
    server = start("--cors-origin", "https://app.example,http://localhost:3000", "--api-key", "k")
    for origin, allowed in [("https://app.example", True), ("http://localhost:3000", True),
                            ("https://evil.example", False), ("https://app.example.evil", False)]:
        r = requests.options(server.url + "/v1/chat/completions", timeout=5, headers={
            "Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-stainless-os"})
        assert r.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        assert r.status_code == (204 if allowed else 403)
        if allowed:
            assert r.headers["Access-Control-Allow-Headers"] == "x-stainless-os" and r.headers["Vary"] == "Origin"
        r = requests.get(server.url + "/v1/models", headers={"Origin": origin, "X-Api-Key": "k"}, timeout=5)
        assert r.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)


# ---- engines that fail ---------------------------------------------------------------------------------------

def test_request_that_fails(fake):
    r = fake.chat("x @fail=3")
    assert r.status_code == 500 and r.json()["error"]["type"] == "server_error"
    assert "after 3 tokens" in r.json()["error"]["message"]
    with pytest.raises(openai.APIError) as caught:
        for _ in fake.client().chat.completions.create(model="m", messages=chat("x @fail=3")["messages"], stream=True):
            pass
    assert "after 3 tokens" in str(caught.value)
    for stream in False, True:
        assert fake.chat("x @submit=1", stream=stream).status_code == 503
    assert fake.chat("@say=alive").json()["choices"][0]["message"]["content"] == "alive"


def test_engine_that_fails(start):
    server = start()
    assert server.chat("x @device=2").status_code == 503
    for r in requests.get(server.url + "/health", timeout=5), server.chat("x"), server.chat("x", stream=True):
        assert r.status_code == 503 and "unplugged" in r.json()["error"]["message"]
    assert server.metrics()["rqvk_failed"] == 1
    assert requests.get(server.url + "/v1/models", timeout=5).status_code == 200


# ---- starting and stopping -----------------------------------------------------------------------------------

def listening_port(server):
    """A server listens before the model is there, but says on which port only when it is ready: look it up."""
    proc = f"/proc/{server.process.pid}/fd"
    end = time.time() + 20
    while time.time() < end:
        inodes = {os.readlink(f"{proc}/{fd}") for fd in os.listdir(proc) if os.path.lexists(f"{proc}/{fd}")}
        for line in open("/proc/net/tcp"):
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                return int(fields[1].split(":")[1], 16)
        time.sleep(0.01)
    raise AssertionError("the server does not listen")


def test_loading(start):
    server = start(env={"FAKE_LOAD_MS": "1500"}, wait=False)
    port = listening_port(server)
    for path in "/health", "/v1/models":
        r = requests.get(f"http://127.0.0.1:{port}{path}", timeout=5)
        assert r.status_code == 503 and "loaded" in r.json()["error"]["message"] and r.headers["Retry-After"]
    assert server.listening.wait(10) and server.port == port
    server.wait_ready()
    assert server.chat("x").status_code == 200


def test_signal_while_loading(start):
    server = start(env={"FAKE_LOAD_MS": "30000"}, wait=False)
    port = listening_port(server)
    assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 503
    began = time.time()
    server.signal(signal.SIGINT)
    assert server.wait() == 0 and time.time() - began < 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_idle_shutdown(start, number):
    server = start()
    idle = socket.create_connection(("127.0.0.1", server.port))
    server.chat("x")
    began = time.time()
    server.signal(number)
    assert server.wait() == 0 and time.time() - began < 5
    idle.close()


def test_shutdown_lets_streams_end(start):
    server = start()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(server.chat, "x @tokens=100 @delay=10", stream=s) for s in (True, False)]
        server.until(lambda m: m["rqvk_sessions_running"] == 2)
        kept = requests.Session()
        assert kept.get(server.url + "/health", timeout=5).status_code == 200
        server.signal(signal.SIGTERM)
        time.sleep(0.1)
        with pytest.raises(requests.ConnectionError):  # nobody new
            requests.get(server.url + "/health", timeout=5)
        r = kept.post(server.url + "/v1/chat/completions", json=chat("x"), timeout=5)
        assert r.status_code == 503 and r.headers["Connection"] == "close"
        assert "[DONE]" in jobs[0].result().text
        assert jobs[1].result().json()["usage"]["completion_tokens"] == 100
    assert server.wait() == 0


def test_shutdown_ends_streams_in_time(start):
    server = start("--stop-timeout", "1", "-np", "1")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(server.chat, "x @tokens=100000 @delay=10", stream=s, ignore_eos=True)
                for s in (True, False, True)]
        server.until(lambda m: m["rqvk_requests_active"] == 3)
        began = time.time()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert 0.8 < time.time() - began < 6
        answers = [job.result() for job in jobs]
    for r in answers:
        assert "shutting down" in r.text


def test_second_signal(start):
    server = start("--stop-timeout", "60")
    s = send(server, chat("x @tokens=100000 @delay=10", stream=True))
    server.until(lambda m: m["rqvk_sessions_running"] == 1)
    server.signal(signal.SIGINT)
    time.sleep(0.2)
    assert server.process.poll() is None
    server.signal(signal.SIGINT)
    assert server.wait(30) == 0
    s.close()


def test_kill_leaves_nothing(tmp_path):
    """No child processes, no files: the port is free again at once."""
    server = Server(program("RQVK_SERVE_FAKE"), "-m", "fake.gguf")
    s = send(server, chat("x @tokens=100000 @delay=10", stream=True))
    server.until(lambda m: m["rqvk_sessions_running"] == 1)
    children = subprocess.run(["ps", "--ppid", str(server.process.pid), "-o", "pid="], capture_output=True, text=True)
    assert children.stdout.strip() == ""
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    again = Server(program("RQVK_SERVE_FAKE"), "-m", "fake.gguf", "--port", str(server.port))
    assert again.port == server.port
    s.close()
    again.stop()
    server.process.stderr.close()


# ---- flags ---------------------------------------------------------------------------------------------------

def test_start_errors(start):
    r = run()
    assert r.returncode == 1 and "-m" in r.stderr and r.stderr.count("\n") == 1
    r = run("-m", "missing.gguf", "--port", "0")
    assert r.returncode == 1 and "missing.gguf" in r.stderr
    server = start()
    r = run("-m", "x", "--port", str(server.port))
    assert r.returncode == 1 and str(server.port) in r.stderr and r.stderr.count("\n") == 1
    r = run("-m", "x", "--host", "no.such.host.invalid", "--no-auth")
    assert r.returncode == 1 and "no.such.host.invalid" in r.stderr
    for bad in (["--port", "x"], ["--port", "70000"], ["--port"], ["--nonsense"], ["--parallel", "0"], ["extra"],
                ["--temp", "nan"], ["-c", "-1"], ["-c", "5x"], ["--predict", "0"], ["--log-requests=maybe"],
                ["--api-key", ""], ["--api-key-file", "/no/such/file"], ["--timeout", "0"]):
        r = run("-m", "x", "--port", "0", *bad)
        assert r.returncode == 2 and r.stderr.count("\n") == 1, (bad, r.stderr)


def test_help_and_version():
    r = run("--help", "--port", "nonsense")
    assert r.returncode == 0 and "usage: rqvk-serve" in r.stdout and "default: 8080" in r.stdout
    assert all(len(line) <= 110 for line in r.stdout.splitlines())
    for flag in "-c, --ctx-size", "-np, --parallel", "-ctk, --cache-type-k", "--api-key", "-a, --alias":
        assert flag in r.stdout
    assert re.fullmatch(r"rqvk-serve \d+\.\d+\.\d+\n", run("--version").stdout)
    assert run("--list-devices").stdout == "fake: no device at all\n"


def test_environment(start):
    server = start(env={"RQVK_ARG_ALIAS": "ours", "LLAMA_ARG_ALIAS": "theirs", "LLAMA_ARG_N_PARALLEL": "3",
                        "LLAMA_ARG_CTX_SIZE": "77"})
    assert server.client().models.list().data[0].id == "ours"
    assert server.metrics()["rqvk_sessions"] == 3
    assert server.chat("x" * 100).json()["error"]["n_ctx"] == 77
    assert run("-m", "x", RQVK_ARG_PORT="nonsense").returncode == 2
    server = start("--alias=flag", env={"RQVK_ARG_ALIAS": "ours"})
    assert server.client().models.list().data[0].id == "flag"


def test_log_lines(start):
    server = start()
    server.chat("secret words")
    server.until(lambda m: m["rqvk_requests_active"] == 0)
    line = [x for x in server.lines if "/v1/chat/completions" in x]
    assert len(line) == 1 and re.search(r"req_\w+ POST /v1/chat/completions 200, \d+ \+ 12 tokens, \d", line[0])
    assert "secret" not in server.log()
    assert any("fake engine" in x for x in server.lines)
    quiet_server = start("--no-log-requests")
    quiet_server.chat("x")
    assert "POST" not in quiet_server.log()
