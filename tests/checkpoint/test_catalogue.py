import pytest

from tpuinfer.checkpoint import catalogue
from tpuinfer.errors import CheckpointError


def test_every_entry_is_pinned_and_licensed() -> None:
    assert "smollm2-135m-instruct" in catalogue.entries()
    for name, entry in catalogue.entries().items():
        assert entry.name == name
        assert "\n" not in entry.description
        assert entry.licence
        assert entry.member.endswith(".gguf")
        assert entry.member_size > 0
        for digest in (entry.wheel_sha256, entry.member_sha256):
            assert len(digest) == 64
            int(digest, 16)


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(CheckpointError) as caught:
        catalogue.find("SmolLM2-135M")
    assert "did you mean 'smollm2-135m-instruct'?" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"names: smollm2-135m-instruct; a path needs"):
        catalogue.find("zzz")
