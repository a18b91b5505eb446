"""Thoughts in answers, as OpenAI's own client sees them. The pretending engine writes byte by byte, so every mark arrives
in pieces; its thoughts stand between <think> and </think>."""
import json

import openai
import pytest

THOUGHT = "@say=<think>~so_be_it~</think>~~Yes,_it_is."
OPENED = "@say=so_be_it~</think>~~Yes,_it_is."


def user(text):
    return [{"role": "user", "content": text}]


def whole(server, text, **options):
    return server.client().chat.completions.create(model="m", messages=user(text), **options).choices[0]


def streamed(server, text, **options):
    """(thoughts, content, finish_reason) put together from a stream, and the chunks."""
    chunks = list(server.client().chat.completions.create(model="m", messages=user(text), stream=True, **options))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    thoughts = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    return thoughts, "".join(d.content or "" for d in deltas), chunks[-1].choices[0].finish_reason, chunks


def both(server, text, **options):
    """The same whole and streamed; returns (thoughts, content, finish_reason)."""
    choice = whole(server, text, **options)
    got = getattr(choice.message, "reasoning_content", None) or "", choice.message.content, choice.finish_reason
    assert got == streamed(server, text, **options)[:3]
    return got


@pytest.fixture(scope="module")
def opens():
    """A server whose prompts end inside of thoughts."""
    from conftest import Server, program
    server = Server(program("RQVK_SERVE_FAKE"), "-m", "opens.gguf", "-np", "2")
    yield server
    server.stop()


def test_thoughts_are_set_apart(fake, opens):
    assert both(fake, THOUGHT) == ("so be it", "Yes, it is.", "stop")
    assert both(opens, OPENED) == ("so be it", "Yes, it is.", "stop")


def test_thoughts_come_first_and_never_together(fake):
    chunks = streamed(fake, THOUGHT)[3]
    kinds = ["thought" if getattr(c.choices[0].delta, "reasoning_content", None) else "content"
             for c in chunks if getattr(c.choices[0].delta, "reasoning_content", None) or c.choices[0].delta.content]
    assert kinds == sorted(kinds, reverse=True) and len(set(kinds)) == 2
    for c in chunks:
        assert not (getattr(c.choices[0].delta, "reasoning_content", None) and c.choices[0].delta.content)
    assert chunks[0].choices[0].delta.role == "assistant"


def test_no_thoughts(fake, opens):
    assert both(fake, "@say=Yes.") == ("", "Yes.", "stop")
    assert both(fake, "@say=<think>~~</think>~~Yes.") == ("", "Yes.", "stop")
    assert both(fake, "@say=a<think>b</think>") == ("", "a<think>b</think>", "stop")
    assert not hasattr(whole(fake, "@say=Yes.").message, "reasoning_content")
    off = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    assert both(opens, "@say=Yes.", **off) == ("", "Yes.", "stop")
    assert both(opens, "@say=Yes.", reasoning_effort="none") == ("", "Yes.", "stop")


def test_format_none(fake, opens, start):
    none = {"extra_body": {"reasoning_format": "none"}}
    assert both(fake, THOUGHT, **none) == ("", "<think>\nso be it\n</think>\n\nYes, it is.", "stop")
    assert both(opens, OPENED, **none) == ("", "so be it\n</think>\n\nYes, it is.", "stop")
    server = start("--reasoning-format", "none")
    assert both(server, THOUGHT)[0] == ""
    for name in "auto", "deepseek":
        assert both(server, THOUGHT, extra_body={"reasoning_format": name})[0] == "so be it"
    with pytest.raises(openai.BadRequestError) as e:
        whole(fake, THOUGHT, extra_body={"reasoning_format": "xml"})
    assert e.value.body["param"] == "reasoning_format"


def test_the_end_comes_while_thinking(fake, opens):
    """max_tokens, a stop string, or the model's own end: there is nothing but thoughts."""
    assert both(fake, THOUGHT, max_tokens=12) == ("so b", "", "length")
    assert both(opens, OPENED, max_tokens=11) == ("so be it\n</", "", "length")
    assert both(opens, OPENED, stop=["be"]) == ("so ", "", "stop")
    assert both(opens, OPENED, stop=["</think>"]) == ("so be it", "", "stop")
    assert both(opens, "@say=hm~~") == ("hm", "", "stop")


