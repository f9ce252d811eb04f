"""`python -m tpuinfer.serve`: the OpenAI-compatible server."""

import logging
import os
import threading
import time

from absl import flags

from tpuinfer import flags as shared
from tpuinfer.server.app import ServerInfo, create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.listen import bind, serve

flags.adopt_module_key_flags(shared)

_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0 takes a free one.")
_NAME = flags.DEFINE_string("served-model-name", None, "Name in the API; default: --model.")
_MAX_WAITING = flags.DEFINE_integer(
    "max-waiting", 4096, "Requests that may wait for a slot; more are answered with 503."
)

_log = logging.getLogger("tpuinfer.serve")


def main() -> None:
    """Listen first, then load: probes are answered from the start, requests after warm-up."""
    chosen = shared.settings()
    engine = chosen.engine()
    start = time.perf_counter()
    name = _NAME.value or chosen.model.rstrip("/").rsplit("/", 1)[-1]
    bridge = Bridge(name)
    loaded_once = threading.Event()
    with bind(_HOST.value, _PORT.value) as listener:
        host, port = listener.getsockname()[:2]
        _log.info("listening on http://%s:%d, loading %s", host, port, name)

        def load() -> None:
            loaded = shared.load(chosen, engine, max_waiting=_MAX_WAITING.value)
            bridge.attach(loaded.engine, loaded.tokenizer)
            loaded_once.set()
            seconds = time.perf_counter() - start
            _log.info("ready after %.1f s: http://%s:%d/v1 serves %s", seconds, host, port, name)

        aliases = (chosen.model,) if chosen.model != name else ()
        app = create_app(bridge, ServerInfo(name, aliases))
        serve(app, listener, log_level="warning", load=load)
        if not loaded_once.is_set():
            # Asked to stop while loading: a compile in progress cannot be interrupted, only left.
            logging.shutdown()
            os._exit(0)


if __name__ == "__main__":
    shared.run(main)
