"""Who can be run against, and what is refused before any work."""

from types import SimpleNamespace

import pytest

from tpuinfer.benchmark import peer_llama_cpp, peer_transformers, peers
from tpuinfer.benchmark.peers import LLAMA_CPP, TRANSFORMERS, WEIGHTS, Against
from tpuinfer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("transformers", Against(TRANSFORMERS)),
        ("llama.cpp", Against(LLAMA_CPP, "q8_0")),
        *((f"llama.cpp:{weights}", Against(LLAMA_CPP, weights)) for weights in WEIGHTS),
    ],
)
def test_names(text, wanted):
    assert peers.parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("llamacpp", "llama.cpp"),
        ("llama.cpp:q8", "llama.cpp:q8_0"),
        ("transformers:f32", "transformers"),
    ],
)
def test_other_names_are_refused_with_the_nearest(text, nearest):
    with pytest.raises(ConfigError, match=f"^against is '{text}': one of .*; nearest: {nearest}$"):
        peers.parse(text)


def test_a_gguf_file_has_no_random_weights():
    assert peers.parse("transformers", "llama-3.1-8b") == Against(TRANSFORMERS)
    with pytest.raises(ConfigError, match=r"random weights are in none; nearest: transformers"):
        peers.parse("llama.cpp", "llama-3.1-8b")


@pytest.mark.parametrize(
    ("against", "module", "extra"),
    [
        (Against(TRANSFORMERS), peer_transformers, "parity"),
        (Against(LLAMA_CPP, "q8_0"), peer_llama_cpp, "llamacpp"),
    ],
)
def test_a_missing_library_is_said_with_its_extra(monkeypatch, against, module, extra):
    def missing(name):
        raise ModuleNotFoundError(name)

    fake = SimpleNamespace(import_module=missing)
    monkeypatch.setattr(module, "importlib", fake)
    with pytest.raises(ConfigError, match=f"cannot be imported: install the extra `{extra}`"):
        peers.check_installed(against)
