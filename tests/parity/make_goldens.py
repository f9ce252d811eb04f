"""Make the goldens of SmolLM2-135M-Instruct again: a few minutes on a laptop, no accelerator.

    scripts/test --with parity --collect-only -q      # installs torch and transformers
    .venv/bin/python tests/parity/make_goldens.py path/to/SmolLM2-135M-Instruct.gguf

The file is the one inside the package that the model catalogue names. Same file, same versions,
same kind of CPU: same bytes. Other versions or CPUs move the last bits of the logits, and `git
diff` on the JSON file shows whether a token moved with them.
"""

import argparse
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import torch
from golden_file import NEW_TOKENS, SMOLLM2, Golden, GoldenFile, probe_ids, save
from golden_prompts import PROMPTS, Prompt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch_reference import Reference, summarise
from transformers import PreTrainedTokenizerFast

_CONTROL_TOKEN = 3


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE in a GGUF file, with its chat template.

    transformers' own conversion leaves out the step that splits digits (ggml's "smollm"), so the
    tokenizer is put together here.
    """
    fields = gguf.GGUFReader(path).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    if (pre := fields["tokenizer.ggml.pre"].contents()) != "smollm":
        raise SystemExit(f"{path}: the vocabulary is split by {pre!r}, this script knows 'smollm'")
    pairs: list[Any] = [tuple(merge.split(" ", 1)) for merge in merges]
    fast = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    template = fields["tokenizer.chat_template"].contents()
    return PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=template)


def render(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> str:
    """The prompt's text, or its messages through the chat template, ready for an answer."""
    if not prompt.messages:
        return prompt.text
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def make(path: Path) -> GoldenFile:
    """Run every prompt through the model in `path`."""
    tokenizer, reference = read_tokenizer(path), Reference.from_gguf(path)
    probes = probe_ids(reference.model.config.vocab_size)
    goldens = []
    for prompt in PROMPTS:
        text = render(prompt, tokenizer)
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        tokens = reference.greedy(ids, NEW_TOKENS)
        logits = reference.logits(ids, tokens)
        if logits[:-1].argmax(axis=-1).tolist() != tokens:
            raise SystemExit(f"{prompt.name}: with and without a cache the greedy tokens differ")
        rows = summarise(logits, probes)
        goldens.append(Golden(prompt.name, text, ids, tokens, rows))
    made_with = {name: version(name) for name in ("torch", "transformers", "tokenizers", "gguf")}
    made_with["python"], made_with["machine"] = platform.python_version(), platform.machine()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return GoldenFile(sha256, made_with, probes, tuple(goldens))


def main() -> None:
    """Write the goldens of the file named on the command line."""
    parser = argparse.ArgumentParser(description="Make the goldens of SmolLM2-135M-Instruct.")
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct as a GGUF file")
    parser.add_argument("--output", type=Path, default=SMOLLM2, help="without a suffix")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save(args.output, make(args.gguf))


if __name__ == "__main__":
    main()
