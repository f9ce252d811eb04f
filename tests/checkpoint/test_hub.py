"""Names on Hugging Face's hub: what is asked for, and what each answer comes to. No network."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import tiny_hf
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import hf_raise_for_status

from tpuinfer.checkpoint import hub, layout
from tpuinfer.checkpoint.load import resolve
from tpuinfer.errors import CheckpointError, ConfigError

NAME = "org/tiny"


@dataclass
class Sibling:
    rfilename: str
    size: int


@dataclass
class Info:
    siblings: list[Sibling]


@dataclass
class FakeHub:
    """One repository, as huggingface_hub's three calls show it; notes what it was asked."""

    files: Path
    asked: list[tuple[str, Any]] = field(default_factory=list)
    fails: dict[str, Callable[[], object]] = field(default_factory=dict)
    cached: bool = False

    def model_info(self, repo: str, *, revision: str | None, timeout: float, **_: Any) -> Info:
        self._note("info", repo, revision)
        assert timeout <= 10
        found = sorted(file for file in self.files.rglob("*") if file.is_file())
        return Info([Sibling(self._name(file), file.stat().st_size) for file in found])

    def hf_hub_download(self, repo: str, file: str, *, cache_dir: Path, **_: Any) -> str:
        self._note("file", repo, file)
        return str(self._take([file], cache_dir) / file)

    def snapshot_download(
        self, repo: str, *, cache_dir: Path, allow_patterns: list[str], **options: Any
    ) -> str:
        if options.get("local_files_only"):
            if not self.cached:
                raise LocalEntryNotFoundError("nothing is here")
            return str(cache_dir / "snapshot")
        self._note("snapshot", repo, options["revision"])
        bar = options["tqdm_class"](total=0, unit="B", desc="bytes")
        taken = [
            name
            for name in map(self._name, self.files.rglob("*"))
            if any(fnmatch(name, pattern) for pattern in allow_patterns)
            and not any(fnmatch(name, pattern) for pattern in options["ignore_patterns"])
        ]
        bar.update(7)
        bar.close()
        self.cached = True
        return str(self._take(taken, cache_dir))

    def _name(self, file: Path) -> str:
        return file.relative_to(self.files).as_posix()

    def _note(self, call: str, repo: str, what: Any) -> None:
        assert repo == NAME
        self.asked.append((call, what))
        if call in self.fails:
            self.fails[call]()

    def _take(self, names: list[str], cache: Path) -> Path:
        for name in names:
            (cache / "snapshot" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.files / name, cache / "snapshot" / name)
        return cache / "snapshot"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tiny_hf.write(tmp_path / "published", shards=2))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", staticmethod(fake.model_info))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return fake


def answers(status: int, code: str = "") -> Callable[[], object]:
    """What the library raises when the hub answers so."""
    request = httpx2.Request("GET", f"https://hub.test/api/models/{NAME}")
    headers = {"X-Error-Code": code} if code else {}
    return lambda: hf_raise_for_status(httpx2.Response(status, headers=headers, request=request))


def unreachable() -> None:
    raise httpx2.ConnectError("[Errno -2] Name or service not known")


def refused(name: str = NAME) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(name, cache_dir="cache")
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("org/name", True),
        ("Qwen/Qwen3-0.6B", True),
        ("org/name@main", True),
        ("org/name@refs/pr/1", True),
        ("name", False),
        ("./name", False),
        ("../name", False),
        ("~/name", False),
        ("/name", False),
        ("a/b/c", False),
        ("gs://bucket/name", False),
        ("org/", False),
        ("org/na me", False),
    ],
)
def test_what_reads_as_a_name(text: str, is_one: bool) -> None:
    assert hub.is_name(text) == is_one


def test_a_name_is_downloaded_and_converted_once(fake: FakeHub) -> None:
    steps: list[tuple[str, int, int]] = []
    path = resolve(f"{NAME}@v2", cache_dir="cache", progress=lambda *step: steps.append(step))
    layout.verify(path)
    assert path.parent == Path("cache/checkpoints").absolute()
    assert path.name.startswith("org--tiny-v2-")
    assert fake.asked == [("info", "v2"), ("file", "config.json"), ("snapshot", "v2")]
    assert any(label == f"download {NAME}" and done == 7 for label, done, _ in steps)
    taken = {file.name for file in Path("cache/hub/snapshot").iterdir()}
    assert not taken & tiny_hf.DANGEROUS.keys()
    assert {"model.safetensors.index.json", "tokenizer.json", "chat_template.jinja"} <= taken
    assert resolve(f"{NAME}@v2", cache_dir="cache") == path


