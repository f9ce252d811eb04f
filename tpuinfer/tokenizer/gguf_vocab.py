"""GGUF vocabulary metadata -> the tokenizer files of a checkpoint directory.

Keys and token types follow the GGUF specification (ggml, docs/gguf.md); what a key means when it is
missing follows llama.cpp, which defines the format.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.vocabulary import WORD_MARK

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
"""Control tokens that end an answer even where the file does not say so."""

_HARMONY_ENDS = ("<|return|>", "<|call|>")
"""GPT-OSS: where both exist, <|end|> only ends a message, and the answer goes on with the next
(OpenAI, "OpenAI Harmony Response Format")."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Radford et al., "Language Models are Unsupervised Multitask Learners", encoder.py."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""tokenizer.json of meta-llama/Meta-Llama-3-8B."""

_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
"""tokenizer.json of Qwen/Qwen2-7B: Llama 3's with one digit at a time."""

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""config.pattern of tekken_240911.json in mistral-common."""

_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""o200k_base of tiktoken, openai_public.py; tokenizer.json of openai/gpt-oss-20b."""


@dataclass(frozen=True)
class _PreTokenizer:
    """How text is cut before merging.

    Attributes:
      patterns: applied one after another; matches and what lies between them stay apart.
      nfc: the model's own tokenizer composes characters first.
      ignore_merges: a whole word that is a token is never built by merges.
      add_bos: a text opens with BOS unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_DIGIT_BY_DIGIT = _PreTokenizer((r"\p{N}", _GPT2))
_CL100K = _PreTokenizer((_LLAMA3,))

_PRE_TOKENIZERS = {
    "default": _PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ),
    "gpt-2": _PreTokenizer((_GPT2,)),
    "llama-bpe": _PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    "smaug-bpe": _CL100K,  # SmolLM3
    "dbrx": _CL100K,  # OLMo 2
    "qwen2": _PreTokenizer((_QWEN2,), nfc=True),
    "deepseek-r1-qwen": _PreTokenizer((_QWEN2,), nfc=True),
    "smollm": _DIGIT_BY_DIGIT,
    "refact": _DIGIT_BY_DIGIT,  # Granite 3
    "tekken": _PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),  # Mistral Nemo
    "gpt-4o": _PreTokenizer((_O200K,)),  # Phi-4-mini, GPT-OSS
}
"""By `tokenizer.ggml.pre`; "default" is what llama.cpp cuts by when a file names none."""


_NO_VOCABULARY = ("none", "no_vocab")
"""What `tokenizer.ggml.model` says where there is none on purpose."""


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> contents, for `load.load_tokenizer` and for Hugging Face's AutoTokenizer.

    Args:
      metadata: GGUF keys -> Python values (strings, numbers, lists or numpy arrays).

    Returns:
      `tokenizer.json` or `tokenizer.model`, and `tokenizer_config.json`, `generation_config.json`;
      nothing for a file without a vocabulary.

    Raises:
      TokenizerError: a key is missing or inconsistent, or the kind of vocabulary is not known.
    """
    if not any(key.startswith("tokenizer.ggml.") for key in metadata):
        return {}
    if metadata.get("tokenizer.ggml.model") in _NO_VOCABULARY:
        return {}
    vocab = _Vocab(metadata)
    if vocab.model == "gpt2":
        name, data = "tokenizer.json", _bpe_json(vocab)
    elif vocab.model == "llama":
        name, data = "tokenizer.model", _sentencepiece(vocab)
    else:
        raise TokenizerError(
            f"GGUF tokenizer.ggml.model is {vocab.model!r}: it must be 'gpt2' or 'llama'"
        )
    return {
        name: data,
        "tokenizer_config.json": _json(_tokenizer_config(vocab)),
        "generation_config.json": _json(_generation_config(vocab)),
    }


