"""Bad requests: every parameter with wrong types and values, bodies that are no JSON, oversize and odd framing."""
import json
import socket

import pytest
import requests

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
TEXT = {"prompt": "x", "max_tokens": 1}

NOT_BOOL = [1, "true", [], {}]
NOT_NUMBER = ["1", True, [], {}]
NOT_STRING = [1, True, [], {}]
NOT_INTEGER = NOT_NUMBER + [1.5]


def number(low, high, below, above, whole=False):
    return (NOT_INTEGER if whole else NOT_NUMBER) + [below, above], [low, high]


# parameter: (values that must be refused, values that must pass); for both end points unless named otherwise.
BOTH = {
    "temperature": number(0, 2, -0.1, 2.1),
    "top_p": number(0, 1, -0.1, 1.1),
    "top_k": number(-1, 100, -2, 2**31, whole=True),
    "min_p": number(0, 1, -0.1, 1.1),
    "presence_penalty": number(-2, 2, -2.1, 2.1),
    "frequency_penalty": number(-2, 2, -2.1, 2.1),
    "repeat_penalty": number(1, 2, 0, 101),
    "repeat_last_n": number(-1, 64, -2, 2**30, whole=True),
    "seed": number(-1, 2**53, -2, 2**53 + 2, whole=True),
    "n": number(1, 8, 0, 9, whole=True),
    "max_tokens": number(1, 2**31 - 1, -2, 2**31, whole=True),
    "max_completion_tokens": number(1, 100, 0, 2**40, whole=True),
    "n_predict": number(-1, 100, 0, 2**31, whole=True),
    "stop": ([1, True, {}, "", [""], [1], ["a"] * 17, "a" * 257, [["a"]]], ["a", ["a"], ["a"] * 16, []]),
    "stream": (NOT_BOOL, [False]),
    "ignore_eos": (NOT_BOOL, [False, True]),
    "cache_prompt": (NOT_BOOL, [False, True]),
    "stream_options": ([1, "x", [], {"include_usage": 1}], [{}, {"include_usage": True}, {"include_usage": None}]),
    "logit_bias": ([1, "x", {"a": 1}, {"-1": 1}, {"1.5": 1}, {"99999": 1}, {"1": "x"}, {"1": 101}, {"1": -101},
                    {"": 1}, {"1": None}, [1], [[1]], [[1, 2, 3]], [["a", 1]], [[-1, 1]], [[1.5, 1]], [[1, True]],
                    {str(i): 1 for i in range(5000)}], [{}, [], {"1": -100}, [[1, False]], [[1, 2.5]]]),
    "response_format": ([1, "json", [], {}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {}},
                         {"type": 1}], [{"type": "text"}]),
    "model": (NOT_STRING, ["anything"]),
    "user": (NOT_STRING, ["me"]),
    "service_tier": (NOT_STRING, ["auto"]),
    "store": (NOT_BOOL, [True]),
    "metadata": ([1, "x", [], True], [{"a": "b"}]),
    "grammar": (["root ::= x", 1, {"a": 1}], ["", None]),
    "json_schema": ([{"type": "object"}], [{}]),
    "mirostat": ([1, 2], [0]),
    "typical_p": ([0.5], [1]),
    "n_keep": ([-1, 5], [0]),
    "n_discard": ([-1, 5], [0]),
    "min_tokens": ([5], [0]),
    "lora": ([[{"id": 0, "scale": 1}]], [[]]),
    "t_max_predict_ms": ([100], [0]),
    "id_slot": (["a"], [0, -1]),
}
ONLY_CHAT = {
    "messages": ([1, "x", {}, [], [1], ["x"], [{}], [{"role": "user"}], [{"content": "x"}],
                  [{"role": 1, "content": "x"}], [{"role": "alien", "content": "x"}], [{"role": "user", "content": 1}],
                  [{"role": "user", "content": None}], [{"role": "user", "content": {}}],
                  [{"role": "user", "content": ["x"]}], [{"role": "user", "content": [{"type": "text"}]}],
                  [{"role": "user", "content": [{"text": "x"}]}],
                  [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}],
                  [{"role": "user", "content": [{"type": "text", "text": 1}]}],
                  [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],
                  [{"role": "user", "content": "x"}] * 4097],
                 [[{"role": "user", "content": ""}], [{"role": "user", "content": []}],
                  [{"role": "tool", "content": "x", "tool_call_id": "1"}],
                  [{"role": "assistant", "content": "x", "tool_calls": []}]]),
    "logprobs": (NOT_BOOL, [True, False]),
    "tools": ([1, {}, [{"type": "function"}]], [[]]),
    "tool_choice": (["required", {"type": "function"}, 1], ["none", "auto"]),
    "functions": ([[{"name": "f"}]], [[]]),
    "function_call": (["auto", {"name": "f"}], ["none"]),
    "modalities": ([1, ["audio"], "text"], [["text"]]),
    "audio": ([{"voice": "x"}], [{}]),
    "prediction": ([{"type": "content"}], []),
    "reasoning_effort": (["extreme", 1, "", True], ["none", "minimal", "low", "medium", "high", "xhigh"]),
    "verbosity": (["high"], ["medium"]),
    "web_search_options": ([{"a": 1}], [{}]),
    "chat_template_kwargs": ([1, [], "x", {"enable_thinking": 1}, {"other": True}],
                             [{}, {"enable_thinking": False}, {"enable_thinking": True}]),
    "parallel_tool_calls": (NOT_BOOL, [True]),
}
ONLY_TEXT = {
    "prompt": ([1, True, {}, [], [[]], [1, "x"], ["x", 1], [True], [{}], [-1], [1.5], [2**31], [99999], [[1], [-1]],
                ["x"] * 33], ["x", ["x"], [1, 2], [[1], [2]], ["x"] * 32]),
    "logprobs": (["1", True, -1, 21, 1.5, {}], [0, 20]),
    "echo": (NOT_BOOL, [True, False]),
    "best_of": ([2, "x"], [1]),
    "suffix": (["x"], [""]),
}


