"""What front doors share: bars where somebody looks, and what a command line may say."""

import io
import sys
import types

import pytest

from tpuinfer import flags
from tpuinfer.config import Settings
from tpuinfer.errors import ConfigError, MeshError
from tpuinfer.planning.best import Choice

CHOICES = ("decode", "prefill")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, monkeypatch):
    """What the bars write when stderr is this stream."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        with flags.Bars() as progress:
            progress("compiling", 1, 2)
            progress("compiling", 2, 2)
    return stream.getvalue()


def test_a_terminal_gets_bars_and_a_file_none(monkeypatch):
    assert "compiling" in shown(Terminal(), monkeypatch)
    assert shown(io.StringIO(), monkeypatch) == ""


@pytest.mark.parametrize(("words", "choices"), [([], ()), (["prefill"], CHOICES)])
def test_words_that_are_asked_for_pass(words, choices):
    flags._check_words(words, choices)


@pytest.mark.parametrize(
    ("words", "choices", "says"),
    [
        (["hello"], (), "'hello' is not a flag"),
        ([], CHOICES, "say which of decode, prefill"),
        (["prefil"], CHOICES, "nearest: prefill"),
        (["decode", "decode"], CHOICES, "one word too many"),
    ],
)
def test_other_words_are_refused(words, choices, says):
    with pytest.raises(ConfigError, match=says):
        flags._check_words(words, choices)


class Device:
    """As much of a jax device as tells what it is."""

    def __init__(self, kind, platform="tpu"):
        self.device_kind, self.platform = kind, platform


@pytest.mark.parametrize(
    ("topology", "devices", "says"),
    [
        ("v5e:2x4", [Device("TPU v5 lite")] * 8, []),
        ("tpu7x-8", [Device("TPU7x")] * 8, []),
        (None, [Device("TPU v4")], []),
        ("v5e:2x4", [Device("cpu", "cpu")] * 8, []),
        (
            "v5e:2x4",
            [Device("TPU v6 lite")] * 8,
            ["for v5e:2x4, 8 devices of TPU v5e, and here are 8 of TPU v6 lite: mesh, slots"],
        ),
        ("v5e:2x4", [Device("TPU v5 lite")] * 4, ["8 devices of TPU v5e, and here are 4 of TPU v"]),
        ("v5e:2x4", [Device("NVIDIA H100", "gpu")] * 8, ["and here are 8 of NVIDIA H100:"]),
    ],
)
def test_other_devices_than_the_config_is_for_are_one_warning(
    topology, devices, says, monkeypatch, caplog
):
    monkeypatch.setattr("jax.devices", lambda: devices)
    flags._compare_slices(topology)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * len(says)
    assert all(part in caplog.text for part in says)


def test_a_topology_that_there_is_not_is_said_before_a_model_is_fetched(monkeypatch, tmp_path):
    (tmp_path / "own.toml").write_text('[mesh]\ntopology = "v5e-9"', "utf-8")
    monkeypatch.setattr(flags, "CONFIG", types.SimpleNamespace(value=tmp_path / "own.toml"))
    monkeypatch.setattr(flags, "_SHARED", {})
    with pytest.raises(MeshError, match="'v5e-9' is no slice of TPU v5e; nearest: v5e:2x4"):
        flags.settings()


def test_auto_becomes_a_mesh_with_one_line_in_the_log(monkeypatch, caplog):
    def best(chosen, engine, **others):
        assert (chosen.model, engine.slots, others["random_weights"]) == ("m", 8, "sizes")
        return Choice("2x4", "as it is best")

    monkeypatch.setattr(flags, "cache_dir", lambda: None)
    monkeypatch.setattr("tpuinfer.planning.best.for_settings", best)
    chosen = Settings("m", mesh="auto")
    caplog.set_level("INFO")
    made = flags.with_mesh(chosen, chosen.engine(), random_weights="sizes")
    assert made == Settings("m", mesh="2x4")
    assert caplog.messages == ["mesh auto is 2x4: as it is best"]
    given = Settings("m", mesh="8")
    assert flags.with_mesh(given, given.engine()) is given
