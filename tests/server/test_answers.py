"""What each parameter of the two endpoints does, on the fake engine."""

import threading

import pytest
from served import MODEL
from starlette.testclient import TestClient
from test_stream import events

from tpuinfer.server.chunks import CompletionChunks
from tpuinfer.server.replies import ChatCompletion, Completion


def texts(reply):
    assert reply.status_code == 200, reply.text
    return [one["text"] for one in reply.json()["choices"]]


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
@pytest.mark.parametrize("fields", [{}, {"n": 2, "logprobs": True}, {"stop": "="}])
def test_answers_are_as_their_models_say(request, endpoint, fields):
    if endpoint == "complete" and "logprobs" in fields:
        fields = fields | {"logprobs": 2, "echo": True}
    reply = request.getfixturevalue(endpoint)(max_tokens=3, **fields)
    model = {"chat": ChatCompletion, "complete": Completion}[endpoint]
    model.model_validate_json(reply.content, strict=True)


def test_n_choices_of_each_prompt_and_each_prompt_counted_once(complete):
    reply = complete(["abc", "12"], n=2, max_tokens=2, temperature=1, seed=0)
    assert texts(reply) == ["de", "eg", "34", "46"]
    assert [one["index"] for one in reply.json()["choices"]] == [0, 1, 2, 3]
    assert reply.json()["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
    }


def test_n_choices_of_a_chat_streamed(chat):
    chunks = events(chat(n=3, stream=True, max_tokens=2, temperature=1, seed=0))
    found = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        choice = chunk["choices"][0]
        found[choice["index"]] += choice["delta"].get("content", "")
    assert found == {0: ";<", 1: "<>", 2: "=@"}
    roles = [chunk["choices"][0]["delta"].get("role") for chunk in chunks]
    assert roles.count("assistant") == 3


def test_a_bias_bans_and_forces(complete):
    assert texts(complete(max_tokens=2, logit_bias={"100": -100})) == ["ef"]
    assert texts(complete(max_tokens=2, logit_bias={"65": 100})) == ["AA"]


def test_min_tokens_hold_back_the_end(complete):
    assert texts(complete("\x7e", max_tokens=3)) == ["\x7f"]
    assert texts(complete("\x7e", max_tokens=3, min_tokens=3)) == ["\x7f\x01\x02"]


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_reach_the_engine(complete, engine, monkeypatch, name):
    seen = []
    add = engine.add
    monkeypatch.setattr(engine, "add", lambda one: (seen.append(one.params), add(one))[1])
    assert complete(max_tokens=1, **{name: 1.5}).status_code == 200
    assert getattr(seen[0], name) == 1.5


def test_top_logprobs_of_a_chat(chat):
    choice = chat(max_tokens=1, temperature=0, logprobs=True, top_logprobs=2).json()["choices"][0]
    [entry] = choice["logprobs"]["content"]
    assert entry["top_logprobs"] == [
        {"token": ";", "logprob": -59 / 128, "bytes": [59]},
        {"token": "<", "logprob": -59 / 128 - 1, "bytes": [60]},
    ]


def test_top_logprobs_of_a_completion_have_the_chosen_token(complete):
    shown = complete(max_tokens=2, logprobs=2).json()["choices"][0]["logprobs"]
    assert shown["top_logprobs"] == [
        {"d": -100 / 128, "e": -100 / 128 - 1},
        {"e": -101 / 128, "f": -101 / 128 - 1},
    ]


LM_EVAL = {"max_tokens": 1, "logprobs": 1, "echo": True}


def test_an_echo_is_scored_as_lm_eval_wants_it(complete):
    choice = complete("abc", **LM_EVAL).json()["choices"][0]
    assert choice["text"] == "abcd"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", "d"],
        "token_logprobs": [None, -98 / 128, -99 / 128, -100 / 128],
        "top_logprobs": [None, {"b": -98 / 128}, {"c": -99 / 128}, {"d": -100 / 128}],
        "text_offset": [0, 1, 2, 3],
    }


