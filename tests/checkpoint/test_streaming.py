"""Conversion holds a few tensors, never the model: what `measure_streaming` shows, scaled down."""

import os
from pathlib import Path

import pytest
import streaming

from tpuinfer.checkpoint import assemble, by_rows, orbax_store, quantised
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.export import export

MB = 2**20

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="reads Linux's own count of memory"
)


def scaled_down(work: str, source: Path, target: Path) -> None:
    """A conversion with all that it holds beside tensors made 8 times smaller."""
    _scale_down()
    {"convert": convert, "export": export}[work](source, target)


def _scale_down() -> None:
    orbax_store.BATCH_BYTES = orbax_store.WRITE_BYTES = orbax_store.READ_BYTES = 16 * MB
    assemble.PIECE_BYTES = 2 * MB
    quantised.BATCH_BYTES = 16 * MB
    by_rows.BLOCK = 2**19


def quantised_small(source: Path, target: Path, weights: str) -> None:
    """The same with weights quantised on the way."""
    _scale_down()
    convert(source, target, weights=weights)


def loaded_small(path: Path, weights: str) -> None:
    """Loading, likewise."""
    _scale_down()
    streaming.load(path, weights)


def test_neither_way_holds_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Freed blocks go back to the system: the mark shows what is held, not what malloc keeps.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    size = streaming.write_model(tmp_path / "hf", vocab=10_240, embed=1024, mlp=10_240, layers=5)
    assert size > 350 * MB
    for work, source, target in (("convert", "hf", "orbax"), ("export", "orbax", "back")):
        peak = streaming.peak_of(scaled_down, work, tmp_path / source, tmp_path / target)
        assert peak < 200 * MB, f"{work} took {peak / MB:.0f} MB"


def test_quantised_weights_take_little_beside_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight and four bits, stored so, and made of bfloat16 at load; float32 is never held."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    size = streaming.write_model(tmp_path / "hf", vocab=8192, embed=1024, mlp=8192, layers=4)
    assert size > 240 * MB
    word = "int8,layers.0.mlp=int4"
    plain = convert(tmp_path / "hf", tmp_path / "plain")
    peak = streaming.peak_of(quantised_small, tmp_path / "hf", tmp_path / "kept", word)
    assert peak < 280 * MB, f"convert took {peak / MB:.0f} MB"  # some 100 of it to compile
    for path, weights, beside in ((tmp_path / "kept", "auto", 150), (plain, word, 230)):
        own = streaming.bytes_of(path, weights)
        assert own < 0.52 * size
        peak = streaming.peak_of(loaded_small, path, weights)
        assert peak < own + beside * MB, f"{path.name}: {(peak - own) / MB:.0f} MB beside {own}"
