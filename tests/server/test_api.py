"""The API as OpenAI's own client sees it, against the pretending engine."""
import json
import math

import openai
import pytest
import requests


def user(text):
    return [{"role": "user", "content": text}]


def test_chat(fake):
    r = fake.client().chat.completions.create(model="any", messages=user("hi @say=Hello_you"))
    choice = r.choices[0]
    assert choice.message.role == "assistant" and choice.message.content == "Hello you"
    assert choice.finish_reason == "stop" and choice.logprobs is None
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-") and r.model == "fake"
    assert r.system_fingerprint.startswith("b") and r.created > 1_600_000_000
    assert r.usage.completion_tokens == 9
    assert r.usage.total_tokens == r.usage.prompt_tokens + 9
    assert r.usage.prompt_tokens_details.cached_tokens >= 0
    assert r.timings["predicted_n"] == 9
    assert r.timings["draft_n"] == 18 and r.timings["draft_n_accepted"] == 9


def test_chat_stream(fake):
    chunks = list(fake.client().chat.completions.create(model="m", messages=user("@say=Hello_you"), stream=True,
                                                        stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Hello you"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 9
    assert len({c.id for c in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"


def test_stream_as_bytes(fake):
    r = fake.chat("@say=ab", stream=True)
    assert r.headers["Content-Type"].startswith("text/event-stream")
    events = r.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    for event in events[:-2]:
        assert event.startswith("data: ")
        assert "usage" not in json.loads(event[6:])
    assert json.loads(events[-3][6:])["timings"]["predicted_n"] == 2


def test_no_usage_unless_asked(fake):
    chunks = list(fake.client().chat.completions.create(model="m", messages=user("hi"), stream=True))
    assert all(c.choices for c in chunks)


def test_multibyte_text_is_whole(fake):
    text = "".join(c.choices[0].delta.content or "" for c in fake.client().chat.completions.create(
        model="m", messages=user("@say=日本語😀é"), stream=True))
    assert text == "日本語😀é"


def test_parts(fake):
    parts = [{"type": "text", "text": "@say="}, {"type": "text", "text": "joined"}]
    r = fake.client().chat.completions.create(model="m", messages=[
        {"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}])
    assert r.choices[0].message.content == "joined"


def test_several_choices(fake):
    r = fake.client().chat.completions.create(model="m", messages=user("x @tokens=20"), n=5, seed=3)
    assert [c.index for c in r.choices] == [0, 1, 2, 3, 4]
    assert len({c.message.content for c in r.choices}) == 5
    assert r.usage.completion_tokens == 100
    texts = {}
    for chunk in fake.client().chat.completions.create(model="m", messages=user("x @tokens=20"), n=5, seed=3,
                                                       stream=True):
        for c in chunk.choices:
            texts[c.index] = texts.get(c.index, "") + (c.delta.content or "")
    assert [texts[i] for i in range(5)] == [c.message.content for c in r.choices]


def test_seed(fake):
    def ask(**options):
        return fake.client().chat.completions.create(model="m", messages=user("x"), **options).choices[0].message.content
    assert ask(seed=1) == ask(seed=1) != ask(seed=2)
    assert ask(temperature=0, seed=1) == ask(temperature=0, seed=2)
    assert len({ask() for _ in range(4)}) > 1  # no seed: a new one each time


def test_max_tokens(fake):
    for name in "max_tokens", "max_completion_tokens", "n_predict":
        r = fake.chat("x", **{name: 3}).json()
        assert r["choices"][0]["finish_reason"] == "length" and r["usage"]["completion_tokens"] == 3
    assert fake.chat("x", max_tokens=-1).json()["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["_b".replace("_", " "), [" b", "zzz"]])
def test_stop(fake, stop, stream):
    r = fake.client().chat.completions.create(model="m", messages=user("@say=aaa_bbb_ccc"), stop=stop, stream=stream)
    if stream:
        chunks = list(r)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = r.choices[0].message.content, r.choices[0].finish_reason
    assert text == "aaa" and reason == "stop"


def test_logprobs(fake):
    r = fake.client().chat.completions.create(model="m", messages=user("x"), logprobs=True, top_logprobs=3)
    content = r.choices[0].logprobs.content
    assert len(content) == 12
    assert "".join(t.token for t in content) == r.choices[0].message.content
    assert bytes(content[0].bytes).decode() == content[0].token
    assert len(content[0].top_logprobs) == 3 and content[0].top_logprobs[0].token == content[0].token
    assert math.isclose(content[0].logprob, -0.125)
    plain = fake.client().chat.completions.create(model="m", messages=user("x"), logprobs=True)
    assert plain.choices[0].logprobs.content[0].top_logprobs == []


def test_logprobs_stream(fake):
    chunks = list(fake.client().chat.completions.create(model="m", messages=user("x"), logprobs=True, top_logprobs=1,
                                                        stream=True))
    tokens = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert len(tokens) == 12
    assert "".join(t.token for t in tokens) == "".join(c.choices[0].delta.content or "" for c in chunks)


def test_logprobs_of_partial_characters(fake):
    r = fake.client().chat.completions.create(model="m", messages=user("@say=é"), logprobs=True)
    assert [t.bytes for t in r.choices[0].logprobs.content] == [[0xC3], [0xA9]]
    r = fake.client().completions.create(model="m", prompt="@say=é", logprobs=1)
    assert r.choices[0].logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9"]


def test_logit_bias(fake):
    for bias in {"265": 100}, [[265, 100]]:
        r = fake.chat("x", logit_bias=bias, max_tokens=3).json()
        assert r["choices"][0]["message"]["content"] == " two" * 3
    assert fake.chat("x", logit_bias=[[265, False]]).status_code == 200


def test_completion(fake):
    r = fake.client().completions.create(model="m", prompt="once @say=upon_a_time")
    assert r.object == "text_completion" and r.choices[0].text == "upon a time"
    assert r.usage.prompt_tokens == len("once @say=upon_a_time")


def test_completion_stream(fake):
    chunks = list(fake.client().completions.create(model="m", prompt="@say=upon_a_time", stream=True,
                                                   stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "upon a time"
    assert chunks[-1].usage.completion_tokens == 11


def test_completion_prompts(fake):
    ids = list(b"@say=ids")
    for prompt, texts in [(["@say=a", "@say=b"], ["a", "b"]), (ids, ["ids"]), ([ids, ids], ["ids", "ids"])]:
        r = fake.client().completions.create(model="m", prompt=prompt)
        assert [c.text for c in r.choices] == texts
    r = fake.client().completions.create(model="m", prompt=["@say=a", "@say=b"], n=2)
    assert [c.text for c in r.choices] == ["a", "a", "b", "b"]
    assert fake.post("/v1/completions", {"prompt": ""}).status_code == 200  # starts from the BOS token


def test_completion_logprobs(fake):
    r = fake.client().completions.create(model="m", prompt="x", logprobs=2)
    lp = r.choices[0].logprobs
    assert "".join(lp.tokens) == r.choices[0].text and len(lp.top_logprobs[0]) == 2
    for offset, token in zip(lp.text_offset, lp.tokens):
        assert r.choices[0].text[offset:offset + len(token)] == token


@pytest.mark.parametrize("stream", [False, True])
def test_echo(fake, stream):
    r = fake.client().completions.create(model="m", prompt="@say=x", echo=True, stream=stream)
    text = "".join(c.choices[0].text for c in r) if stream else r.choices[0].text
    assert text == "@say=xx"


def test_reuse_is_reported(start):
    server = start("-np", "2")
    text = "a long beginning that both share, more or less @say="
    first, second = server.chat(text + "a").json(), server.chat(text + "b").json()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > len(text)
    assert second["timings"]["cache_n"] > len(text)
    assert second["timings"]["cache_note"] == "the fake's reason"
    fresh = server.chat(text + "b", cache_prompt=False).json()
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_two_conversations_keep_their_sessions(start):
    server = start("-np", "2")
    for turn in range(3):
        for who in "first conversation about boats ", "second conversation about trees ":
            cached = server.chat(who * 3 + "." * turn).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert turn == 0 or cached > 60


def test_models(fake):
    client = fake.client()
    assert [m.id for m in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "rqvk"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_alias(start):
    server = start("--alias", "my \"model\"")
    assert server.client().models.list().data[0].id == 'my "model"'
    assert server.chat("x").json()["model"] == 'my "model"'


def test_health_page_metrics(fake):
    for path in "/health", "/v1/health":
        assert requests.get(fake.url + path, timeout=5).json() == {"status": "ok"}
    page = requests.get(fake.url + "/", timeout=5)
    assert page.headers["Content-Type"].startswith("text/html") and "</html>" in page.text
    assert "http://" not in page.text.replace("http://www.w3.org", "") and "https://" not in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert requests.head(fake.url + "/health", timeout=5).status_code == 200
    assert fake.metrics()["rqvk_sessions"] == 2
    assert fake.metrics()["rqvk_cache_not_finite_total"] == 0


def test_tokenize(fake):
    assert fake.post("/tokenize", {"content": "hé"}).json() == {"tokens": [104, 195, 169]}
    pieces = fake.post("/tokenize", {"content": "hé", "with_pieces": True}).json()["tokens"]
    assert pieces == [{"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]
    assert fake.post("/detokenize", {"tokens": [104, 105]}).json() == {"content": "hi"}
    rendered = fake.post("/apply-template", {"messages": user("hi")}).json()["prompt"]
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_context_overflow(start):
    server = start("-c", "100")
    r = server.chat("x" * 200)
    error = r.json()["error"]
    assert r.status_code == 400 and error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > 200 and error["n_ctx"] == 100
    assert str(error["n_prompt_tokens"]) in error["message"] and "100" in error["message"]
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(model="m", messages=user("x" * 200), stream=True)
    assert caught.value.code == "context_length_exceeded"
    # What fits is cut off at the end of the context, and says so.
    r = server.chat("x" * 50 + " @tokens=1000").json()
    assert r["choices"][0]["finish_reason"] == "length" and r["usage"]["total_tokens"] == 100


def test_context_per_request(start):
    server = start("-c", "1000", "--ctx-per-request", "100")
    assert server.chat("x" * 200).json()["error"]["n_ctx"] == 100
    assert server.chat("@tokens=1000").json()["usage"]["total_tokens"] == 100


def test_defaults_from_flags(start):
    server = start("--predict", "5", "--temp", "0")
    a, b = server.chat("x").json(), server.chat("x").json()
    assert a["usage"]["completion_tokens"] == 5
    assert a["choices"][0]["message"]["content"] == b["choices"][0]["message"]["content"]


def test_model_without_chat_format(start):
    server = start("-m", "plain.gguf")
    for r in server.chat("x"), server.post("/apply-template", {"messages": user("x")}):
        assert r.status_code == 400 and "chat format" in r.json()["error"]["message"]
    assert server.post("/v1/completions", {"prompt": "@say=fine"}).json()["choices"][0]["text"] == "fine"


def test_request_ids_differ(fake):
    ids = {fake.chat("x").headers["X-Request-Id"] for _ in range(5)}
    assert len(ids) == 5
