"""A text model taken out of a multimodal checkpoint: Gemma 3's."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tpuinfer.checkpoint.export import export
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.checkpoint.wrapped import around, unwrap
from tpuinfer.errors import CheckpointError
from tpuinfer.models import gemma2, gemma3, registry

TEXT = {
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 17,
    "sliding_window": 8,
    "max_position_embeddings": 64,
}
WHOLE = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": TEXT,
    "vision_config": {"model_type": "siglip_vision_model"},
    "dtype": "float32",
}
VISION = "vision_tower.vision_model.head.probe"


def text_tensors():
    """Name without the rest -> values."""
    names = gemma3.hf_names(registry.read_config(WHOLE))
    rng = np.random.default_rng(2)
    shapes = {part.tensor: part.shape for (part,) in names.values()}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(params=["language_model.model.", "model.language_model."])
def published(request, tmp_path):
    """A multimodal directory, and what its text model's tensors hold."""
    folder = tmp_path / "gemma"
    folder.mkdir()
    values = text_tensors()
    tensors = {request.param + name.removeprefix("model."): value for name, value in values.items()}
    save_file(tensors | {VISION: np.ones(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(WHOLE))
    return folder, values


def test_its_parameters_are_those_of_the_text_model(published):
    folder, values = published
    source = open_source(folder)
    assert source.config["model_type"] == "gemma3_text"
    assert json.loads(source.texts["config.json"]) == source.config
    assert registry.read_config(source.config) == registry.read_config(WHOLE)
    assert len(source.params) == len(values)
    for name, param in source.params.items():
        np.testing.assert_array_equal(param.read().ravel(), values[f"model.{name}"].ravel())


def test_what_goes_home_is_a_checkpoint_of_the_text_model(published, tmp_path):
    folder, values = published
    out = export(folder, tmp_path / "out")
    assert json.loads((out / "config.json").read_text()) == gemma3.text_config(WHOLE)
    found = load_file(out / "model.safetensors")
    assert found.keys() == values.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, values[name])


def test_tensors_of_neither_part_are_refused(published):
    folder, _ = published
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"audio_tower.x": np.ones(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"audio_tower\.x \[2\] is not part of the model"):
        open_source(folder)


def test_what_is_left_out_is_logged_in_one_line(caplog):
    wrapped = around(gemma3.FAMILY, WHOLE)
    names = (VISION, f"model.{VISION}", "multi_modal_projector.mm_soft_emb_norm.weight")
    head, stray = "language_model.lm_head.weight", "stray.weight"
    with caplog.at_level(logging.INFO):
        found = unwrap(Path("folder"), dict.fromkeys((*names, head, stray), 0), wrapped)
    assert found.keys() == {"lm_head.weight", stray}
    assert caplog.messages == ["folder: vision tower not read: text only (3 tensors)"]


def test_two_tensors_of_one_name_are_listed():
    wrapped = around(gemma3.FAMILY, WHOLE)
    homes = ("model.language_model", "language_model.model")
    names = [f"{home}.{name}" for name in ("norm.weight", "x") for home in homes]
    with pytest.raises(CheckpointError) as caught:
        unwrap(Path("folder"), dict.fromkeys(names, 0), wrapped)
    assert str(caught.value) == (
        f"folder: {names[0]} and {names[1]} are both model.norm.weight; "
        f"{names[2]} and {names[3]} are both model.x"
    )


def test_a_text_checkpoint_is_not_unwrapped():
    assert around(gemma3.FAMILY, {"model_type": "gemma3_text"}) is None
    assert around(gemma2.FAMILY, {"model_type": "gemma2"}) is None
