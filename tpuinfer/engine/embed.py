"""From texts to vectors on the host: tokens, batches of fixed shape, results in order."""

import itertools
import logging
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.errors import RequestError
from tpuinfer.model_config import Pooling
from tpuinfer.programs.compile import Program
from tpuinfer.programs.encode import encode_name
from tpuinfer.programs.guard import CompileGuard
from tpuinfer.programs.manifest import Entry

if TYPE_CHECKING:
    from tpuinfer.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Text = str | Sequence[int]
Vector = NDArray[np.float32]

_IN_FLIGHT = 2
"""Batches that are dispatched before the oldest of them is read."""

_BATCHES_AT_ONCE = 32
"""How many batches' texts are sorted into widths together; a stream holds no more than these."""


class Embedder:
    """Compiled programs over an encoder's weights. Not for several threads at once.

    Attributes:
      limit: tokens a text may have, special ones included.
      programs: by name. guard: what counts compiles; None while warming up.
    """

    def __init__(
        self,
        params: Mapping[str, jax.Array],
        tokenizer: "Tokenizer",
        pooling: Pooling,
        *,
        sizes: Sequence[tuple[int, int]],
        shards: int,
        vocab: int,
        limit: int,
    ) -> None:
        """`sizes`: (rows per data shard, width) of each program, narrowest first."""
        assert sizes[-1][1] >= limit, f"programs {sizes} for texts of {limit} tokens"
        self.limit = limit
        self.programs: dict[str, Program] = {}
        self.guard: CompileGuard | None = None
        self._params = dict(params)
        self._tokenizer = tokenizer
        self._pooling = pooling
        self._sizes = {width: (rows, rows * shards) for rows, width in sizes}
        self._vocab = vocab

    @property
    def recompiles(self) -> int:
        return 0 if self.guard is None else self.guard.recompiles

    @property
    def manifest(self) -> list[Entry]:
        """What the programs are fixed to and what each of them cost."""
        return [program.entry for program in self.programs.values()]

    def add(self, program: Program) -> None:
        """Take a program in and run it once, so that no text pays for what a first run sets up.

        The same text in every row must give the same bits; where it does not, one line says so.
        """
        self.programs[program.name] = program
        chance = random.Random(0)
        for width, (rows, total) in self._sizes.items():
            if encode_name(rows, width) == program.name:
                ids = [chance.choices(range(self._vocab), k=min(width, self.limit))] * total
                found = np.asarray(self._dispatch(width, ids).addressable_data(0))
                if (found != found[0]).any():
                    _log.warning("program %s: bits depend on a text's place here", program.name)

    def stream(
        self, texts: Iterable[Text], *, truncate: bool = False, prompt: str | None = None
    ) -> Iterator[Vector]:
        """One vector [D] for each text, in order; texts are taken as they are needed.

        Args:
          texts: strings, or lists of token ids, which are taken as they are.
          truncate: keep the first tokens of a text that is too long, and its last special ones.
          prompt: which of the checkpoint's prompts to put before strings; None = its default.

        Raises:
          RequestError: a text cannot be encoded as asked.
        """
        before = self._prompt(prompt)
        most = max(total for _, total in self._sizes.values())
        numbered = enumerate(texts)
        while some := list(itertools.islice(numbered, _BATCHES_AT_ONCE * most)):
            yield from self._vectors([self._ids(text, at, before, truncate) for at, text in some])

    def tokenise(self, texts: Sequence[Text], called: str = "texts") -> list[list[int]]:
        """The ids that `stream` would make of each text, default prompt included.

        May be called from any thread, and while a stream is under way.

        Raises:
          RequestError: a text is too long, or has ids that are none; it is `called` so.
        """
        before = self._prompt(None)
        try:
            return [self._ids(text, index, before, False) for index, text in enumerate(texts)]
        except RequestError as error:
            words = str(error).replace("texts[", f"{called}[").partition("; truncate=True")[0]
            raise RequestError(words, param=called) from None

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Vector:
        """[len(rows), D]: rows of a width together, widths from the narrowest on."""
        by_width: dict[int, list[int]] = {width: [] for width in self._sizes}
        for index, ids in enumerate(rows):
            by_width[min(width for width in by_width if width >= len(ids))].append(index)
        found: dict[int, Vector] = {}
        pending: deque[tuple[Sequence[int], jax.Array]] = deque()
        for width, indices in by_width.items():
            total = self._sizes[width][1]
            for first in range(0, len(indices), total):
                batch = indices[first : first + total]
                pending.append((batch, self._dispatch(width, [rows[index] for index in batch])))
                if len(pending) > _IN_FLIGHT:
                    self._read(*pending.popleft(), found)
        while pending:
            self._read(*pending.popleft(), found)
        return np.stack([found[index] for index in range(len(rows))])

    def _dispatch(self, width: int, rows: Sequence[Sequence[int]]) -> jax.Array:
        size, total = self._sizes[width]
        tokens, length = np.zeros((total, width), np.int32), np.zeros(total, np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
            length[row] = len(ids)
        program, guard = self.programs[encode_name(size, width)], self.guard
        if guard is None:
            out = program.call(self._params, tokens, length)
        else:
            with guard.watching():
                out = guard.call(program, self._params, tokens, length)
        out.copy_to_host_async()
        return out

    def _read(self, indices: Sequence[int], out: jax.Array, found: dict[int, Vector]) -> None:
        vectors = np.asarray(out.addressable_data(0))
        for row, index in enumerate(indices):
            found[index] = vectors[row]

    def _prompt(self, name: str | None) -> str:
        prompts = self._pooling.prompts
        name = self._pooling.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in prompts:
            raise RequestError(
                f"prompt is {name!r}, which the checkpoint does not have; it has "
                f"{', '.join(prompts) or 'none'}: put the words before the texts instead",
                param="prompt",
            )
        return prompts[name]

    def _ids(self, text: Text, index: int, before: str, truncate: bool) -> list[int]:
        """The tokens of one text, at most `limit`."""
        if isinstance(text, str):
            text = before + text
            if self._pooling.lowercase:
                text = text.lower()
            ids = self._tokenizer.encode(text, parse_special=False)
        else:
            ids = self._checked(text, index)
        if len(ids) <= self.limit:
            return ids
        if not truncate:
            raise RequestError(
                f"texts[{index}] has {len(ids)} tokens and the encoder takes at most {self.limit}; "
                f"truncate=True keeps the first {self.limit}",
                param="texts",
            )
        ending = list(self._tokenizer.suffix_ids)
        if not ending or ids[-len(ending) :] != ending:
            ending = []
        return [*ids[: self.limit - len(ending)], *ending]

    def _checked(self, text: Sequence[int], index: int) -> list[int]:
        ids = list(text)
        if not ids:
            raise RequestError(f"texts[{index}] has no tokens: at least 1", param="texts")
        for token in ids:
            if not isinstance(token, int | np.integer) or not 0 <= token < self._vocab:
                raise RequestError(
                    f"texts[{index}] has token {token!r}: ids are integers in "
                    f"[0, {self._vocab - 1}]",
                    param="texts",
                )
        return ids
