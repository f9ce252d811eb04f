"""Make goldens of parity cases: seconds each, needs the parity extra (torch).

    .venv/bin/python tests/parity/families/make_family_goldens.py [NAME ...]

Without names, all of them. Same versions, same kind of CPU: same bytes.
"""

import argparse
import tempfile
from pathlib import Path

import family_golden
from all_cases import CASES
from family_torch import publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="cases; none = all")
    names = parser.parse_args().names
    if unknown := set(names) - CASES.keys():
        raise SystemExit(
            f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}"
        )
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            golden = publish(CASES[name], Path(folder))
        family_golden.save(name, golden)
        print(f"{name}: {golden.logits.shape[0]} rows of {golden.logits.shape[1]} logits")


if __name__ == "__main__":
    main()