def cases(which):
    for path, base, tables in [("/v1/chat/completions", CHAT, (BOTH, ONLY_CHAT)),
                               ("/v1/completions", TEXT, (BOTH, ONLY_TEXT))]:
        for table in tables:
            for name, values in table.items():
                yield pytest.param(path, base, name, values[which], id=f"{path.split('/')[2]}-{name}")


@pytest.mark.parametrize("path,base,name,values", cases(0))
def test_refused(fake, path, base, name, values):
    with requests.Session() as session:
        for value in values:
            r = session.post(fake.url + path, json={**base, name: value}, timeout=10)
            assert r.status_code == 400, (name, value, r.text)
            error = r.json()["error"]
            assert error["type"] == "invalid_request_error" and error["message"]
            # Beyond 2^53 it is the JSON that is refused, before parameters are looked at.
            assert (error["param"] or "").startswith(name) or "2^53" in error["message"], (name, value, error)


@pytest.mark.parametrize("path,base,name,values", cases(1))
def test_accepted(fake, path, base, name, values):
    with requests.Session() as session:
        for value in values + [None] * (name not in ("messages", "prompt")):
            r = session.post(fake.url + path, json={**base, name: value}, timeout=10)
            assert r.status_code == 200, (name, value, r.text)


def test_belongs_together(fake):
    assert fake.chat("x", top_logprobs=3).json()["error"]["param"] == "top_logprobs"
    for value in 21, -1, "x":
        assert fake.chat("x", logprobs=True, top_logprobs=value).status_code == 400
    assert fake.chat("x", logprobs=True, top_logprobs=20, max_tokens=1).status_code == 200
    r = fake.post("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1})
    assert r.json()["error"]["param"] == "echo"
    r = fake.post("/v1/completions", {"prompt": ["x"] * 32, "n": 3})
    assert r.json()["error"]["param"] == "n"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert fake.chat("x", tools=tools, tool_choice="none").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize",
                                  "/apply-template"])
def test_missing(fake, path):
    r = fake.post(path, {})
    assert r.status_code == 400 and "missing" in r.json()["error"]["message"]


def test_unknown_fields_pass(fake):
    assert fake.chat("x", something_new={"a": [1]}).status_code == 200


