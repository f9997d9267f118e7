"""Requests that a server must refuse: what is sent, the status, and the field the answer names."""

import json
from typing import NamedTuple

JSON = {"content-type": "application/json"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hi"}]


class Malformed(NamedTuple):
    path: str
    content: bytes
    status: int
    param: str | None
    headers: dict = JSON


def chat(param, status=400, /, **fields):
    body = {"model": "MODEL", "messages": USER, "max_tokens": 4, **fields}
    return Malformed(CHAT, json.dumps(body).encode(), status, param)


def text(param, status=400, /, **fields):
    body = {"model": "MODEL", "prompt": "Hi", "max_tokens": 4, **fields}
    return Malformed(TEXT, json.dumps(body).encode(), status, param)


def message(param, /, **fields):
    return chat(f"messages[0]{param}", messages=[{"role": "user", "content": "Hi", **fields}])


def raw(content, status=400, param=None, headers=JSON):
    return Malformed(CHAT, content, status, param, headers)


REGEX = {"regex": "a"}


def schema_named(name, **fields):
    return {"type": "json_schema", "json_schema": {"name": name, **fields}}


NAME = {"name": "f"}
F = {**NAME, "arguments": "{}"}
TOOLS = [{"type": "function", "function": NAME}]

NUMBERS = {
    "max_tokens": [0, -1, 1.5, "8", True, 2**31, [], {}],
    "temperature": [-0.1, 2.1, "hot", True, [1], 1e300],
    "top_p": [0, 1.01, "0.5", False],
    "top_k": [-1, 0.5, "1"],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, 2.5],
    "min_tokens": [-1, 2**40],
    "presence_penalty": [-2.1, 2.1, "0"],
    "frequency_penalty": [-3, 3],
    "n": [0, 9, 1.0, "2"],
    "seed": [2**64, -(2**63) - 1, 0.5, "7"],
    "stream": ["yes", 1],
    "evidence": [[], "text", ["x"] * 65],
    "num_permutations": [0, 65, 1.5, "2", 2],
    "user": [5],
}

FIELDS = [chat(name, **{name: value}) for name, values in NUMBERS.items() for value in values]

CHATS = [
    chat("model", model=""),
    chat("model", model=5),
    chat("model", 404, model="gpt-4"),
    chat("model", 404, model="MODEL_engine"),
    chat("model", 404, model="../etc/passwd"),
    chat("messages", messages=[]),
    chat("messages", messages="Hi"),
    chat("messages[0]", messages=["Hi"]),
    chat("messages[1].role", messages=[*USER, {"content": "x"}]),
    message(".role", role="robot"),
    message(".tool_call_id", role="tool"),
    message(".tool_call_id", tool_call_id="call_1"),
    message(".tool_calls", tool_calls=[{"id": "1", "type": "function", "function": F}]),
    message(".tool_calls[0].function", role="assistant", tool_calls=[{"id": "1", "type": "function"}]),
    message(".tool_calls[0].id", role="assistant", tool_calls=[{"type": "function", "function": F}]),
    message(".content", content=None),
    message(".content", content=7),
    message(".content", content=[]),
    message(".content[0].type", content=[{"type": "image_url", "image_url": {"url": "data:,"}}]),
    message(".content[0].type", content=[{"type": "input_audio", "input_audio": {}}]),
    message(".content[0].text", content=[{"type": "text"}]),
    message(".name", name="Ann"),
    message(".tool_calls", tool_calls=[]),
    message(".mood", mood="good"),
    chat("stop", stop=["a"] * 5),
    chat("stop", stop=5),
    chat("stop[0]", stop=""),
    chat("stop[1]", stop=["a", "b" * 257]),
    chat("logit_bias", logit_bias={"5": 101}),
    chat("logit_bias", logit_bias={"-1": 1}),
    chat("logit_bias", logit_bias=[5]),
    chat("evidence[0]", evidence=[1]),
    chat("top_logprobs", top_logprobs=2),
    chat("top_logprobs", logprobs=True, top_logprobs=21),
    chat("logprobs", logprobs=1),
    chat("max_tokens", max_completion_tokens=4),
    chat("stream_options", stream_options={"include_usage": True}),
    chat("stream_options.include_obfuscation", stream=True, stream_options={"include_obfuscation": False}),
    chat("tools", tools=[]),
    chat("tools", tools=TOOLS * 129),
    chat("tools", tools=TOOLS * 2),
    chat("tools[0].type", tools=[{"type": "retrieval"}]),
    chat("tools[0].function", tools=[{"type": "function"}]),
    chat("tools[0].function.name", tools=[{"type": "function", "function": {"name": "a b"}}]),
    chat(
        "tools[0].function.parameters", tools=[{"type": "function", "function": {**NAME, "parameters": []}}]
    ),
    chat("tools", tools=TOOLS, response_format={"type": "json_object"}),
    chat("tools", tools=TOOLS, structured_outputs={"regex": "a"}),
    chat("tool_choice", tool_choice="auto"),
    chat("tool_choice", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "g"}}),
    chat("tool_choice.type", tools=TOOLS, tool_choice="maybe"),
    chat("tool_choice", tools=TOOLS, tool_choice=7),
    chat("tool_choice.function", tools=TOOLS, tool_choice={"type": "function"}),
    chat("structured_outputs.json", structured_outputs={"json": 5}),
    chat("structured_outputs.json", structured_outputs={"json": "{"}),
    chat("parallel_tool_calls", parallel_tool_calls=True),
    chat("functions", functions=[]),
    chat("response_format.type", response_format={"type": "xml"}),
    chat("response_format.json_schema", response_format={"type": "json_schema"}),
    chat("response_format.json_schema", response_format={"type": "text", "json_schema": {"name": "a"}}),
    chat("response_format.json_schema.name", response_format=schema_named("a b")),
    chat("response_format.json_schema.schema", response_format=schema_named("a", schema=[])),
    chat("structured_outputs", structured_outputs={}),
    chat("structured_outputs", structured_outputs={"regex": "a", "choice": ["a"]}),
    chat("structured_outputs.xml", structured_outputs={"xml": "a"}),
    chat("structured_outputs", structured_outputs=REGEX, response_format={"type": "json_object"}),
    chat("bad_words", bad_words=["a"] * 65),
    chat("bad_words[0]", bad_words=[""]),
    chat("modalities", modalities=["audio"]),
    chat("store", store=True),
    chat("best", best=1),
    chat("prompt", prompt="Hi"),
]

