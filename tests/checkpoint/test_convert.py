import logging
import multiprocessing
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_gguf
import tiny_hf
from jax.sharding import SingleDeviceSharding

import tpuinfer.tokenizer.gguf_vocab as gguf_vocab
from tpuinfer.checkpoint import assemble, gguf_config, layout, orbax_store, quantised
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.export import export
from tpuinfer.checkpoint.load import load_params, read_config
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.errors import CheckpointError, ConfigError, TokenizerError


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


def _codes(path: Path) -> dict[str, np.ndarray]:
    """Every stored array, codes and scales apart, as it is stored."""
    read = orbax_store.HostReader(path / layout.PARAMS)
    return {name: read(name, kind) for name, (_, kind) in orbax_store.metadata(read._path).items()}


def _same(one: Path, other: Path) -> None:
    left, right = _codes(one), _codes(other)
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert values.dtype == right[name].dtype, name
        assert values.tobytes() == right[name].tobytes(), name


def _worth(path: Path) -> dict[str, np.ndarray]:
    """What the parameters of a checkpoint directory stand for, in float32."""
    return {name: param.read() for name, param in open_source(path, "float32").params.items()}


@pytest.mark.parametrize("word", ["int8", "int4z:8,head=none"])
def test_a_hugging_face_directory_is_quantised(tmp_path: Path, word: str) -> None:
    source = tiny_hf.write(tmp_path / "hf")
    path = convert(source, tmp_path / "out", weights=word)
    layout.verify(path)
    manifest = layout.read_manifest(path)
    assert ("lm_head.weight" in manifest.schemes) == (word == "int8")
    assert manifest.params["layers.0.input_layernorm.weight"] == ((32,), "float32")
    exact, found = _worth(source), _worth(path)
    for name, (scheme, _, contracted) in manifest.schemes.items():
        wanted = quantised.on_host(exact[name], scheme, contracted)
        np.testing.assert_array_equal(
            found[name], quantised.widened_on_host(wanted, exact[name].shape, np.dtype("f4"))
        )
        far = 0.005 if word == "int8" else 0.08
        np.testing.assert_allclose(found[name], exact[name], atol=far * np.abs(exact[name]).max())
    for name in exact.keys() - manifest.schemes.keys():
        np.testing.assert_array_equal(found[name], exact[name])


@pytest.mark.parametrize(("kind", "word"), [(8, "int8:32"), (2, "int4:32"), (3, "int4z:32")])
def test_a_gguf_file_s_own_codes_are_kept_when_asked(
    tmp_path: Path, kind: int, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Q8_0, Q4_0 and Q4_1, in a checkpoint of bfloat16: codes are not fitted to rounded values."""
    tensors = {
        name: (values, kind if values.ndim == 2 else stored)
        for name, (values, stored) in tiny_gguf.llama_tensors().items()
    }
    source = tmp_path / "tiny.gguf"
    source.write_bytes(tiny_gguf.gguf_bytes(tiny_gguf.llama_metadata(), tensors))
    path = convert(source, tmp_path / "out", weights="published")
    schemes = layout.read_manifest(path).schemes
    assert {str(scheme) for scheme, _, _ in schemes.values()} == {word}
    assert len(schemes) == 1 + 7 * tiny_gguf.L
    exact, found = _worth(source), _worth(path)
    for name in schemes:
        if word == "int4z:32":
            np.testing.assert_allclose(found[name], exact[name], rtol=3e-7, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name], exact[name])
    caplog.set_level(logging.INFO)
    convert(source, tmp_path / "plain")
    assert [record.getMessage() for record in caplog.records] == [
        f"tiny.gguf: quantised weights (15 as {word}) are dequantised; "
        "--weights published keeps them"
    ]
    assert layout.read_manifest(tmp_path / "plain").schemes == {}


def test_the_same_scheme_again_is_left_alone_and_another_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = convert(checkpoint, tmp_path / "out", weights="int8")
    before = (path / "SHA256SUMS").stat().st_mtime_ns
    convert(checkpoint, tmp_path / "out", weights="int8")
    assert (path / "SHA256SUMS").stat().st_mtime_ns == before
    match = r"already holds tiny\.gguf as float32, 15 as int8; choose another directory"
    for word in ("int8,layers.0=none", "none", "fp8"):
        with pytest.raises(CheckpointError, match=match):
            convert(checkpoint, tmp_path / "out", weights=word)


def test_what_is_quantised_is_converted_again(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = convert(checkpoint, tmp_path / "first", weights="int8,embedding=none")
    caplog.set_level(logging.INFO)
    for word in ("auto", "published", "int8,embedding=none"):
        _same(convert(first, tmp_path / word.partition(",")[0], weights=word), first)
    assert caplog.messages == []
    said = "tiny.gguf: quantised weights (14 as int8) are dequantised"

    plain = convert(first, tmp_path / "plain", weights="none")
    assert caplog.messages == [said]
    assert layout.read_manifest(plain).schemes == {}
    worth, found = _worth(first), _worth(plain)
    for name in worth:
        rounded = worth[name].astype(_codes(plain)[name].dtype).astype(np.float32)
        np.testing.assert_array_equal(found[name], rounded)

    other = convert(first, tmp_path / "other", weights="int4:16,embedding=none")
    assert caplog.messages == [said, said]
    stored = _codes(other)
    for name, (scheme, _, contracted) in layout.read_manifest(other).schemes.items():
        made = quantised.on_host(worth[name], scheme, contracted)
        for part, values in quantised.stored_parts(name, made).items():
            assert values.tobytes() == stored[part].tobytes(), part

    relabelled = convert(first, tmp_path / "w8a8", weights="w8a8,embedding=none")
    _same(relabelled, first)
    assert {str(scheme) for scheme, _, _ in layout.read_manifest(relabelled).schemes.values()} == {
        "w8a8"
    }


def test_what_is_quantised_goes_out_as_what_it_is_worth(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "q", weights="int8")
    back = export(path, tmp_path / "hf", "float32")
    worth, found = _worth(path), _worth(back)
    assert worth.keys() == found.keys()
    for name in worth:
        np.testing.assert_array_equal(found[name], worth[name])


def test_a_wrong_table_of_weights_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path
) -> None:
    for word in ("int9", "int8,head=none", "int4:7"):
        with pytest.raises(ConfigError, match=r"scheme|head="):
            convert(checkpoint, tmp_path / "out", weights=word)
    assert not (tmp_path / "out").exists()
