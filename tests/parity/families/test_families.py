"""Every family's tiny models against what transformers answered, without torch: the goldens.

Full-precision logits of every token of a text, in four ways (family_ours.py), are those of
transformers to 1e-4 of the row's largest.
"""

import functools
import tempfile
from pathlib import Path

import family_golden
import pytest
from all_cases import CASES
from family_ours import WAYS, run_all

from tpuinfer.models import registry

LIMIT = 1e-4

TESTS_OF_ENCODERS = {"bert": "tests/parity/encoders/test_encoders_live.py"}
"""Where encoders are held against transformers: they have no rings to run through."""


@functools.cache
def ours(name):
    """What we make of the checkpoint that the golden describes."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        published = family_golden.write_checkpoint(
            CASES[name], family_golden.load(name), work / "hf"
        )
        return run_all(published, work)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, way):
    errors = family_golden.row_errors(ours(name)[way], family_golden.load(name).logits)
    assert errors.max() < LIMIT, f"row {errors.argmax()} is off by {errors.max():.2g}"


@pytest.mark.parametrize("name", CASES)
def test_the_golden_is_of_this_case(name):
    """Else a case was changed and its golden not made again."""
    golden = family_golden.load(name)
    assert golden.entries == CASES[name].config
    assert registry.read_config(golden.config).family == CASES[name].family


def test_goldens_are_those_of_the_cases():
    kept = {path.stem for path in family_golden.GOLDENS.iterdir()}
    assert kept == CASES.keys()


def test_every_family_has_a_case():
    families = registry.families()
    decoders = {name for name, family in families.items() if family.kind == "decoder"}
    assert {case.family for case in CASES.values()} == decoders
    assert families.keys() - decoders == TESTS_OF_ENCODERS.keys()
    root = Path(__file__).parents[3]
    for path in TESTS_OF_ENCODERS.values():
        text = (root / path).read_text("utf-8")
        assert "pytest.mark.parity" in text, path


def test_every_model_type_has_a_case():
    types = {
        name
        for family in registry.families().values()
        if family.kind == "decoder"
        for name in family.model_types
    }
    assert {family_golden.load(name).config["model_type"] for name in CASES} == types
