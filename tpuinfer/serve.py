"""`python -m tpuinfer.serve`: the OpenAI-compatible server."""

import functools
import importlib.metadata
import ipaddress
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from tpuinfer import flags as shared
from tpuinfer.checkpoint import catalogue
from tpuinfer.checkpoint.paths import is_remote
from tpuinfer.dialog.formats import REASONING_PARSERS, TOOL_PARSERS, find_format
from tpuinfer.errors import ConfigError
from tpuinfer.server.access import Keys
from tpuinfer.server.admin import Operations
from tpuinfer.server.app import ServerOptions, create_app
from tpuinfer.server.attach import attach
from tpuinfer.server.audit import Audit
from tpuinfer.server.batching import MIB, Keeping
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.listen import bind, serve
from tpuinfer.server.request_log import FORMATS, request_log
from tpuinfer.server.store import Store, StoreError

if TYPE_CHECKING:
    from tpuinfer.engine.build import Loaded
    from tpuinfer.engine.encoder import LoadedEncoder

flags.adopt_module_key_flags(shared)

_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0 takes a free one.")
_NAME = flags.DEFINE_string("served-model-name", None, "Name in the API; default: --model.")
_MAX_WAITING = flags.DEFINE_integer(
    "max-waiting", 4096, "Requests that may wait for a slot; more are answered with 503."
)
_MAX_WAITING_TOKENS = flags.DEFINE_integer(
    "max-waiting-tokens", None, "Tokens that their prompts may have in all; default: any number."
)
_API_KEY = flags.DEFINE_multi_string(
    "api-key",
    [],
    "A key that opens the API, may be given several times; also $TPUINFER_API_KEY. "
    "Visible to who lists processes: prefer --api-key-file.",
)
_API_KEY_FILE = flags.DEFINE_string("api-key-file", None, "File with API keys, one a line.")
_ADMIN_KEY_FILE = flags.DEFINE_string(
    "admin-key-file", None, "File with keys for /admin/ routes, one a line."
)
_ADMIN_KEY = flags.DEFINE_multi_string("admin-key", [], "A key for /admin/ routes.")
_RELOAD_ROOT = flags.DEFINE_string(
    "reload-root", None, "Folder (or gs:// path) whose checkpoints /admin/reload may take."
)
_PROFILE_DIR = flags.DEFINE_string(
    "profile-dir", None, "Folder for what /admin/profile records; default: no profiles."
)
_LOG_FORMAT = flags.DEFINE_enum("log-format", "text", FORMATS, "How requests are logged.")
_AUDIT_LOG = flags.DEFINE_string(
    "audit-log", None, "File for one JSON line a request: who, which weights, how many tokens."
)
_AUDIT_PROMPTS = flags.DEFINE_bool("audit-prompts", False, "Put prompts in the audit log too.")

_TOOL_PARSER = flags.DEFINE_string(
    "tool-call-parser",
    None,
    f"How the model writes tool calls: {', '.join(TOOL_PARSERS)}; default: by its chat template.",
)
_REASONING_PARSER = flags.DEFINE_string(
    "reasoning-parser",
    None,
    f"How it marks reasoning: {', '.join(REASONING_PARSERS)}; default: by its chat template.",
)
_DATA_DIR = flags.DEFINE_string(
    "data-dir", None, "Folder for files and batches; default: the user's data folder."
)
_BATCHES = flags.DEFINE_bool("batches", True, "Offer /v1/files and /v1/batches.")
_MAX_FILE_MB = flags.DEFINE_integer(
    "max-file-mb", 512, "MiB that a file for a batch may have.", lower_bound=1
)

_LIBRARIES = ("tpuinfer", "jax", "jaxlib", "flax", "orbax-checkpoint")

_log = logging.getLogger("tpuinfer.serve")


