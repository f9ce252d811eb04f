"""Texts and chats to token ids, off the event loop, and only if they can fit."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from tpuinfer.server.bridge import Bridge, Tokenizer
from tpuinfer.server.failures import ApiError

_TOO_LONG = "context_length_exceeded"


class Prompts:
    """Tokenises for one bridge's model, on worker threads: a long prompt must hold up nobody."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._longest: tuple[Tokenizer, int] | None = None

    async def of_texts(
        self,
        texts: Sequence[str | list[int]],
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
    ) -> list[list[int]]:
        """The ids of each text; ids stay as they are.

        Raises:
          ApiError: one is so long that it cannot fit into the context.
          RequestError: the tokenizer refuses one.

        """
        tokenizer = self._bridge.tokenizer

        def encode() -> list[list[int]]:
            for text in texts:
                self._require_short(tokenizer, len(text) if isinstance(text, str) else 0, "prompt")
            return [
                tokenizer.encode(
                    text, add_special_tokens=add_special_tokens, parse_special=parse_special
                )
                if isinstance(text, str)
                else text
                for text in texts
            ]

        return await asyncio.to_thread(encode)

    async def of_chat(
        self, turns: Sequence[Mapping[str, Any]], size: int, variables: Mapping[str, Any]
    ) -> list[int]:
        """The ids of a chat as the model's template renders it.

        `size` is its length in characters; `variables` go to `Tokenizer.encode_chat`. Raises like
        `of_texts`, and ApiError if the model has no template.
        """
        tokenizer = self._bridge.tokenizer
        if not tokenizer.has_chat_template:
            message = (
                "this model has no chat template: use /v1/completions, or start the server with "
                "--chat-template FILE"
            )
            raise ApiError(400, message, param="messages", code="unsupported_endpoint")

        def encode() -> list[int]:
            self._require_short(tokenizer, size, "messages")
            return tokenizer.encode_chat(turns, **variables)

        return await asyncio.to_thread(encode)

    def require_room(
        self, prompt: Sequence[int], limit: int | None, prompt_name: str, limit_name: str
    ) -> None:
        """The prompt, and the tokens asked for in so many words, must fit into the context if any.

        Raises ApiError with the numbers.
        """
        context = self._bridge.context
        if context is None:
            return
        length = len(prompt)
        if length + 1 > context:
            message = (
                f"{prompt_name} has {length} tokens: the context is {context}, one of them for the "
                f"answer; nearest: {context - 1}"
            )
            raise ApiError(400, message, param=prompt_name, code=_TOO_LONG)
        if limit is not None and length + limit > context:
            message = (
                f"{limit_name} is {limit} and {prompt_name} has {length} tokens: together they "
                f"exceed the context of {context}; nearest {limit_name}: {context - length}"
            )
            raise ApiError(400, message, param=limit_name, code=_TOO_LONG)

    def _require_short(self, tokenizer: Tokenizer, characters: int, name: str) -> None:
        """No token is longer than the longest, so some texts need not be tokenised to be refused.

        A vocabulary of whole words reads many unknown characters as one token, and white space as
        none: such a text may be refused here and have fitted, if it is that long.
        """
        context = self._bridge.context
        if context is None or characters <= context:
            return
        if self._longest is None or self._longest[0] is not tokenizer:
            sizes = (len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
            self._longest = tokenizer, max(sizes, default=1)
        most = context * self._longest[1]
        if characters > most:
            message = (
                f"{name} has {characters} characters: the context is {context} tokens, and no "
                f"token has more than {self._longest[1]}; nearest: {most}"
            )
            raise ApiError(400, message, param=name, code=_TOO_LONG)
