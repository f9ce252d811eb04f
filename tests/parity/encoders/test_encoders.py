"""Encoders against what transformers answered, without torch: the goldens."""

import encoder_golden
import numpy as np
import pytest
from encoder_cases import CASES, TEXTS, tokens
from encoder_golden import MINILM, largest_error

from tpuinfer import LLM
from tpuinfer.checkpoint import catalogue
from tpuinfer.models import registry

LIMIT = 1e-4
REAL_LIMIT = 1e-5


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("mesh", ["1", "2x4"])
@pytest.mark.parametrize("name", CASES)
def test_vectors_are_those_of_transformers(name, mesh, tmp_path, cache):
    golden = encoder_golden.load(name)
    path = encoder_golden.write_directory(CASES[name], golden, tmp_path / "hf")
    llm = LLM(path, mesh=mesh, cache_dir=cache)
    assert largest_error(llm.embed(tokens(llm.plan.config.vocab)), golden.vectors) < LIMIT


@pytest.mark.parametrize("name", CASES)
def test_the_golden_is_of_this_case(name):
    """Else a case was changed and its golden not made again."""
    case, config = CASES[name], encoder_golden.load(name).config
    assert {key: config.get(key) for key in case.config} == case.config
    assert config["model_type"] == case.model_type


def test_every_encoder_has_a_case_of_each_model_type():
    types = {
        name
        for family in registry.families().values()
        if family.kind == "encoder"
        for name in family.model_types
    }
    assert {case.model_type for case in CASES.values()} == types


def test_goldens_are_those_of_the_cases():
    kept = {path.stem for path in encoder_golden.GOLDENS.iterdir()}
    assert kept == {*CASES, MINILM}


def test_the_weights_are_the_catalogues():
    assert encoder_golden.load(MINILM).config == {"sha256": catalogue.find(MINILM).member_sha256}


@pytest.mark.model
@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_minilm_gives_the_vectors_of_transformers(mesh):
    llm = LLM(MINILM, mesh=mesh, strict_compile=True)
    vectors = llm.embed(TEXTS, truncate=True)
    golden = encoder_golden.load(MINILM).vectors
    assert np.abs(vectors - golden).max() < REAL_LIMIT
    assert (1 - (vectors * golden).sum(-1)).max() < REAL_LIMIT
    alone = np.concatenate([llm.embed(text, truncate=True) for text in TEXTS])
    np.testing.assert_array_equal(alone, vectors)
