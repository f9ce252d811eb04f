"""What each family says of published tensors fills every parameter of its cases, once and whole."""

import family_golden
import pytest
from all_cases import CASES
from whole_names import check

from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights


@pytest.mark.parametrize("name", CASES)
def test_every_element_is_taken_once(name):
    config = registry.read_config(family_golden.load(name).config)
    family, wanted = registry.family_of(config), weights(registry.build(config))
    check(family.hf_names(config), wanted)
    for architecture in family.architectures:
        assert family.gguf_names is not None
        check(family.gguf_names(config, architecture), wanted)
