import shutil
from pathlib import Path

import pytest
import tiny_gguf

import tpuinfer.tokenizer.gguf_vocab as gguf_vocab
from tpuinfer.checkpoint.convert import convert


def fake_tokenizer_files(metadata: object) -> dict[str, bytes]:
    """The tiny model has no vocabulary; its room is tested elsewhere."""
    return {"tokenizer.json": b"{}\n", "tokenizer_config.json": b'{"model_max_length": 256}\n'}


@pytest.fixture(autouse=True)
def _no_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_vocab, "tokenizer_files", fake_tokenizer_files)


@pytest.fixture
def llama_file(tmp_path: Path) -> Path:
    return tiny_gguf.write_llama(tmp_path / "tiny.gguf")


@pytest.fixture(scope="session")
def _converted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    source = tiny_gguf.write_llama(folder / "tiny.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_vocab, "tokenizer_files", fake_tokenizer_files)
        return convert(source, folder / "tiny", "float32")


@pytest.fixture
def checkpoint(_converted_once: Path, tmp_path: Path) -> Path:
    """A float32 checkpoint directory of the tiny model, the test's own to damage."""
    return Path(shutil.copytree(_converted_once, tmp_path / "checkpoint"))
