"""One of two processes that hold a mesh together: `python pair.py RANK PORT OUT`.

Both make the same calls in the same order; what is host-side depends on nothing else. What each
finds goes to OUT as JSON: for the programs as they are, and with a plain sum over the model axis,
the differences between slots and between a mix and a request alone.
"""

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
from configurations import four_devices
from mixes import ask, differences, idle, serve_alone, serve_mixed
from mutations import mutated, plain_sum

from tpuinfer.engine.request import SamplingParams
from tpuinfer.programs.compile import Program
from tpuinfer.testing.drive import works
from tpuinfer.testing.tiny import Tiny

PROMPT = [3, 99, 7, 11, 2]
STEPS = 4


def join(rank: int, port: int) -> None:
    """Become one of two processes, with two devices of its own."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank, shutdown_timeout_seconds=10)
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)


def unlike_slots(model: Tiny, programs: Mapping[str, Program]) -> list[int]:
    """The same prompt in every slot at once: the slots whose answers are not those of slot 0."""
    runner = model.runner(idle(model), programs)
    slots = range(model.plan.slots.slots)
    params = SamplingParams(temperature=0, logprobs=20)
    for slot in slots:
        runner.prefill(works(runner, PROMPT, slot=slot, limit=STEPS + 1, params=params))
    said = runner.decode(STEPS, dict.fromkeys(slots, STEPS)).result()
    assert said.top_logprobs is not None
    rows = [
        (said.tokens[:, slot].tobytes(), said.top_logprobs[:, slot].tobytes()) for slot in slots
    ]
    return [slot for slot in slots if rows[slot] != rows[0]]


def unlike_alone(model: Tiny, programs: Mapping[str, Program], count: int = 24) -> list[str]:
    """What changes of requests that have neighbours."""
    chance = random.Random(0)
    asked = [ask(number, chance, model.config.vocab) for number in range(count)]
    doomed = [ask(count + number, chance, model.config.vocab) for number in range(4)]
    alone, _ = serve_alone(model, asked, programs)
    mixed, _ = serve_mixed(model, asked, steps=1, chance=chance, doomed=doomed, programs=programs)
    return differences(alone, mixed)


def main(rank: int, port: int, out: Path) -> None:
    join(rank, port)
    model = four_devices()
    found = {}
    for name, programs in [
        ("as it is", model.programs),
        ("plain sum", mutated(model, plain_sum, "decode")),
    ]:
        slots, mixed = unlike_slots(model, programs), unlike_alone(model, programs)
        found[name] = {"slots": slots, "mixed": mixed}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
