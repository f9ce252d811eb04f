"""Checks of what is installed: versions, and combinations that do not work."""

from tpuinfer.diagnosis.facts import Facts, Needed
from tpuinfer.diagnosis.findings import Finding, fail, ok, warn
from tpuinfer.diagnosis.specifiers import satisfies

SHOWN = (
    *("tpuinfer", "jax", "jaxlib", "libtpu", "flax", "orbax-checkpoint", "numpy"),
    *("jax-cuda12-plugin", "jax-cuda13-plugin"),
)
"""Distributions whose versions are shown, and whose needs are looked at."""

_OPTIONAL = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")

_PYTHON = Needed("python", ">=3.11", "tpuinfer")
_OURS = (Needed("flax", ">=0.12,<0.13", "tpuinfer"),)
"""What is asked whatever the metadata says: from a checkout nothing may be installed."""


def check(facts: Facts) -> list[Finding]:
    """Versions in one line, and a line for each that does not fit."""
    shown = [f"python {facts.python}"]
    for name in SHOWN:
        version = facts.versions.get(name)
        if version is not None or name not in _OPTIONAL:
            shown.append(f"{name} {version or 'missing'}")
    return [
        ok("versions", ", ".join(shown)),
        *_python(facts),
        *_missing(facts),
        *_unfit(facts),
        *_pair(facts),
        *_plugins(facts),
    ]


def _python(facts: Facts) -> list[Finding]:
    if satisfies(facts.python, _PYTHON.specifier):
        return []
    return [
        fail(
            "python",
            f"python is {facts.python}, tpuinfer needs {_PYTHON.specifier}",
            "make a new environment with python 3.11 or later",
        )
    ]


def _missing(facts: Facts) -> list[Finding]:
    return [
        fail(name, f"{name} is not installed", f"pip install {name}")
        for name in SHOWN
        if name not in _OPTIONAL and name != "tpuinfer" and facts.versions.get(name) is None
    ]


def _unfit(facts: Facts) -> list[Finding]:
    """Versions that another package does not take."""
    found, seen = [], set()
    for need in (*facts.needed, *_OURS):
        version = facts.versions.get(need.name)
        if version is None or need.name in seen or satisfies(version, need.specifier):
            continue
        seen.add(need.name)
        found.append(
            fail(
                need.name,
                f"{need.name} is {version}, {need.by} needs {need.specifier}",
                f"pip install '{need.name}{need.specifier}'",
            )
        )
    return found


def _pair(facts: Facts) -> list[Finding]:
    jax, jaxlib = facts.versions.get("jax"), facts.versions.get("jaxlib")
    if jax is None or jaxlib is None or jax == jaxlib:
        return []
    allowed = [need for need in facts.needed if need.name == "jaxlib"]
    if not all(satisfies(jaxlib, need.specifier) for need in allowed):
        return []  # said already
    return [
        warn("jaxlib", f"jax is {jax} and jaxlib {jaxlib}", f"pip install jaxlib=={jax}"),
    ]


def _plugins(facts: Facts) -> list[Finding]:
    """Hardware whose half of jax is not installed."""
    found = []
    if facts.has_tpu and facts.versions.get("libtpu") is None:
        found.append(
            fail("libtpu", "a TPU, and no libtpu to drive it", "pip install 'tpuinfer[tpu]'")
        )
    cuda = any(facts.versions.get(f"jax-cuda{major}-plugin") for major in (12, 13))
    if any("nvidia" in path for path in facts.gpu_files) and not cuda:
        found.append(
            warn("cuda", "a GPU, and jax without CUDA", "pip install 'tpuinfer[cuda]' to use it")
        )
    return found
