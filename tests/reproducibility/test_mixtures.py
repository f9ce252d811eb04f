"""Mixtures of experts: the other rows of a batch never change a row's bits, wherever they go.

Every request is served alone, and among others that come and go in another order: they sit in other
slots, and its neighbours are permuted and replaced at every step.
"""

import dataclasses
import functools
import random
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import pytest
from mixes import ask, differences, key, serve_alone, serve_mixed

from tpuinfer.engine.request import Request
from tpuinfer.model_config import Experts, ModelConfig
from tpuinfer.models import experts
from tpuinfer.platform import platform_settings
from tpuinfer.programs.compile import Program, compile_programs
from tpuinfer.testing.tiny import Tiny, tiny

COUNT = 20

_GPT = ModelConfig(
    family="gpt_oss",
    vocab=97,
    embed=32,
    mlp=24,
    layers=1,
    heads=8,
    kv_heads=4,
    head_dim=8,
    context=1024,
    windows=(20,),
    eos_ids=(0,),
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    experts=Experts(count=6, active=2, mlp=24),
)
"""Six experts: a model axis of 4 cuts each of them within."""

_MIXTRAL = dataclasses.replace(
    _GPT,
    family="mixtral",
    windows=(),
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    experts=Experts(count=8, active=3, mlp=24),
)
"""Eight experts, two on each of four devices."""

MODELS = {
    "1, dense": (_GPT, "1"),
    "1, ragged": (_GPT, "1"),
    "2x4, dense": (_GPT, "2x4"),
    "2x4, ragged": (_MIXTRAL, "2x4"),
    "2x4, int8, dense": (_MIXTRAL, "2x4"),
    "expert, dense": (_MIXTRAL, "data=2,expert=2,model=2"),
}


def model_of(name: str) -> Tiny:
    """The dense form has the same bits for 4 rows as for 8; the ragged one need not.

    On a mesh with an expert axis the rows of two data shards come together at the experts.
    """
    config, mesh = MODELS[name]
    apart = name.startswith("expert")
    dtype, narrow = ("bfloat16", (4,)) if name == "1, dense" else ("float32", ())
    kept = {"quant": "int8", "ring": "int8"} if "int8" in name else {}
    return tiny(
        config,
        mesh,
        slots="8x32,4x96" if apart else "6x32,2x96",
        dtype=dtype,
        buckets=(16,),
        narrow=narrow,
        block=16,
        rules="expert" if apart else "1d",
        **kept,
    )


@functools.cache
def programs(name: str) -> Mapping[str, Program]:
    """A model's programs with experts of its form alone, whatever the platform would choose."""
    threshold, other = (1, "dense") if name.endswith("ragged") else (None, "ragged")
    settings = dataclasses.replace(platform_settings("cpu"), ragged_tokens=threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "platform_settings", lambda platform: settings)
        patch.delattr(experts.experts, other)
        again = dataclasses.replace(model_of(name))  # nothing traced or compiled yet
        return compile_programs(list(again.specs.values()))


def requests_of(name: str) -> list[Request]:
    chance = random.Random(name)
    return [ask(number, chance, MODELS[name][0].vocab, limit=12) for number in range(COUNT)]


def found(name: str, programs: Mapping[str, Program]) -> list[str]:
    """What is not the same alone and in a mix."""
    model, requests = model_of(name), requests_of(name)
    alone, seen = serve_alone(model, requests, programs)
    mixed, traffic = serve_mixed(
        model, requests, steps=1, chance=random.Random(1), programs=programs
    )
    names = [key(request) for request in requests]
    assert sum(traffic.slots[one] != seen.slots[one] for one in names) > COUNT // 3
    assert max(traffic.decodes) > 4, "it was a mix"
    return differences(alone, mixed)


@pytest.mark.parametrize("name", MODELS)
def test_alone_and_in_a_mix(name: str) -> None:
    assert found(name, programs(name)) == []


def test_experts_with_room_for_few_rows_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixtures that drop rows beyond an expert's capacity drop them by what others chose."""
    dense = experts.experts.dense

    def dropping(x, routing, weights, gate, first=0, *, tokens):  # type: ignore[no-untyped-def]
        ids = routing.ids
        chosen = jax.nn.one_hot(ids, 6, dtype=jnp.int32).sum(axis=1)
        place = jnp.take_along_axis(chosen.cumsum(axis=0), ids, axis=1)
        kept = jnp.where(place <= 1, routing.weights, 0)
        return dense(x, routing._replace(weights=kept), weights, gate, first, tokens=tokens)

    name = "1, dense"
    intact = programs(name)
    monkeypatch.setattr(experts.experts, "dense", dropping)
    specs = dataclasses.replace(model_of(name)).specs
    broken = compile_programs([specs["decode"], specs["decode_4"]])
    lines = found(name, {**intact, **broken})
    assert any(" logprobs[" in line or " tokens[" in line for line in lines), lines
