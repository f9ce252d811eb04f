"""The core runs where only jax, flax, orbax, numpy, absl and the tokenizer packages are."""

import subprocess
import sys

import pytest

ELSEWHERE = (
    "fastapi", "gguf", "httpx2", "orjson", "platformdirs", "prometheus_client", "pydantic",
    "starlette", "torch", "transformers", "uvicorn", "sentencepiece", "tokenizers", "jinja2",
)  # fmt: skip

_SCRIPT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Absent())
import {modules}
"""


def importing(modules: str, absent: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    script = _SCRIPT.format(modules=modules, absent=absent)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("door", ["bench", "generate"])
def test_llm_and_bench_need_no_server_and_no_peer(door):
    done = importing(f"tpuinfer.engine.llm, tpuinfer.{door}", ELSEWHERE)
    assert done.returncode == 0, done.stderr


def test_the_server_is_not_core():
    done = importing("tpuinfer.serve", ("fastapi",))
    assert "No module named 'fastapi'" in done.stderr
