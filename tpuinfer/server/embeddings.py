"""`/v1/embeddings`: vectors of texts, where an encoder is served."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import Field

from tpuinfer.server import trail
from tpuinfer.server.bridge import Bridge, Encoder
from tpuinfer.server.failures import ApiError
from tpuinfer.server.fields import Int, Neutral, StrictBody, Text, worded
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.receive import described, json_body
from tpuinfer.server.replies import ERRORS, Reply
from tpuinfer.server.stream import CLIENT_GONE, while_wanted

PATH = "/v1/embeddings"

MAX_INPUTS = 1024
"""Texts of one request."""

_FULL = Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)


class EmbeddingBody(StrictBody):
    """POST /v1/embeddings, as OpenAI has it; ids are taken as they are, special ones included."""

    neutral: ClassVar[Neutral] = {
        "truncate_prompt_tokens": (),
        "normalize": (),
        "priority": (0,),
    }

    model: Text
    input: Annotated[
        Text
        | Annotated[list[Text], _FULL]
        | Annotated[list[Int], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Annotated[list[Int], Field(fail_fast=True)]], _FULL],
        worded(
            "must be a string, a list of strings, a list of token ids, or a list of lists of "
            f"token ids: not an empty list, and at most {MAX_INPUTS} texts"
        ),
    ]
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: of little-endian float32."
    )
    dimensions: Int | None = Field(None, description="The model's own number, or unset.")
    user: str | None = None

    def texts(self) -> list[str | list[int]]:
        """The texts, one per vector of the answer."""
        if isinstance(self.input, str):
            return [self.input]
        ids = [token for token in self.input if isinstance(token, int)]
        return [ids] if ids else [one for one in self.input if not isinstance(one, int)]


class Embedding(Reply):
    """One text's vector: numbers, or base64 of their float32 bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Reply):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def embeddings_router(bridge: Bridge, info: ServerInfo) -> APIRouter:
    """The route; a model that makes text refuses it by name."""
    router = APIRouter(responses=ERRORS)

    @router.post(PATH, response_model=EmbeddingList, openapi_extra=described(EmbeddingBody))
    async def embeddings(
        http: Request, body: Annotated[EmbeddingBody, json_body(EmbeddingBody)]
    ) -> Response:
        """One vector for each text."""
        encoded = await while_wanted(http.receive, embed(bridge, info, body))
        if encoded is None:
            return Response(status_code=CLIENT_GONE)
        return Response(encoded.body, media_type="application/json")

    return router


class Encoded(NamedTuple):
    """The JSON of an `EmbeddingList`, and how many tokens its texts have."""

    body: bytes
    tokens: int


async def embed(
    bridge: Bridge, info: ServerInfo, body: EmbeddingBody, *, background: bool = False
) -> Encoded:
    """The answer to a request, over HTTP or in a batch; in the `background` it gives way.

    Raises:
      ApiError: the model is not served, is no encoder, or has other dimensions.
      RequestError: a text is too long. QueueFullError: too many wait.
      NotReadyError, EngineDeadError: there is no encoder.
    """
    model = info.require(body.model)
    encoder = bridge.encoder
    _require_size(body.dimensions, encoder)
    rows = await asyncio.to_thread(encoder.tokenise, body.texts())
    tokens = sum(map(len, rows))
    if (here := trail.current()) is not None:
        here.model, here.version = model, 0
        here.prompts, here.prompt_tokens = list(rows), tokens
    vectors = await encoder.embed(rows, background=background)
    form = body.encoding_format
    return Encoded(await asyncio.to_thread(encode, vectors, tokens, model, form), tokens)


def encode(vectors: NDArray[np.float32], tokens: int, model: str, form: str) -> bytes:
    """The JSON of an `EmbeddingList` of [texts, D]."""
    shown: Sequence[object] = [row.tolist() for row in vectors]
    if form == "base64":
        shown = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    data = [
        {"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(shown)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})


def _require_size(asked: int | None, encoder: Encoder) -> None:
    """Vectors are sent whole: not every model's may be cut and still mean something."""
    if asked is not None and asked != encoder.width:
        message = (
            f"dimensions is {asked}: this model's vectors have {encoder.width}, and are not cut"
        )
        raise ApiError(400, message, param="dimensions", code="unsupported_value")
