"""The goldens themselves: transformers saves the same checkpoint and gives the same vectors today.

What it saves is read by us as it wrote it; of the real encoder more texts are compared.
"""

import encoder_golden
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the parity extra (torch)")
pytest.importorskip("transformers", reason="needs the parity extra (transformers)")

from encoder_cases import CASES, random_texts, tokens
from encoder_golden import MINILM, largest_error
from encoder_torch import minilm, publish
from test_encoders import LIMIT, REAL_LIMIT

from tpuinfer import LLM
from tpuinfer.checkpoint.load import default_cache_dir, find

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", CASES)
def test_transformers_answers_as_the_golden_and_as_we_do(name, tmp_path):
    case, golden = CASES[name], encoder_golden.load(name)
    live = publish(case, tmp_path / "live")
    assert live.config == golden.config
    assert live.tensors == golden.tensors
    assert largest_error(golden.vectors, live.vectors) < LIMIT / 10
    again = encoder_golden.write_directory(case, golden, tmp_path / "again")
    (again / "model.safetensors").write_bytes((tmp_path / "live/model.safetensors").read_bytes())
    llm = LLM(again, cache_dir=tmp_path / "cache")
    assert largest_error(llm.embed(tokens(llm.plan.config.vocab)), live.vectors) < LIMIT


@pytest.mark.model
def test_minilm_on_texts_of_all_lengths():
    texts = random_texts(24)
    live = minilm(find(MINILM, default_cache_dir()).path, texts).vectors
    assert np.abs(LLM(MINILM).embed(texts) - live).max() < REAL_LIMIT
