"""The flags that front doors share, and how one runs: progress, one-line errors, exit codes.

absl flags are process-global, so each shared flag is defined here and nowhere else.
"""

import contextlib
import dataclasses
import difflib
import functools
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tpuinfer.config import (
    ATTENTION_CHOICES,
    CONTEXT_POLICIES,
    DTYPES,
    RING_DTYPES,
    EngineConfig,
    Settings,
    load_settings,
)
from tpuinfer.errors import ConfigError, OutOfMemoryError, TpuinferError
from tpuinfer.sharding.simulate import settle_platform

if TYPE_CHECKING:
    from tpuinfer.engine.build import Loaded
    from tpuinfer.engine.encoder import EncoderPlan, LoadedEncoder
    from tpuinfer.engine.plan import Plan

_DEFAULT = Settings()

CONFIG = flags.DEFINE_string("config", None, "TOML file with any of the settings below.")
MODEL = flags.DEFINE_string(
    "model",
    _DEFAULT.model,
    "Catalogue name, directory (ours or Hugging Face's), GGUF file, or org/name on the hub.",
)
MESH = flags.DEFINE_string(
    "mesh",
    _DEFAULT.mesh,
    "8 (model=8), 2x4 (data=2, model=4), data=2,expert=4,model=2, or auto: the planner's best for "
    "the model, slots and devices (of a CPU 1).",
)
RULES = flags.DEFINE_string(
    "rules",
    None,
    "Sharding rules: 1d (the default), 2d, data, fsdp, sequence, expert, context, or a TOML file.",
)
DTYPE = flags.DEFINE_enum("dtype", _DEFAULT.dtype, DTYPES, "Of weights and activations.")
WEIGHTS = flags.DEFINE_string(
    "weights",
    _DEFAULT.weights,
    "How weights are kept: auto (as stored), none, published (as they were published), int8, w8a8, "
    "int4[:GROUP], int4z[:GROUP], fp8, with exceptions: int4,layers.0=none; or a TOML file.",
)
RING = flags.DEFINE_enum(
    "ring", _DEFAULT.ring, RING_DTYPES, "What rings keep keys and values as; auto: by the platform."
)
ATTENTION = flags.DEFINE_enum(
    "attention",
    _DEFAULT.attention,
    ATTENTION_CHOICES,
    "What reads the rings: auto (by the platform), reference (XLA), or pallas (kernels for TPUs).",
)
SLOTS = flags.DEFINE_string(
    "slots",
    str(_DEFAULT.slots),
    "Requests that run at once: N, NxLENGTH, classes such as 48x2048,8x16384, or auto: as many as "
    "the devices have memory for.",
)
CONTEXT = flags.DEFINE_string(
    "context",
    None,
    "Tokens a request may have, prompt and answer; auto: as many as there is memory for; default: "
    "by the model.",
)
CONTEXT_POLICY = flags.DEFINE_enum(
    "context-policy",
    _DEFAULT.context_policy,
    CONTEXT_POLICIES,
    "At the end of its context a request stops, or rolls on without its oldest tokens.",
)
SINKS = flags.DEFINE_integer(
    "sinks", _DEFAULT.sinks, "First tokens that a rolling request never forgets."
)
PREFILL_WAIT_MS = flags.DEFINE_float(
    "prefill-wait-ms",
    _DEFAULT.prefill_wait_ms,
    "How long a prompt may wait for others to share its prefill.",
)
STRICT_COMPILE = flags.DEFINE_bool(
    "strict-compile", False, "A compile after warm-up is an error, not a warning."
)
CACHE_DIR = flags.DEFINE_string(
    "cache-dir", None, "Where models and compiled programs are kept; default: the user's cache."
)
CHAT_TEMPLATE = flags.DEFINE_string(
    "chat-template", None, "File with a jinja2 chat template; default: the model's own."
)
VERIFY = flags.DEFINE_bool("verify", False, "Check the checkpoint's SHA-256 sums before loading.")
SHOW_SHARDING = flags.DEFINE_bool(
    "show-sharding", False, "Print where each weight and ring lies, its bytes, and why."
)
SHOW_MEMORY = flags.DEFINE_bool(
    "show-memory", False, "Print what takes the memory of a device: weights, rings, scratch."
)
SHOW_PROGRAMS = flags.DEFINE_bool(
    "show-programs", False, "Print every program with its shapes, its memory and what it cost."
)

_SHARED: dict[str, Any] = {
    "model": MODEL,
    "mesh": MESH,
    "rules": RULES,
    "dtype": DTYPE,
    "weights": WEIGHTS,
    "ring": RING,
    "attention": ATTENTION,
    "slots": SLOTS,
    "context": CONTEXT,
    "context_policy": CONTEXT_POLICY,
    "sinks": SINKS,
    "prefill_wait_ms": PREFILL_WAIT_MS,
    "strict_compile": STRICT_COMPILE,
}

