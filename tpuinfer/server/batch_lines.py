"""What answers the lines of one batch: the desk, with the batch's own rules before it."""

from collections.abc import Callable

from tpuinfer.errors import TpuinferError
from tpuinfer.offline.task import Answerer, LineError, Outcome, Stamp
from tpuinfer.server.failures import ApiError

WINDOW_PASSED = Outcome(
    0,
    ApiError(
        0,
        "the request was not begun before the batch's completion window ended",
        code="batch_expired",
    ).body(),
)
"""Of a line that was never asked; status 0 says so."""

_EXPIRED_WIDTH = 64


class ModelChangedError(TpuinferError):
    """Other weights took the place of those that a batch was begun with."""


class BatchLines:
    """An `Answerer` for lines of one endpoint, answered with one version of the weights."""

    def __init__(self, desk: Answerer, endpoint: str, version: Callable[[], int]) -> None:
        self._desk = desk
        self._endpoint = endpoint
        self._version = version
        self._begun = version()

    @property
    def width(self) -> int:
        return self._desk.width

    async def answer(self, url: str, body: bytes, stamp: Stamp) -> Outcome:
        """As the desk answers.

        Raises:
          ModelChangedError: the weights were replaced, before or meanwhile; which of them made this
            answer cannot be told, and nothing came of it.
        """
        if url != self._endpoint:
            message = f"url is {url!r}: this batch is for {self._endpoint!r}"
            return self.refuse(LineError(message, code="mismatched_url", param="url"))
        self._require_same()
        outcome = await self._desk.answer(url, body, stamp)
        self._require_same()
        return outcome

    def refuse(self, error: LineError) -> Outcome:
        return self._desk.refuse(error)

    def _require_same(self) -> None:
        if (version := self._version()) != self._begun:
            raise ModelChangedError(
                f"the weights are of version {version}: the batch was begun with version "
                f"{self._begun}; create a new batch for what is left"
            )


class ExpiredLines:
    """An `Answerer` for what is left of a batch whose time is over."""

    width = _EXPIRED_WIDTH

    async def answer(self, url: str, body: bytes, stamp: Stamp) -> Outcome:
        return WINDOW_PASSED

    def refuse(self, error: LineError) -> Outcome:
        return WINDOW_PASSED
