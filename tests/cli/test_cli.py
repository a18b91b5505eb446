"""rqvk-cli as a person and as a script meet it. RQVK_CLI names the program, RQVK_MODEL a small random model."""
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time

import pytest

CLI = os.environ["RQVK_CLI"]
MODEL = os.environ["RQVK_MODEL"]
ENV = {k: v for k, v in os.environ.items() if not re.match(r"(RQVK|LLAMA)_ARG", k)} | {"TERM": "xterm", "RQVK_ARG_THREADS": "1"}


def run(*args, model=MODEL, stdin="", **options):
    return subprocess.run([CLI, "-m", str(model), *args], input=stdin.encode(), capture_output=True, timeout=120, env=ENV,
                          **options)


def test_one_shot():
    first, second = (run("-p", "hello", "-n", "20", "-s", "1") for _ in range(2))
    assert first.returncode == 0 and first.stdout and first.stdout == second.stdout and first.stderr == b""
    assert first.stdout.endswith(b"\n")
    assert run("-p", "hello", "-n", "20", "-s", "2").stdout != first.stdout
    assert run("-n", "20", "-s", "1", stdin="hello").stdout == first.stdout  # the same from standard input


def test_prompt_file(tmp_path):
    file = tmp_path / "prompt"
    file.write_text("hello")
    assert run("-f", str(file), "-n", "9", "--temp", "0").stdout == run("-p", "hello", "-n", "9", "--temp", "0").stdout


def test_raw_and_system():
    chat = run("-p", "hello", "-n", "20", "--temp", "0").stdout
    assert run("-p", "hello", "-n", "20", "--temp", "0", "--no-chat").stdout != chat
    assert run("-p", "hello", "-n", "20", "--temp", "0", "--system", "Speak like a sailor.").stdout != chat


