"""A name on Hugging Face's hub -> a local directory, through huggingface_hub.

Only weights in safetensors, JSON and the tokenizer's files are taken. What a model's config asks
for that is not supported is refused before its weights are downloaded.
"""

import fnmatch
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tpuinfer.checkpoint import layout, published, wrapped
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.errors import CheckpointError, TpuinferError
from tpuinfer.models import registry

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
)
"""Files that are downloaded: those that `sources` reads."""

IGNORED = ("*/*.safetensors", "original/*", "onnx/*", "openvino/*", "consolidated*")
"""Weights in folders, and others that are the same once more, in other clothes."""

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_SECONDS = 10.0
_LATER = (408, 429)
"""Answers that say no more than to ask again: timed out, too many requests."""


def is_name(text: str) -> bool:
    """Whether `text` reads as org/name or org/name@revision."""
    return _NAME.fullmatch(text) is not None


def download(text: str, cache: Path, progress: Progress = silent) -> Path:
    """The files of a repository in `cache`; with no network, those of an earlier download.

    Args:
      text: org/name or org/name@revision, which is a branch, a tag or a commit.

    Returns:
      A directory as Hugging Face writes it.

    Raises:
      CheckpointError: there is no such repository or revision, it is gated, holds no safetensors,
        or the hub cannot be reached and nothing is in the cache.
      ConfigError: its config asks for what is not supported.
    """
    import huggingface_hub as library

    match = _NAME.fullmatch(text)
    assert match is not None, text
    repo, revision = match.groups()
    try:
        info = library.HfApi().model_info(
            repo, revision=revision, timeout=_SECONDS, files_metadata=True
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        _check_files(text, list(sizes))
        where: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache,
            "etag_timeout": _SECONDS,
        }
        _check_config(library.hf_hub_download(repo, layout.CONFIG, **where))
        total = sum(size for name, size in sizes.items() if _is_weights(name))
        folder = library.snapshot_download(
            repo,
            **where,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(IGNORED),
            tqdm_class=_bar(f"download {repo}", total, progress),
        )
    except TpuinferError:
        raise
    except Exception as error:
        return _from_cache(text, cache, error)
    return Path(folder)


def _check_files(text: str, names: list[str]) -> None:
    if layout.CONFIG not in names:
        raise CheckpointError(f"{text}: the repository holds no {layout.CONFIG}")
    if any(map(_is_weights, names)):
        return
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        raise CheckpointError(
            f"{text}: the repository holds GGUF files: download one, such as {ggufs[0]}, and pass "
            "its path"
        )
    raise CheckpointError(
        f"{text}: the repository holds no safetensors beside its {layout.CONFIG}; pickled weights "
        "are never read, for they can run code"
    )


def _is_weights(name: str) -> bool:
    """Whether a repository's file is one of weights that is downloaded."""
    ignored = any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)
    return name.endswith(".safetensors") and not ignored


def _check_config(path: str) -> None:
    """Refuse a model from its config.json, before its weights are downloaded."""
    config = layout.read_json(Path(path))
    outer = wrapped.around(registry.family_of(registry.read_config(config)), config)
    published.check_method(Path(path), config if outer is None else outer.config(config))


def _from_cache(text: str, cache: Path, error: Exception) -> Path:
    """What was downloaded before, when the hub cannot be asked; says why there is nothing."""
    import huggingface_hub as library
    from huggingface_hub.errors import HfHubHTTPError

    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    if response is not None and response.status_code < 500 and response.status_code not in _LATER:
        _refuse(text, error)
    repo, revision = text.partition("@")[::2]
    try:
        folder = library.snapshot_download(
            repo,
            revision=revision or None,
            cache_dir=cache,
            local_files_only=True,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(IGNORED),
        )
    except (OSError, ValueError):
        _refuse(text, error)
    return Path(folder)


def _refuse(text: str, error: Exception) -> NoReturn:
    """One line for what huggingface_hub raised."""
    from huggingface_hub import errors

    repo = text.partition("@")[0]
    if isinstance(error, errors.GatedRepoError):
        what = (
            f"the repository is gated: ask for access at {_page(repo)}, then set HF_TOKEN to a "
            "token of that account or run `hf auth login`"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"the repository has no revision {text.partition('@')[2] or 'main'!r}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = (
            "no such file or directory here and no such repository on Hugging Face's hub; for a "
            "private one set HF_TOKEN or run `hf auth login`"
        )
    else:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        what = (
            f"no such file or directory here, and Hugging Face's hub cannot be reached ({reason}): "
            "check the network, or pass a checkpoint directory, a GGUF file or a catalogue name"
        )
    raise CheckpointError(f"{text}: {what}") from None


def _page(repo: str) -> str:
    from huggingface_hub.constants import ENDPOINT

    return f"{ENDPOINT}/{repo}"


def _bar(label: str, total: int, progress: Progress) -> "type[tqdm]":
    """A bar for huggingface_hub that draws nothing and tells `progress` of the bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            if self.unit == "B":
                progress(label, int(self.n), max(total, int(self.n)))
            return drawn

    return Bar
