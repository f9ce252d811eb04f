"""The set-up scripts, on a copy of the project with a Python that only writes down its calls."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = (
    *("bash", "cat", "cksum", "comm", "dirname", "env", "grep", "mkdir", "paste", "readlink"),
    *("rm", "sed", "sleep", "sort", "tail", "touch", "tr"),
)

# A Python: answers version checks, makes environments out of itself, logs what else it is asked.
# `minor` says its version, `no-venv`, `no-pip`, `refuse` and `hang` beside it what goes wrong.
PYTHON = """#!/usr/bin/env bash
faults="{faults}"
minor="$(cat "$faults/minor")"
case "$*" in
  "-c ") exit 0 ;;
  "-c import sys; sys.exit(sys.version_info < (3, 11))") exit "$((minor < 11))" ;;
  "-c import sys; sys.exit(not (3, 11) <= "*) exit "$((minor < 11 || minor > 13))" ;;
  --version) echo "Python 3.$minor.1" ;;
  "-m venv "*)
    [ ! -e "$faults/no-venv" ] || {{ echo "ensurepip is not available"; exit 1; }}
    mkdir -p "$3/bin" && cat "$0" >"$3/bin/python" && chmod +x "$3/bin/python"
    echo "version = 3.$minor.1" >"$3/pyvenv.cfg"
    ;;
  "-m pip --version" | "-m ensurepip") [ ! -e "$faults/no-pip" ] ;;
  "-m pip install "*)
    echo "$*" >>"$faults/log"
    [ ! -e "$faults/hang" ] || {{ touch "$faults/hanging"; sleep 20; }}
    [ ! -e "$faults/refuse" ]
    ;;
  *) echo "$*" >>"$faults/log" ;;
esac
"""
UV = """#!/usr/bin/env bash
echo "uv $*" >>"{faults}/log"
[ "$1" = venv ] || exit 0
rm -f "{faults}/no-venv" && "{faults}/../bin/python3" -m venv "${{@: -1}}"
"""


class Checkout:
    """A copy of the scripts in a folder of its own, and a PATH that holds nothing else."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.faults = folder / "a b", folder / "bin", folder / "faults"
        for path in (self.root, self.bin, self.faults):
            path.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for tool in (*TOOLS, "chmod"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.command("python3", PYTHON)
        self.fault("minor", "11")
        self.venv = self.root / ".venv"

    def command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text.format(faults=self.faults))
        path.chmod(0o755)

    def fault(self, name: str, text: str = "") -> None:
        (self.faults / name).write_text(text)

    def mend(self, name: str) -> None:
        (self.faults / name).unlink()

    def start(self, script: str, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / script, *args],
            cwd=self.faults,
            env={"PATH": str(self.bin), "HOME": str(self.faults)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *args: str) -> tuple[int, str, list[str]]:
        """(exit code, output, calls that the Python logged since the last run)."""
        (self.faults / "log").unlink(missing_ok=True)
        with self.start(script, *args) as process:
            output, _ = process.communicate(timeout=30)
        log = self.faults / "log"
        return process.returncode, output, log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def installs(calls: list[str]) -> list[str]:
    return [call for call in calls if " install " in call]


def test_serve_installs_once_and_passes_its_arguments_on(checkout):
    code, output, calls = checkout.run("scripts/serve", "--with", "", "--mesh", "2 x 4")
    assert code == 0, output
    assert calls == [
        "-m pip install --quiet --disable-pip-version-check "
        "--constraint scripts/constraints.txt --editable .",
        "-m tpuinfer.serve --mesh 2 x 4",
    ]
    code, output, calls = checkout.run("scripts/serve", "--with", "", "--mesh", "8")
    assert (code, output, calls) == (0, "", ["-m tpuinfer.serve --mesh 8"])


