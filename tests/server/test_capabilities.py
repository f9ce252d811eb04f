import pytest

from tpuinfer.server.capabilities import BODIES
from tpuinfer.server.sampling_body import SAMPLING_NEUTRAL


@pytest.fixture
def endpoints(client):
    reply = client.get("/v1/capabilities")
    assert reply.status_code == 200, reply.text
    return reply.json()["endpoints"]


def test_every_field_and_every_refused_name_is_there(endpoints):
    for path, body in BODIES.items():
        supported = {name for name, one in endpoints[path].items() if one["supported"]}
        assert supported == {one.alias or name for name, one in body.model_fields.items()}
        assert set(endpoints[path]) - supported == set(body.neutral)
    assert "temperature" in endpoints["/v1/completions"]
    assert "typical_p" in SAMPLING_NEUTRAL


def test_a_parameter_in_full(endpoints):
    assert endpoints["/v1/chat/completions"]["n"] == {
        "supported": True,
        "required": False,
        "type": ["integer"],
        "default": 1,
        "note": "Answers to each prompt.",
        "minimum": 1,
        "maximum": 128,
    }
    assert endpoints["/v1/completions"]["best_of"] == {"supported": False, "accepted": [1, None]}
    assert endpoints["/v1/completions"]["prompt"]["required"]


def test_the_ranges_are_those_that_are_enforced(endpoints, complete):
    checked = 0
    for name, one in endpoints["/v1/completions"].items():
        step = 1 if one.get("type") == ["integer"] else 1e-6
        outside = [one[key] + sign * step for key, sign in _EDGES if key in one]
        outside += [one["above"]] if "above" in one else []
        for value in outside:
            reply = complete(**{name: value})
            assert reply.status_code == 400, (name, value)
            assert reply.json()["error"]["param"] == name
            checked += 1
        for key, _ in _EDGES:
            if key in one and name not in ("max_tokens", "min_tokens"):
                reply = complete(**{"max_tokens": 1, "n": 1, name: one[key]})
                assert reply.status_code == 200 or name == "n", (name, one[key], reply.text)
    assert checked >= 20


_EDGES = (("minimum", -1), ("maximum", 1))


def test_what_is_refused_is_refused_and_what_is_neutral_is_not(endpoints, chat):
    for name, one in endpoints["/v1/chat/completions"].items():
        if not one["supported"]:
            for value in one["accepted"]:
                assert chat(max_tokens=1, **{name: value}).status_code == 200, name
            refused = chat(**{name: "no such value"})
            assert refused.json()["error"]["param"] == name
            assert refused.json()["error"]["code"] == "unsupported_parameter"


def test_before_the_engine_is_there_the_context_is_not_known(client, bridge):
    assert client.get("/v1/capabilities").json()["max_model_len"] == 64
    bridge.stop()
    assert client.get("/v1/capabilities").json()["max_model_len"] is None