Watch = Callable[[str, int, int], None]


OF_A_PLAN = (
    CONFIG,
    MODEL,
    RULES,
    DTYPE,
    WEIGHTS,
    RING,
    SLOTS,
    CONTEXT,
    CONTEXT_POLICY,
    SINKS,
    ATTENTION,
)
"""What a plan depends on, beside the mesh."""


def refuse_unread(read: Collection[str], door: str) -> None:
    """Refuse shared flags that a front door is given and does not read.

    Raises:
      ConfigError: names the first.
    """
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        if flag.present and flag.name not in read:
            raise ConfigError(f"--{flag.name} means nothing to {door}: leave it out")


_log = logging.getLogger(__name__)


def settings() -> Settings:
    """What the flags and the file named by --config say together; flags given win.

    Raises:
      ConfigError: the file or a value cannot be used. MeshError: its topology is no slice.
    """
    given = {name: flag.value for name, flag in _SHARED.items() if flag.present}
    found = load_settings(CONFIG.value, given) if CONFIG.value else Settings(**given)
    if found.topology is not None:
        from tpuinfer.planning import topology

        topology.parse(found.topology)
    return found


def cache_dir() -> Path | None:
    """The folder given with --cache-dir, if any."""
    return Path(CACHE_DIR.value).expanduser() if CACHE_DIR.value else None


def load(chosen: Settings, engine: EngineConfig) -> "Loaded":
    """The engine that the flags ask for, with bars and, where asked, sums and the sharding table.

    Raises:
      TpuinferError: one line that names what is wrong; an encoder is refused.
    """
    from tpuinfer.engine import build

    with Bars() as progress:
        plan = build.make_plan(chosen.model, **_wanted(chosen, engine, progress))
        _compare_slices(chosen.topology)
        _before_loading(plan, progress)
        with _explained(plan, chosen):
            loaded = build.load(
                plan,
                chat_template=CHAT_TEMPLATE.value,
                max_waiting=2**31,
                cache_dir=cache_dir(),
                progress=progress,
            )
    _after_loading(loaded)
    return loaded


def plan_to_serve(chosen: Settings, engine: EngineConfig) -> "Plan | EncoderPlan":
    """What `load_to_serve` would load, an encoder too; the model is fetched if need be.

    Raises:
      TpuinferError: one line that names what is wrong.
    """
    from tpuinfer.engine import build

    with Bars() as progress:
        plan = build.make_any_plan(chosen.model, **_wanted(chosen, engine, progress))
    _compare_slices(chosen.topology)
    return plan


def load_to_serve(
    chosen: Settings,
    engine: EngineConfig,
    *,
    max_waiting: int,
    max_waiting_tokens: int | None,
    plan: "Plan | EncoderPlan | None" = None,
) -> "Loaded | LoadedEncoder":
    """As `load`, of an encoder too, and with a bound on who may wait.

    Args:
      plan: what `plan_to_serve` gave; None makes it.
    """
    from tpuinfer.engine import build, encoder

    plan = plan or plan_to_serve(chosen, engine)
    with Bars() as progress:
        _before_loading(plan, progress)
        if isinstance(plan, encoder.EncoderPlan):
            if CHAT_TEMPLATE.value:
                raise ConfigError(f"chat-template is {CHAT_TEMPLATE.value}: an encoder has no chat")
            return encoder.load_encoder(plan, cache_dir=cache_dir(), progress=progress)
        with _explained(plan, chosen):
            loaded = build.load(
                plan,
                chat_template=CHAT_TEMPLATE.value,
                max_waiting=max_waiting,
                max_waiting_tokens=max_waiting_tokens,
                cache_dir=cache_dir(),
                progress=progress,
            )
    _after_loading(loaded)
    return loaded


@contextlib.contextmanager
def _explained(plan: "Plan", chosen: Settings) -> Iterator[None]:
    """A start that runs out of memory says what takes it, and what would fit."""
    try:
        yield
    except OutOfMemoryError as error:
        from tpuinfer.planning import running

        text = running.explain(plan, chosen.model, chosen.weights)
        raise OutOfMemoryError(f"{error}\n\n{text}") from error


def _wanted(chosen: Settings, engine: EngineConfig, progress: "Watch") -> dict[str, Any]:
    """What a plan is made of, beside the model."""
    return {
        "mesh": with_mesh(chosen, engine, progress=progress).mesh,
        "rules": chosen.rules,
        "dtype": chosen.dtype,
        "weights": chosen.weights,
        "engine": engine,
        "cache_dir": cache_dir(),
        "progress": progress,
    }


