"""What the server asks of a tokenizer and of an encoder; it knows them by these methods only."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Tokenizer(Protocol):
    """What the server asks of a tokenizer; the calls may come from several threads."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def template_source(self) -> str: ...

    @property
    def controls(self) -> Mapping[str, int]: ...

    @property
    def openers(self) -> Mapping[int, bytes]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]: ...

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> list[int]: ...

    def token_text(self, token_id: int, /) -> str: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


class Encoder(Protocol):
    """What makes vectors of texts; `encoding.EncoderThread` does.

    Attributes:
      limit: tokens a text may have. width: numbers in a vector.
    """

    limit: int
    width: int

    @property
    def idle(self) -> bool: ...

    @property
    def failure(self) -> Exception | None: ...

    def tokenise(self, texts: Sequence[str | Sequence[int]]) -> list[list[int]]: ...

    async def embed(
        self, rows: Sequence[Sequence[int]], *, background: bool = False
    ) -> NDArray[np.float32]: ...

    def stop(self) -> None: ...
