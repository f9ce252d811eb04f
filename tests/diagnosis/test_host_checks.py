"""Checks of the host: memory, limits, clock and folders."""

import dataclasses

import pytest
from machines import GIB, laptop, lines, tpu_vm

from tpuinfer.diagnosis.facts import Folder, Limits
from tpuinfer.diagnosis.findings import Level
from tpuinfer.diagnosis.host import clock, compiled, huge_pages, limits, memory, models


def limited(**changes):
    return laptop(limits=dataclasses.replace(laptop().limits, **changes))


def test_a_host_with_room_is_described():
    assert lines(memory, laptop()) == ["host: 8 cores, 16 GiB of 32 GiB memory free; "]
    assert lines(memory, laptop(memory=None)) == ["host: 8 cores; "]
    assert lines(limits, laptop()) == ["limits: 65536 open files; "]
    assert lines(limits, laptop(limits=Limits())) == ["limits: any number of open files; "]
    assert lines(clock, laptop()) == []


def test_little_memory_is_a_warning():
    (line,) = lines(memory, laptop(memory_free=GIB), Level.WARN)
    assert "1 GiB of 32 GiB memory free; stop something: loading needs 2 GiB" in line


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"files": 1024}, "ulimit -n 4096"),
        ({"files": 1024, "files_most": 2048}, "ulimit -n 2048, and raise the hard limit of 2048"),
        ({"files": 256, "files_most": None}, "ulimit -n 4096"),
        ({"maps": 65_530}, "sysctl vm.max_map_count=262144"),
        ({"address_space": 8 * GIB}, "ulimit -v unlimited"),
    ],
)
def test_a_low_limit_is_a_warning(changes, remedy):
    (line,) = lines(limits, limited(**changes), Level.WARN)
    assert remedy in line
    assert lines(limits, limited(**changes), Level.OK) == []


def test_pieces_of_memory_are_a_matter_of_the_cpu():
    low = dataclasses.replace(laptop().limits, maps=65_530)
    assert "some 327 programs" in lines(limits, laptop(limits=low), Level.WARN)[0]
    assert lines(limits, tpu_vm(limits=low), Level.WARN) == []


def test_huge_pages_are_a_matter_of_the_tpu():
    off = {"huge_pages": "always [madvise] never"}
    assert "[madvise]" in lines(huge_pages, tpu_vm(**off), Level.WARN)[0]
    assert lines(huge_pages, laptop(**off)) == []
    assert lines(huge_pages, tpu_vm(huge_pages="[always] madvise never")) == []


def test_a_clock_that_is_behind_is_a_warning():
    (line,) = lines(clock, laptop(behind=10 * 86_400.0), Level.WARN)
    assert "the clock is 10 days behind" in line
    assert lines(clock, laptop(behind=3600.0)) == []


@pytest.mark.parametrize(
    ("folder", "level", "said"),
    [
        (Folder("/c", entries=3, bytes=5 * 2**20), Level.OK, "/c, 3 programs, 5 MiB"),
        (Folder("/c"), Level.OK, "/c, empty: the first start compiles"),
        (Folder("/c", exists=False), Level.OK, "/c, not there yet: the first start compiles"),
        (Folder("/c", writable=False), Level.WARN, "every start compiles anew"),
    ],
)
def test_the_cache_of_programs(folder, level, said):
    (line,) = lines(compiled, laptop(compiled=folder), level)
    assert said in line


@pytest.mark.parametrize(
    ("folder", "level", "said"),
    [
        (Folder("/m", free=50 * GIB), Level.OK, "/m, 50 GiB free"),
        (Folder("/m", free=5 * GIB), Level.WARN, "/m, 5 GiB free: 8 billion"),
        (Folder("/m", exists=False, free=50 * GIB), Level.OK, "/m, not there yet, 50 GiB free"),
        (Folder("/m", writable=False), Level.FAIL, "/m cannot be written"),
        (Folder("gs://bucket/m"), Level.OK, "model cache: gs://bucket/m; "),
    ],
)
def test_the_cache_of_models(folder, level, said):
    (line,) = lines(models, laptop(models=folder), level)
    assert said in line


def test_folders_that_could_not_be_found_out_are_no_lines():
    assert lines(compiled, laptop(compiled=None)) == lines(models, laptop(models=None)) == []
