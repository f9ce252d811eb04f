"""The reference reads the text first, then each variant; one of them is on the devices at a time.

What the reference thought of every token is kept in a file of [tokens, V] float32 meanwhile.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.accuracy.tally import Scores, Tally
from tpuinfer.accuracy.teacher import Teacher
from tpuinfer.accuracy.text import Text, Windows, cut
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.config import EngineConfig
from tpuinfer.engine import build
from tpuinfer.engine.plan import Plan, abstract_weights, repeated
from tpuinfer.errors import ConfigError
from tpuinfer.quant.qarray import bytes_of
from tpuinfer.sharding.mesh import parse_mesh
from tpuinfer.sharding.presets import load_rules
from tpuinfer.sharding.simulate import prepare_cpu_devices
from tpuinfer.tokenizer.load import load_tokenizer

WINDOW = 1024
"""Tokens of a window where nobody says how many and the model allows it."""


@dataclass(frozen=True)
class Variant:
    """A model and how it is kept and placed, each as the flag of that name takes it."""

    model: str
    weights: str = "auto"
    ring: str = "auto"
    dtype: str = "auto"
    mesh: str = "1"
    rules: str | None = None


@dataclass(frozen=True)
class Question:
    """What is read, and how.

    Attributes:
      window: tokens that are read together; None = `WINDOW`, or what the model allows.
      tokens: of the text that are read; None = all.
      chunk: tokens of a call of the model.
    """

    text: Text
    window: int | None = None
    tokens: int | None = None
    chunk: int = 128


@dataclass(frozen=True)
class Row:
    """What a variant takes, and how well it reads.

    Attributes:
      weight_bytes: of all weights, copies (on other devices, or of KV heads) left out.
      ring_bytes: of the keys and values of one token in all layers, where a window does not end it.
      seconds: of reading, the compilation left out.
    """

    variant: Variant
    scores: Scores
    weight_bytes: int
    ring_bytes: float
    seconds: float


@dataclass(frozen=True)
class Answer:
    """The rows of the reference and of the variants, and what they read."""

    reference: Row
    rows: tuple[Row, ...]
    windows: Windows


def evaluate(
    question: Question,
    reference: Variant,
    variants: Sequence[Variant],
    *,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Answer:
    """Let all of them read the text.

    Args:
      progress: told how far each is, under the variant's weights and ring.

    Raises:
      TpuinferError: one line that names what is wrong: what a plan refuses, before any weight is
        read, or models whose tokens are not the same.
    """
    everyone = (reference, *variants)
    prepare_cpu_devices(max(parse_mesh(one.mesh).size for one in everyone))
    window = question.window or _fitting_window(reference, cache_dir, progress)
    plans = [_plan(one, window, cache_dir, progress) for one in everyone]
    windows = _windows(question, plans, window)
    reading = _Reading(question, windows, cache_dir, progress)
    with tempfile.TemporaryFile() as file:
        store = _Store(file, plans[0].config.vocab) if variants else None
        rows = [
            reading.row(variant, plan, store, first=plan is plans[0])
            for variant, plan in zip(everyone, plans, strict=True)
        ]
    return Answer(rows[0], tuple(rows[1:]), windows)


class _Store:
    """Rows of log-probabilities in a file, by number."""

    def __init__(self, file: IO[bytes], vocab: int) -> None:
        self._file, self._vocab = file, vocab

    def put(self, start: int, rows: NDArray[np.float32]) -> None:
        """Keep rows [N, V].

        Raises:
          ConfigError: the disk is full.
        """
        try:
            self._file.seek(start * self._vocab * rows.itemsize)
            self._file.write(np.ascontiguousarray(rows).data)
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"the folder for temporary files has no room for the reference "
                f"({4 * self._vocab} bytes a token; {error.strerror}): fewer tokens need less"
            ) from error

    def get(self, start: int, count: int) -> NDArray[np.float32]:
        self._file.seek(start * self._vocab * 4)
        data = self._file.read(count * self._vocab * 4)
        return np.frombuffer(data, np.float32).reshape(count, self._vocab)


@dataclass(frozen=True)
class _Reading:
    """What is the same for all that read."""

    question: Question
    windows: Windows
    cache_dir: Path | None
    progress: Progress

    def row(self, variant: Variant, plan: Plan, store: _Store | None, *, first: bool) -> Row:
        """Load one, let it read, and forget it.

        Args:
          store: filled by the first, compared with by the others.
        """
        label = f"{variant.weights} / {variant.ring}"
        width = min(self.question.chunk, plan.context)
        params = build.load_params(plan)
        teacher = Teacher(plan, params, width, cache_dir=self.cache_dir, progress=self.progress)
        tally, done = Tally(), 0
        began = time.perf_counter()
        for start, found, targets in teacher.read(self.windows):
            if store is not None and first:
                store.put(start, found)
            tally.add(found, targets, store.get(start, len(targets)) if store else None)
            done += len(targets)
            self.progress(label, done, self.windows.scored)
        seconds = time.perf_counter() - began
        return Row(variant, tally.scores(), _weight_bytes(plan), _ring_bytes(plan), seconds)


def _plan(variant: Variant, window: int, cache_dir: Path | None, progress: Progress) -> Plan:
    rules = load_rules(variant.rules)
    slots = rules.data_shards(dict(parse_mesh(variant.mesh).axes))
    return build.make_plan(
        variant.model,
        mesh=variant.mesh,
        rules=rules,
        dtype=variant.dtype,
        weights=variant.weights,
        engine=EngineConfig.parse(f"{slots}x{window}", ring=variant.ring),
        cache_dir=cache_dir,
        progress=progress,
    )


def _fitting_window(variant: Variant, cache_dir: Path | None, progress: Progress) -> int:
    """`WINDOW`, or what a model was made for if that is less."""
    config = _plan(variant, 16, cache_dir, progress).config
    return min(WINDOW, config.context)


def _windows(question: Question, plans: Sequence[Plan], window: int) -> Windows:
    """The text's tokens, which must be the same for all.

    Raises:
      ConfigError: they are not, or the vocabularies differ in size.
    """
    found: list[Windows] = []
    for plan in plans:
        assert plan.path is not None
        tokenizer = load_tokenizer(plan.path, vocab_size=plan.config.vocab)
        if not tokenizer.has_text:
            raise ConfigError(f"{plan.path}: has no vocabulary, so it cannot read a text")
        ids = tokenizer.encode(question.text.content, add_special_tokens=False)
        found.append(cut(ids, tokenizer.prefix_ids, window, question.tokens))
    for plan, one in zip(plans, found, strict=True):
        if plan.config.vocab != plans[0].config.vocab or one != found[0]:
            raise ConfigError(
                f"{plan.path} and {plans[0].path} read the text as other tokens (vocabularies of "
                f"{plan.config.vocab} and {plans[0].config.vocab}): only models of one vocabulary "
                "can be compared"
            )
    return found[0]


def _weight_bytes(plan: Plan) -> int:
    copies = repeated(plan)

    def once(name: str, weight: Any) -> int:
        parts = jax.tree.leaves(weight)
        size = sum(bytes_of(part.shape, part.dtype) for part in parts)
        return size // copies.get(name, 1)

    return sum(once(name, weight) for name, weight in abstract_weights(plan).items())


def _ring_bytes(plan: Plan) -> float:
    each = (classes[0].bytes / (classes[0].slots * classes[0].length) for classes in plan.rings)
    return sum(each) / plan.layout.repeats