def test_other_endpoints(fake):
    for path, body in [("/tokenize", {"content": 1}), ("/tokenize", {"content": "x", "with_pieces": 1}),
                       ("/detokenize", {"tokens": "x"}), ("/detokenize", {"tokens": [-1]}),
                       ("/detokenize", {"tokens": ["x"]}), ("/apply-template", {"messages": "x"})]:
        r = fake.post(path, body)
        assert r.status_code == 400 and r.json()["error"]["param"], (path, body, r.text)


BAD_JSON = {
    "empty": b"",
    "space": b"   ",
    "cut": b'{"messages":',
    "array": b"[]",
    "string": b'"x"',
    "trailing": b'{"prompt":"x"} x',
    "two": b'{"prompt":"x"}{"prompt":"x"}',
    "comma": b'{"prompt":"x",}',
    "single quotes": b"{'prompt':'x'}",
    "comment": b'{"prompt":"x"/* */}',
    "nan": b'{"prompt":"x","temperature":NaN}',
    "infinity": b'{"prompt":"x","temperature":Infinity}',
    "1e999": b'{"prompt":"x","temperature":1e999}',
    "leading zero": b'{"prompt":"x","n":01}',
    "plus": b'{"prompt":"x","n":+1}',
    "hex": b'{"prompt":"x","n":0x1}',
    "dot": b'{"prompt":"x","temperature":1.}',
    "2^53+1": b'{"prompt":"x","seed":9007199254740993}',
    "64 bit": b'{"prompt":"x","anything":18446744073709551615}',
    "long number": b'{"prompt":"x","temperature":1.' + b"0" * 100 + b"}",
    "duplicate": b'{"prompt":"x","prompt":"y"}',
    "nested duplicate": b'{"prompt":"x","metadata":{"a":"1","a":"2"}}',
    "escaped duplicate": b'{"prompt":"x","pr\\u006fmpt":"y"}',
    "bad utf-8": b'{"prompt":"\xff"}',
    "overlong": b'{"prompt":"\xc0\xaf"}',
    "utf-8 surrogate": b'{"prompt":"\xed\xa0\x80"}',
    "utf-8 cut": b'{"prompt":"\xe2\x82"}',
    "beyond unicode": b'{"prompt":"\xf4\x90\x80\x80"}',
    "lone surrogate": b'{"prompt":"\\ud800"}',
    "reversed surrogates": b'{"prompt":"\\udc00\\ud800"}',
    "half surrogate": b'{"prompt":"\\ud800\\u0041"}',
    "escaped nul": b'{"prompt":"\\u0000"}',
    "raw nul": b'{"prompt":"\x00"}',
    "control": b'{"prompt":"\x01"}',
    "newline": b'{"prompt":"\n"}',
    "bad escape": b'{"prompt":"\\x41"}',
    "short escape": b'{"prompt":"\\u41"}',
    "byte order mark": b'\xef\xbb\xbf{"prompt":"x"}',
    "utf-16": '{"prompt":"x"}'.encode("utf-16"),
    "depth": b'{"prompt":' + b"[" * 100000 + b"]" * 100000 + b"}",
    "depth unclosed": b"[" * 1000000,
    "object depth": b'{"a":' * 50000 + b"1" + b"}" * 50000,
    "values": b'{"prompt":[' + b"1," * 500000 + b"1]}",
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json(fake, name):
    r = requests.post(fake.url + "/v1/completions", data=BAD_JSON[name], timeout=10)
    assert r.status_code == 400, r.text
    assert r.json()["error"]["type"] == "invalid_request_error"


def test_json_that_is_fine(fake):
    for body in (b' {"prompt" : "\\ud83d\\ude00 \\u00e9\\/" , "temperature":1E-2,"n":1.0,"seed":-0} \r\n',
                 '{"prompt":"😀"}'.encode(), b'{"prompt":"x","seed":9007199254740992}'):
        r = requests.post(fake.url + "/v1/completions", data=body, timeout=10)
        assert r.status_code == 200, r.text


# ---- framing, by hand ------------------------------------------------------------------------------------

def exchange(server, data, close=False):
    """Sends bytes, returns all that comes back until the server closes or is silent for a second."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=3) as s:
        try:
            s.sendall(data)
            if close:
                s.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        s.settimeout(1)
        answer = b""
        try:
            while piece := s.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionError):
            pass
        return answer


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else None


BODY = b'{"prompt":"x @say=fine"}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)

ODD = {
    "two lengths": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
    "different lengths": HEAD + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
    "length and chunked": HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown encoding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
    "two encodings": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\n" + BODY,
    "plus length": HEAD + b"Content-Length: +24\r\n\r\n" + BODY,
    "huge length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "list length": HEAD + b"Content-Length: 24, 24\r\n\r\n" + BODY,
    "negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "overflowing chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n" + BODY,
    "no chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "spaces before header": HEAD + b" Content-Length: 5\r\n\r\n",
    "long header": HEAD + b"X: " + b"a" * 200000 + b"\r\n\r\n",
    "many headers": HEAD + b"".join(b"X%d: y\r\n" % i for i in range(10000)) + b"\r\n",
    "long address": b"GET /" + b"a" * 200000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + b"\x00" * 160,
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http/0.9": b"GET /health\r\n",
    "garbage": b"\x00\xff\xfe\r\n\r\n",
    "only newlines": b"\r\n" * 1000,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_framing(fake, name):
    answer = exchange(fake, ODD[name], close=True)
    assert status(answer) is None or status(answer) >= 400, answer[:200]
    assert fake.chat("still @say=alive").json()["choices"][0]["message"]["content"] == "alive"


def test_chunked_is_fine(fake):
    body = b"".join(b"%x;ext=1\r\n%c\r\n" % (1, c) for c in BODY) + b"0\r\nTrailer: x\r\n\r\n"
    answer = exchange(fake, HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body)
    assert status(answer) == 200 and b"fine" in answer


def test_pipelining(fake):
    one = HEAD + LENGTH + b"\r\n" + BODY
    answer = exchange(fake, one + one + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 3 and answer.count(b"fine") == 2


def test_http_1_0(fake):
    answer = exchange(fake, b"GET /health HTTP/1.0\r\n\r\n")
    assert status(answer) == 200
    body = b'{"prompt":"x @say=fine","stream":true}'
    answer = exchange(fake, b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert status(answer) == 200 and b"[DONE]" in answer and b"chunked" not in answer.lower()


def test_expect(fake):
    answer = exchange(fake, HEAD + LENGTH + b"Expect: 100-continue\r\nConnection: close\r\n\r\n" + BODY)
    assert b"100 Continue" in answer and b"fine" in answer


def test_header_injection(fake):
    answer = exchange(fake, b"GET /v1/models/%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert status(answer) == 404 and b"X-Evil" not in answer
    assert "X-Evil" not in fake.log()


def test_methods_and_paths(fake):
    assert requests.get(fake.url + "/v1/chat/completions", timeout=5).status_code == 405
    assert requests.post(fake.url + "/health", timeout=5).status_code == 405
    assert requests.delete(fake.url + "/v1/models/fake", timeout=5).status_code == 405
    for path in "/nothing", "/v1", "/v1/models/", "/../etc/passwd", "/%2e%2e/etc/passwd":
        r = requests.get(fake.url + path, timeout=5)
        assert r.status_code == 404 and r.json()["error"]["message"], path


def test_oversize_body(start):
    server = start("--max-body", "10000")
    url = server.url + "/v1/completions"
    fits = json.dumps({"prompt": "x" * 3000})
    assert requests.post(url, data=fits, timeout=5).status_code == 200
    big = json.dumps({"prompt": "x" * 20000}).encode()
    assert requests.post(url, data=big, timeout=5).status_code == 413
    assert requests.post(url, data=iter([big]), timeout=5).status_code == 413  # chunked
    answer = exchange(server, HEAD + b"Content-Length: 1000000000\r\n\r\n")
    assert status(answer) == 413
    # A chunked body without end is cut off.
    endless = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"2710\r\n" + b"x" * 10000 + b"\r\n") * 100
    assert status(exchange(server, endless)) in (None, 413)
    assert server.metrics()["rqvk_connections"] < 5
