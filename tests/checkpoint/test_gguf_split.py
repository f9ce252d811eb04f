from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf

from tpuinfer.checkpoint import gguf_split
from tpuinfer.checkpoint.load import resolve
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.errors import CheckpointError

NAMES = [f"tiny-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


def write(folder: Path, **changes: dict[str, Any]) -> Path:
    """The tiny model in three files, as gguf-split writes them; `changes` of metadata by part."""
    tensors = list(tiny_gguf.llama_tensors().items())
    for number, name in enumerate(NAMES):
        metadata = {
            **(tiny_gguf.llama_metadata() if number == 0 else {}),
            "split.no": number,
            "split.count": 3,
            "split.tensors.count": len(tensors),
            **changes.get(f"part{number}", {}),
        }
        own = dict(tensors[7 * number : 7 * number + 7])
        (folder / name).write_bytes(tiny_gguf.gguf_bytes(metadata, own))
    return folder / NAMES[0]


def test_parts_together_are_the_whole(tmp_path: Path, llama_file: Path) -> None:
    whole, parts = open_source(llama_file, "float32"), open_source(write(tmp_path), "float32")
    assert parts.params.keys() == whole.params.keys()
    for name, param in whole.params.items():
        np.testing.assert_array_equal(parts.params[name].read(), param.read())
    assert parts.config == whole.config


def test_a_change_of_any_part_is_another_model(tmp_path: Path) -> None:
    first = write(tmp_path)
    before = open_source(first).sha256
    cache = tmp_path / "cache"
    target = resolve(first, cache_dir=cache)
    assert resolve(first, cache_dir=cache) == target
    last = tmp_path / NAMES[2]
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert open_source(first).sha256 != before
    assert resolve(first, cache_dir=cache) != target


def test_only_the_first_part_stands_for_all() -> None:
    assert gguf_split.files_of(Path("a/m-00002-of-00003.gguf")) == (
        Path("a/m-00002-of-00003.gguf"),
    )
    assert gguf_split.files_of(Path("a/m.gguf")) == (Path("a/m.gguf"),)
    assert [file.name for file in gguf_split.files_of(Path("a") / NAMES[0])] == NAMES


def test_the_sum_of_one_file_is_its_own() -> None:
    assert gguf_split.joined(["abc"]) == "abc"
    sums = [gguf_split.joined(order) for order in (["a", "b"], ["b", "a"])]
    assert len(set(sums)) == 2


@pytest.mark.parametrize("name", [NAMES[1], "renamed.gguf", "tiny-00001-of-00002.gguf"])
def test_a_part_that_is_not_the_first_is_refused(tmp_path: Path, name: str) -> None:
    first = write(tmp_path)
    path = tmp_path / name
    if not path.exists():
        first.rename(path)
    with pytest.raises(CheckpointError, match="one of 3 parts: pass the first of them"):
        gguf_split.open_model(path)


def test_a_missing_part_is_one_line(tmp_path: Path) -> None:
    first = write(tmp_path)
    (tmp_path / NAMES[1]).unlink()
    for opening in (open_source, lambda path: resolve(path, cache_dir=tmp_path / "cache")):
        with pytest.raises(CheckpointError, match=r"00002-of-00003.gguf: cannot be read \(No such"):
            opening(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part1": {"split.no": 2}}, "00002-of-00003.gguf: is not part 2 of 3"),
        ({"part2": {"split.count": 4}}, "00003-of-00003.gguf: is not part 3 of 3"),
        ({"part0": {"split.no": 1}}, "one of 3 parts: pass the first of them"),
        ({"part0": {"split.tensors.count": 21}}, "its parts hold 20 tensors, and not 21"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, changes: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        gguf_split.open_model(write(tmp_path, **changes))


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path)
    metadata = {"split.no": 2, "split.count": 3}
    tensors = {"output_norm.weight": (np.ones(64, np.float32), 0)}
    (tmp_path / NAMES[2]).write_bytes(tiny_gguf.gguf_bytes(metadata, tensors))
    with pytest.raises(CheckpointError, match=r"tensor output_norm\.weight is in an earlier part"):
        gguf_split.open_model(first)