class Server:
    """What the flags ask for, from the moment its port is taken; the model comes later."""

    def __init__(self) -> None:
        self.chosen = shared.settings()
        self.engine = self.chosen.engine()
        self.name = _NAME.value or self.chosen.model.rstrip("/").rsplit("/", 1)[-1]
        self.bridge = Bridge(self.name)
        self.loaded: Loaded | LoadedEncoder | None = None
        self.identity = ""
        self.ready = threading.Event()
        if _AUDIT_PROMPTS.value and not _AUDIT_LOG.value:
            raise ConfigError("audit-prompts is set and audit-log is not: give --audit-log FILE")
        self.parsers = {
            "tool_parser": _TOOL_PARSER.value,
            "reasoning_parser": _REASONING_PARSER.value,
        }
        find_format("", {}, **self.parsers)  # a name that is none is known before a model is

    def options(self) -> ServerOptions:
        """Keys, logs and operations.

        Raises:
          ConfigError: a file of keys, or the audit log, cannot be used.
        """
        own = os.environ.get("TPUINFER_API_KEY")
        api = [*_API_KEY.value, *_keys_in(_API_KEY_FILE), *([own] if own else [])]
        keys = Keys(api, [*_ADMIN_KEY.value, *_keys_in(_ADMIN_KEY_FILE)])
        if not keys.api and not _is_loopback(_HOST.value):
            _log.warning("no API key: whoever reaches %s may use the server", _HOST.value)
        notes: list[Any] = []
        closes = []
        if (note := request_log(_LOG_FORMAT.value)) is not None:
            notes.append(note)
        if _AUDIT_LOG.value:
            decode = self._decode if _AUDIT_PROMPTS.value else None
            audit = Audit(Path(_AUDIT_LOG.value).expanduser(), decode)
            notes.append(audit)
            closes.append(audit.close)
        return ServerOptions(
            keys,
            notes,
            closes,
            self._operations(),
            _versions(),
            **self.parsers,
            keeping=self._keeping(),
        )

    def load(self) -> None:
        """Load the model and hand it to the bridge."""
        loaded = shared.load_to_serve(
            self.chosen,
            self.engine,
            max_waiting=_MAX_WAITING.value,
            max_waiting_tokens=_MAX_WAITING_TOKENS.value,
        )
        self.loaded = loaded
        if _BATCHES.value:
            self.identity = self._identified(loaded)
        attach(self.bridge, loaded, max_waiting=_MAX_WAITING.value)
        self.ready.set()

    def _keeping(self) -> Keeping:
        """Where files and batches are.

        Raises:
          ConfigError: not in the folder that was asked for. The user's own may be another server's:
            this one goes on without, and says so.
        """
        most = _MAX_FILE_MB.value * MIB
        if not _BATCHES.value:
            reason = "this server offers no files and batches: start it without --nobatches"
            return Keeping(reason=reason)
        asked = _DATA_DIR.value
        if asked and is_remote(asked):
            raise ConfigError(f"data-dir is {asked!r}: it must be on a disk of this machine")
        try:
            store = Store(Path(asked).expanduser() if asked else _own_data())
        except StoreError as error:
            if asked:
                raise ConfigError(f"data-dir is {asked!r}: {error}") from error
            _log.warning("no files and batches: %s; --data-dir DIR takes another folder", error)
            reason = "this server has no folder for files and batches: its log has why"
            return Keeping(reason=reason)
        return Keeping(store, most_bytes=most, identity=lambda: self.identity)

    def _identified(self, loaded: "Loaded | LoadedEncoder") -> str:
        """All that answers of a batch depend on; now, for the files may be others later."""
        from tpuinfer.engine.identity import identity

        template = shared.CHAT_TEMPLATE.value
        found = identity(loaded.plan, name=self.name, chat_template=template)
        parsers = [f"{kind}={name}" for kind, name in self.parsers.items() if name is not None]
        return " ".join([str(found["fingerprint"]), *parsers])

    def _operations(self) -> Operations:
        from tpuinfer.engine import profile

        folder = _PROFILE_DIR.value
        return Operations(
            weights=self._weights if _RELOAD_ROOT.value else None,
            profile=functools.partial(profile.record, Path(folder).expanduser())
            if folder
            else None,
        )

    def _weights(self, name: str) -> Any:
        from tpuinfer.engine import reload
        from tpuinfer.engine.plan import Plan

        root = _RELOAD_ROOT.value
        assert root is not None, "reloads are off"
        assert self.loaded is not None, "a server that is not ready takes no weights"
        plan = self.loaded.plan
        assert isinstance(plan, Plan), "an encoder's weights stay"
        return reload.read_weights(plan, reload.below(root, name))

    def _decode(self, ids: list[int]) -> str:
        return self.bridge.tokenizer.decode(ids, skip_special_tokens=False)


def main() -> None:
    """Listen first, then load: probes are answered from the start, requests after warm-up."""
    start = time.perf_counter()
    server = Server()
    with bind(_HOST.value, _PORT.value) as listener:
        host, port = listener.getsockname()[:2]
        name = server.name
        _log.info("listening on http://%s:%d, loading %s", host, port, name)

        def load() -> None:
            server.load()
            seconds = time.perf_counter() - start
            _log.info("ready after %.1f s: http://%s:%d/v1 serves %s", seconds, host, port, name)

        asked = server.chosen.model  # a path is nobody's business
        aliases = (asked,) if asked != name and asked in catalogue.entries() else ()
        app = create_app(server.bridge, ServerInfo(name, aliases), server.options())
        serve(app, listener, log_level="warning", load=load, bridge=server.bridge)
        if not server.ready.is_set():
            # Asked to stop while loading: a compile in progress cannot be interrupted, only left.
            logging.shutdown()
            os._exit(0)


def _keys_in(flag: flags.FlagHolder[str | None]) -> Sequence[str]:
    """The lines of the file that a flag names; blank ones and those that begin with # are none."""
    if flag.value is None:
        return ()
    try:
        lines = Path(flag.value).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{flag.name} is {flag.value!r}: cannot be read ({reason})") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{flag.name} is {flag.value!r}: there is no key in it")
    return keys


def _own_data() -> Path:
    import platformdirs  # not needed where --data-dir is given

    return Path(platformdirs.user_data_dir("tpuinfer")) / "serve"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


if __name__ == "__main__":
    shared.run(main)
