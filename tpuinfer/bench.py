"""`python -m tpuinfer.bench decode|prefill|batch|host|server`: speed, beside what could be."""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from tpuinfer import flags as shared
from tpuinfer.benchmark import modes, report, schemes, subject
from tpuinfer.benchmark.modes import Options
from tpuinfer.benchmark.workload import LENGTHS, Blank
from tpuinfer.config import Settings
from tpuinfer.engine.accept import Tokenizer
from tpuinfer.errors import ConfigError
from tpuinfer.models import sizes
from tpuinfer.sharding.mesh import parse_mesh
from tpuinfer.sharding.presets import load_rules

flags.adopt_module_key_flags(shared)

_BATCH = flags.DEFINE_string("batch", "1,8,16", "decode: live slots, one row of the table each.")
_PROMPT_TOKENS = flags.DEFINE_integer(
    "prompt-tokens", None, "decode (default 32) and prefill (default 512): length of the prompt."
)
_NEW_TOKENS = flags.DEFINE_integer("new-tokens", 128, "decode: tokens that each slot makes.")
_REQUESTS = flags.DEFINE_integer("requests", 64, "batch: how many requests of mixed lengths.")
_LENGTHS = flags.DEFINE_enum(
    "lengths", LENGTHS[0], LENGTHS, "batch: how lengths are spread; long-tailed: most are short."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each piece of work is timed.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the mix of requests and of random weights.")
_AGAINST = flags.DEFINE_string(
    "against",
    None,
    "Run the same work there too, in turn: transformers, llama.cpp or llama.cpp:TYPE (q8_0, ...).",
)
_SCHEMES = flags.DEFINE_string(
    "schemes",
    None,
    "decode: several WEIGHTS or WEIGHTS/RING in turn, all in memory: 'none int8 int8/int8'.",
)
_RANDOM_WEIGHTS = flags.DEFINE_string(
    "random-weights", None, "Sizes of a known model, weights made on the devices; no download."
)
_JSON = flags.DEFINE_string("json", None, "File for the report as JSON; - prints it, and no table.")

_SLOTS = {"decode": 1, "prefill": 1, "host": 64, "batch": 16, "server": 64}
"""Mode -> the fewest slots when nobody says how many."""

_ON_HOST = {"host": modes.host, "server": modes.server}

_PROMPTS = {"decode": 32, "prefill": 512}

_LEAST_CONTEXT, _CONTEXT_STEP = 512, 128

_OF_WORK = ("batch", "prompt-tokens", "new-tokens", "requests", "lengths")
_OF_DEVICES = (
    *("against", "schemes", "seed", "mesh", "rules", "dtype", "weights", "ring", "context"),
    "strict-compile",
)
_OF_REQUESTS = ("context-policy", "sinks", "prefill-wait-ms")

_UNREAD = {
    "decode": ("requests", "lengths", "prefill-wait-ms"),
    "prefill": ("schemes", "batch", "new-tokens", "requests", "lengths", "prefill-wait-ms"),
    "batch": ("schemes", "batch", "prompt-tokens", "new-tokens"),
    "host": (*_OF_WORK, *_OF_DEVICES, *_OF_REQUESTS),
    "server": ("random-weights", *_OF_WORK, *_OF_DEVICES, *_OF_REQUESTS),
}
"""Mode -> flags that mean nothing to it; one that is given all the same is refused."""

_NEVER_READ = ("chat-template", "verify", "show-sharding", "show-memory", "show-programs")


def main(mode: str) -> None:
    """Run one mode, and print what it says."""
    _refuse_unread(mode)
    options = Options(
        batch=_batches(_BATCH.value),
        prompt_tokens=_PROMPTS.get(mode, 1)
        if _PROMPT_TOKENS.value is None
        else _PROMPT_TOKENS.value,
        new_tokens=_NEW_TOKENS.value,
        rounds=_ROUNDS.value,
        requests=_REQUESTS.value,
        seed=_SEED.value,
        lengths=_LENGTHS.value,
    )
    chosen = _settings(mode, options)
    made = _on_host if mode in _ON_HOST else _on_devices
    _show(made(mode, chosen, options))


def _on_devices(mode: str, chosen: Settings, options: Options) -> report.Report:
    if _SCHEMES.value is not None:
        return _several(_SCHEMES.value, chosen, options)
    measured = _prepared(chosen, options, _AGAINST.value)
    if mode == "batch":
        tokenizer = subject.vocabulary(measured.plan)
        return modes.batch(measured, tokenizer, options)
    return {"decode": modes.decode, "prefill": modes.prefill}[mode](measured, options)


def _several(asked: str, chosen: Settings, options: Options) -> report.Report:
    """The schemes in turn; a peer runs beside the first one's weights."""
    subjects: dict[str, subject.Subject] = {}
    for name, weights, ring in schemes.parse(asked):
        one = dataclasses.replace(chosen, weights=weights, ring=ring or chosen.ring)
        subjects[name] = _prepared(one, options, None if subjects else _AGAINST.value)
    return schemes.decode(subjects, options)


def _prepared(chosen: Settings, options: Options, against: str | None) -> subject.Subject:
    with shared.Bars() as progress:
        return subject.prepare(
            chosen,
            random_weights=_RANDOM_WEIGHTS.value,
            against=against,
            seed=options.seed,
            cache_dir=shared.cache_dir(),
            progress=progress,
        )


def _on_host(mode: str, chosen: Settings, options: Options) -> report.Report:
    """These modes need the model's vocabulary alone, and no device."""
    tokenizer: Tokenizer
    if _RANDOM_WEIGHTS.value:
        tokenizer = Blank(sizes.find(_RANDOM_WEIGHTS.value)["vocab_size"])
    else:
        from tpuinfer.checkpoint import load as checkpoint_load
        from tpuinfer.tokenizer.load import load_tokenizer

        with shared.Bars() as progress:
            path = checkpoint_load.resolve(
                chosen.model, cache_dir=shared.cache_dir(), progress=progress
            )
        tokenizer = load_tokenizer(path)
    name = _RANDOM_WEIGHTS.value or chosen.model
    return _ON_HOST[mode](tokenizer, name, chosen.engine().slots, options)


def _settings(mode: str, options: Options) -> Settings:
    """The shared settings; slots and context, unless given, are what the mode needs."""
    chosen = shared.settings()
    from_file = shared.CONFIG.value is not None
    if not (shared.SLOTS.present or from_file):
        slots = max(options.batch) if mode == "decode" else _SLOTS[mode]
        shards = 1
        if chosen.mesh != "auto":  # which is chosen for the slots
            rules = load_rules(chosen.rules)
            shards = rules.data_shards(dict(parse_mesh(chosen.mesh).axes))
        chosen = dataclasses.replace(chosen, slots=-(-slots // shards) * shards)
    by_slots = "x" in str(chosen.slots)
    if not (shared.CONTEXT.present or from_file or by_slots or mode in _ON_HOST):
        tokens = options.prompt_tokens + options.new_tokens
        longest = max(_LEAST_CONTEXT, -(-tokens // _CONTEXT_STEP) * _CONTEXT_STEP)
        chosen = dataclasses.replace(chosen, context=longest)
    if mode in _ON_HOST:
        return chosen
    with shared.Bars() as progress:
        random = _RANDOM_WEIGHTS.value
        return shared.with_mesh(chosen, chosen.engine(), random_weights=random, progress=progress)


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"batch is {text!r}: write numbers with commas, such as 1,8,16") from None


def _refuse_unread(mode: str) -> None:
    for name in (*_UNREAD[mode], *_NEVER_READ):
        if flags.FLAGS[name].present:
            raise ConfigError(f"--{name} means nothing to bench {mode}: leave it out")
    if _SCHEMES.value is not None and shared.WEIGHTS.present:
        raise ConfigError("--weights and --schemes both say how weights are kept: give one")


def _show(made: report.Report) -> None:
    if _JSON.value == "-":
        json.dump(made.as_json(), sys.stdout, indent=2)
        print()
        return
    print(report.render(made))
    if _JSON.value:
        try:
            Path(_JSON.value).write_text(json.dumps(made.as_json(), indent=2) + "\n", "utf-8")
        except OSError as error:
            raise ConfigError(
                f"json is {_JSON.value!r}: cannot be written ({error.strerror})"
            ) from error


if __name__ == "__main__":
    shared.run(main, choices=tuple(_SLOTS))
