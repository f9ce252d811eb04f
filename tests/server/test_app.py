import json

import pytest
from served import CONTEXT, MODEL, Gate, fake_engine
from starlette.testclient import TestClient

from tpuinfer.engine.engine import Engine
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer


def test_a_chat(chat):
    reply = chat(max_tokens=3, temperature=0).json()
    assert reply.pop("id").startswith("chatcmpl-")
    assert reply.pop("created") > 1_700_000_000
    assert reply == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ";<=", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 18, "completion_tokens": 3, "total_tokens": 21},
    }


def test_a_completion(complete):
    reply = complete(max_tokens=3).json()
    assert reply.pop("id").startswith("cmpl-")
    assert reply.pop("created") > 1_700_000_000
    assert reply == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "text": "def",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    }


def test_control_text_of_a_prompt_is_text_unless_asked_otherwise(complete):
    def tokens(**fields):
        return complete("ab<end>", max_tokens=1, **fields).json()["usage"]["prompt_tokens"]

    assert (tokens(), tokens(parse_special=False), tokens(parse_special=True)) == (7, 7, 3)
    assert complete(parse_special=1).status_code == 400


def test_a_choice_for_each_prompt_in_their_order(complete):
    reply = complete(["abc", "123", "A"], max_tokens=2).json()
    assert [(one["index"], one["text"]) for one in reply["choices"]] == [
        (0, "de"),
        (1, "45"),
        (2, "BC"),
    ]
    assert reply["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}


def test_token_ids_as_prompt(complete):
    assert complete([97, 98], max_tokens=1).json()["choices"][0]["text"] == "c"
    texts = [one["text"] for one in complete([[97], [49]], max_tokens=1).json()["choices"]]
    assert texts == ["b", "2"]


@pytest.mark.parametrize(
    ("fields", "text", "finish_reason", "stop_reason"),
    [
        ({"stop": "g"}, "def", "stop", "g"),
        ({"stop": ["zz", "fgh"]}, "de", "stop", "fgh"),
        ({"stop_token_ids": [102]}, "de", "stop", 102),
        ({"prompt": "\x7e"}, "\x7f", "stop", None),
        ({"prompt": "\x7e", "ignore_eos": True, "max_tokens": 3}, "\x7f\x01", "length", None),
        (
            {
                "prompt": "\x7e",
                "ignore_eos": True,
                "max_tokens": 2,
                "skip_special_tokens": False,
            },
            "\x7f<end>",
            "length",
            None,
        ),
        ({"temperature": 1, "seed": 2, "max_tokens": 3}, "fil", "length", None),
    ],
)
def test_parameters_reach_the_engine(complete, fields, text, finish_reason, stop_reason):
    choice = complete(**fields).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        text,
        finish_reason,
        stop_reason,
    )


def test_without_a_limit_a_completion_has_16_tokens_and_a_chat_the_context(complete, chat):
    assert complete().json()["usage"]["completion_tokens"] == 16
    assert complete("a" * (CONTEXT - 3)).json()["usage"]["completion_tokens"] == 3
    reply = chat(temperature=0).json()
    assert reply["usage"]["total_tokens"] == CONTEXT
    assert reply["choices"][0]["finish_reason"] == "length"


def test_where_rings_roll_there_is_no_context_to_exceed():
    bridge = Bridge(MODEL)
    bridge.attach(fake_engine(rolls=True), FakeTokenizer())
    assert bridge.context is None
    with TestClient(create_app(bridge, ServerInfo(MODEL))) as client:
        body = {"model": MODEL, "prompt": "!" * 2 * CONTEXT, "max_tokens": 80, "temperature": 0}
        reply = client.post("/v1/completions", json=body)
    bridge.stop()
    usage = reply.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2 * CONTEXT, 80)


def test_more_than_the_context_is_refused_with_both_numbers(complete, chat):
    assert complete(max_tokens=CONTEXT - 3).status_code == 200
    for reply, param, numbers in [
        (complete(max_tokens=CONTEXT - 2), "max_tokens", ("62", "3 tokens", "64", "61")),
        (complete("a" * CONTEXT), "prompt", ("64 tokens", "63")),
        (chat(max_completion_tokens=60), "max_completion_tokens", ("60", "18 tokens", "46")),
        (chat("x" * 60), "messages", ("76 tokens", "64")),
    ]:
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert (error["param"], error["code"]) == (param, "context_length_exceeded")
        assert all(number in error["message"] for number in numbers), error["message"]


