"""What the server says about itself, whatever engine it has."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tpuinfer.server.failures import ApiError


@dataclass(frozen=True)
class ServerInfo:
    """The names a server answers to.

    Attributes:
      model: the name it serves. aliases: further names that a request may give.
      created: seconds since the epoch.
    """

    model: str
    aliases: Sequence[str] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def names(self) -> tuple[str, ...]:
        return (self.model, *self.aliases)

    def require(self, name: str | None) -> str:
        """The served name for `name` (None: whichever it is); raises ApiError 404 for any other."""
        if name is not None and name not in self.names:
            served = ", ".join(map(repr, self.names))
            message = f"model {name!r} does not exist: this server serves {served}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.model
