"""One request on its way: what goes to the engine, and what its answer needs to know."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tpuinfer.engine.request import Delta, Request
from tpuinfer.server.bridge import Tokenizer
from tpuinfer.server.failures import ApiError
from tpuinfer.server.spoken import Spoken


@dataclass(frozen=True)
class Origin:
    """What an answer has beside its content; by default what HTTP's have, each its own.

    Attributes:
      name: what the answer's id ends with; ids of tool calls follow from it.
      created: when, in seconds since the epoch.
      seed: of a body that sets none; None: a fresh one for each choice.
      background: it gives way to what is not.
      clock: what a chat template that writes the date calls in place of the time's own; it takes a
        form of strftime.
    """

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    seed: int | None = None
    background: bool = False
    clock: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Job:
    """What was asked, in the words of the engine.

    Attributes:
      requests: one per choice of the answer, in order: n for the first prompt, then for the next.
      n: choices per prompt.
      logprobs: whether they are shown; top: the most likely tokens beside each one.
      echo: what goes before the text of each choice; None: nothing does.
      silent: the token that the engine had to generate is not shown, for none was asked for.
      created: seconds since the epoch.
      spoken: makes what reads a choice's text, by its number; None: all text is content.
      usage_in_chunks: every chunk of a stream counts the tokens so far.

    """

    answer_id: str
    model: str
    requests: Sequence[Request]
    tokenizer: Tokenizer
    created: int
    stream: bool = False
    n: int = 1
    logprobs: bool = False
    top: int = 0
    echo: Sequence[str] | None = None
    silent: bool = False
    spoken: Callable[[int], Spoken] | None = None
    include_usage: bool = False
    usage_in_chunks: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Those of each prompt once, however many choices it has."""
        return sum(len(request.prompt_token_ids) for request in self.requests[:: self.n])

    def require_sound(self, delta: Delta) -> None:
        """Raises ApiError if `delta` says that its request failed."""
        if delta.finish_reason == "error":
            asked = (one for one in self.requests if one.request_id == delta.request_id)
            raise failed(next(asked), delta)


def failed(request: Request, delta: Delta) -> ApiError:
    """What is answered to a request whose last delta says "error"."""
    guide = request.params.guide
    message = delta.error or "the answer could not be generated"
    if guide is None:
        return ApiError(500, message, kind="server_error", code="generation_failed")
    message = f"{guide.param} cannot be followed further: {message}"
    return ApiError(400, message, param=guide.param, code="guide_failed")


def merge(total: Delta, delta: Delta) -> None:
    """Add what came to what was there."""
    total.text += delta.text
    total.token_ids += delta.token_ids
    for name in ("logprobs", "top_logprobs", "prompt_logprobs", "prompt_top_logprobs"):
        if (more := getattr(delta, name)) is not None:
            if (have := getattr(total, name)) is None:
                setattr(total, name, list(more))
            else:
                have += more
    total.finish_reason = delta.finish_reason
    total.stop_reason = delta.stop_reason