def test_errors(tmp_path):
    data = open(MODEL, "rb").read()
    cases = {"truncated": data[:len(data) // 2], "picture": b"\x89PNG\r\n\x1a\n" + bytes(500), "empty": b""}
    (tmp_path / "directory").mkdir()
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    for name in [*cases, "directory", "missing"]:
        r = run("-p", "x", model=tmp_path / name)
        assert r.returncode == 1 and r.stderr.count(b"\n") == 1 and name.encode() in r.stderr, (name, r.stderr)
    for args, code in [(["-p", "x", "--nonsense"], 2), (["-p", "x", "-n", "0"], 2), (["-p", "x", "-n", "y"], 2), ([], 1),
                       (["-f", "/no/such/file"], 1), (["-p", "word " * 9000, "-c", "128"], 1),
                       (["-p", "x", "--backend", "abacus"], 1), (["-p", "x", "-ctk", "q9"], 1)]:
        r = run(*args)
        assert r.returncode == code and r.stderr.count(b"\n") == 1, (args, r.returncode, r.stderr)


def test_builtin_errors(tmp_path):
    """What stands in for -m: the built-in model's file is looked for beside the program, wherever that lies."""
    moved = tmp_path / "bin" / "rqvk-cli"
    moved.parent.mkdir()
    shutil.copy(CLI, moved)
    for program, args, code, words in [
            (moved, [], 1, [b"-m", b"share/rqvk/builtin-qwen3.gguf"]),
            (moved, ["--builtin", "hybrid"], 1, [b"-m", b"share/rqvk/builtin-qwen35.gguf"]),
            (CLI, ["--builtin", "large"], 1, [b"large", b"qwen3"]),
            (CLI, ["--builtin", "qwen3", "-m", MODEL], 1, [b"-m", b"--builtin"])]:
        r = subprocess.run([program, "-p", "x", *args], capture_output=True, timeout=20, env=ENV)
        assert r.returncode == code and r.stderr.count(b"\n") == 1, (args, r.stderr)
        assert all(w in r.stderr for w in words), (args, r.stderr)
    share = tmp_path / "share" / "rqvk"
    share.mkdir(parents=True)
    shutil.copy(MODEL, share / "builtin-qwen3.gguf")
    r = subprocess.run([moved, "-p", "hello", "-n", "9", "--temp", "0"], capture_output=True, timeout=60, env=ENV)
    assert r.returncode == 0 and r.stdout == run("-p", "hello", "-n", "9", "--temp", "0").stdout


def test_help():
    r = run("--help")
    assert r.returncode == 0 and b"usage: rqvk-cli" in r.stdout and b"default: 0.8" in r.stdout
    assert run("--list-devices").stdout.strip()


def test_plan(tmp_path):
    """Where everything would go, as a table and for scripts; nothing is run, so there is no prompt to ask for."""
    table = run("--plan")
    assert table.returncode == 0 and b"processor" in table.stdout and b"round trips" in table.stdout and table.stderr == b""
    args = ["--plan-json", "--device", "cpu", "--gpu-layers", "1", "--device-memory", "64M", "-ctk", "wht3", "-ctv", "wht3"]
    plan = json.loads(run(*args, "-c", "1024").stdout)
    assert plan["context"] == 1024 and plan["gpu_layers"] == 1 and plan["type_k"] == "wht3"
    assert plan["cache_bytes_per_token"] < plan["exact_bytes_per_token"]
    card, processor = plan["devices"]
    assert "layers" in card["runs"] and "output" in card["runs"] and "embedding" in processor["runs"]
    assert 0 < card["total_bytes"] <= card["free_bytes"] == 64 << 20
    listed = {}
    for line in plan["memory"]:
        listed[line["device"]] = listed.get(line["device"], 0) + line["bytes"]
    assert listed["cpu0"] == card["total_bytes"]
    assert listed["processor"] + listed["heap"] == processor["total_bytes"]
    for args, code in [(["--gpu-layers", "3"], 1), (["--device", "cpu", "--device-memory", "1K", "--gpu-layers", "all"], 1),
                       (["--cpu-experts", "--device", "cpu"], 1), (["--device-memory", "much"], 2), (["--fit", "maybe"], 2)]:
        r = run("--plan", *args)
        assert r.returncode == code and r.stderr.count(b"\n") == 1 and r.stdout == b"", (args, r.stderr)


def test_layers_on_other_devices_change_nothing():
    one = run("-p", "hello", "-n", "20", "--temp", "0").stdout
    assert run("-p", "hello", "-n", "20", "--temp", "0", "--device", "cpu,cpu", "--gpu-layers", "1").stdout == one


def test_scripted_conversation():
    r = run("-i", "-n", "10", "-s", "1", stdin="hi\n/regen\n/system be brief\nhi\n/stats\n/nonsense\n/exit\nnot read\n")
    assert r.returncode == 0
    err = r.stderr.decode()
    assert "system message set" in err and "context:" in err and "no such command" in err
    lines = run("-i", "-n", "10", "-s", "1", "--temp", "0", stdin="hi\n/regen\n").stdout
    assert lines and lines[:len(lines) // 2] == lines[len(lines) // 2:]


def test_broken_pipe():
    p = subprocess.Popen([CLI, "-m", MODEL, "-p", "x", "--ignore-eos", "-c", "4096"], stdout=subprocess.PIPE, env=ENV)
    p.stdout.read(10)
    p.stdout.close()
    p.wait(60)


class Terminal:
    """rqvk-cli with a terminal of its own."""

    def __init__(self, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(CLI, [CLI, "-m", MODEL, *args], ENV)
        self.seen = b""
        self.at = 0

    def expect(self, pattern, seconds=60):
        """Reads until the pattern appears after what was matched before; returns the match."""
        end = time.time() + seconds
        while True:
            found = re.compile(pattern, re.S).search(self.seen, self.at)
            if found:
                self.at = found.end()
                return found
            left = end - time.time()
            assert left > 0 and select.select([self.fd], [], [], left)[0], (pattern, self.seen[-2000:])
            try:
                piece = os.read(self.fd, 65536)
            except OSError:
                piece = b""
            assert piece, (pattern, self.seen[-2000:])
            self.seen += piece

    def type(self, text):
        os.write(self.fd, text)

    def leave(self):
        """Ctrl-D, again when nothing happens: what is typed while the line editor switches the terminal to its own
        mode is thrown away by the terminal."""
        for _ in range(15):
            self.type(b"\x04")
            try:
                return self.wait(4, kill=False)
            except TimeoutError:
                pass
        return self.wait(1)

    def wait(self, seconds=60, kill=True):
        end = time.time() + seconds
        while time.time() < end:
            if select.select([self.fd], [], [], 0.02)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        if not kill:
            raise TimeoutError
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(self.seen[-2000:])


def test_conversation():
    t = Terminal("-n", "12", "-s", "1")
    t.expect(rb"/help lists the commands.*> ")
    t.type("Grüße, 日本!\n".encode())
    t.expect(rb"answer 12 tokens.*> ")
    t.type(b"/stats\n")
    t.expect(rb"context: \d+ of .*> ")
    t.type(b"and now?\n")
    reused = t.expect(rb"prompt \d+ tokens \((\d+) reused\).*> ")
    assert int(reused.group(1)) > 20
    t.type(b"\x1b[A\x1b[A\n")  # two lines up: /stats again
    t.expect(rb"context: \d+ of .*> ")
    t.type(b"one\\\ntwo\n")
    t.expect(rb"answer 12 tokens.*> ")
    t.type(b"/clear\n")
    t.expect(rb"new conversation.*> ")
    assert t.leave() == 0


def test_interrupt_stops_the_answer():
    t = Terminal("-c", "4096", "--ignore-eos")
    t.expect(rb"> ")
    t.type(b"go\n")
    t.expect(rb"go\r\n.{40}")
    t.type(b"\x03")
    t.expect(rb"\(stopped\).*answer \d+ tokens.*> ", 30)
    t.type(b"/stats\n")
    t.expect(rb"context: .*> ")
    t.type(b"half a line\x03")
    t.expect(rb"Ctrl-C again leaves.*> ")
    t.type(b"/help\n")
    t.expect(rb"/regen.*> ")
    t.type(b"\x03")
    t.expect(rb"Ctrl-C again leaves.*> ")
    t.type(b"\x03")
    assert t.wait() == 0


def test_interrupt_of_one_shot():
    t = Terminal("-c", "4096", "--ignore-eos", "-p", "go")
    t.expect(rb".{40}")
    t.type(b"\x03")
    assert t.wait() == 130
    assert b"answer" in t.seen


def test_no_escapes_reach_the_terminal():
    """Random weights write random bytes: among a few hundred tokens there are control characters."""
    t = Terminal("-c", "384", "--ignore-eos", "--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-s", "3",
                 "-p", "x")
    assert t.wait(120) == 0
    assert len(t.seen) > 700
    # Standard error is the same terminal: its progress bar may clear its own line.
    text = t.seen.replace(b"\x1b[K", b"")
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    assert not re.search(rb"\xc2[\x80-\x9f]", text)
    assert not re.search(rb"\r[^\n]", text.replace(b"\r\r\n", b"\r\n"))
    assert "\u2400".encode()[:2] in text  # some were there, shown as pictures
    raw = run("-c", "384", "--ignore-eos", "--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-s", "3",
              "-p", "x").stdout
    assert re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]", raw)  # a file receives what the model wrote