TEXTS = [
    text("prompt", prompt=None),
    text("prompt", prompt=5),
    text("prompt", prompt=[]),
    text("prompt[0]", prompt=[[]]),
    text("prompt[1]", prompt=["a", 5]),
    text("prompt[0]", prompt=[-1]),
    text("prompt", prompt=["a"] * 17),
    text("echo", echo=True, logprobs=1),
    text("echo", echo=True, prompt=[1, 2]),
    text("logprobs", logprobs=21),
    text("evidence", evidence=["a"], prompt=[1, 2]),
    text("suffix", suffix="x"),
    text("best_of", best_of=2),
    text("messages", messages=USER),
    text("model", 404, model="nobody"),
]

RAW = [
    raw(b""),
    raw(b"{"),
    raw(b"[]"),
    raw(b"null"),
    raw(b'"text"'),
    raw(b'{"model": "MODEL", "messages": [{"role": "user", "content": "\xff\xfe"}]}'),
    raw(b'{"model": "MODEL", "messages": [{"role": "user", "content": "\\ud800"}]}'),
    raw(b'{"model": "MODEL", "temperature": NaN, "messages": []}', param="temperature"),
    raw(b'{"model": "MODEL", "messages": []} {}'),
    raw(b"[" * 50_000),
    raw(b'{"model": "MODEL"}', param="messages"),
    raw(b"{}", param="model"),
    raw(b"model=MODEL", 415, headers={"content-type": "application/x-www-form-urlencoded"}),
    raw(b"{}", 415, headers={}),
]

# What only the engine can tell.
BAD_GUIDES = [
    chat("structured_outputs", structured_outputs={"regex": "(a"}),
    chat("structured_outputs", structured_outputs={"regex": "a" * 300_000}),
    chat("structured_outputs", structured_outputs={"choice": []}),
    chat("structured_outputs", structured_outputs={"grammar": "start: nothing"}),
    chat("response_format", response_format=schema_named("endless", schema={"$ref": "#"})),
    chat("response_format", response_format=schema_named("away", schema={"$ref": "http://x/y"})),
    chat(
        "response_format",
        response_format=schema_named(
            "gigabytes", schema={"allOf": [{"pattern": f".*a{i}.*"} for i in range(20)]}
        ),
    ),
    text("structured_outputs", structured_outputs={"json": {"type": "integer", "multipleOf": 1000003}}),
]

MALFORMED = [*FIELDS, *CHATS, *TEXTS, *RAW]