def test_an_echo_of_nothing_but_the_prompt(complete):
    reply = complete([97, 98, 99], max_tokens=0, logprobs=0, echo=True, n=2).json()
    for choice in reply["choices"]:
        assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
        assert choice["logprobs"]["token_logprobs"] == [None, -98 / 128, -99 / 128]
    assert reply["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    refused = complete(max_tokens=0)
    assert refused.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("most", [0, 2])
def test_an_echo_streamed_is_the_echo_at_once(complete, most):
    fields = {"max_tokens": most, "logprobs": 1, "echo": True}
    whole = complete("abc", **fields).json()["choices"][0]
    options = {"include_usage": True}
    chunks = events(complete("abc", stream=True, stream_options=options, **fields))
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(one["text"] for one in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        joined = [value for one in choices for value in one["logprobs"][name]]
        assert joined == whole["logprobs"][name]
    assert chunks[-1]["usage"]["completion_tokens"] == most


def test_unknown_beginnings_need_no_tokenising(complete, bridge, monkeypatch):
    def never(*args, **kwargs):
        pytest.fail("it was tokenised")

    monkeypatch.setattr(bridge.tokenizer, "encode", never)
    error = complete("x" * 321).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert all(number in error["message"] for number in ("321", "64", "320"))


def test_template_variables_reach_the_template(chat, bridge, monkeypatch):
    seen = []

    def encode_chat(messages, **variables):
        seen.append((messages, variables))
        return [97]

    monkeypatch.setattr(bridge.tokenizer, "encode_chat", encode_chat)
    chat(max_tokens=1)
    chat(
        max_tokens=1,
        chat_template_kwargs={"enable_thinking": False},
        reasoning_effort="low",
        add_generation_prompt=False,
    )
    assert seen[0] == ([{"role": "user", "content": "hi"}], {})
    assert seen[1][1] == {
        "enable_thinking": False,
        "reasoning_effort": "low",
        "add_generation_prompt": False,
    }


def test_labels_ask_for_nothing(chat):
    labels = {
        "user": "a",
        "metadata": {"a": "b"},
        "safety_identifier": "c",
        "prompt_cache_key": "d",
    }
    assert chat(max_tokens=1, **labels).status_code == 200


def test_tokenize_and_back(client: TestClient):
    reply = client.post("/tokenize", json={"prompt": "ab", "return_token_strs": True}).json()
    assert reply == {"count": 2, "max_model_len": 64, "tokens": [97, 98], "token_strs": ["a", "b"]}
    again = client.post("/detokenize", json={"tokens": [97, 0, 98]}).json()
    assert again == {"prompt": "a<end>b"}
    messages = [{"role": "user", "content": "hi"}]
    chat = client.post("/tokenize", json={"model": "fake", "messages": messages}).json()
    assert chat["count"] == 18
    assert chat["token_strs"] is None
    short = client.post("/tokenize", json={"messages": messages, "add_generation_prompt": False})
    assert short.json()["count"] == 8


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": "x" * 321}, "prompt"),
        ("/detokenize", {"tokens": [128]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_tokenising_refuses_by_name(client, path, body, param):
    reply = client.post(path, json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_an_earlier_turn_of_reasoning_alone(client):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "user", "content": "b"},
    ]
    body = {"model": MODEL, "messages": turns, "max_tokens": 2, "temperature": 0}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["prompt_tokens"] == len("user:a\nassistant:\nuser:b\nassistant:")


@pytest.mark.parametrize(("fields", "elsewhere"), [({"echo": True}, True), ({}, False)])
def test_what_is_as_long_as_a_prompt_is_put_together_off_the_loop(
    complete, monkeypatch, fields, elsewhere
):
    step, threads = CompletionChunks.step, []

    def watched(self, deltas):
        threads.append((threading.get_ident(), loop_thread))
        return step(self, deltas)

    opening = CompletionChunks.opening

    def on_the_loop(self):
        nonlocal loop_thread
        loop_thread = threading.get_ident()
        return opening(self)

    loop_thread = 0
    monkeypatch.setattr(CompletionChunks, "step", watched)
    monkeypatch.setattr(CompletionChunks, "opening", on_the_loop)
    assert complete("abc", stream=True, logprobs=1, max_tokens=2, **fields).status_code == 200
    assert any(one != loop for one, loop in threads) == elsewhere
