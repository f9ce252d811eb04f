"""Make the goldens of Gemma 3 270M again: some three minutes on a laptop, no accelerator.

    scripts/test --with parity --collect-only -q      # installs torch and transformers
    .venv/bin/python tests/parity/make_gemma_goldens.py

It downloads the weights (tests/gemma_weights.py) under Gemma's terms. Ids are those of
transformers' own reading of the GGUF vocabulary. Same file, same versions, same kind of CPU: same
bytes.
"""

import argparse
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from gemma_prompts import PROMPTS
from gemma_weights import SHA256, fetch_gemma
from golden_file import GEMMA, NEW_TOKENS, Golden, GoldenFile, probe_ids, save
from torch_reference import Reference, summarise
from transformers import AutoTokenizer

from tpuinfer.checkpoint.load import default_cache_dir


def make(path: Path) -> GoldenFile:
    """Run every prompt through the model in `path`."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    reference = Reference.from_gguf(path)
    probes = probe_ids(reference.model.config.vocab_size)
    goldens = []
    for name, text in PROMPTS.items():
        ids = tokenizer.encode(text, add_special_tokens=True)
        tokens = reference.greedy(ids, NEW_TOKENS)
        logits = reference.logits(ids, tokens)
        if logits[:-1].argmax(axis=-1).tolist() != tokens:
            raise SystemExit(f"{name}: with and without a cache the greedy tokens differ")
        goldens.append(Golden(name, text, ids, tokens, summarise(logits, probes)))
        print(f"{name}: {len(ids)} ids, then {tokenizer.decode(tokens)!r}")
    made_with = {name: version(name) for name in ("torch", "transformers", "tokenizers", "gguf")}
    made_with["python"], made_with["machine"] = platform.python_version(), platform.machine()
    return GoldenFile(SHA256, made_with, probes, tuple(goldens))


def main() -> None:
    """Write the goldens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=GEMMA, help="without a suffix")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    save(args.output, make(fetch_gemma(default_cache_dir() / "downloads")))


if __name__ == "__main__":
    main()