def test_stop_behind_thoughts(opens):
    assert both(opens, OPENED, stop=["it i"]) == ("so be it", "Yes, ", "stop")
    assert both(opens, OPENED, stop=["\n\nYes"]) == ("so be it", "", "stop")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{}, {"stop": ["zzzzzzzz"]}, {"extra_body": {"reasoning_format": "none"}}])
def test_tokens_of_thoughts_are_counted(fake, opens, stream, options):
    """Each byte is a token, the marks count as thoughts."""
    def usage(server, text, **more):
        if not stream:
            return server.client().chat.completions.create(model="m", messages=user(text), **options, **more).usage
        return list(server.client().chat.completions.create(
            model="m", messages=user(text), stream=True, stream_options={"include_usage": True}, **options, **more))[-1].usage
    n = usage(fake, THOUGHT)
    assert n.completion_tokens_details.reasoning_tokens == len("<think>.so be it.</think>")
    assert n.completion_tokens == len(THOUGHT) - len("@say=")
    assert usage(opens, OPENED).completion_tokens_details.reasoning_tokens == len("so be it.</think>")
    assert usage(opens, OPENED, max_tokens=5).completion_tokens_details.reasoning_tokens == 5
    assert usage(fake, "@say=<thing>").completion_tokens_details.reasoning_tokens == 0


def test_several_choices(fake):
    r = fake.client().chat.completions.create(model="m", messages=user(THOUGHT), n=3)
    assert [(c.message.reasoning_content, c.message.content) for c in r.choices] == [("so be it", "Yes, it is.")] * 3
    assert r.usage.completion_tokens_details.reasoning_tokens == 3 * len("<think>.so be it.</think>")


def test_logprobs_are_of_all_tokens(fake):
    choice = whole(fake, THOUGHT, logprobs=True)
    text = "".join(t.token for t in choice.logprobs.content)
    assert text == "<think>\nso be it\n</think>\n\nYes, it is."
    chunks = streamed(fake, THOUGHT, logprobs=True)[3]
    assert text == "".join(t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content)


def test_completions_are_not_divided(opens, fake):
    for server in fake, opens:
        r = server.client().completions.create(model="m", prompt=THOUGHT)
        assert r.choices[0].text == "<think>\nso be it\n</think>\n\nYes, it is."
        assert r.usage.completion_tokens_details is None


def test_history(fake):
    """Clients send back what they were given."""
    message = whole(fake, THOUGHT).message
    history = user(THOUGHT) + [message.model_dump(exclude_none=True)] + user("@say=Good.")
    assert history[1]["reasoning_content"] == "so be it"
    assert fake.client().chat.completions.create(model="m", messages=history).choices[0].message.content == "Good."
    for message in ({"content": None, "reasoning_content": "cut off"}, {"reasoning": "vLLM's name", "content": ""},
                    {"content": "a", "reasoning_content": None}):
        r = fake.post("/v1/chat/completions", {"messages": user("x") + [{"role": "assistant", **message}] + user("y")})
        assert r.status_code == 200, r.text
    r = fake.post("/v1/chat/completions",
                  {"messages": user("x") + [{"role": "assistant", "content": "a", "reasoning_content": 7}]})
    assert r.status_code == 400 and r.json()["error"]["param"] == "messages[1].reasoning_content"
    r = fake.post("/v1/chat/completions", {"messages": [{"role": "assistant", "content": None}]})
    assert r.status_code == 400


def test_what_is_read_again_is_said(fake):
    first = fake.post("/v1/chat/completions", {"messages": user(THOUGHT)}).json()
    assert "thought" not in first["timings"]["cache_note"]
    message = first["choices"][0]["message"]
    second = fake.post("/v1/chat/completions", {"messages": user(THOUGHT) + [message] + user("x")}).json()
    assert "leaves out what earlier answers thought" in second["timings"]["cache_note"]


def test_stream_as_bytes(opens):
    events = opens.chat(OPENED, stream=True).text.split("\n\n")
    deltas = [json.loads(e[6:])["choices"][0]["delta"] for e in events if e.startswith("data: {")]
    assert {"reasoning_content"} in [set(d) for d in deltas] and {"content"} in [set(d) for d in deltas]
