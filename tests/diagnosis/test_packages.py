"""Checks of what is installed."""

import pytest
from machines import NEEDED, VERSIONS, laptop, lines, tpu_vm

from tpuinfer.diagnosis.findings import Level
from tpuinfer.diagnosis.packages import check


def with_versions(**changes):
    return laptop(versions={**VERSIONS, **changes})


def test_versions_that_fit_are_one_line():
    (line,) = lines(check, laptop())
    assert line.startswith("versions: python 3.11.9, tpuinfer 0.1.0, jax 0.10.2, jaxlib 0.10.2")
    assert "libtpu 0.0.42.1, flax 0.12.8" in line


def test_without_a_tpu_libtpu_may_be_missing():
    (line,) = lines(check, with_versions(libtpu=None))
    assert "libtpu" not in line


@pytest.mark.parametrize(
    ("changes", "said", "remedy"),
    [
        (
            {"flax": "0.13.1"},
            "flax is 0.13.1, tpuinfer needs <0.13,>=0.12",
            "pip install 'flax<0.13",
        ),
        ({"libtpu": "0.0.41"}, "libtpu is 0.0.41, jax[tpu] needs ==0.0.42.*", "'libtpu==0.0.42.*'"),
        ({"jaxlib": "0.9.2"}, "jaxlib is 0.9.2, jax needs <=0.10.2,>=0.10.1", "'jaxlib<=0.10.2"),
        ({"numpy": "1.26.4"}, "numpy is 1.26.4, tpuinfer needs >=2.0", "'numpy>=2.0'"),
        ({"flax": None}, "flax is not installed", "pip install flax"),
    ],
)
def test_a_combination_that_does_not_work_fails_once(changes, said, remedy):
    (line,) = lines(check, with_versions(**changes), Level.FAIL)
    assert said in line
    assert remedy in line
    assert lines(check, with_versions(**changes), Level.WARN) == []


def test_versions_of_jax_and_jaxlib_that_differ_and_fit_are_a_warning():
    facts = with_versions(jaxlib="0.10.1")
    assert lines(check, facts, Level.FAIL) == []
    (line,) = lines(check, facts, Level.WARN)
    assert "jax is 0.10.2 and jaxlib 0.10.1; pip install jaxlib==0.10.2" in line


def test_an_old_python_fails():
    (line,) = lines(check, laptop(python="3.10.14"), Level.FAIL)
    assert "python is 3.10.14, tpuinfer needs >=3.11" in line


def test_flax_is_looked_at_even_without_metadata():
    assert NEEDED
    (line,) = lines(check, laptop(needed=(), versions={**VERSIONS, "flax": "0.11.2"}), Level.FAIL)
    assert "flax is 0.11.2" in line


def test_hardware_without_its_half_of_jax():
    (line,) = lines(check, tpu_vm(versions={**VERSIONS, "libtpu": None}), Level.FAIL)
    assert "pip install 'tpuinfer[tpu]'" in line
    (line,) = lines(check, laptop(gpu_files=("/dev/nvidia0",)), Level.WARN)
    assert "pip install 'tpuinfer[cuda]'" in line
    cuda = {**VERSIONS, "jax-cuda13-plugin": "0.10.2"}
    assert lines(check, laptop(gpu_files=("/dev/nvidia0",), versions=cuda), Level.WARN) == []
