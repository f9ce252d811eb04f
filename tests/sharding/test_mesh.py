import logging

import jax
import pytest

from tpuinfer.errors import MeshError
from tpuinfer.sharding.mesh import build_mesh, parse_mesh


@pytest.mark.parametrize(
    ("text", "data", "model"),
    [
        (8, 1, 8),
        ("8", 1, 8),
        ("2x4", 2, 4),
        (" 4 x 2 ", 4, 2),
        ("data=2,model=4", 2, 4),
        ("model=4,data=2", 2, 4),
        ("data=8", 8, 1),
        ("model=2", 1, 2),
    ],
)
def test_a_mesh_is_read(text, data, model):
    shape = parse_mesh(text)
    assert shape.axes == (("data", data), ("model", model))
    assert shape.size == data * model
    assert parse_mesh(str(shape)) == shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2by4", r"mesh '2by4' cannot be read: write 8, 2x4 or data=2,model=4"),
        ("", "mesh '' cannot be read"),
        ("2x4x2", "mesh '2x4x2' cannot be read"),
        ("-8", "mesh '-8' cannot be read"),
        ("2x", "mesh '2x' cannot be read"),
        ("data=2,", "mesh 'data=2,' cannot be read"),
        ("0", "model is 0; the nearest size that works is 1"),
        ("0x4", "data is 0; the nearest"),
        ("model=2,model=4", "'model' is given twice; the axes are data, expert, seq and model"),
        ("experts=2", "'experts' is not a mesh axis; the axes are data, expert, seq and model"),
    ],
)
def test_what_is_no_mesh_is_refused(text, message):
    with pytest.raises(MeshError, match=message) as caught:
        parse_mesh(text)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["8", "2x4", "1x1", "2x2"])
def test_a_mesh_is_built_over_the_first_devices(text):
    shape = parse_mesh(text)
    mesh = build_mesh(shape)
    assert dict(mesh.shape) == dict(shape.axes)
    assert mesh.axis_names == ("data", "model")
    assert sorted(device.id for device in mesh.devices.flat) == list(range(shape.size))


def test_simulation_is_said(caplog):
    with caplog.at_level(logging.INFO, "tpuinfer"):
        build_mesh(parse_mesh("2x4"))
        build_mesh(parse_mesh("1"))
    assert [record.getMessage() for record in caplog.records] == [
        "mesh data=2,model=4: simulating 8 devices on the CPU",
        "mesh data=1,model=1 uses 1 of 8 cpu",
    ]


class FakeDevice:
    """Enough of a device for what happens before a mesh exists."""

    def __init__(self, platform: str) -> None:
        self.platform = platform


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_too_few_devices_name_the_nearest_mesh(monkeypatch, platform):
    monkeypatch.setattr(jax, "devices", lambda: [FakeDevice(platform)] * 4)
    wanted = rf"mesh data=2,model=4 needs 8 devices, 4 {platform} found: .* works is --mesh 4$"
    with pytest.raises(MeshError, match=wanted):
        build_mesh(parse_mesh("2x4"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process "
            "with pid 1234. Not attempting to load libtpu.so in this process. "
            "(set JAX_PLATFORMS='' to automatically choose an available backend)",
            "another process holds it",
        ),
        (
            "Unable to initialize backend 'tpu': ABORTED: Internal error when accessing libtpu "
            'multi-process lockfile.\nRun "$ sudo rm /tmp/libtpu_lockfile".',
            "another process holds it",
        ),
        (
            "Unable to initialize backend 'tpu': UNKNOWN: TPU initialization failed: "
            "open(/dev/vfio/0): Device or resource busy: Device or resource busy",
            "another process holds it",
        ),
        ("Unable to initialize backend 'cuda': no CUDA-capable device", "is the driver working"),
    ],
)
def test_a_device_that_cannot_be_opened_is_one_line(monkeypatch, text, why):
    def refuse() -> list[jax.Device]:
        raise RuntimeError(text)

    monkeypatch.setattr(jax, "devices", refuse)
    with pytest.raises(MeshError, match=why) as caught:
        build_mesh(parse_mesh("1"))
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    assert line.startswith("no device could be opened (")
    assert " ".join(text.split())[:200] in line