def test_logprobs_of_a_chat(chat):
    choice = chat(max_tokens=2, temperature=0, logprobs=True).json()["choices"][0]
    assert choice["logprobs"] == {
        "content": [
            {"token": ";", "logprob": -59 / 128, "bytes": [59], "top_logprobs": []},
            {"token": "<", "logprob": -60 / 128, "bytes": [60], "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_logprobs_of_a_completion(complete):
    choice = complete("\x7e", logprobs=0).json()["choices"][0]
    assert choice["logprobs"] == {
        "tokens": ["\x7f", "<end>"],
        "token_logprobs": [-127 / 128, 0.0],
        "top_logprobs": None,
        "text_offset": [0, 1],
    }


def test_an_alias_answers_under_the_served_name(complete):
    assert complete(model="alias", max_tokens=1).json()["model"] == MODEL


def test_a_model_without_a_template_has_no_chat(chat, bridge, monkeypatch):
    monkeypatch.setattr(bridge.tokenizer, "has_chat_template", False)
    reply = chat()
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert "/v1/completions" in message
    assert "--chat-template FILE" in message


def test_models(client):
    listed = client.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == [MODEL, "alias"]
    assert client.get("/v1/models/fake").json() == listed["data"][0]
    assert client.get("/v1/models/no/such").status_code == 404


def test_a_name_may_have_a_slash(bridge):
    with TestClient(create_app(bridge, ServerInfo("maker/model"))) as client:
        assert client.get("/v1/models/maker/model").json()["id"] == "maker/model"


def test_probes_of_a_ready_server(client):
    assert client.get("/health").status_code == 200
    assert (client.get("/ready").status_code, client.get("/ready").text) == (200, "ready")


def test_before_the_engine_is_there():
    bridge = Bridge(MODEL)
    with TestClient(create_app(bridge, ServerInfo(MODEL))) as client:
        assert client.get("/health").status_code == 200
        ready = client.get("/ready")
        assert (ready.status_code, ready.text) == (503, "fake is still loading")
        refused = client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["error"]["code"] == "not_ready"
        assert client.get("/v1/models").status_code == 200
        bridge.attach(fake_engine(), FakeTokenizer())
        assert client.get("/ready").status_code == 200
        answer = client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
        assert answer.status_code == 200


def test_a_full_queue_is_a_503(engine, complete):
    """More prompts at once than slots and queue can take: none of them stays behind."""
    reply = complete(["a"] * 1000)
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    assert reply.json()["error"]["code"] == "queue_full"
    assert complete(max_tokens=1).status_code == 200
    assert (engine.metrics.waiting, engine.metrics.running) == (0, 0)


def test_a_queue_that_is_full_of_tokens_is_a_503():
    """Four prompts have a slot each; a fifth would wait, and too many tokens are in line."""
    engine = Engine(FakeRunner(4, capacity=CONTEXT), FakeTokenizer(), max_waiting_tokens=15)
    bridge = Bridge(MODEL)
    bridge.attach(engine, FakeTokenizer())
    with TestClient(create_app(bridge, ServerInfo(MODEL))) as client:
        fits, full = (
            client.post("/v1/completions", json={"model": MODEL, "prompt": ["a" * 10] * count})
            for count in (4, 5)
        )
    bridge.stop()
    assert fits.status_code == 200
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    assert full.json()["error"]["code"] == "queue_full"
    assert "15" in full.json()["error"]["message"]


def test_a_dead_engine(engine, client, complete):
    Gate(engine).fail = RuntimeError("chip on fire")
    for _ in range(2):
        reply = complete()
        assert reply.status_code == 503
        assert reply.json()["error"] == {
            "message": "the engine died: RuntimeError",
            "type": "server_error",
            "param": None,
            "code": "engine_dead",
        }
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503


def test_a_dead_engine_ends_a_stream_with_an_error(engine, complete):
    Gate(engine).fail = RuntimeError("chip on fire")
    reply = complete(stream=True)
    events = reply.text.strip().split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert events[1:] == ["data: [DONE]"]


def test_openapi_knows_our_errors_and_streams(client):
    document = client.get("/openapi.json").json()
    for path in ("/v1/completions", "/v1/chat/completions"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "4XX", "5XX"}
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
        shape = responses["4XX"]["content"]["application/json"]["schema"]["$ref"]
        assert shape.endswith("/ErrorReply")
    assert document["components"]["schemas"]["ChatBody"]["additionalProperties"] == {"type": "null"}
