"""Versions against what packages ask for."""

import pytest

from tpuinfer.diagnosis.specifiers import parse, satisfies


@pytest.mark.parametrize(
    ("version", "specifier", "fits"),
    [
        ("0.12.8", "<0.13,>=0.12", True),
        ("0.13.0", "<0.13,>=0.12", False),
        ("0.11.9", "<0.13,>=0.12", False),
        ("0.9.0", ">=0.10", False),
        ("0.10", ">=0.10.0", True),
        ("0.0.42.1", "==0.0.42.*", True),
        ("0.0.42", "==0.0.42.*", True),
        ("0.0.4", "==0.0.42.*", False),
        ("0.0.43", "==0.0.42.*", False),
        ("0.0.43", "!=0.0.42.*", True),
        ("0.10.2", "<=0.10.2,>=0.10.1", True),
        ("0.10.3", "<=0.10.2,>=0.10.1", False),
        ("1.0", "==1.0.0", True),
        ("1.0", "!=1.0.0", False),
        ("2.4.6", ">2.4", True),
        ("2.4", ">2.4.0", False),
        ("1.4.5", "~=1.4.2", True),
        ("1.5.0", "~=1.4.2", False),
        ("3.11.0rc1", ">=3.11", True),
        ("anything", "", True),
    ],
)
def test_a_version_fits_or_does_not(version, specifier, fits):
    assert satisfies(version, specifier) is fits


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('libtpu==0.0.42.*; extra == "tpu"', ("libtpu", "==0.0.42.*", "tpu")),
        ("jaxlib<=0.10.2,>=0.10.1", ("jaxlib", "<=0.10.2,>=0.10.1", "")),
        ("opt_einsum", ("opt_einsum", "", "")),
        ("etils[epath]>=1.9", ("etils", ">=1.9", "")),
        ("numpy (>=2.0)", ("numpy", ">=2.0", "")),
        ("x>=1; python_version < '3.12' and extra == 'a-b'", ("x", ">=1", "a-b")),
        ("", ("", "", "")),
    ],
)
def test_a_line_of_metadata_is_read(line, parts):
    assert parse(line) == parts
