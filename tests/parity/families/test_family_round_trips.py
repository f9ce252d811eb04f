"""What each family publishes goes to a checkpoint directory and back, bit for bit."""

from pathlib import Path

import family_golden
import numpy as np
import pytest
from all_cases import CASES
from safetensors.numpy import load_file

from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.export import export
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.models import registry


def stored(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_comes_back(name: str, tmp_path: Path) -> None:
    golden = family_golden.load(name)
    folder = family_golden.write_checkpoint(CASES[name], golden, tmp_path / "published")
    back = export(convert(folder, tmp_path / "ours"), tmp_path / "back")
    found, published = stored(back), stored(folder)
    wrapped = registry.for_model_type(golden.config["model_type"]).wrapped
    if wrapped is not None and wrapped.model_type == golden.config["model_type"]:
        published = in_parameters(folder)  # what is written is the family's model alone
        found = in_parameters(back)
    assert found.keys() == published.keys()
    for tensor, values in published.items():
        assert found[tensor].dtype == values.dtype
        np.testing.assert_array_equal(found[tensor], values)


def in_parameters(folder: Path) -> dict[str, np.ndarray]:
    return {name: param.read() for name, param in open_source(folder).params.items()}
