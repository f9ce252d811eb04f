"""A batch takes as much memory for many lines as for few."""

import measure_memory


def test_memory_is_flat(tmp_path):
    """Two windows of 2,560 lines are full with 8,000; 200,000 by hand: see BUILD_NOTES.md."""
    few, _ = measure_memory.measure(8_000, tmp_path)
    many, _ = measure_memory.measure(24_000, tmp_path)
    assert many - few < 12, f"{few:.0f} MiB of 8,000 lines, {many:.0f} of 24,000"
