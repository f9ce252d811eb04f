"""Clients that stream completions and count events; a process of its own, with little in it.

    python -m tpuinfer.benchmark.clients PORT CLIENTS BODY

prints {"events", "seconds"} as JSON, or a line on stderr if an answer is no stream. No jax.
"""

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

_EVENT, _DONE = b"data: ", b"data: [DONE]"


class Client(asyncio.Protocol):
    """One request on a connection of its own.

    Attributes:
      events: how many came, [DONE] included. done: resolved when the answer has ended.
    """

    def __init__(self, request: bytes) -> None:
        self.events = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._tail = b""
        self._status = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._status:
            self._status = data.partition(b"\r\n")[0]
        text = self._tail + data
        self.events += text.count(_EVENT)
        if _DONE in text:
            self.done.set_result(None)
        # What may begin an event, or be a whole one that [DONE] has yet to join, is seen again.
        tail = text[-len(_DONE) + 1 :]
        self.events -= tail.count(_EVENT)
        self._tail = tail

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"the answer broke off: {self._status!r}"))


async def stream(port: int, clients: int, body: str) -> dict[str, float]:
    """All requests at once; what they got together."""
    text = body.encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    request = head.encode() + text
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    pairs = await asyncio.gather(
        *(
            loop.create_connection(lambda: Client(request), "127.0.0.1", port)
            for _ in range(clients)
        )
    )
    protocols = [protocol for _, protocol in pairs]
    await asyncio.gather(*(protocol.done for protocol in protocols))
    seconds = time.perf_counter() - start
    wanted = json.loads(body)["max_tokens"]
    for protocol in protocols:
        if protocol.events < wanted // 2:  # a token that ends in half a character has no event
            raise RuntimeError(f"{protocol.events} events for {wanted} tokens")
    return {"events": sum(one.events - 1 for one in protocols), "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(stream(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))))
