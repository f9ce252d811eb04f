"""The peer runs our weights: its greedy tokens are those of the numpy reference."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from tpuinfer.benchmark import peer_transformers
from tpuinfer.benchmark.peer_transformers import Peer
from tpuinfer.benchmark.workload import Item
from tpuinfer.errors import ConfigError
from tpuinfer.models import registry
from tpuinfer.testing import reference, tiny

HF_CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 0,
}

PROMPTS = [(3, 1, 4, 1, 5), (9, 2), (6, 5, 3, 5, 8, 9, 7, 9)]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def hf_config(request):
    pytest.importorskip("torch", reason="needs the parity extra (torch)")
    return {**HF_CONFIG, "tie_word_embeddings": request.param}


@pytest.fixture
def weights(hf_config):
    return tiny.random_weights(registry.read_config(hf_config))


@pytest.fixture
def peer(hf_config, weights):
    return Peer(hf_config, weights, "float32")


@pytest.mark.parity
def test_greedy_tokens_are_those_of_the_reference(peer, hf_config, weights):
    config = registry.read_config(hf_config)
    for prompt in PROMPTS:
        assert peer.greedy(prompt, 6) == reference.greedy(config, weights, prompt, 6)[0]


@pytest.mark.parity
def test_a_padded_batch_answers_like_each_alone(peer):
    items = [Item(prompt, new) for prompt, new in zip(PROMPTS, (4, 6, 1), strict=True)]
    assert peer._batch(items) == [peer.greedy(item.prompt, item.new_tokens) for item in items]


@pytest.mark.parity
def test_rounds_give_the_times_that_count(peer):
    assert len(peer.prefill_round(PROMPTS[0], 2)) == 2
    assert len(peer.decode_round(PROMPTS[0], live=2, new_tokens=7)) == 4
    assert peer.serve([Item(prompt, 3) for prompt in PROMPTS], 2) > 0


@pytest.mark.parity
def test_bfloat16_weights_stay_bfloat16(hf_config, weights):
    narrow = {name: jnp.asarray(value, jnp.bfloat16) for name, value in weights.items()}
    peer = Peer(hf_config, narrow, "bfloat16")
    assert {str(one.dtype) for one in peer._model.parameters()} == {"torch.bfloat16"}
    assert len(peer.greedy(PROMPTS[0], 3)) == 3


@pytest.mark.parity
def test_other_weights_are_refused_by_name(hf_config, weights):
    odd = {**weights, "layers.0.mlp.extra.weight": weights["norm.weight"]}
    del odd["norm.weight"]
    with pytest.raises(ConfigError, match=r"unknown: model\.layers\.0\.mlp\.extra.*model\.norm"):
        Peer(hf_config, odd, "float32")


def test_without_the_extra_the_error_names_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(peer_transformers, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(ConfigError, match="torch cannot be imported: install the extra `parity`"):
        Peer(HF_CONFIG, {}, "float32")