def test_what_was_downloaded_serves_without_a_network(fake: FakeHub) -> None:
    path = resolve(NAME, cache_dir="cache")
    fake.fails["info"] = unreachable
    assert resolve(NAME, cache_dir="cache") == path


def test_a_hub_that_says_no_is_obeyed_and_one_that_is_down_is_not(fake: FakeHub) -> None:
    path = resolve(NAME, cache_dir="cache")
    fake.fails["info"] = answers(403, "GatedRepo")
    assert "is gated" in refused()
    for status in (408, 429, 503):
        fake.fails["info"] = answers(status)
        assert resolve(NAME, cache_dir="cache") == path


@pytest.mark.parametrize("call", ["info", "file", "snapshot"])
def test_no_network_is_one_line(fake: FakeHub, call: str) -> None:
    fake.fails[call] = unreachable
    message = refused()
    assert "no such file or directory here, and Hugging Face's hub cannot be reached" in message
    assert "Name or service not known" in message


@pytest.mark.parametrize("call", ["info", "file", "snapshot"])
def test_a_gated_repository_says_what_it_wants(fake: FakeHub, call: str) -> None:
    fake.fails[call] = answers(403, "GatedRepo")
    message = refused()
    assert "is gated: ask for access at https://" in message
    assert message.endswith(
        f"{NAME}, then set HF_TOKEN to a token of that account or run `hf auth login`"
    )


def test_other_answers_are_named(fake: FakeHub) -> None:
    fake.fails["info"] = answers(401, "RepoNotFound")
    assert "no such repository on Hugging Face's hub" in refused()
    fake.fails["info"] = answers(404, "RevisionNotFound")
    assert "has no revision 'v9'" in refused(f"{NAME}@v9")
    fake.fails["info"] = answers(503)
    assert "cannot be reached (" in refused()


def test_nothing_but_config_is_taken_of_an_unknown_model(fake: FakeHub) -> None:
    (fake.files / "config.json").write_text(json.dumps({"model_type": "mystery"}))
    with pytest.raises(ConfigError, match="'mystery', which is not supported"):
        resolve(NAME, cache_dir="cache")
    assert [call for call, _ in fake.asked] == ["info", "file"]


def test_a_text_model_quantised_within_its_config_is_refused_unseen(fake: FakeHub) -> None:
    text = {**tiny_hf.CONFIG, "quantization_config": {"quant_method": "hqq"}}
    config = {"model_type": "gemma3", "text_config": {**text, "model_type": "gemma3_text"}}
    config["text_config"] |= {"hidden_activation": "gelu_pytorch_tanh", "sliding_window": 8}
    (fake.files / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="quantised by 'hqq'"):
        resolve(NAME, cache_dir="cache")
    assert [call for call, _ in fake.asked] == ["info", "file"]


def test_weights_in_folders_are_not_taken_and_not_counted(fake: FakeHub) -> None:
    totals = set()

    def note(label: str, done: int, total: int) -> None:
        if label.startswith("download"):
            totals.add(total)

    counted = sum(file.stat().st_size for file in fake.files.glob("*.safetensors"))
    for folder in ("original", "2_Dense"):
        (fake.files / folder).mkdir()
        (fake.files / folder / "model.safetensors").write_bytes(bytes(10**6))
    resolve(NAME, cache_dir="cache", progress=note)
    assert totals == {counted}
    taken = {file.parent.name for file in Path("cache/hub/snapshot").rglob("*.safetensors")}
    assert taken == {"snapshot"}


def test_weights_in_folders_only_are_no_weights(fake: FakeHub) -> None:
    (fake.files / "onnx").mkdir()
    for file in fake.files.glob("*.safetensors"):
        file.rename(fake.files / "onnx" / file.name)
    assert "holds no safetensors beside its config.json" in refused()


def test_repositories_without_safetensors_are_refused_unseen(fake: FakeHub) -> None:
    for file in fake.files.glob("*.safetensors"):
        file.unlink()
    assert "pickled weights are never read" in refused()
    (fake.files / "tiny-q4.gguf").touch()
    assert "download one, such as tiny-q4.gguf" in refused()
    (fake.files / "config.json").unlink()
    assert "holds no config.json" in refused()
    assert {call for call, _ in fake.asked} == {"info"}


def test_what_is_there_is_no_name(fake: FakeHub, tmp_path: Path) -> None:
    shutil.copytree(fake.files, tmp_path / "org" / "tiny")
    assert resolve(NAME, cache_dir="cache").name.startswith("tiny-")
    with pytest.raises(CheckpointError, match="no such file or directory; a model is"):
        resolve("org/model.gguf", cache_dir="cache")
    assert fake.asked == []
