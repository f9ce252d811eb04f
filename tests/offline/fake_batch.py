"""The front door of batches on the fake engine, as a process that starts in milliseconds.

The fake's vocabulary is letters: at temperature 0 the prompt "abc" is answered "def...", at any
other its seed is added to each letter. FLAGS of the fake come before the door's own.
"""

import collections
import contextlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import doors
import numpy as np

CONTEXT = 128
SLOTS = 64

FLAGS = {
    "--fake-model": "fake",
    "--fake-wait": "0",
    "--fake-fail": "",
    "--fake-full": "",
    "--fake-home": "",
}
"""What the model is known by, how many seconds each step takes, why it cannot be loaded, why the
machine cannot be measured, where `~` is."""

_SERVER = multiprocessing.get_context("forkserver")


class Door(doors.Door):
    """A door whose process can be looked at."""

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def alive(self) -> bool:
        return self._process.is_alive()


@contextlib.contextmanager
def started(*flags: str, stdin: str = "", terminal: str = "") -> Iterator[Door]:
    """`python -m tpuinfer.batch <flags>`; killed at the end if need be.

    Args:
      terminal: the device that stderr goes to, and not to a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("0", stdin), ("1", ""), ("2", "")):
            Path(folder, name).write_text(text, "utf-8")
        process = _SERVER.Process(target=_enter, args=(flags, folder, terminal))
        process.start()
        try:
            yield Door(process, Path(folder))
        finally:
            process.kill()
            process.join()
            process.close()


def run(*flags: str, stdin: str = "") -> doors.Result:
    with started(*flags, stdin=stdin) as running:
        return running.result()


def _enter(flags: tuple[str, ...], folder: str, terminal: str) -> None:
    for fd, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        path = terminal if terminal and fd == 2 else Path(folder, str(fd))
        os.dup2(os.open(path, mode), fd)
    sys.argv = ["batch", *flags]
    with open(0, encoding="utf-8", closefd=False) as sys.stdin:  # it was /dev/null
        main()


def main() -> None:
    """The door of this process, with everything that a model would need faked."""
    from tpuinfer import batch
    from tpuinfer import flags as shared
    from tpuinfer.engine import identity as identities

    given = dict(FLAGS)
    while len(sys.argv) > 1 and sys.argv[1] in given:
        given[sys.argv[1]] = sys.argv[2]
        del sys.argv[1:3]

    def load(*_: Any, **__: Any) -> Any:
        assert not given["--fake-fail"], given["--fake-fail"]
        return fake_model(float(given["--fake-wait"]))

    def identity(*_: Any, name: str, **__: Any) -> Mapping[str, str]:
        return {"name": name, "fingerprint": given["--fake-model"]}

    shared.plan_to_serve = lambda *_: None  # type: ignore[assignment, return-value]
    shared.load_to_serve = load
    identities.identity = identity  # type: ignore[assignment]
    if given["--fake-home"]:
        os.environ["HOME"] = given["--fake-home"]
    if given["--fake-full"]:
        _fill_the_machine(given["--fake-full"])
    shared.run(batch.main)


def _fill_the_machine(why: str) -> None:
    """Measuring it fails so, and the fake's plan is one whose bound would be known."""
    import jax

    from tpuinfer.benchmark import floor
    from tpuinfer.engine import plan

    def measured(_: Any) -> Any:
        raise jax.errors.JaxRuntimeError(why)

    floor.measured = measured  # type: ignore[assignment]
    plan.Plan = SimpleNamespace  # type: ignore[misc, assignment]


def fake_model(seconds: float = 0.0) -> Any:
    """What loading gives."""
    from tpuinfer.engine.engine import Engine
    from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

    runner = FakeRunner(SLOTS, capacity=CONTEXT, buckets=(CONTEXT,), prefill_rows=SLOTS)
    runner.seconds = seconds
    for kept in ("events", "sent", "quotas"):  # it would remember every dispatch
        setattr(runner, kept, collections.deque(maxlen=16))
    tokenizer = FakeTokenizer()
    engine = Engine(runner, tokenizer, steps=16, max_waiting=2**31)
    device = SimpleNamespace(platform="cpu")
    mesh = SimpleNamespace(devices=np.array([device], dtype=object))
    plan = SimpleNamespace(layout=SimpleNamespace(mesh=mesh))
    return SimpleNamespace(engine=engine, tokenizer=tokenizer, plan=plan)


if __name__ == "__main__":
    main()
