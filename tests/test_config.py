import dataclasses

import pytest

from tpuinfer.config import (
    EngineConfig,
    Settings,
    SlotClass,
    check_dtype,
    load_settings,
)
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig

MODEL = ModelConfig(
    family="llama",
    vocab=96,
    embed=64,
    mlp=128,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    context=256,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 0}, "model vocab is 0: it must be at least 1"),
        ({"layers": -2}, "model layers is -2"),
        ({"kv_heads": 0}, "model kv_heads is 0"),
        ({"heads": 9, "kv_heads": 2}, "9 query heads and 2 KV heads"),
        ({"head_dim": 15}, "head_dim is 15: rotary positions need it even"),
        ({"windows": (4,)}, "windows has 1 entries, the least 4: it needs one per layer, 2"),
        ({"windows": (4, -1)}, "windows has 2 entries, the least -1: .* each 0 or more"),
    ],
)
def test_a_model_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(MODEL, **change)


def test_a_window_of_nothing_is_no_window():
    windows = dataclasses.replace(MODEL, windows=(0, 20))
    assert [windows.window(layer) for layer in range(2)] == [None, 20]
    assert MODEL.window(1) is None


@pytest.mark.parametrize(
    ("slots", "context", "wanted"),
    [
        (8, None, [(8, None)]),
        ("8", 64, [(8, 64)]),
        ("48x2048", None, [(48, 2048)]),
        (" 4x32 ", 32, [(4, 32)]),
        ("48x2048,8x16384", None, [(48, 2048), (8, 16384)]),
        ("1x64, 2x16 ,3x32", None, [(2, 16), (3, 32), (1, 64)]),
    ],
)
def test_slots_are_read(slots, context, wanted):
    engine = EngineConfig.parse(slots, context)
    assert engine == EngineConfig(tuple(SlotClass(*one) for one in wanted))
    assert engine.slots == sum(count for count, _ in wanted)


def test_what_a_default_engine_does():
    engine = EngineConfig()
    assert (engine.slots, engine.context_policy, engine.sinks) == (8, "stop", 4)
    assert (engine.prefill_wait_ms, engine.strict_compile) == (0, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ()}, "slots is empty: at least 1"),
        (
            {"context_policy": "rol"},
            "context-policy is 'rol': one of stop, roll; nearest: roll$",
        ),
        ({"context_policy": None}, "context-policy is None: one of stop, roll"),
        ({"sinks": -1}, "sinks is -1: at least 0"),
        (
            {"attention": "palas"},
            "attention is 'palas': one of auto, reference, pallas; nearest: pallas$",
        ),
        ({"prefill_wait_ms": -0.5}, r"is -0.5: it must be in \[0, 10000\]; nearest: 0$"),
        ({"prefill_wait_ms": 20_000}, "is 20000: .*; nearest: 10000$"),
        ({"prefill_wait_ms": float("nan")}, "is nan: .*; nearest: 0$"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**fields)


@pytest.mark.parametrize(
    ("slots", "context", "fit"),
    [
        ("auto", None, "slots"),
        ("auto", 512, "slots"),
        ("auto", "auto", "both"),
        (4, "auto", "context"),
        ("4", "512", "nothing"),
    ],
)
def test_what_is_auto_is_left_to_the_memory(slots, context, fit):
    engine = EngineConfig.parse(slots, context)
    assert engine.fit == fit
    assert engine.classes[0].context == (512 if str(context) == "512" else None)
    assert fit in ("slots", "both") or engine.slots == 4


