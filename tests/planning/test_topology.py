import pytest

from tpuinfer.errors import MeshError
from tpuinfer.planning import topology as slices
from tpuinfer.sharding.mesh import parse_mesh


@pytest.mark.parametrize(
    ("text", "name", "chips", "devices"),
    [
        ("v5e:2x4", "v5e:2x4", 8, 8),
        ("V5E:4x2", "v5e:2x4", 8, 8),
        ("v5e-8", "v5e:2x4", 8, 8),
        ("v5e", "v5e:1x1", 1, 1),
        ("v6e-256", "v6e:16x16", 256, 256),
        ("v5p:2x2x1", "v5p:2x2x1", 4, 4),
        ("v5p-8", "v5p:2x2x1", 4, 4),
        ("tpu7x-8", "tpu7x:2x2x1", 4, 8),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 4, 8),
        ("h100:8", "h100:8", 8, 8),
        ("a100-80gb:4", "a100-80gb:4", 4, 4),
    ],
)
def test_a_slice_by_its_name(text, name, chips, devices):
    found = slices.parse(text)
    assert (str(found), found.chips, found.devices) == (name, chips, devices)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5e:3x3", r"'v5e:3x3' is no slice of TPU v5e; nearest: v5e:2x4; known: v5e:1x1, v5e:2x2"),
        ("v5p-7", r"no slice of TPU v5p; nearest: v5p:2x2x1"),
        ("h100:3", r"no slice of NVIDIA H100 80GB SXM; nearest: h100:4"),
        ("v7:2x2", r"chip is 'v7': one of v4, v5e, v5p, .*; nearest: v"),
        ("", r"topology '' cannot be read: write v5e:2x4"),
        ("v5e:2x4,v6e-8,v5e-8", r"v5e:2x4 stands there twice"),
    ],
)
def test_what_is_no_slice_is_refused_with_the_nearest(text, says):
    with pytest.raises(MeshError, match=says):
        slices.several(text)


def test_legal_meshes_are_those_that_cover_the_slice():
    found = slices.meshes(slices.parse("v5e:2x4"))
    assert [slices.written(one) for one in found] == ["8", "2x4", "4x2", "8x1"]
    assert len(slices.meshes(slices.parse("tpu7x:2x2x1"))) == 4  # of 8 devices


def test_a_mesh_that_does_not_cover_the_slice_is_refused_with_the_nearest():
    topology = slices.parse("v5e:2x4")
    slices.check_mesh(topology, parse_mesh("2x4"))
    with pytest.raises(MeshError, match=r"mesh 2x8 is of 16 devices, v5e:2x4 has 8; nearest: 8;"):
        slices.check_mesh(topology, parse_mesh("2x8"))
    with pytest.raises(MeshError, match=r"nearest: 8; legal: 8, 2x4, 4x2, 8x1$"):
        slices.check_mesh(topology, parse_mesh("16"))


def test_meshes_of_more_axes_leave_out_those_of_one_device():
    found = [slices.written(one) for one in slices.meshes(slices.parse("v5e:2x2"), ["expert"])]
    assert found == ["4", "2x2", "expert=2,model=2", "4x1", "expert=4", "data=2,expert=2"]
    every = slices.meshes(slices.parse("v5e:4x4"), ["seq", "expert"])
    assert len(every) == len(set(every)) == 35
    assert {one.size for one in every} == {16}


@pytest.mark.parametrize(
    "text", ["8", "2x4", "8x1", "expert=4,model=2", "data=2,expert=1", "seq=8"]
)
def test_a_mesh_is_written_as_it_is_read(text):
    shape = parse_mesh(text)
    assert slices.written(shape) == text
    assert parse_mesh(slices.written(shape)) == shape


def test_the_nearest_mesh_has_the_same_axes():
    topology = slices.parse("v5e:2x4")
    slices.check_mesh(topology, parse_mesh("data=2,expert=2,model=2"))
    with pytest.raises(MeshError) as told:
        slices.check_mesh(topology, parse_mesh("data=2,expert=4,model=2"))
    said = str(told.value)
    assert said.startswith(
        "mesh data=2,expert=4,model=2 is of 16 devices, v5e:2x4 has 8; nearest: "
    )
    assert "nearest: expert=4,model=2; legal: expert=4,model=2, data=2,expert=2,model=2, " in said
    assert said.endswith(", ...")
    assert said.count("=") < 20


def test_larger_slices_come_in_order():
    assert [str(one) for one in slices.larger(slices.parse("v5e:8x8"))] == ["v5e:8x16", "v5e:16x16"]
