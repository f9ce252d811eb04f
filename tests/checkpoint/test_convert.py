import multiprocessing
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

import tpuinfer.tokenizer.gguf_vocab as gguf_vocab
from tpuinfer.checkpoint import assemble, gguf_config, layout, orbax_store
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.load import load_params, read_config
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.errors import CheckpointError, TokenizerError


def read_back(path: Path, dtype: str) -> dict[str, np.ndarray]:
    sharding = SingleDeviceSharding(jax.devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, _) in layout.read_manifest(path).params.items()
    }
    return {name: np.asarray(array) for name, array in load_params(path, abstract).items()}


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", np.float32), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_parameters_survive_the_round_trip(
    llama_file: Path, tmp_path: Path, dtype: str, kind: type
) -> None:
    path = convert(llama_file, tmp_path / "out", dtype)
    source = open_source(llama_file, "float32")
    params = read_back(path, dtype)
    assert params.keys() == source.params.keys()
    for name, param in source.params.items():
        np.testing.assert_array_equal(params[name], param.read().astype(kind))


def test_the_directory_is_whole(llama_file: Path, tmp_path: Path) -> None:
    path = convert(llama_file, tmp_path / "out")
    assert path == tmp_path / "out"
    layout.verify(path)
    assert read_config(path)["torch_dtype"] == "bfloat16"
    assert (path / "tokenizer.json").read_bytes() == b"{}\n"
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "tiny.gguf"}
    stored = orbax_store.metadata(path / "params")
    assert {dtype for _, dtype in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_progress_counts_stored_bytes(llama_file: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    path = convert(llama_file, tmp_path / "out", "float32", lambda *step: steps.append(step))
    size = sum(4 * int(np.prod(shape)) for shape, _ in layout.read_manifest(path).params.values())
    done = [step for step in steps if step[0] == "convert"]
    assert done[0] == ("convert", 0, size)
    assert done[-1] == ("convert", size, size)


def test_the_same_conversion_again_is_left_alone(llama_file: Path, tmp_path: Path) -> None:
    path = convert(llama_file, tmp_path / "out")
    before = (path / "SHA256SUMS").stat().st_mtime_ns
    convert(llama_file, tmp_path / "out")
    assert (path / "SHA256SUMS").stat().st_mtime_ns == before


def test_an_empty_directory_may_be_the_target(llama_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    layout.verify(convert(llama_file, tmp_path / "out"))


def test_a_taken_target_is_refused(llama_file: Path, tmp_path: Path) -> None:
    convert(llama_file, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"already holds tiny\.gguf as bfloat16"):
        convert(llama_file, tmp_path / "out", "float32")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="already exists"):
        convert(llama_file, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


def test_bad_arguments_are_refused(llama_file: Path) -> None:
    with pytest.raises(CheckpointError, match="writes to a local directory"):
        convert(llama_file, "gs://bucket/out")
    with pytest.raises(CheckpointError, match="'float16'"):
        convert(llama_file, "out", "float16")


@pytest.mark.parametrize(("room", "where"), [(assemble, "read_param"), (gguf_config, "describe")])
def test_an_interruption_leaves_nothing(
    llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: object, where: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, where, stop)
    with pytest.raises(KeyboardInterrupt):
        convert(llama_file, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_refused_vocabulary_leaves_nothing(
    llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(metadata: object) -> dict[str, bytes]:
        raise TokenizerError("no such pre-tokenizer")

    monkeypatch.setattr(gguf_vocab, "tokenizer_files", refuse)
    with pytest.raises(TokenizerError):
        convert(llama_file, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_full_disk_is_one_line(
    llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout, "write_json", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        convert(llama_file, tmp_path / "out")


def test_a_cut_file_is_refused(llama_file: Path, tmp_path: Path) -> None:
    data = llama_file.read_bytes()
    for cut in range(0, len(data), len(data) // 20):
        llama_file.write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            convert(llama_file, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


def _convert_in_child(source: str, target: str) -> None:
    gguf_vocab.tokenizer_files = lambda metadata: {}
    convert(source, target)


def test_two_processes_may_convert_at_once(llama_file: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    target = tmp_path / "out"
    children = [
        context.Process(target=_convert_in_child, args=(str(llama_file), str(target)))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    layout.verify(target)
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "tiny.gguf"}
