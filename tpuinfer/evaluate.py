"""`python -m tpuinfer.evaluate`: what a scheme, dtype, mesh or new version costs in accuracy."""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from tpuinfer import flags as shared
from tpuinfer.accuracy import report, text
from tpuinfer.accuracy.compare import Question, Variant, evaluate
from tpuinfer.config import RING_DTYPES, Settings
from tpuinfer.errors import ConfigError
from tpuinfer.quant.schemes import NONE

_KEYS = (
    *(shared.CONFIG, shared.MODEL, shared.MESH, shared.RULES, shared.DTYPE),
    *(shared.WEIGHTS, shared.RING, shared.CACHE_DIR),
)
for _flag in _KEYS:
    flags.declare_key_flag(_flag.name)

_NOT_HERE = (
    *(shared.SLOTS, shared.CONTEXT, shared.CONTEXT_POLICY, shared.SINKS, shared.PREFILL_WAIT_MS),
    *(shared.STRICT_COMPILE, shared.CHAT_TEMPLATE, shared.VERIFY),
    *(shared.SHOW_SHARDING, shared.SHOW_MEMORY, shared.SHOW_PROGRAMS),
)

_SCHEMES = flags.DEFINE_string(
    "schemes",
    None,
    "Several ways to keep the model, a row each: WEIGHTS[/RING] with spaces between, such as "
    "'int8 none/int8 int4:64/fp8'; instead of --weights and --ring.",
)
_AGAINST = flags.DEFINE_string(
    "against", None, "Compare with this model; default: the same, its weights as they are worth."
)
_AGAINST_WEIGHTS = flags.DEFINE_string("against-weights", None, "--weights of the reference.")
_AGAINST_RING = flags.DEFINE_enum("against-ring", None, RING_DTYPES, "--ring of the reference.")
_AGAINST_DTYPE = flags.DEFINE_string("against-dtype", None, "--dtype of the reference.")
_AGAINST_MESH = flags.DEFINE_string("against-mesh", None, "--mesh of the reference.")
_TEXT = flags.DEFINE_string("text", None, "UTF-8 file to read; default: a novel, public domain.")
_TOKENS = flags.DEFINE_integer("tokens", 4096, "Most tokens of the text; 0 reads all of it.")
_WINDOW = flags.DEFINE_integer(
    "window", None, "Tokens that are read together; default: 1024, or what the model allows."
)
_CHUNK = flags.DEFINE_integer(
    "chunk", 128, "Tokens in one call of the model; fewer than 32 multiply as decoding does."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON, and no table.")


def main() -> None:
    """Read the text with the reference and with each variant, and print how they differ."""
    for flag in _NOT_HERE:
        if flag.present:
            raise ConfigError(f"--{flag.name} is given, but an evaluation has no use for it")
    chosen = shared.settings()
    reference, variants = _variants(chosen)
    question = _question()
    with shared.Bars() as progress:
        answer = evaluate(
            question, reference, variants, cache_dir=shared.cache_dir(), progress=progress
        )
    found = report.Report(question, answer)
    if _JSON.value:
        json.dump(found.as_json(), sys.stdout, indent=2)
        print()
    else:
        print(report.render(found))


def _variants(chosen: Settings) -> tuple[Variant, list[Variant]]:
    """The reference, and what is compared with it: nothing where one model alone is asked for."""
    asked = Variant(
        model=chosen.model,
        weights=chosen.weights,
        ring=chosen.ring,
        dtype=chosen.dtype,
        mesh=str(chosen.mesh),
        rules=chosen.rules,
    )
    reference = dataclasses.replace(
        asked,
        model=_AGAINST.value or asked.model,
        weights=_AGAINST_WEIGHTS.value or ("auto" if _AGAINST.value else NONE),
        ring=_AGAINST_RING.value or "auto",
        dtype=_AGAINST_DTYPE.value or asked.dtype,
        mesh=_AGAINST_MESH.value or asked.mesh,
    )
    if _SCHEMES.value is None:
        against = (_AGAINST, _AGAINST_WEIGHTS, _AGAINST_RING, _AGAINST_DTYPE, _AGAINST_MESH)
        alone = not any(flag.present for flag in against)
        if alone and (asked.weights, asked.ring) in (("auto", "auto"), (NONE, "auto")):
            return asked, []
        return reference, [asked]
    if shared.WEIGHTS.present or shared.RING.present:
        raise ConfigError("--schemes is given, and --weights or --ring as well: give one of them")
    variants = []
    for word in _SCHEMES.value.split():
        weights, ring = _scheme(word)
        variants.append(dataclasses.replace(asked, weights=weights, ring=ring))
    if not variants:
        raise ConfigError("schemes is empty: write such as 'int8 none/int8 int4:64/fp8'")
    return reference, variants


def _scheme(word: str) -> tuple[str, str]:
    """WEIGHTS[/RING]; the weights may be a file in a folder."""
    weights, _, ring = word.rpartition("/")
    if weights and ring in RING_DTYPES:
        return weights, ring
    if "/" in word and not word.endswith(".toml"):
        raise ConfigError(f"schemes: {word!r} has ring {ring!r}: one of {', '.join(RING_DTYPES)}")
    return word, "auto"


def _question() -> Question:
    for flag, least in ((_TOKENS, 0), (_WINDOW, 2), (_CHUNK, 1)):
        if flag.value is not None and flag.value < least:
            raise ConfigError(f"{flag.name} is {flag.value}: at least {least}; nearest: {least}")
    read = text.from_file(Path(_TEXT.value).expanduser()) if _TEXT.value else text.built_in()
    return Question(read, _WINDOW.value, _TOKENS.value or None, _CHUNK.value)


if __name__ == "__main__":
    shared.run(main)
