"""Decoding token by token gives what decoding the whole row gives: 10,000 random rows a kind.

The judges are the libraries' own full decoding, `tokenizers` and `sentencepiece`.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as pb
from spm_json import LLAMA, METASPACE, sentencepiece_like
from wheel_data import VERSIONS, sentencepiece_model

from tpuinfer.tokenizer import wordpiece
from tpuinfer.tokenizer.gguf_vocab import tokenizer_files
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.tokenizer import Tokenizer

_ROWS = 10_000
_WORDS = [
    "hello",
    "wor",
    "##ld",
    "##s",
    ",",
    ".",
    "!",
    "?",
    "'",
    "n't",
    "##n't",
    "\u65e5",
    "##\u65e5",
]


def _rows(
    tokenizer: Tokenizer, often: Sequence[int], seed: int, count: int = _ROWS
) -> list[list[int]]:
    """Random ids; every second row is mostly of ids in `often`, the hard ones."""
    chance = random.Random(seed)
    every = range(tokenizer.vocab_size)
    hard = [*often, *chance.choices(every, k=1 + len(often) // 4)]
    return [
        chance.choices(hard if index % 2 else every, k=chance.randrange(1, 16))
        for index in range(count)
    ]


def _streamed(tokenizer: Tokenizer, rows: Sequence[Sequence[int]]) -> list[str]:
    texts = []
    for row in rows:
        detokenizer = tokenizer.detokenizer()
        texts.append("".join([*map(detokenizer.push, row), detokenizer.flush()]))
    return texts


def _differ(rows: Sequence[Sequence[int]], ours: list[str], theirs: list[str]) -> list[Any]:
    return [found for found in zip(rows, ours, theirs, strict=True) if found[1] != found[2]][:3]


def _check_sentencepiece(tokenizer: Tokenizer, judge: sentencepiece.SentencePieceProcessor) -> None:
    """Bytes, control tokens, the unknown token and lone spaces are the hard ids."""
    marks = [judge.piece_to_id(text) for text in ("\u2581", "\u2581\u2581", "\u2581the", "<unk>")]
    often = [i for i in range(judge.vocab_size()) if judge.is_byte(i)]
    rows = _rows(tokenizer, [*often, *marks * 20, *[1, 2] * 20], seed=5)
    assert _differ(rows, _streamed(tokenizer, rows), judge.decode(rows)) == []


def test_byte_level_bpe(bpe_dir: Path) -> None:
    tokenizer = load_tokenizer(bpe_dir)
    judge = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    rows = _rows(tokenizer, range(3 + 0x80, 259), seed=1)
    assert _differ(rows, _streamed(tokenizer, rows), judge.decode_batch(rows)) == []


def test_wordpiece(write: Callable[..., Path]) -> None:
    vocab = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS])
    tokenizer = load_tokenizer(write(vocab_txt=vocab.encode()))
    judge = tokenizers.Tokenizer.from_str(wordpiece.tokenizer_json(vocab, {}))
    rows = _rows(tokenizer, range(5, 18), seed=2)
    assert _differ(rows, _streamed(tokenizer, rows), judge.decode_batch(rows)) == []


@pytest.mark.parametrize("decoder", [LLAMA, METASPACE], ids=["byte fallback", "metaspace"])
def test_sentencepiece_like_json(write: Callable[..., Path], decoder: dict[str, Any]) -> None:
    value = sentencepiece_like(decoder)
    tokenizer = load_tokenizer(write(tokenizer_json=value))
    judge = tokenizers.Tokenizer.from_str(json.dumps(value))
    rows = _rows(tokenizer, range(258, 262), seed=3, count=3 * _ROWS)
    rows = [row for row in rows if decoder is METASPACE or not _mixed(row)][:_ROWS]
    assert len(rows) == _ROWS
    assert _differ(rows, _streamed(tokenizer, rows), judge.decode_batch(rows)) == []


def _mixed(row: Sequence[int]) -> bool:
    """Whether a run of byte pieces (ids 2 to 257) has bytes of characters beside other bytes.

    The library then replaces the whole run, characters and all, which no stream can do: it has sent
    them. SentencePiece, from which the format comes, keeps them, and so does the stream.
    """
    run = bytearray()
    for token in [*(token for token in row if token != 1), 0]:
        if 2 <= token < 258:
            run.append(token - 2)
            continue
        whole, kept = run.decode("utf-8", "replace"), run.decode("utf-8", "ignore")
        if "\ufffd" in whole and kept:
            return True
        run.clear()
    return False


@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize("rebuilt", [False, True], ids=["as it is", "from GGUF"])
def test_sentencepiece(
    train_sentencepiece: Callable[..., bytes],
    gguf_of: Callable[[bytes], dict[str, Any]],
    write: Callable[..., Path],
    dummy_prefix: bool,
    rebuilt: bool,
) -> None:
    model = train_sentencepiece(add_dummy_prefix=dummy_prefix)
    files = {"tokenizer.model": model}
    if rebuilt:
        files = tokenizer_files(gguf_of(model) | {"tokenizer.ggml.add_space_prefix": dummy_prefix})
    folder = write(**{name.replace(".", "_"): data for name, data in files.items()})
    judge = sentencepiece.SentencePieceProcessor(model_proto=model)
    _check_sentencepiece(load_tokenizer(folder), judge)


@pytest.fixture(scope="module", params=VERSIONS)
def mistral(request: pytest.FixtureRequest) -> bytes:
    """A published SentencePiece model."""
    return sentencepiece_model(request.param).read_bytes()


@pytest.mark.model
@pytest.mark.parametrize("rebuilt", [False, True], ids=["as it is", "from GGUF"])
def test_published_sentencepiece_models(
    mistral: bytes,
    gguf_of: Callable[[bytes], dict[str, Any]],
    write: Callable[..., Path],
    rebuilt: bool,
) -> None:
    files = tokenizer_files(gguf_of(mistral)) if rebuilt else {"tokenizer.model": mistral}
    folder = write(**{name.replace(".", "_"): data for name, data in files.items()})
    judge = sentencepiece.SentencePieceProcessor(model_proto=mistral)
    _check_sentencepiece(load_tokenizer(folder), judge)


_SCRAPS = (
    *("hello", " world", "  ", "   ", "\n", "\n\n", "\t", " ", ".", "'s", "12", "0x7F", "<", "|>"),
    *(
        "caf\u00e9",
        "e\u0301",
        "\u65e5\u672c\u8a9e",
        "\ud55c",
        "\U0001f642",
        "\U0001f469\u200d\U0001f4bb",
    ),
    *(
        "\u0000",
        "\u200b",
        "\ufffd",
        "\ufdd0",
        "\u00a0",
        "[INST]",
        "[/INST]",
        "</s>",
        "<s>",
        "<unk>",
    ),
    *("<0x0A>", "[REFERENCE_DOC_1]", "[TOOL_CALLS]"),
)


@pytest.mark.model
def test_text_comes_back_from_published_models(
    mistral: bytes, gguf_of: Callable[[bytes], dict[str, Any]], write: Callable[..., Path]
) -> None:
    """Any text but U+2581, the models' own stand-in for a space; control text stays text."""
    tokenizer = load_tokenizer(write(tokenizer_model=mistral))
    rebuilt_files = tokenizer_files(gguf_of(mistral))
    rebuilt = load_tokenizer(
        write(**{name.replace(".", "_"): data for name, data in rebuilt_files.items()})
    )
    judge = sentencepiece.SentencePieceProcessor(model_proto=mistral)
    chance = random.Random(6)
    for _ in range(1000):
        text = "".join(chance.choices(_SCRAPS, k=chance.randrange(12)))
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == judge.encode(text)
        assert rebuilt.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == rebuilt.decode(ids) == text
        assert tokenizer.vocabulary.table.control.isdisjoint(ids)


@pytest.mark.model
def test_control_tokens_of_a_published_model(write: Callable[..., Path]) -> None:
    model = sentencepiece_model("v3").read_bytes()
    pieces = pb.ModelProto.FromString(model).pieces
    template = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}[/INST]{% endfor %}"
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    tokenizer = load_tokenizer(write(tokenizer_model=model, tokenizer_config_json=config))
    ids = tokenizer.encode_chat([{"role": "user", "content": "[/INST] no </s>"}])
    shown = [pieces[token].piece for token in ids if token in tokenizer.vocabulary.table.control]
    assert shown == ["<s>", "[INST]", "[/INST]"]
    assert tokenizer.decode(ids) == " [/INST] no </s>"
