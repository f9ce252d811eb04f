"""A mixture of experts on a mesh is the one of its formula, however the experts are cut."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tpuinfer.model_config import Experts
from tpuinfer.models import experts
from tpuinfer.models.blueprint import bind, weights
from tpuinfer.models.registry import axis_sizes
from tpuinfer.platform import PlatformSettings
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing.tiny import ODD

CUTS = {
    "by number": Experts(count=8, active=3, mlp=10),
    "within": Experts(count=6, active=2, mlp=16, normalise=False),
    "not at all": Experts(count=5, active=5, mlp=10),
}
ON_MESHES = pytest.mark.parametrize(
    ("mesh", "cut"), [("1", "within"), *(("2x4", cut) for cut in CUTS)]
)


def config_of(cut, biases=True):
    return dataclasses.replace(ODD, experts=CUTS[cut], mlp_bias=biases)


def layout_of(config, mesh, **rules):
    sizes = axis_sizes(config, slots=4)
    return resolve(ShardingRules(**rules), build_mesh(parse_mesh(mesh)), sizes)


@functools.cache
def inputs(cut, biases):
    """Random parameters and rows [4, 3, D]."""
    random = np.random.default_rng(3)
    config = config_of(cut, biases)
    params = {
        name: random.standard_normal(w.shape).astype(np.float32) / 3
        for name, w in weights(experts.Mixture(config)).items()
    }
    return params, random.standard_normal((4, 3, config.embed)).astype(np.float32)


def apply(config, layout, params, x, clamped=False):
    mixture = experts.Mixture(config, clamped=clamped)
    placed = {
        name: jax.device_put(params[name], layout.sharding(w.axes))
        for name, w in weights(mixture).items()
    }
    return np.asarray(jax.jit(lambda params, x: bind(mixture, params)(x, layout))(placed, x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_formula(sizes, params, x, clamped):
    """Token by token, in float64."""
    wide = {name: value.astype(np.float64) for name, value in params.items()}

    def linear(name, x, *at):
        bias = wide[f"{name}.bias"][at] if f"{name}.bias" in wide else 0
        return wide[f"{name}.weight"][at] @ x + bias

    def token(x):
        logits = linear("router", x)
        best = np.argsort(-logits, kind="stable")[: sizes.active]
        shares = np.exp(logits - logits.max())
        shares = shares / (shares[best].sum() if sizes.normalise else shares.sum())
        total = np.zeros_like(x)
        for at in best:
            gate, up = (linear(f"experts.{name}_proj", x, at) for name in ("gate", "up"))
            hidden = gate * sigmoid(gate) * up
            if clamped:
                gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
                hidden = gate * sigmoid(1.702 * gate) * (up + 1)
            total += shares[at] * linear("experts.down_proj", hidden, at)
        return total

    return np.stack([np.stack([token(one) for one in row]) for row in x.astype(np.float64)])


@ON_MESHES
@pytest.mark.parametrize(("biases", "clamped"), [(False, False), (True, True)])
@pytest.mark.parametrize("form", ["dense", "ragged"])
def test_by_its_formula(mesh, cut, biases, clamped, form, monkeypatch):
    """The bias of the outputs is added once, also where each device has a part of every sum."""
    settings = PlatformSettings(ragged_tokens=None if form == "dense" else 1)
    monkeypatch.setattr(experts, "platform_settings", lambda platform: settings)
    config, (params, x) = config_of(cut, biases), inputs(cut, biases)
    made = apply(config, layout_of(config, mesh), params, 4 * x, clamped)
    expected = by_formula(CUTS[cut], params, 4 * x, clamped)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cut", "axes", "spec"),
    [
        ("by number", {}, "('model',)"),
        ("by number", {"expert": None}, "()"),
        ("within", {}, "(None, 'model')"),
        ("within", {"expert_mlp": None}, "()"),
    ],
)
def test_the_rules_place_the_experts(cut, axes, spec):
    """Whatever they say, the numbers stay."""
    config, (params, x) = config_of(cut), inputs(cut, True)
    layout = layout_of(config, "2x4", axes={**ShardingRules().axes, **axes})
    axes_of = weights(experts.Mixture(config))["experts.gate_proj.weight"].axes
    placed = layout.spec(axes_of)
    while placed and placed[-1] is None:
        placed = placed[:-1]
    assert str(tuple(placed)) == spec
    expected = by_formula(CUTS[cut], params, x, clamped=False)
    np.testing.assert_allclose(apply(config, layout, params, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("enough", "shape", "form"),
    [(None, (1, 512), "dense"), (512, (600, 1), "dense"), (512, (1, 512), "ragged")],
)
def test_the_platform_and_the_tokens_per_row_choose_the_form(enough, shape, form, monkeypatch):
    """Not the number of rows, which varies with the load."""
    called, settings = [], PlatformSettings(ragged_tokens=enough)
    monkeypatch.setattr(experts, "platform_settings", lambda _: settings)
    for name in ("dense", "ragged"):
        whole = getattr(experts.experts, name)

        def noted(*arguments, name=name, whole=whole, **named):
            called.append(name)
            return whole(*arguments, **named)

        monkeypatch.setattr(experts.experts, name, noted)
    config, (params, _) = config_of("within"), inputs("within", True)
    mixture, layout = experts.Mixture(config), layout_of(config, "1")
    jax.eval_shape(lambda x: bind(mixture, params)(x, layout), np.zeros((*shape, config.embed)))
    assert called == [form]


def test_parameters_have_the_names_and_axes_of_the_blueprint():
    found = {
        name: (w.shape, w.axes) for name, w in weights(experts.Mixture(config_of("within"))).items()
    }
    D = ODD.embed
    assert found == {
        "experts.down_proj.bias": ((6, D), ("expert", "expert_embed")),
        "experts.down_proj.weight": ((6, D, 16), ("expert", "expert_embed", "expert_mlp")),
        "experts.gate_proj.bias": ((6, 16), ("expert", "expert_mlp")),
        "experts.gate_proj.weight": ((6, 16, D), ("expert", "expert_mlp", "expert_embed")),
        "experts.up_proj.bias": ((6, 16), ("expert", "expert_mlp")),
        "experts.up_proj.weight": ((6, 16, D), ("expert", "expert_mlp", "expert_embed")),
        "router.bias": ((6,), (None,)),
        "router.weight": ((6, D), (None, None)),
    }
