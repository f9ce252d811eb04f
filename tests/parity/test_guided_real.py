"""A guide on real weights: the answer conforms, and company changes none of its bits."""

import json

import jsonschema
import pytest
from golden_file import load

from tpuinfer import SamplingParams
from tpuinfer.grammar.guide import Guide

pytestmark = pytest.mark.model

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "size": {"enum": ["small", "large"]},
        "bridges": {"type": "integer", "minimum": 0, "maximum": 400},
        "rivers": {
            "type": "array",
            "items": {"type": "string", "maxLength": 12},
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["city", "size", "bridges", "rivers"],
    "additionalProperties": False,
}
QUESTION = "Describe Paris as JSON:\n"
GUIDE = Guide("json_schema", json.dumps(SCHEMA))
OTHERS = ("one-word", "sentence", "list", "json", "digits", "sums", "chat-short")


def guided(**how):
    return SamplingParams(max_tokens=160, logprobs=3, guide=GUIDE, **how)


@pytest.fixture(scope="module")
def company():
    """Seven requests that nothing constrains, each of another kind."""
    prompts = {golden.name: golden.prompt_ids for golden in load().goldens}
    kinds = [{"temperature": 0.0}, {"seed": 5}, {"seed": 6, "repetition_penalty": 1.2}]
    return [
        (prompts[name], SamplingParams(max_tokens=12 + 4 * index, **kinds[index % 3]))
        for index, name in enumerate(OTHERS)
    ]


@pytest.fixture(scope="module")
def free(llm, company):
    """What the seven get where nothing is guided."""
    return llm.generate(*map(list, zip(*company, strict=True)))


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 11}], ids=str)
def test_an_answer_conforms_and_has_the_same_bits_in_company(llm, company, free, how):
    asked = guided(**how)
    (alone,) = llm.generate([QUESTION], asked)
    prompts, params = map(list, zip(*company[:3], (QUESTION, asked), *company[3:], strict=True))
    together = llm.generate(prompts, params)
    one, other = alone.outputs[0], together.pop(3).outputs[0]
    assert one.finish_reason == "stop"
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(one.text))
    assert one.token_ids == other.token_ids
    assert one.logprobs == other.logprobs
    assert one.top_logprobs == other.top_logprobs
    for before, beside in zip(free, together, strict=True):
        assert before.outputs[0].token_ids == beside.outputs[0].token_ids
    assert llm._engine.metrics.recompiles == 0


def test_without_its_guide_the_answer_does_not_conform(llm):
    """The model itself begins otherwise: the guide is what made it write JSON."""
    unguided = SamplingParams(temperature=0, max_tokens=12)
    (answer,) = llm.generate([QUESTION], unguided)
    assert not answer.outputs[0].text.lstrip().startswith("{")
