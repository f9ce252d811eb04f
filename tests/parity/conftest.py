"""One engine on real weights for all modules that ask it things: compiling takes a minute."""

import pytest

from tpuinfer import LLM


@pytest.fixture(scope="package")
def llm():
    """SmolLM2 in float32, with room for ten requests; a module may have another of this name."""
    return LLM(dtype="float32", slots="10x1024")