def test_test_runs_every_check_in_order(checkout):
    code, output, calls = checkout.run("scripts/test", "--with=parity", "-k", "ring")
    assert code == 0, output
    assert installs(calls)[0].endswith("--editable .[dev,parity]")
    checks = ["-m ruff format --check .", "-m ruff check .", "-m mypy", "-m pytest -k ring"]
    assert calls[1:] == checks


def test_ci_adds_the_parity_tests_and_the_tpu_compiler(checkout):
    code, _, calls = checkout.run(".ci/run")
    assert code == 0
    assert installs(calls)[0].endswith("--editable .[dev,parity,tpu]")
    assert calls[-1] == "-m pytest"


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock, which Linux has")
def test_two_at_once_install_once(checkout):
    (checkout.bin / "flock").symlink_to(str(shutil.which("flock")))
    both = [checkout.start("scripts/serve", "--port", str(port)) for port in (1, 2)]
    assert [process.communicate(timeout=30) and process.returncode for process in both] == [0, 0]
    calls = (checkout.faults / "log").read_text().splitlines()
    assert len(installs(calls)) == 1
    assert sorted(calls[1:]) == ["-m tpuinfer.serve --port 1", "-m tpuinfer.serve --port 2"]


def test_extras_add_up(checkout):
    checkout.run("scripts/test")
    _, _, calls = checkout.run("scripts/serve", "--with", "cuda")
    assert installs(calls)[0].endswith("--editable .[cuda,dev]")
    assert installs(checkout.run("scripts/test")[2]) == []
    assert installs(checkout.run("scripts/test", "--with", "dev,cuda")[2]) == []


@pytest.mark.parametrize("name", ["pyproject.toml", "scripts/constraints.txt"])
def test_a_changed_file_installs_again(checkout, name):
    checkout.run("scripts/serve", "--with", "tpu")
    with (checkout.root / name).open("a") as file:
        file.write("\n# changed\n")
    _, _, calls = checkout.run("scripts/serve", "--with", "")
    assert installs(calls)[0].endswith("--editable .[tpu]")


def test_an_unknown_extra_is_named(checkout):
    code, output, calls = checkout.run("scripts/serve", "--with", "dev,gpu")
    assert (code, calls) == (1, [])
    assert "'gpu'" in output
    assert "tpu cuda parquet llamacpp plot dev parity" in output
    assert not checkout.venv.exists()


def test_with_needs_a_name(checkout):
    code, output, _ = checkout.run("scripts/serve", "--with")
    assert code == 1
    assert "--with needs" in output


def test_a_gpu_brings_the_cuda_extra(checkout):
    checkout.command("nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: some model'\n")
    _, _, calls = checkout.run("scripts/serve")
    assert installs(calls)[0].endswith(".[cuda]")


def test_a_broken_driver_does_not(checkout):
    checkout.command("nvidia-smi", "#!/usr/bin/env bash\necho 'no driver'\nexit 9\n")
    code, _, calls = checkout.run("scripts/serve")
    assert code == 0
    assert installs(calls)[0].endswith("--editable .")


@pytest.mark.parametrize(
    ("vendor", "device_class", "found"),
    [
        ("0x1ae0", "0x120000", True),
        ("0x1ae0", "0xff0000", True),
        ("0x1ae0", "0x020000", False),
        ("0x1ae0", "0x010802", False),
        ("0x8086", "0x120000", False),
    ],
)
def test_a_tpu_is_googles_and_neither_network_nor_disk(tmp_path, vendor, device_class, found):
    device = tmp_path / "0000:00:04.0"
    device.mkdir()
    (tmp_path / "0000:00:01.0").mkdir()
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(device_class + "\n")
    script = f". '{ROOT}/scripts/_setup.sh'; has_tpu '{tmp_path}'"
    assert (subprocess.run(["bash", "-c", script], check=False).returncode == 0) is found


def test_an_old_python_is_refused_with_a_way_out(checkout):
    checkout.fault("minor", "10")
    code, output, calls = checkout.run("scripts/serve")
    assert (code, calls) == (1, [])
    assert "3.11 or newer" in output
    assert "Python 3.10.1" in output
    assert not checkout.venv.exists()


