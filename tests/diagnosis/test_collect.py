"""Facts of made-up machines, from their files, and of this one."""

import os
import time

import pytest

from tpuinfer.diagnosis import collect as room
from tpuinfer.diagnosis.collect import collect, folder, gpus_of
from tpuinfer.diagnosis.facts import Folder, Gpu, Probed


@pytest.fixture
def asked(monkeypatch):
    """What jax was asked with, which it does not answer."""
    calls = []

    def ask(environ, seconds):
        calls.append((environ, seconds))
        return Probed(error="asked")

    monkeypatch.setattr(room.probe, "ask", ask)
    return calls


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_machine_is_read_from_its_files(tmp_path, asked):
    root = tmp_path / "root"
    write(
        root,
        dev__accel0="",
        dev__nvidia0="",
        tmp__libtpu_lockfile="",
        proc__meminfo="MemTotal:       2048 kB\nMemAvailable:   1024 kB\nHugePages: 0\n",
        proc__sys__vm__max_map_count="65530\n",
        sys__kernel__mm__transparent_hugepage__enabled="[always] never\n",
    )
    environ = {"TPU_WORKER_ID": "0", "HOME": "/secret", "NPROC": "8", "OPENAI_API_KEY": "x"}
    facts = collect(environ, cache_dir=tmp_path / "cache", seconds=7, root=root)
    assert asked == [(environ, 7)]
    assert facts.environ == {"TPU_WORKER_ID": "0", "NPROC": "8"}
    assert facts.tpu_files == (f"{root}/dev/accel0",)
    assert facts.gpu_files == (f"{root}/dev/nvidia0",)
    assert (facts.memory, facts.memory_free) == (2048 * 1024, 1024 * 1024)
    assert facts.limits.maps == 65_530
    assert facts.huge_pages == "[always] never"
    assert facts.lock_owner == facts.user == os.getuid()
    assert facts.probed.error == "asked"
    assert facts.models is not None
    assert (facts.models.path, facts.models.exists) == (str(tmp_path / "cache"), False)
    assert facts.models.writable


def test_a_container_has_no_more_than_its_share(tmp_path, asked):
    write(
        tmp_path,
        proc__meminfo="MemTotal: 4096 kB\nMemAvailable: 4000 kB\n",
        **{"sys__fs__cgroup__memory.max": "1048576\n", "sys__fs__cgroup__memory.current": "48576"},
    )
    facts = collect({}, cache_dir=tmp_path, seconds=1, root=tmp_path)
    assert (facts.memory, facts.memory_free) == (1_048_576, 1_000_000)


def test_a_held_tpu_is_not_asked_for(tmp_path, asked):
    fd = tmp_path / "proc/41/fd"
    fd.mkdir(parents=True)
    (fd / "3").symlink_to("/dev/accel0")
    (tmp_path / "proc/41/cmdline").write_bytes(b"python\0serve.py\0")
    facts = collect({}, cache_dir=tmp_path, seconds=1, root=tmp_path)
    assert asked == []
    assert facts.probed.error == "not asked: process 41 has /dev/accel0 open, in use by it"


def test_what_is_installed_is_read_from_its_metadata(tmp_path, asked):
    facts = collect({}, cache_dir=tmp_path, seconds=1, root=tmp_path)
    assert facts.versions["jax"]
    assert facts.versions["jax-cuda12-plugin"] is None
    needed = {(one.name, one.by) for one in facts.needed}
    assert {("flax", "tpuinfer"), ("jaxlib", "jax"), ("libtpu", "jax[tpu]")} <= needed
    extras = {one.by for one in facts.needed if "[" in one.by}
    assert extras == {"jax[tpu]"}
    assert facts.behind == 0


def test_a_clock_that_is_behind_is_noticed(tmp_path, asked, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert collect({}, cache_dir=tmp_path, seconds=1, root=tmp_path).behind > 1e9


def test_a_folder_counts_programs_and_not_their_notes(tmp_path):
    write(tmp_path, **{"a-cache": "12345", "b-cache": "1", "a-atime": "x"})
    found = folder(tmp_path, count=True)
    assert (found.entries, found.bytes, found.exists, found.writable) == (2, 6, True, True)
    assert found.free
    assert folder(tmp_path).entries == 0
    assert folder("gs://bucket/x") == Folder("gs://bucket/x")


def test_a_file_in_the_way_of_a_folder_cannot_be_written(tmp_path):
    write(tmp_path, file="")
    (tmp_path / "file").chmod(0o755)
    assert not folder(tmp_path / "file/below").writable


def test_jax_may_be_told_of_another_cache(tmp_path, asked):
    write(tmp_path, **{"mine__a-cache": "1"})
    environ = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
    facts = collect(environ, cache_dir=tmp_path, seconds=1, root=tmp_path)
    assert facts.compiled is not None
    assert (facts.compiled.path, facts.compiled.entries) == (str(tmp_path / "mine"), 1)


def test_what_nvidia_smi_says_is_read():
    assert gpus_of("NVIDIA H200, 143771, 12\nodd\nNVIDIA, L4, 23034, [N/A]\n") == (
        Gpu("NVIDIA H200", 143_771 * 2**20, 12 * 2**20),
    )
