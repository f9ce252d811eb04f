"""By hand: what converting a checkpoint of 4.6 GB takes, there and back; needs 14 GB of disk.

python tests/checkpoint/measure_streaming.py FOLDER
"""

import shutil
import sys
import time
from pathlib import Path

import streaming

from tpuinfer.checkpoint import safetensors
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.export import export


def main(folder: Path) -> None:
    folder.mkdir()
    try:
        size = streaming.write_model(folder / "hf", vocab=131_072, embed=4096, mlp=14_336, layers=7)
        largest = 2 * 131_072 * 4096
        bound = 2 * largest + 2**30
        print(f"{size / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB")
        print(f"allowed beside the process itself: {bound / 1e9:.2f} GB")
        for name, work, source, target in (
            ("Hugging Face -> Orbax", convert, "hf", "orbax"),
            ("Orbax -> Hugging Face", export, "orbax", "back"),
        ):
            start = time.monotonic()
            peak = streaming.peak_of(work, folder / source, folder / target)
            print(f"{name}: peak {peak / 1e9:.2f} GB, {time.monotonic() - start:.0f} s")
            assert peak < bound
        assert same(folder / "hf", folder / "back")
    finally:
        shutil.rmtree(folder)


def same(left: Path, right: Path) -> bool:
    """Whether two directories hold the same tensors, bit for bit."""
    one, other = (safetensors.open_directory(path) for path in (left, right))
    return one.keys() == other.keys() and all(
        tensor.rows(0, len_ := tensor.shape[0]).tobytes() == other[name].rows(0, len_).tobytes()
        for name, tensor in one.items()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
