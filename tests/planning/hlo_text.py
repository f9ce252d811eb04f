"""Small HLO texts, put together from the lines of their computations."""

from tpuinfer.planning import hlo


def module(entry: str, **others: str) -> hlo.Module:
    """A program of an entry computation and others by name, each a few lines of instructions."""
    parts = [_computation(name, lines) for name, lines in others.items()]
    return hlo.parse("\n".join([*parts, "ENTRY " + _computation("main", entry)]))


def _computation(name: str, lines: str) -> str:
    body = "\n".join(f"  {line.strip()}" for line in lines.strip().splitlines())
    return f"%{name} (p: f32[]) -> f32[] {{\n{body}\n}}\n"
