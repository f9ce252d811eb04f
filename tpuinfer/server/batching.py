"""Files and batches as one part of the application: its routes, its worker, its numbers."""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tpuinfer.offline.task import Answerer
from tpuinfer.server.batch_runner import Runner
from tpuinfer.server.batches import batches_router
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.desk import Desk
from tpuinfer.server.door import Note
from tpuinfer.server.embeddings import PATH as EMBEDDINGS
from tpuinfer.server.exporter import PREFIX
from tpuinfer.server.failures import ApiError
from tpuinfer.server.files import files_router
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.speech import Speech
from tpuinfer.server.store import Store

MIB = 2**20


@dataclass(frozen=True)
class Keeping:
    """What an operator decides about files and batches.

    Attributes:
      store: where they are kept; None: nowhere, and the routes answer 503.
      reason: why not, in one line.
      most_bytes: of one file.
      identity: names the model and all that its answers depend on, once it is loaded.
    """

    store: Store | None = None
    reason: str = "this server keeps no files: start it with --data-dir DIR"
    most_bytes: int = 512 * MIB
    identity: Callable[[], str] = str


class Batching(Collector):
    """The routes, the worker behind them, and both in numbers. It closes the store at its end."""

    def __init__(
        self,
        bridge: Bridge,
        info: ServerInfo,
        speech: Speech,
        keeping: Keeping,
        notes: Sequence[Note] = (),
    ) -> None:
        """Args: notes: told of every line that was answered, as of HTTP requests."""
        self._bridge = bridge
        self._info = info
        self._keeping = keeping
        self._runner: Runner | None = None
        if keeping.store is not None:
            model = _Served(bridge, info, speech, keeping.identity, notes)
            self._runner = Runner(keeping.store, model)

    def routers(self) -> Iterator[APIRouter]:
        """Which say 503 where nothing is kept."""
        yield files_router(self._require_store, self._keeping.most_bytes)
        yield batches_router(
            self._require_store, self._require_runner, self._info, self._require_endpoint
        )

    def start(self) -> None:
        """Belongs to the event loop."""
        if self._runner is not None:
            self._runner.start()

    async def stop(self) -> None:
        """Leave everything for the next process."""
        if self._runner is not None:
            await self._runner.stop()
        if self._keeping.store is not None:
            await asyncio.to_thread(self._keeping.store.close)

    def collect(self) -> Iterator[Metric]:
        """Batches by status, and lines done since the start."""
        if self._keeping.store is None or self._runner is None:
            return
        batches = GaugeMetricFamily(
            f"{PREFIX}batches", "Batches of /v1/batches, by status.", labels=["status"]
        )
        for status, count in sorted(self._keeping.store.tally.items()):
            batches.add_metric([status], count)
        yield batches
        lines = CounterMetricFamily(
            f"{PREFIX}batch_lines", "Lines of batches done since the start.", labels=["outcome"]
        )
        for outcome, count in sorted(self._runner.lines.items()):
            lines.add_metric([outcome], count)
        yield lines

    def _require_store(self) -> Store:
        if self._keeping.store is None:
            raise ApiError(503, self._keeping.reason, kind="server_error", code="not_enabled")
        return self._keeping.store

    def _require_runner(self) -> Runner:
        self._require_store()
        assert self._runner is not None, "where there is a store, there is a worker"
        return self._runner

    def _require_endpoint(self, endpoint: str) -> None:
        if self._bridge.failure is not None:
            return
        if endpoint == EMBEDDINGS:
            _ = self._bridge.encoder
        else:
            self._bridge.require_decoder()


class _Served:
    """The bridge's engine, as the worker sees it."""

    def __init__(
        self,
        bridge: Bridge,
        info: ServerInfo,
        speech: Speech,
        identity: Callable[[], str],
        notes: Sequence[Note],
    ) -> None:
        self._bridge, self._info, self._speech = bridge, info, speech
        self._identity = identity
        self._notes = notes
        self._process = secrets.token_hex(8)

    @property
    def name(self) -> str:
        return self._info.model

    @property
    def failure(self) -> Exception | None:
        return self._bridge.failure

    def version(self) -> int:
        metrics = self._bridge.metrics
        return 0 if metrics is None else metrics.version

    def identity(self) -> str:
        """Weights that took the place of those at the start are known in this process only."""
        version, name = self.version(), self._identity()
        return name if version == 0 else f"{name} {self._process}.{version}"

    def desk(self, owner: str | None) -> Answerer:
        return Desk(
            self._bridge,
            self._info,
            self._speech,
            background=True,
            notes=self._notes,
            key=owner,
        )
