"""An answerer by hand, and a recorder that is a list."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator

from tpuinfer.offline.task import LineError, Outcome, Stamp, Task

URL = "/v1/completions"


def tasks(count: int) -> Iterator[Task]:
    for position in range(count):
        yield task(position)


def task(position: int) -> Task:
    body = json.dumps({"prompt": f"p{position:03}"}).encode()
    return Task(position, f"in:{position + 1}", f"id-{position}", URL, body)


def answer(stamp: Stamp, text: str) -> Outcome:
    body = {"id": stamp.name, "seed": stamp.seed, "created": stamp.created, "text": text}
    return Outcome(200, json.dumps(body).encode(), prompt_tokens=2, completion_tokens=3)


class ByHand:
    """Answers with the prompt, after so many turns of the loop.

    Attributes:
      status: prompt -> the statuses of its first answers; 200 after them.
      gate: while it is there and not set, nobody is answered.
      fail: prompt -> what is raised.
      asked: how often each prompt came. most: in flight at once. cancelled: asks given up.
    """

    def __init__(self, width: int = 4) -> None:
        self.width = width
        self.status: dict[str, list[int]] = {}
        self.gate: asyncio.Event | None = None
        self.fail: dict[str, Exception] = {}
        self.asked: Counter[str] = Counter()
        self.most = self.cancelled = self._flying = 0
        self.on_ask: Callable[[str], None] = lambda _: None

    async def answer(self, url: str, body: bytes, stamp: Stamp) -> Outcome:
        assert url == URL
        prompt = json.loads(body)["prompt"]
        self.asked[prompt] += 1
        self.on_ask(prompt)
        self._flying += 1
        self.most = max(self.most, self._flying)
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._flying -= 1
        if prompt in self.fail:
            raise self.fail[prompt]
        if self.status.get(prompt):
            return error(self.status[prompt].pop(0))
        return answer(stamp, prompt)

    def refuse(self, error_: LineError) -> Outcome:
        return error(400, str(error_))


def error(status: int, message: str = "no") -> Outcome:
    return Outcome(status, json.dumps({"error": {"message": message}}).encode())


class Recorded:
    """Attributes: lines: what was recorded, in its order. fail_at: how many lines there is room."""

    def __init__(self, done: set[int] | None = None) -> None:
        self.done = done or set()
        self.lines: list[tuple[int, bool, bytes]] = []
        self.fail: Exception | None = None
        self.room = 10**9

    def is_done(self, position: int) -> bool:
        return position in self.done

    def record(self, task: Task, line: bytes, ok: bool) -> None:
        if len(self.lines) >= self.room and self.fail is not None:
            raise self.fail
        assert task.position not in self.done
        self.done.add(task.position)
        self.lines.append((task.position, ok, line))
