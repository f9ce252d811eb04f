"""Make goldens of encoders: seconds each, needs the parity extra (torch).

    .venv/bin/python tests/parity/encoders/make_encoder_goldens.py [NAME ...]

Without names, all of them; the real encoder is fetched as the catalogue says.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import encoder_golden
from encoder_cases import CASES
from encoder_golden import MINILM
from encoder_torch import minilm, publish

from tpuinfer.checkpoint.load import default_cache_dir, find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="cases; none = all")
    names = parser.parse_args().names
    known = [*CASES, MINILM]
    if unknown := set(names) - set(known):
        raise SystemExit(
            f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    for name in names or known:
        if name == MINILM:
            found = find(name, default_cache_dir())
            golden = minilm(found.path)
            golden = dataclasses.replace(golden, config={"sha256": found.sha256})
        else:
            with tempfile.TemporaryDirectory() as folder:
                golden = publish(CASES[name], Path(folder))
        encoder_golden.save(name, golden)
        print(f"{name}: {golden.vectors.shape[0]} vectors of {golden.vectors.shape[1]}")


if __name__ == "__main__":
    main()
