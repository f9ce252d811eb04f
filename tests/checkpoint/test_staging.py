import hashlib
import threading
from pathlib import Path

import pytest

from tpuinfer.checkpoint import staging
from tpuinfer.errors import CheckpointError


def test_what_is_published_is_all_that_stays(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with staging.staged(target) as work:
        (work / "build").mkdir()
        (work / "build" / "a").write_text("1")
        (work / "scrap").write_text("2")
        staging.publish(work / "build", target)
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert (target / "a").read_text() == "1"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def stop() -> None:
        with staging.staged(tmp_path / "target") as work:
            (work / "half").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".target.partial-dead"
    stale.mkdir()
    (stale / "half").write_text("1")
    neighbour = tmp_path / ".other.partial-alive"
    neighbour.mkdir()
    with staging.staged(tmp_path / "target"):
        assert not stale.exists()
    assert neighbour.exists()


def test_only_one_works_on_a_target_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with staging.staged(tmp_path / "target"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_the_first_published_directory_stays(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
        staging.publish(tmp_path / name, tmp_path / "target")
    assert (tmp_path / "target" / "who").read_text() == "first"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match="cannot be written"),
        staging.staged(tmp_path / "file" / "target"),
    ):
        pass


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(data)
    steps: list[tuple[str, int, int]] = []
    found = staging.sha256_of(tmp_path / "a", "read", lambda *step: steps.append(step))
    assert found == hashlib.sha256(data).hexdigest()
    assert steps[-1] == ("read", len(data), len(data))
    with pytest.raises(CheckpointError, match="No such file"):
        staging.sha256_of(tmp_path / "none", "read")
