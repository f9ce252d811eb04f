"""`vocab.txt`, the vocabulary of BERT's first checkpoints -> a `tokenizer.json`."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from tpuinfer.errors import TokenizerError

_NEEDED = ("[UNK]", "[CLS]", "[SEP]")
_SPECIAL = (*_NEEDED, "[PAD]", "[MASK]")
_SWITCHES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")


def tokenizer_json(vocab: str, config: Mapping[str, Any]) -> str:
    """A WordPiece `tokenizer.json` that puts [CLS] before a text and [SEP] after it.

    How text is cleaned and cut is that of Devlin et al. (arXiv:1810.04805), tokenization.py.

    Args:
      vocab: the file's contents: one token a line, the line's number is its id.
      config: tokenizer_config.json: do_lower_case, strip_accents and tokenize_chinese_chars, each
        true, false or null.

    Raises:
      TokenizerError: a line stands twice, [UNK], [CLS] or [SEP] is missing, or a switch of
        `config` is not of its three values.
    """
    lines = vocab.removesuffix("\n").split("\n")
    ids = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if len(ids) != len(lines):
        raise TokenizerError(f"vocab.txt: {len(lines) - len(ids)} lines stand in it twice")
    missing = [name for name in _NEEDED if name not in ids]
    if missing:
        raise TokenizerError(f"vocab.txt: has no {', '.join(missing)}: it is not BERT's")
    for name in _SWITCHES:
        if not isinstance(config.get(name), bool | None):
            raise TokenizerError(
                f"tokenizer_config.json: {name} is {config[name]!r}: it must be true, false or null"
            )
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in _SPECIAL if name in ids]
    )
    return tokenizer.to_str()
