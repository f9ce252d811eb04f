"""Slices that are described to the TPU compiler, with no TPU."""

import pytest

from tpuinfer.sharding.described import described_mesh, has_compiler
from tpuinfer.sharding.mesh import parse_mesh

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not has_compiler(), reason="needs libtpu, the TPU compiler; no TPU"),
]


def test_a_slice_is_described_once():
    """With two descriptions of one v6e, the compiler's library dies when the second is used."""
    one, other = (described_mesh("v6e:2x4", parse_mesh(mesh)).devices for mesh in ("8", "2x4"))
    assert {id(device) for device in one.flat} == {id(device) for device in other.flat}