@pytest.mark.parametrize(
    ("slots", "context", "message"),
    [
        ("many", None, r"slots is 'many': write N, NxLENGTH or auto, such as 8, 8x2048 or "),
        ("8x", None, "slots is '8x'"),
        ("8x32,", None, "slots is '8x32,'"),
        ("8x32,4", None, "several classes of slots: give each a length"),
        ("8x32,4x32", None, "two classes of slots have the same length, 32$"),
        ("8x32,4x64", 64, "but context is 64: give one length"),
        (-1, None, "slots is -1"),
        (2.5, None, "slots is 2.5"),
        (0, None, "slots is 0: at least 1"),
        ("8x32", 64, "slots is '8x32' but context is 64: give one length"),
        (8, 1, "context is 1: at least 2"),
        (8, "1k", "context is '1k': a number of tokens, or auto"),
        ("8x32", "auto", "slots is '8x32' but context is auto: give one length"),
        ("4,8", "auto", "slots or context is auto: that goes with one class"),
        ("8x0", None, "context is 0: at least 2"),
    ],
)
def test_slots_that_cannot_be_are_refused(slots, context, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig.parse(slots, context)


def test_dtype_names_the_nearest():
    assert check_dtype("float32") == "float32"
    with pytest.raises(ConfigError, match=r"dtype is 'bf16': .*; nearest: bfloat16$"):
        check_dtype("bf16")
    with pytest.raises(ConfigError, match="dtype is 'float16'"):
        Settings(dtype="float16")


FULL = """
[model]
model = "m.gguf"
dtype = "float32"
weights = "int4,head=none"
[mesh]
mesh = "2x4"
topology = "v5e-8"
[sharding]
rules = "rules.toml"
[engine]
slots = "4x64"
context = 64
context_policy = "roll"
sinks = 2
prefill_wait_ms = 1.5
strict_compile = true
ring = "fp8"
attention = "reference"
"""
FULL_SETTINGS = Settings(
    model="m.gguf",
    mesh="2x4",
    topology="v5e-8",
    rules="rules.toml",
    dtype="float32",
    slots="4x64",
    context=64,
    context_policy="roll",
    sinks=2,
    prefill_wait_ms=1.5,
    strict_compile=True,
    weights="int4,head=none",
    ring="fp8",
    attention="reference",
)


@pytest.fixture
def toml(tmp_path):
    """Write a TOML text, and return its path."""

    def write(text: str):
        path = tmp_path / "settings.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_every_setting_can_stand_in_a_file(toml):
    loaded = load_settings(toml(FULL), {})
    assert loaded == FULL_SETTINGS
    default = dataclasses.asdict(Settings())
    assert all(value != default[name] for name, value in dataclasses.asdict(loaded).items())


def test_an_empty_file_gives_the_defaults_and_flags_win(toml):
    assert load_settings(toml(""), {}) == Settings()
    loaded = load_settings(toml(FULL), {"mesh": "8", "context": None})
    assert loaded == dataclasses.replace(FULL_SETTINGS, mesh="8", context=None)


def test_what_settings_say_of_the_engine():
    assert FULL_SETTINGS.engine() == EngineConfig(
        (SlotClass(4, 64),),
        "roll",
        2,
        prefill_wait_ms=1.5,
        strict_compile=True,
        ring="fp8",
        attention="reference",
    )
    assert Settings().engine() == EngineConfig()
    with pytest.raises(ConfigError, match="context-policy is 'grow'"):
        Settings(context_policy="grow").engine()
    with pytest.raises(ConfigError, match="slots is 0: at least 1"):
        Settings(slots="0x8").engine()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[engine]\nslotz = 3",
            r"\[engine\] has no 'slotz'; it takes attention, context, context_policy, pre",
        ),
        ("[model]\nslots = 3", r"\[model\] has no 'slots'; it takes dtype, model"),
        ("[modle]\nmodel = 'm'", r"\[modle\] is not known; tables: model, mesh, sharding, engine"),
        ("mesh = '2x4'", r"\[mesh\] is not known"),
        ("[engine]\ncontext = true", "context is True: it must be an integer or a string"),
        ("[engine]\nslots = 2.5", "slots is 2.5: it must be an integer or a string"),
        ("[engine]\nprefill_wait_ms = '5'", "prefill_wait_ms is '5': it must be an integer or a n"),
        ("[engine]\nstrict_compile = 1", "strict_compile is 1: it must be true or false"),
        ("[engine]\nsinks = 1.0", "sinks is 1.0: it must be an integer"),
        ("[mesh]\nmesh = [2, 4]", r"mesh is \[2, 4\]: it must be a string or an integer"),
        ("[mesh]\ntopology = 8", "topology is 8: it must be a string"),
        ("[sharding]\nrules = 1", "rules is 1: it must be a string"),
        ("[model]\ndtype = 'half'", "dtype is 'half'"),
        ("[model", "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(toml, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(toml(text), {})
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        load_settings(tmp_path / "none.toml", {})
    (tmp_path / "latin.toml").write_bytes(b'[model]\nmodel = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not valid TOML"):
        load_settings(tmp_path / "latin.toml", {})
