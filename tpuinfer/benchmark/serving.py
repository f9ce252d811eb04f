"""How many events the server can stream, with all that a device does faked. No jax.

The server runs in this process and its clients in another one: what they cost is not the server's,
though both share the machine's cores.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from tpuinfer.benchmark.host import EchoRunner
from tpuinfer.engine.engine import Engine
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.listen import bind

MODEL = "echo"

_PATIENCE = 300
"""Seconds after which clients that still wait are given up."""


@dataclass(frozen=True)
class Streamed:
    """What one round of clients got.

    Attributes:
      events: server-sent events, [DONE] not counted. seconds: from the first request to the last
        event, by the clients' clock.
      cpu_seconds: what the server's process used meanwhile, all threads together.
    """

    events: int
    seconds: float
    cpu_seconds: float


@contextlib.contextmanager
def server(tokenizer: Any, *, slots: int, context: int) -> Iterator[int]:
    """The real server over an engine on `EchoRunner`, on a free port of this host; yields it.

    Args:
      tokenizer: a model's own.
    """
    engine = Engine(EchoRunner(slots, tokenizer.vocab_size, capacity=context), tokenizer)
    bridge = Bridge(MODEL)
    bridge.attach(engine, tokenizer)
    with bind("127.0.0.1", 0) as listener:
        app = create_app(bridge, ServerInfo(MODEL))
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=running.run, args=([listener],), name="server")
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            running.should_exit = True
            thread.join()


def stream(port: int, *, clients: int, tokens: int) -> Streamed:
    """Let that many clients stream an answer of so many tokens each, all at once.

    Raises:
      RuntimeError: an answer was no stream, or did not have its tokens.
    """
    body = {
        "model": MODEL,
        "prompt": [1, 2, 3],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "skip_special_tokens": False,
        "stream": True,
    }
    asked = [str(port), str(clients), json.dumps(body)]
    start = time.process_time()
    done = subprocess.run(
        [sys.executable, "-m", "tpuinfer.benchmark.clients", *asked],
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    cpu = time.process_time() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    got = json.loads(done.stdout)
    return Streamed(got["events"], got["seconds"], cpu)
