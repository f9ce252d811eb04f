"""`/tokenize` and `/detokenize`, as vLLM has them."""

import asyncio
from typing import Annotated

from fastapi import APIRouter

from tpuinfer.errors import RequestError
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.prompts import Prompts
from tpuinfer.server.receive import described, json_body
from tpuinfer.server.replies import ERRORS, Detokenized, Tokenized
from tpuinfer.server.speech import Speech
from tpuinfer.server.token_bodies import DetokenizeBody, TokenizeBody


def tokens_router(bridge: Bridge, info: ServerInfo, speech: Speech | None = None) -> APIRouter:
    """The routes; they need the tokenizer, and so answer once the model is loaded."""
    router = APIRouter(responses=ERRORS)
    prompts = Prompts(bridge)
    spoken = speech or Speech(bridge)

    @router.post("/tokenize", openapi_extra=described(TokenizeBody))
    async def tokenize(body: Annotated[TokenizeBody, json_body(TokenizeBody)]) -> Tokenized:
        """The token ids of a prompt, or of messages as a chat renders them."""
        info.require(body.model)
        tokenizer = bridge.tokenizer
        if body.prompt is not None:
            special = body.add_special_tokens is not False
            [ids] = await prompts.of_texts([body.prompt], add_special_tokens=special)
        else:
            written = spoken.written(body.messages or [], body.tools)
            variables = written.variables(
                add_generation_prompt=body.add_generation_prompt, more=body.chat_template_kwargs
            )
            ids = await prompts.of_chat(written.turns, body.size, variables)
        strings = None
        if body.return_token_strs:
            strings = await asyncio.to_thread(lambda: [tokenizer.token_text(one) for one in ids])
        return Tokenized(
            count=len(ids),
            max_model_len=bridge.context,
            tokens=ids,
            token_strs=strings,
        )

    @router.post("/detokenize", openapi_extra=described(DetokenizeBody))
    async def detokenize(body: Annotated[DetokenizeBody, json_body(DetokenizeBody)]) -> Detokenized:
        """The text of token ids, control tokens shown."""
        info.require(body.model)
        tokenizer = bridge.tokenizer
        most = tokenizer.vocab_size - 1
        for token in (min(body.tokens, default=0), max(body.tokens, default=0)):
            if not 0 <= token <= most:
                message = f"tokens has {token}: each must be in [0, {most}]"
                raise RequestError(message, param="tokens")
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
        return Detokenized(prompt=text)

    return router
