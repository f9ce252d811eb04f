"""Who may ask for what: keys, compared in constant time, decided on the route that matched.

Every route needs a key unless it is in `OPEN`: a new route is closed until somebody opens it. It is
the pattern of the matched route that counts, never the text of a path.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request

from tpuinfer.errors import ConfigError
from tpuinfer.server import trail
from tpuinfer.server.failures import ApiError
from tpuinfer.server.page import PAGE_PATHS

OPEN = frozenset({"/health", "/ready", *PAGE_PATHS})
"""Routes that need no key: an operator's probes, and the page, which holds no secret."""

ADMIN = "/admin/"
"""Routes that begin so need an admin key, and exist for those who have one only."""

LEAST_CHARACTERS = 8

_SCHEME = "bearer "


@dataclass(frozen=True)
class Keys:
    """The keys that open the API and those that open the admin routes; none: the API is open.

    Raises ConfigError for a key that is too short or cannot be sent in a header.
    """

    api: Sequence[str] = ()
    admin: Sequence[str] = ()

    def __post_init__(self) -> None:
        for key in (*self.api, *self.admin):
            if len(key) < LEAST_CHARACTERS:
                raise ConfigError(
                    f"a key has {len(key)} characters: it must have at least {LEAST_CHARACTERS}"
                )
            if not (key.isascii() and key.isprintable()) or key != key.strip():
                raise ConfigError(
                    "a key has spaces at its ends, or characters that a header cannot carry: use "
                    "letters, digits and punctuation"
                )


def guard(keys: Keys) -> Any:
    """A dependency of the whole application that lets nobody in without a key.

    Raises:
      ApiError: 401 without a key that fits, 403 for admin routes where no admin key is configured.
    """

    async def check(http: Request) -> None:
        route = http.scope["route"].path
        on_trail = trail.current()
        if on_trail is not None:
            on_trail.route = route
        if route in OPEN:
            return
        admin = route.startswith(ADMIN)
        if admin and not keys.admin:
            message = "this server has no admin key: start it with --admin-key"
            raise ApiError(403, message, kind="permission_error", code="no_admin_key")
        wanted = keys.admin if admin else (*keys.api, *keys.admin) if keys.api else ()
        if not wanted:
            return
        given = _given(http)
        if given is None or not _fits(given, wanted):
            raise _refusal(given is not None, admin)
        if on_trail is not None:
            on_trail.key = trail.key_name(given)

    return Depends(check)


def _given(http: Request) -> str | None:
    """The key of `Authorization: Bearer KEY`; None if there is no such header."""
    header = http.headers.get("authorization", "")
    if not header.lower().startswith(_SCHEME):
        return None
    return header[len(_SCHEME) :].strip()


def _fits(given: str, wanted: Sequence[str]) -> bool:
    """Whether it is one of them; takes as long whichever it is, or how much of it is right."""
    found = 0
    digest = hashlib.sha256(given.encode()).digest()
    for key in wanted:
        found |= hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest())
    return bool(found)


def _refusal(given: bool, admin: bool) -> ApiError:
    kind = "admin key" if admin else "API key"
    message = f"the {kind} is not valid" if given else f"an {kind} is needed"
    return ApiError(
        401,
        f"{message}: send the header Authorization: Bearer KEY",
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": 'Bearer realm="tpuinfer"'},
    )
