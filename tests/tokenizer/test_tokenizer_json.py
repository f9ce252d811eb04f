import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from spm_json import LLAMA, METASPACE, sentencepiece_like

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.load import load_tokenizer


@pytest.mark.parametrize("text", ["a b", "  a", "aé🙂b", ""])
@pytest.mark.parametrize("decoder", [LLAMA, {"type": "Sequence", "decoders": [METASPACE]}])
def test_sentencepiece_like_files_decode_as_the_library_does(
    write: Callable[..., Path], decoder: dict[str, Any], text: str
) -> None:
    value = sentencepiece_like(decoder)
    tokenizer = load_tokenizer(write(tokenizer_json=value))
    ids = tokenizer.encode("<s>" + text, parse_special=True)
    library = tokenizers.Tokenizer.from_str(json.dumps(value))
    assert ids == library.encode("<s>" + text).ids
    assert tokenizer.decode(ids) == library.decode(ids)


def test_text_comes_back_whole(write: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(write(tokenizer_json=sentencepiece_like(LLAMA)))
    assert tokenizer.decode(tokenizer.encode("ab é🙂 a")) == "ab é🙂 a"


@pytest.mark.parametrize(
    ("decoder", "name"),
    [(None, "none"), ({"type": "BPEDecoder", "suffix": "</w>"}, "BPEDecoder")],
)
def test_other_decoders_are_refused_by_name(
    write: Callable[..., Path], decoder: dict[str, Any] | None, name: str
) -> None:
    with pytest.raises(TokenizerError, match=f"decoder {name} is not known"):
        load_tokenizer(write(tokenizer_json=sentencepiece_like(decoder)))


def test_truncation_and_padding_in_the_file_are_ignored(write: Callable[..., Path]) -> None:
    value = sentencepiece_like(LLAMA)
    value["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    value["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    tokenizer = load_tokenizer(write(tokenizer_json=value))
    assert tokenizer.decode(tokenizer.encode("abababab")) == "abababab"
