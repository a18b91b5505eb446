"""Long conversations over HTTP with the built-in hybrid, whose layers' state cannot be cut back: every turn goes on from
where the last one ended, also when another conversation was read meanwhile, and what was told first is found at the end."""
import subprocess

import pytest

from conftest import Server, program

MARLA, OSKAR = "What is the gate code of Marla?", "What is the gate code of Oskar?"
TURNS = [
    "The gate code of Marla is 48213. She lives by the river. " + MARLA, MARLA,
    "The gate code of Oskar is 90125. He lives by the mill. " + OSKAR, MARLA, OSKAR, MARLA,
    "Tell me a story about a dog.", MARLA, OSKAR, MARLA,
]
OTHER = ["Remember that the password of Tromia is 90576.", "What is the capital of Italy?", "Who are you?",
         "What is the password of Tromia?"]


class Chat:
    """A conversation; `ends` is where its last question ended, `all` where its last answer did."""

    def __init__(self, server):
        self.server, self.messages, self.ends, self.all = server, [], 0, 0

    def say(self, text, stream=False):
        self.messages.append({"role": "user", "content": text})
        before = self.server.metrics()["rqvk_prompt_tokens_total"]
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        r = self.server.client().chat.completions.create(model="any", messages=self.messages, temperature=0, max_tokens=32,
                                                         **options)
        if stream:
            chunks = list(r)
            answer, last = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks[-1]
        else:
            answer, last = r.choices[0].message.content, r
        usage, self.note = last.usage, last.timings["cache_note"]
        self.known = usage.prompt_tokens_details.cached_tokens
        evaluated = self.server.metrics()["rqvk_prompt_tokens_total"] - before
        assert evaluated == usage.prompt_tokens - self.known, "what is said to be reused was read again"
        assert self.known >= self.ends, self.note
        self.went_on = self.known >= self.all - 1 > 0  # the last token of an answer is not read before the next turn
        self.ends, self.all = usage.prompt_tokens - 4, usage.total_tokens  # the opened answer is behind the last question
        self.messages.append({"role": "assistant", "content": answer})
        return answer


@pytest.fixture
def thinking(tmp_path):
    """A small random hybrid whose file has the template of a model that thinks: its prompts end inside of thoughts. The
    mark by which rqvk knows such a template takes the place of as many bytes of the one rqvk-synth writes."""
    path, mark = tmp_path / "thinks.gguf", b"{{- '<think>\\n' }}"
    subprocess.run([program("RQVK_SYNTH"), path, "--preset", "tiny-qwen35"], check=True, capture_output=True)
    data = path.read_bytes()
    old = b"{%- if add_generation_prompt %}"
    assert data.count(old) == 1 and len(old) >= len(mark)
    path.write_bytes(data.replace(old, mark.ljust(len(old))))
    server = Server(program("RQVK_SERVE"), "-m", str(path), "--backend", "cpu", "-np", "1", "-t", "2", "-c", "1024")
    yield server
    server.stop()


@pytest.fixture
def serve():
    servers = []

    def start(*args):
        servers.append(Server(program("RQVK_SERVE"), "--builtin", "hybrid", "--backend", "cpu", "-np", "1", "-t", "2",
                              "-c", "1024", *args))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_ten_turns(serve):
    server = serve()
    chat = Chat(server)
    for i, text in enumerate(TURNS):
        answer = chat.say(text, stream=i % 2 == 1)
        assert i == 0 or chat.went_on, f"turn {i}: {chat.known} of {chat.all}: {chat.note}"
        if text.endswith(MARLA):
            assert "48213" in answer, f"turn {i}: {answer}"
        if text.endswith(OSKAR):
            assert "90125" in answer, f"turn {i}: {answer}"
    assert chat.all > 400


def test_two_in_turns(serve):
    """One session for two conversations: each goes on from a state kept at its last question at least."""
    server = serve()
    one, two = Chat(server), Chat(server)
    for text, other in zip(TURNS, OTHER + OTHER[1:] + OTHER[1:]):
        answer, reply = one.say(text), two.say(other)
        assert not text.endswith(MARLA) or "48213" in answer
        assert not other.endswith("Tromia?") or "90576" in reply
    now = server.metrics()
    assert now["rqvk_states_kept_total"] >= 2 * len(TURNS)
    assert now["rqvk_states_resumed_total"] >= 2 * len(TURNS) - 2
    assert now["rqvk_states_bytes"] > 0


def test_states_that_had_to_go(serve):
    """Room for a few states only: an early part of a conversation is read again, and that is said."""
    server = serve("--cache-ram", "1")
    chat = Chat(server)
    for text in TURNS[:5]:
        chat.say(text)
    now = server.metrics()
    assert now["rqvk_states_dropped_total"] > 0
    assert 0 < now["rqvk_states_bytes"] <= 1 << 20
    early = {"messages": chat.messages[:2] + [{"role": "user", "content": OSKAR}], "max_tokens": 1, "temperature": 0}
    r = server.post("/v1/chat/completions", early).json()
    assert r["usage"]["prompt_tokens_details"]["cached_tokens"] < r["usage"]["prompt_tokens"] - 20
    assert "state was kept at" in r["timings"]["cache_note"]


def test_a_model_that_thinks(thinking):
    """Its thoughts are set apart, and a conversation goes on from the last question, because the template leaves them out."""
    assert "qwen35 chat format" in thinking.log()
    question = [{"role": "user", "content": "A long question, long enough for its state to be kept. " * 3}]

    def ask(messages, **more):
        r = thinking.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 20, "ignore_eos": True,
                                                   **more}).json()
        return r["choices"][0]["message"], r["usage"], r["timings"]["cache_note"]

    raw = ask(question, reasoning_format="none")[0]
    assert raw["content"] and "reasoning_content" not in raw and "</think>" not in raw["content"]
    message, usage, _ = ask(question)
    assert message["content"] == "" and message["reasoning_content"] == raw["content"].strip("\n")
    assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["completion_tokens"] == 20
    close = thinking.post("/tokenize", {"content": "</think>"}).json()["tokens"]
    assert len(close) == 1
    closed, usage, _ = ask(question, logit_bias=[[close[0], 100]])  # nothing but the mark: the first ends the thoughts
    assert closed == {"role": "assistant", "content": "</think>" * 19, "refusal": None}
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 1
    off, usage, _ = ask(question, chat_template_kwargs={"enable_thinking": False})
    assert off["content"] and usage["completion_tokens_details"]["reasoning_tokens"] == 0

    first = ask(question, cache_prompt=False)[1]["prompt_tokens"]
    _, usage, note = ask(question + [message, {"role": "user", "content": "And then?"}])
    known = usage["prompt_tokens_details"]["cached_tokens"]
    assert first - 16 <= known < first, note  # all but what opened the answer
    assert "leaves out what earlier answers thought" in note
