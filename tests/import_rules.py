"""Which module of tpuinfer may import what, as data, and the checker that reads it.

Sources are parsed, never imported. Every `import` counts, wherever it stands, except the ones
under `if TYPE_CHECKING:`.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# From the top down. A module imports from its own room and from levels below, never sideways
# or up. `front doors` are the modules right under tpuinfer/ that no other level names.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("testing",),
    ("front doors",),
    ("flags",),
    ("server", "benchmark", "accuracy", "diagnosis", "group", "selftest", "experiment"),
    ("engine", "planning", "offline"),
    ("programs", "checkpoint"),
    ("models",),
    ("cache",),
    ("dialog",),
    ("sharding", "quant", "ops", "tokenizer", "grammar"),
    ("config", "model_config", "errors", "platform"),
)

# Within one level, in this order only: the later of two may import the earlier.
WITHIN_A_LEVEL = (
    ("errors", "config"),
    ("errors", "model_config"),
    ("errors", "platform"),
    ("config", "platform"),
    ("quant", "ops"),
    ("server", "benchmark"),
    ("engine", "planning"),
    ("benchmark", "selftest"),
    ("benchmark", "experiment"),
    ("diagnosis", "selftest"),
)


@dataclass(frozen=True)
class Rule:
    """`name` (a dotted name: a library or something in it) appears only in `allowed`.

    A place is a room ("server"), a module ("engine.request") or "front doors".
    """

    name: str
    allowed: tuple[str, ...]


RULES = (
    Rule("absl", ("front doors", "flags")),
    Rule("os.environ", ("front doors", "sharding.simulate", "sharding.described")),
    Rule("os.getenv", ("front doors",)),
    Rule(
        "jax.jit",
        (
            "programs",
            "checkpoint",
            "models.blueprint",
            "benchmark.limits",
            "benchmark.weights",
            "selftest.kernels",
        ),
    ),
    Rule("jax.pmap", ()),
    Rule("jax._src", ()),
    Rule("flax.nnx", ("models",)),
    Rule("orbax", ("checkpoint.orbax_store",)),
    Rule("fastapi", ("server",)),
    Rule("llguidance", ("grammar",)),
    Rule("torch", ("benchmark.peer_transformers",)),
    Rule("transformers", ("benchmark.peer_transformers",)),
    Rule("llama_cpp", ("benchmark.peer_llama_cpp",)),
    Rule("pickle", ()),
    Rule("matplotlib", ("experiment.plots",)),
)

# Modules that may not import jax, flax or orbax themselves.
NO_JAX = (
    "server",
    "offline",
    "dialog",
    "tokenizer",
    "grammar",
    "config",
    "errors",
    "engine.request",
    "engine.slots",
    "engine.scheduler",
    "engine.lane",
    "engine.engine",
    "engine.metrics",
    "engine.runner",
    "engine.answer",
    "engine.calls",
    "engine.prompts",
    "programs.buckets",
    "diagnosis.facts",
    "diagnosis.findings",
    "diagnosis.specifiers",
    "diagnosis.packages",
    "diagnosis.devices",
    "diagnosis.environment",
    "diagnosis.host",
    "diagnosis.held",
    "diagnosis.holders",
    "diagnosis.report",
    "diagnosis.collect",
    "benchmark.rounds",
    "benchmark.workload",
    "benchmark.steps",
    "benchmark.offline",
    "benchmark.host",
    "benchmark.serving",
    "benchmark.clients",
    "benchmark.report",
)

_LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room_of(module: str) -> str:
    """The room of a dotted name inside tpuinfer: "cache.ring" -> "cache", "serve" and "" -> doors.

    ("" is tpuinfer/__init__.py itself, which only hands names out.)
    """
    first = module.partition(".")[0]
    return first if first in _LEVEL_OF else "front doors"


def within(module: str, place: str) -> bool:
    """True if `module` is `place` or in it."""
    return module == place or module.startswith(place + ".") or room_of(module) == place


def module_name(path: str) -> str:
    """The name below tpuinfer of a file below tpuinfer: "cache/ring.py" -> "cache.ring"."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                yield from (other, *_nodes(other))
        else:
            yield child
            yield from _nodes(child)


def used_names(source: str, module: str, package: bool = False) -> set[tuple[str, int]]:
    """(dotted name, line) of all that `source` imports, and of attributes of what it imported.

    `from jax import jit`, `jax.jit` and `import jax as j; j.jit` all give "jax.jit".
    """
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    names: set[tuple[str, int]] = set()
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                names.add((item.name, node.lineno))
                first = item.name.partition(".")[0]
                aliases[item.asname or first] = item.name if item.asname else first
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, package)
            for item in node.names:
                names.add((f"{base}.{item.name}", node.lineno))
                aliases[item.asname or item.name] = f"{base}.{item.name}"
    for node in _nodes(tree):
        if isinstance(node, ast.Attribute) and (dotted := _dotted(node)):
            first, _, rest = dotted.partition(".")
            if first in aliases:
                names.add((f"{aliases[first]}.{rest}", node.lineno))
    return names


def _dotted(node: ast.expr) -> str:
    """The name `a.b.c` of such an expression; empty when it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _absolute(node: ast.ImportFrom, module: str, package: bool) -> str:
    """The dotted name after `from`, with the dots of a relative import resolved."""
    if not node.level:
        return node.module or ""
    parts = ["tpuinfer", *[part for part in module.split(".") if part]]
    parts = parts[: len(parts) - node.level + (1 if package else 0)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _reaches(name: str, target: str) -> bool:
    return name == target or name.startswith(target + ".")


def violations(source: str, module: str, package: bool = False) -> list[str]:
    """One line for each rule that `source`, the text of `module`, breaks."""
    found = []
    for name, line in sorted(used_names(source, module, package), key=lambda use: use[1]):
        where = f"tpuinfer.{module}:{line}"
        found += [
            f"{where} uses {name}: allowed in {', '.join(rule.allowed) or 'no module'}"
            for rule in RULES
            if _reaches(name, rule.name) and not any(within(module, at) for at in rule.allowed)
        ]
        library = name.partition(".")[0]
        if library in ("jax", "flax", "orbax") and any(within(module, at) for at in NO_JAX):
            found.append(f"{where} uses {name}: this module knows no jax")
        if library == "tpuinfer" and not _falls(module, name.partition(".")[2]):
            found.append(f"{where} uses {name}: imports only fall")
    return found


def _falls(importer: str, imported: str) -> bool:
    """True if `importer` may import `imported`, both named below tpuinfer."""
    upper, lower = room_of(importer), room_of(imported)
    if upper == lower or (lower, upper) in WITHIN_A_LEVEL:
        return True
    return _LEVEL_OF[upper] < _LEVEL_OF[lower]


def cycle(sources: Mapping[str, str], packages: frozenset[str] = frozenset()) -> list[str]:
    """The modules of one import cycle, first name repeated at the end; empty if there is none."""
    edges: dict[str, set[str]] = {}
    for module, source in sources.items():
        targets = set()
        for name, _ in used_names(source, module, module in packages):
            inner = name.removeprefix("tpuinfer.") if _reaches(name, "tpuinfer") else None
            while inner and inner not in sources:
                inner = inner.rpartition(".")[0]
            if inner and inner != module:
                targets.add(inner)
        edges[module] = targets
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for target in sorted(edges[module]):
                if ring := walk(target, [*path, module]):
                    return ring
            done.add(module)
        return []

    return next((ring for module in sorted(edges) if (ring := walk(module, []))), [])