class _Vocab:
    """The vocabulary keys of a GGUF file, checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.model = str(self.required("model"))
        self.tokens = [str(token) for token in self.required("tokens")]
        types = self.get("token_type")
        self.types = [_NORMAL] * len(self.tokens) if types is None else [int(t) for t in types]
        if len(self.types) != len(self.tokens):
            raise TokenizerError(
                f"GGUF has {len(self.tokens)} tokens and {len(self.types)} token types: "
                "there must be one for each"
            )
        pre = self.pre_tokenizer if self.model == "gpt2" else None
        self.add_bos = bool(self.get("add_bos_token", pre.add_bos if pre else True))
        self.add_eos = bool(self.get("add_eos_token", False))
        self.add_space_prefix = bool(self.get("add_space_prefix", True))

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    def required(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise TokenizerError(f"GGUF has no tokenizer.ggml.{key}: it holds no usable vocabulary")
        return value

    @property
    def pre_tokenizer(self) -> _PreTokenizer:
        name = str(self.get("pre", "default"))
        if name not in _PRE_TOKENIZERS:
            raise TokenizerError(
                f"GGUF tokenizer.ggml.pre is {name!r}: it must be one of "
                f"{', '.join(_PRE_TOKENIZERS)}; nearest: a checkpoint with its tokenizer.json"
            )
        return _PRE_TOKENIZERS[name]

    def special_id(self, name: str) -> int | None:
        """The id under `tokenizer.ggml.{name}_token_id`, or None."""
        value = self.get(f"{name}_token_id")
        if value is None:
            return None
        if not 0 <= int(value) < len(self.tokens):
            raise TokenizerError(
                f"GGUF tokenizer.ggml.{name}_token_id is {value}: "
                f"it must be below the {len(self.tokens)} tokens"
            )
        return int(value)

    def special_text(self, name: str) -> str | None:
        token = self.special_id(name)
        return None if token is None else self.tokens[token]

    def eos_ids(self) -> list[int]:
        """End of text, of turn and of message, each once."""
        found = [self.special_id(name) for name in ("eos", "eot", "eom")]
        harmony = all(text in self.tokens for text in _HARMONY_ENDS)
        found += [
            self.tokens.index(text)
            for text in (_HARMONY_ENDS if harmony else _END_OF_TURN)
            if text in self.tokens and self.types[self.tokens.index(text)] == _CONTROL
        ]
        return list(dict.fromkeys(token for token in found if token is not None))


def _bpe_json(vocab: _Vocab) -> bytes:
    """A byte-level BPE `tokenizer.json`."""
    rules = vocab.pre_tokenizer
    ids = {token: i for i, token in enumerate(vocab.tokens)}
    merges = [_pair(str(merge)) for merge in vocab.required("merges")]
    try:
        model = models.BPE(vocab=ids, merges=merges, ignore_merges=rules.ignore_merges)
    except Exception as error:  # the library raises bare Exception for merges it cannot build
        raise TokenizerError(f"GGUF vocabulary cannot be built ({error})") from error
    tokenizer = Tokenizer(model)
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    bos = vocab.special_id("bos")
    if vocab.add_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="BOS $A",
            special_tokens=[{"id": "BOS", "ids": [bos], "tokens": [vocab.tokens[bos]]}],
        )
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(vocab.tokens, vocab.types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer.to_str().encode()


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise TokenizerError(f"GGUF merge {merge!r}: it must be two pieces with a space between")
    return left, right


def _sentencepiece(vocab: _Vocab) -> bytes:
    """A SentencePiece BPE `tokenizer.model`."""
    scores: Sequence[float] = vocab.required("scores")
    if len(scores) != len(vocab.tokens):
        raise TokenizerError(
            f"GGUF has {len(vocab.tokens)} tokens and {len(scores)} scores: "
            "there must be one for each"
        )
    unknown = _unknown_id(vocab)
    proto = pb.ModelProto()
    for token, (text, score, kind) in enumerate(
        zip(vocab.tokens, scores, vocab.types, strict=True)
    ):
        if kind == _USER_DEFINED:  # llama.cpp writes these with plain spaces
            text = text.replace(" ", WORD_MARK)
        elif kind == _UNKNOWN and token != unknown:
            kind = _CONTROL
        kind = _UNKNOWN if token == unknown else kind
        proto.pieces.add(piece=text, score=float(score), type=kind)
    trainer = proto.trainer_spec
    trainer.model_type = pb.TrainerSpec.BPE
    trainer.byte_fallback = _BYTE in vocab.types
    trainer.vocab_size = len(vocab.tokens)
    trainer.unk_id, trainer.unk_piece = unknown, vocab.tokens[unknown]
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token_id = vocab.special_id(key)
        setattr(trainer, f"{name}_id", -1 if token_id is None else token_id)
        if token_id is not None:
            setattr(trainer, f"{name}_piece", vocab.tokens[token_id])
    rules = proto.normalizer_spec
    rules.name = "identity"
    rules.add_dummy_prefix = vocab.add_space_prefix
    rules.remove_extra_whitespaces = bool(vocab.get("remove_extra_whitespaces", False))
    rules.escape_whitespaces = True
    return bytes(proto.SerializeToString(deterministic=True))


def _unknown_id(vocab: _Vocab) -> int:
    """The one unknown token: as the file says, else by its type, else by its name."""
    named = vocab.special_id("unknown")
    if named is not None:
        return named
    if _UNKNOWN in vocab.types:
        return vocab.types.index(_UNKNOWN)
    if "<unk>" in vocab.tokens:
        return vocab.tokens.index("<unk>")
    raise TokenizerError("GGUF names no unknown token: a SentencePiece vocabulary must have one")


def _tokenizer_config(vocab: _Vocab) -> dict[str, Any]:
    kind: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if vocab.model == "llama":  # "legacy": a dummy prefix after each control token, as llama.cpp
        kind = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,
            "add_prefix_space": vocab.add_space_prefix,
            **_space_eaters(vocab),
        }
    architecture = vocab.metadata.get("general.architecture")
    context = vocab.metadata.get(f"{architecture}.context_length")
    template = _template(vocab)
    return {
        **kind,
        "bos_token": vocab.special_text("bos"),
        "eos_token": vocab.special_text("eos"),
        "unk_token": vocab.special_text("unknown"),
        "pad_token": vocab.special_text("padding"),
        "add_bos_token": vocab.add_bos and vocab.special_id("bos") is not None,
        "add_eos_token": vocab.add_eos and vocab.special_id("eos") is not None,
        "clean_up_tokenization_spaces": False,
        **({} if context is None else {"model_max_length": int(context)}),
        **({} if template is None else {"chat_template": template}),
    }


def _template(vocab: _Vocab) -> str | list[dict[str, str]] | None:
    """The chat template, or the default and the one for tools as Hugging Face lists them."""
    plain = vocab.metadata.get("tokenizer.chat_template")
    tools = vocab.metadata.get("tokenizer.chat_template.tool_use")
    if plain is None or tools is None:
        return None if plain is None else str(plain)
    return [
        {"name": "default", "template": str(plain)},
        {"name": "tool_use", "template": str(tools)},
    ]


def _space_eaters(vocab: _Vocab) -> dict[str, Any]:
    """Phi-3's control tokens take away the spaces after them; GGUF has no word for it.

    Source: tokenizer.json of microsoft/Phi-3-mini-4k-instruct.
    """
    if vocab.metadata.get("general.architecture") != "phi3":
        return {}
    plain = ("<unk>", "<s>", "<|endoftext|>")
    return {
        "added_tokens_decoder": {
            str(token): {"content": text, "special": True, "rstrip": text not in plain}
            for token, (text, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True))
            if kind == _CONTROL
        }
    }


def _generation_config(vocab: _Vocab) -> dict[str, Any]:
    bos = vocab.special_id("bos")
    return {
        **({} if bos is None else {"bos_token_id": bos}),
        "eos_token_id": vocab.eos_ids(),
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
