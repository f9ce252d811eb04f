"""By hand: what converting a checkpoint of 4.6 GB takes, there and back; needs 14 GB of disk.

python tests/checkpoint/measure_streaming.py FOLDER
python tests/checkpoint/measure_streaming.py FOLDER quantised

The second: a checkpoint of 0.9 GB kept by several schemes; needs 4 GB of disk. What is stored as it
is wanted takes at most its own bytes and 0.5 GB.
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


def measure_quantised(folder: Path) -> None:
    """Peaks of converting into schemes, and of loading what is stored so or otherwise."""
    folder.mkdir()
    try:
        size = streaming.write_model(folder / "hf", vocab=32_768, embed=2048, mlp=8192, layers=6)
        print(f"{size / 1e9:.2f} GB")
        for word in ("auto", "int8", "int4", "int4z:32"):
            start = time.monotonic()
            peak = streaming.peak_of(into, folder / "hf", folder / word, word)
            print(f"convert to {word}: peak {peak / 1e9:.2f} GB, {time.monotonic() - start:.0f} s")
        for stored, wanted in (
            *(("int8", "auto"), ("int4", "auto"), ("int4z:32", "auto")),
            *(("auto", "int8"), ("auto", "int4"), ("int8", "none"), ("int4z:32", "int8")),
        ):
            start = time.monotonic()
            own = streaming.bytes_of(folder / stored, wanted)
            peak = streaming.peak_of(streaming.load, folder / stored, wanted)
            print(
                f"load {stored} as {wanted}: its own {own / 1e9:.2f} GB and "
                f"{(peak - own) / 1e9:.2f}, {time.monotonic() - start:.0f} s"
            )
            assert wanted != "auto" or peak < own + 5e8
    finally:
        shutil.rmtree(folder)


def into(source: Path, target: Path, weights: str) -> None:
    convert(source, target, weights=weights)


def same(left: Path, right: Path) -> bool:
    """Whether two directories hold the same tensors, bit for bit."""
    one, other = (safetensors.open_directory(path) for path in (left, right))
    return one.keys() == other.keys() and all(
        tensor.rows(0, len_ := tensor.shape[0]).tobytes() == other[name].rows(0, len_).tobytes()
        for name, tensor in one.items()
    )


if __name__ == "__main__":
    (measure_quantised if sys.argv[2:] == ["quantised"] else main)(Path(sys.argv[1]))
