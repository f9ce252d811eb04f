"""Every parity case, by name."""

from cases_dense import CASES as DENSE
from cases_experts import CASES as EXPERTS
from cases_gemma import CASES as GEMMA
from family_case import Case

CASES: dict[str, Case] = {case.name: case for case in (*DENSE, *GEMMA, *EXPERTS)}
assert len(CASES) == len(DENSE) + len(GEMMA) + len(EXPERTS), "two cases have one name"
