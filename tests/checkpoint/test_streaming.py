"""Conversion holds a few tensors, never the model: what `measure_streaming` shows, scaled down."""

import os
from pathlib import Path

import pytest
import streaming

from tpuinfer.checkpoint import assemble, orbax_store
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.export import export

MB = 2**20

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="reads Linux's own count of memory"
)


def scaled_down(work: str, source: Path, target: Path) -> None:
    """A conversion with all that it holds beside tensors made 8 times smaller."""
    orbax_store.BATCH_BYTES = orbax_store.WRITE_BYTES = orbax_store.READ_BYTES = 16 * MB
    assemble.PIECE_BYTES = 2 * MB
    {"convert": convert, "export": export}[work](source, target)


def test_neither_way_holds_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Freed blocks go back to the system: the mark shows what is held, not what malloc keeps.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    size = streaming.write_model(tmp_path / "hf", vocab=10_240, embed=1024, mlp=10_240, layers=5)
    assert size > 350 * MB
    for work, source, target in (("convert", "hf", "orbax"), ("export", "orbax", "back")):
        peak = streaming.peak_of(scaled_down, work, tmp_path / source, tmp_path / target)
        assert peak < 200 * MB, f"{work} took {peak / MB:.0f} MB"
