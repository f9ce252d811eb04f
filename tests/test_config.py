import dataclasses

import pytest

from tpuinfer.config import EngineConfig, ModelConfig, Settings, check_dtype, load_settings
from tpuinfer.errors import ConfigError

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
    ],
)
def test_a_model_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(MODEL, **change)


@pytest.mark.parametrize(
    ("slots", "context", "wanted"),
    [
        (8, None, EngineConfig(8, None)),
        ("8", 64, EngineConfig(8, 64)),
        ("48x2048", None, EngineConfig(48, 2048)),
        (" 4x32 ", 32, EngineConfig(4, 32)),
    ],
)
def test_slots_are_read(slots, context, wanted):
    assert EngineConfig.parse(slots, context) == wanted


@pytest.mark.parametrize(
    ("slots", "context", "message"),
    [
        ("many", None, r"slots is 'many': write N or NxLENGTH, such as 8 or 8x2048"),
        ("8x", None, "slots is '8x'"),
        ("8x32,4x64", None, "slots is '8x32,4x64'"),
        (-1, None, "slots is -1"),
        (2.5, None, "slots is 2.5"),
        (0, None, "slots is 0: at least 1"),
        ("8x32", 64, "slots is '8x32' but context is 64: give one length"),
        (8, 1, "context is 1: at least 2"),
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
[mesh]
mesh = "2x4"
[sharding]
rules = "rules.toml"
[engine]
slots = "4x64"
context = 64
"""


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
    assert loaded == Settings("m.gguf", "2x4", "rules.toml", "float32", "4x64", 64)
    default = dataclasses.asdict(Settings())
    assert all(value != default[name] for name, value in dataclasses.asdict(loaded).items())


def test_an_empty_file_gives_the_defaults_and_flags_win(toml):
    assert load_settings(toml(""), {}) == Settings()
    loaded = load_settings(toml(FULL), {"mesh": "8", "context": None})
    assert loaded == Settings("m.gguf", "8", "rules.toml", "float32", "4x64", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[engine]\nslotz = 3", r"\[engine\] has no 'slotz'; it takes context, slots"),
        ("[model]\nslots = 3", r"\[model\] has no 'slots'; it takes dtype, model"),
        ("[modle]\nmodel = 'm'", r"\[modle\] is not known; tables: model, mesh, sharding, engine"),
        ("mesh = '2x4'", r"\[mesh\] is not known"),
        ("[engine]\ncontext = '64'", "context is '64': it must be an integer"),
        ("[engine]\ncontext = true", "context is True: it must be an integer"),
        ("[engine]\nslots = 2.5", "slots is 2.5: it must be an integer or a string"),
        ("[mesh]\nmesh = [2, 4]", r"mesh is \[2, 4\]: it must be a string or an integer"),
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
