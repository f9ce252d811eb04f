"""Versions against what packages ask for: as much of PEP 440 as the packages here use."""

import re

_NUMBER = re.compile(r"\d+(?:\.\d+)*")
_CLAUSE = re.compile(r"(===|==|!=|~=|>=|<=|<|>)\s*([\w.*+!-]+)")
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)(?:;\s*(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w.-]+)['"]""")


def satisfies(version: str, specifier: str) -> bool:
    """True if `version` is what `specifier`, such as "<0.13,>=0.12" or "==0.0.42.*", asks for.

    Numbers alone are compared: "0.12.0rc1" counts as 0.12.0. What cannot be read asks for nothing.
    """
    have = _numbers(version)
    return all(_holds(have, sign, text) for sign, text in _CLAUSE.findall(specifier))


def parse(requirement: str) -> tuple[str, str, str]:
    """The name, the specifier and the extra (empty if none) of a line of a package's metadata.

    `libtpu==0.0.42.*; extra == "tpu"` gives ("libtpu", "==0.0.42.*", "tpu").
    """
    match = _REQUIREMENT.match(requirement)
    if match is None:
        return "", "", ""
    extra = _EXTRA.search(match[3] or "")
    return match[1], match[2].strip(" ()"), extra[1] if extra else ""


def _numbers(text: str) -> tuple[int, ...]:
    match = _NUMBER.search(text)
    numbers = tuple(map(int, match[0].split("."))) if match else ()
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    return numbers


def _holds(have: tuple[int, ...], sign: str, text: str) -> bool:
    if text.endswith(".*"):
        wanted = tuple(map(int, re.findall(r"\d+", text)))
        same = (*have, *([0] * len(wanted)))[: len(wanted)] == wanted
        return same if sign == "==" else not same
    wanted = _numbers(text)
    if sign == "~=":
        parts = tuple(map(int, _NUMBER.search(text)[0].split(".")))[:-1]  # type: ignore[index]
        return have >= wanted and (*have, *([0] * len(parts)))[: len(parts)] == parts
    return {
        "==": have == wanted,
        "===": have == wanted,
        "!=": have != wanted,
        ">=": have >= wanted,
        "<=": have <= wanted,
        ">": have > wanted,
        "<": have < wanted,
    }[sign]
