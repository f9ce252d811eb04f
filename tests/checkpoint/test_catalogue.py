import dataclasses
from pathlib import Path

import pytest

from tpuinfer.checkpoint import catalogue
from tpuinfer.errors import CheckpointError


def test_every_entry_is_pinned_and_licensed() -> None:
    assert "smollm2-135m-instruct" in catalogue.entries()
    for name, entry in catalogue.entries().items():
        assert entry.name == name
        assert "\n" not in entry.description
        assert entry.licence
        assert bool(entry.files) != entry.member.endswith(".gguf")
        assert entry.member_size > 0
        digests = [entry.wheel_sha256, entry.member_sha256, *(f.sha256 for f in entry.files)]
        for digest in digests:
            assert len(digest) == 64
            int(digest, 16)


def test_a_folder_is_pinned_by_all_its_files_and_no_code_is_taken() -> None:
    entry = catalogue.entries()["all-minilm-l6-v2"]
    assert {"config.json", "model.safetensors"} <= {file.name for file in entry.files}
    assert {Path(file.name).suffix for file in entry.files} == {".json", ".safetensors"}
    assert entry.member_size == sum(file.size for file in entry.files)
    assert entry.member_sha256 == catalogue.sum_of_sums(entry.files[::-1])
    first = dataclasses.replace(entry.files[0], sha256="0" * 64)
    assert entry.member_sha256 != catalogue.sum_of_sums((first, *entry.files[1:]))


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(CheckpointError) as caught:
        catalogue.find("SmolLM2-135M")
    assert "did you mean 'smollm2-135m-instruct'?" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"smollm2-135m-instruct; a path needs"):
        catalogue.find("zzz")
