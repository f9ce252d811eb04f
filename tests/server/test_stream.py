import json

import pytest
from served import MODEL


def events(reply):
    """The JSON of each event; the stream must end with [DONE]."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    *data, done, rest = reply.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(one.removeprefix("data: ")) for one in data]


def test_a_chat_is_a_role_then_content_then_a_reason(chat):
    chunks = events(chat(stream=True, max_tokens=2, temperature=0))
    assert len({chunk["id"] for chunk in chunks}) == 1
    for chunk in chunks:
        assert (chunk["object"], chunk["model"]) == ("chat.completion.chunk", MODEL)
        assert "usage" not in chunk
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **stop}]
        for delta, reason, stop in [
            ({"role": "assistant", "content": ""}, None, {}),
            ({"content": ";"}, None, {}),
            ({"content": "<"}, None, {}),
            ({}, "length", {"stop_reason": None}),
        ]
    ]


def test_a_completion_ends_with_its_last_text(complete):
    chunks = events(complete(stream=True, max_tokens=2))
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": "d", "logprobs": None, "finish_reason": None}],
        [
            {
                "index": 0,
                "text": "e",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
    ]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
def test_usage_comes_last_and_alone(request, endpoint):
    post = request.getfixturevalue(endpoint)
    chunks = events(post(stream=True, max_tokens=2, stream_options={"include_usage": True}))
    prompt = {"chat": 18, "complete": 3}[endpoint]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 2,
        "total_tokens": prompt + 2,
    }


def test_usage_in_every_chunk(complete):
    options = {"continuous_usage_stats": True}
    chunks = events(complete(stream=True, max_tokens=3, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]


def test_logprobs_of_each_token_even_where_text_is_held_back(complete, chat):
    chunks = events(complete(stream=True, max_tokens=3, logprobs=0, stop="dex"))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == "def"
    shown = [choice["logprobs"] for choice in choices]
    assert [one["tokens"] for one in shown] == [["d"], ["e"], ["f"]]
    assert [one["text_offset"] for one in shown] == [[0], [1], [2]]
    assert [one["token_logprobs"] for one in shown] == [[-100 / 128], [-101 / 128], [-102 / 128]]

    chunks = events(chat(stream=True, max_tokens=2, temperature=0, logprobs=True))
    contents = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert contents[0] is contents[-1] is None
    assert [one["content"][0]["token"] for one in contents[1:-1]] == [";", "<"]


def test_text_that_is_held_back_makes_no_chunk(complete):
    chunks = events(complete(stream=True, max_tokens=3, stop="dex"))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["def"]


def test_the_stop_string_is_not_sent(chat):
    chunks = events(chat(stream=True, temperature=0, stop="=>"))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    last = chunks[-1]["choices"][0]
    assert (text, last["finish_reason"], last["stop_reason"]) == (";<", "stop", "=>")


def test_prompts_are_told_apart_by_their_index(complete):
    chunks = events(complete(["abc", "123"], stream=True, max_tokens=4))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "defg", 1: "4567"}


def test_a_refusal_comes_before_the_stream(complete):
    reply = complete([500], stream=True)
    assert reply.status_code == 400
    assert reply.headers["content-type"] == "application/json"