def with_mesh(
    chosen: Settings,
    engine: EngineConfig,
    *,
    random_weights: str | None = None,
    progress: "Watch | None" = None,
) -> Settings:
    """The settings with a mesh in place of auto, and one line in the log that says why.

    Args:
      random_weights: sizes of a known model instead of a checkpoint.

    Raises:
      TpuinferError: the model cannot be found, or fits on no mesh.
    """
    if chosen.mesh != "auto":
        return chosen
    from tpuinfer.checkpoint.progress import silent
    from tpuinfer.planning import best

    found = best.for_settings(
        chosen,
        engine,
        random_weights=random_weights,
        cache_dir=cache_dir(),
        progress=progress or silent,
    )
    _log.info("mesh auto is %s: %s", found.mesh, found.why)
    return dataclasses.replace(chosen, mesh=found.mesh)


def _compare_slices(topology: str | None) -> None:
    """Say so where the devices are not those that the config was chosen for.

    A CPU says already that it simulates them.
    """
    if topology is None:
        return
    import jax

    from tpuinfer.planning import hardware
    from tpuinfer.planning import topology as slices

    wanted, found = slices.parse(topology), jax.devices()
    kind = found[0].device_kind
    same = hardware.by_device_kind(kind) is wanted.chip and len(found) == wanted.devices
    if same or found[0].platform == "cpu":
        return
    _log.warning(
        "the config is for %s, %d devices of %s, and here are %d of %s: mesh, slots and context "
        "may not suit them; python -m tpuinfer.plan --compare tells what does",
        wanted,
        wanted.devices,
        wanted.chip.title,
        len(found),
        kind,
    )


def _before_loading(plan: "Plan | EncoderPlan", progress: "Watch") -> None:
    from tpuinfer.checkpoint import layout
    from tpuinfer.sharding import report

    if VERIFY.value and plan.path is not None:
        layout.verify(plan.path, progress)
    if SHOW_SHARDING.value:
        print(report.render(report.table(plan.placements())), flush=True)


def _after_loading(loaded: "Loaded") -> None:
    from tpuinfer.engine import footprint
    from tpuinfer.programs import manifest

    if SHOW_MEMORY.value:
        entries = loaded.runner.manifest
        print(footprint.render(footprint.shares(loaded.plan, entries)), flush=True)
    if SHOW_PROGRAMS.value:
        print(manifest.render(loaded.runner.manifest), flush=True)


class Bars:
    """Progress bars on a terminal's stderr; nothing elsewhere. Use as a context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Watch:
        self._bars.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _show(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total)
        self._bars.update(self._tasks[label], completed=done, total=total)


def run(main: Callable[..., None], choices: Sequence[str] = ()) -> None:
    """Parse the flags and call `main`; what either raises becomes one line and an exit code.

    Args:
      choices: the command line must name one of these beside the flags, and `main` is called with
        it; with no choices nothing but flags may be there.
    """

    def guarded(argv: list[str]) -> Any:
        logging.basicConfig(
            format="%(message)s", level=logging.WARNING, stream=sys.stderr, force=True
        )
        logging.getLogger("tpuinfer").setLevel(logging.INFO)
        settle_platform()
        try:
            main(*argv[1:])
        except TpuinferError as error:
            _fail(error)
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:
            # The reader of our output left; what is still buffered has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)

    app.run(guarded, flags_parser=functools.partial(_parse, choices=choices))


def _parse(argv: list[str], choices: Sequence[str] = ()) -> list[str]:
    """What absl does with flags, but one line for what it refuses."""
    try:
        rest: list[str] = flags.FLAGS(argv)
        _check_words(rest[1:], choices)
    except flags.Error as error:
        _fail(ConfigError(" ".join(str(error).split())))
    except ConfigError as error:
        _fail(error)
    return rest


def _check_words(words: Sequence[str], choices: Sequence[str]) -> None:
    """Refuse what is neither a flag nor the one choice that a front door may ask for."""
    if not choices:
        if words:
            raise ConfigError(f"{words[0]!r} is not a flag; flags begin with --")
        return
    known = ", ".join(choices)
    if not words:
        raise ConfigError(f"say which of {known}")
    if words[0] not in choices:
        near = difflib.get_close_matches(words[0], choices, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{words[0]!r} is not one of {known}; nearest: {near}")
    if len(words) > 1:
        raise ConfigError(f"{words[1]!r} is one word too many; flags begin with --")


def _fail(error: TpuinferError) -> NoReturn:
    print(f"tpuinfer: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