def test_a_newer_python_beside_the_old_one_is_found(checkout):
    checkout.command("python", "#!/usr/bin/env bash\necho 'Python 2.7' >&2\nexit 1\n")
    (checkout.bin / "python3").rename(checkout.bin / "python3.12")
    checkout.command("python3", "#!/usr/bin/env bash\nexit 1\n")
    code, output, _ = checkout.run("scripts/serve")
    assert code == 0, output


def test_uv_makes_the_environment_where_venv_is_missing(checkout):
    checkout.fault("no-venv")
    checkout.command("uv", UV)
    code, output, calls = checkout.run("scripts/serve")
    assert code == 0, output
    assert "ensurepip is not available" in output
    assert calls[0].startswith("uv venv --quiet --allow-existing --seed --python 3.12")
    assert calls[-1] == "-m tpuinfer.serve"


def test_without_venv_and_uv_nothing_is_left_behind(checkout):
    checkout.fault("no-venv")
    code, output, _ = checkout.run("scripts/serve")
    assert code == 1
    assert "python3.11-venv" in output
    assert not checkout.venv.exists()


def test_uv_installs_where_there_is_no_pip(checkout):
    checkout.fault("no-pip")
    checkout.command("uv", UV)
    code, _, calls = checkout.run("scripts/serve")
    assert code == 0
    assert installs(calls) == [
        f"uv pip install --quiet --python {checkout.venv}/bin/python "
        "--constraint scripts/constraints.txt --editable ."
    ]


def test_pins_are_left_out_on_a_python_they_were_not_made_for(checkout):
    checkout.fault("minor", "14")
    code, output, calls = checkout.run("scripts/serve")
    assert code == 0
    assert "without the pins" in output
    assert "--constraint" not in calls[0]


def test_a_refused_installation_is_tried_again_in_the_same_environment(checkout):
    checkout.fault("refuse")
    code, output, calls = checkout.run("scripts/serve")
    assert code == 1
    assert "installation failed" in output
    assert not [call for call in calls if "tpuinfer.serve" in call]
    (checkout.venv / "kept").touch()
    checkout.mend("refuse")
    code, _, calls = checkout.run("scripts/serve")
    assert code == 0
    assert installs(calls)
    assert (checkout.venv / "kept").exists()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_installation_is_made_again(checkout, signal_number):
    checkout.fault("hang")
    with checkout.start("scripts/serve") as process:
        deadline = time.monotonic() + 20
        while not (checkout.faults / "hanging").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        subprocess.run(["kill", f"-{int(signal_number)}", "--", f"-{process.pid}"], check=True)
    assert process.returncode != 0
    (checkout.venv / "half").touch()
    checkout.mend("hang")
    code, output, calls = checkout.run("scripts/serve")
    assert code == 0
    assert "interrupted" in output
    assert installs(calls)
    assert not (checkout.venv / "half").exists()


def test_an_environment_whose_python_is_gone_is_made_again(checkout):
    checkout.run("scripts/serve")
    (checkout.venv / "bin" / "python").unlink()
    code, output, calls = checkout.run("scripts/serve")
    assert code == 0
    assert "does not run" in output
    assert installs(calls)


def test_an_environment_made_by_hand_is_kept(checkout):
    subprocess.run([checkout.bin / "python3", "-m", "venv", checkout.venv], check=True)
    (checkout.venv / "mine").touch()
    code, _, calls = checkout.run("scripts/serve")
    assert code == 0
    assert installs(calls)
    assert (checkout.venv / "mine").exists()


def test_an_environment_made_by_hand_with_an_old_python_is_refused_not_removed(checkout):
    subprocess.run([checkout.bin / "python3", "-m", "venv", checkout.venv], check=True)
    checkout.fault("minor", "10")
    code, output, calls = checkout.run("scripts/serve")
    assert (code, calls) == (1, [])
    assert "3.11 or newer: remove .venv" in output
    assert checkout.venv.exists()
