"""An answer as a table that a person reads in a minute."""

from collections.abc import Iterator, Mapping, Sequence

from tpuinfer.planning import remedies as changes
from tpuinfer.planning import topology as slices
from tpuinfer.planning import travel
from tpuinfer.planning.answer import Answer, Program
from tpuinfer.planning.as_json import largest
from tpuinfer.planning.compare import Row
from tpuinfer.planning.remedies import Remedy
from tpuinfer.planning.roofline import per_million
from tpuinfer.planning.traffic import Collective
from tpuinfer.quant.schemes import AUTO, NONE
from tpuinfer.sharding.report import render

_GB = 1e9


def as_text(answer: Answer, remedies: Sequence[Remedy] = (), price: float | None = None) -> str:
    """The whole answer, in paragraphs.

    Args:
      price: of a chip for an hour.
    """
    layout = answer.plan.layout
    parts = [_head(answer), travel.rules_in_words(layout.rules)]
    parts += [render(_memory(answer)), render(_programs(answer)), _per_layer(answer)]
    if layout.prefill is not layout:
        parts.append(travel.resharding_in_words(answer.resharding))
    if layout.repeats > 1:
        parts.append(f"KV heads: {layout.decisions['kv_heads'].why}.")
    if answer.replicated:
        told = "; ".join(f"{axis}: {why}" for axis, why in answer.replicated)
        parts.append(f"Not cut, but whole on every device: {told}.")
    if not answer.is_compiled:
        parts.append(_estimates(answer))
    parts.append("\n".join(_speed(answer, price)))
    if remedies or not answer.fits:
        parts.append(changes_in_words(remedies))
    return "\n\n".join(filter(None, parts))


def changes_in_words(remedies: Sequence[Remedy]) -> str:
    """What would fit, with room for programs."""
    if not remedies:
        return "No change that was tried makes it fit."
    return "What would fit, the smallest change first:\n" + render(_remedies(remedies))


def comparison(rows: Sequence[Row], price: float | None = None) -> str:
    """Meshes side by side, the best first."""
    cost = () if price is None else ("$/Mtok",)
    head = ("slice", "mesh", "slots", "fits", "headroom GB", "decode ms", "bound by", "prefill ms")
    why = ("why",) if any(row.why for row in rows) else ()
    lines: list[tuple[str, ...]] = [(*head, "tok/s", "tok/s/chip", *cost, *why)]
    for row in rows:
        place = (str(row.topology), slices.written(row.mesh))
        if row.answer is None:
            lines.append((*place, "", "no", *[""] * (6 + len(cost)), row.why))
            continue
        one, speed, chips = row.answer, row.answer.tokens_per_second, row.topology.chips
        price_of = () if price is None else (f"{per_million(speed, chips, price):.2f}",)
        lines.append(
            (
                *place,
                changes.written(one.plan.engine),
                "yes" if row.fits else "no",
                f"{one.hbm.headroom / _GB:.2f}",
                f"{one.decode.bound.seconds * 1e3:.2f}",
                one.decode.bound.limit,
                f"{one.chunk.bound.seconds * 1e3:.2f}",
                f"{speed:.0f}",
                f"{speed / chips:.0f}",
                *price_of,
                *[""] * len(why),
            )
        )
    return render(lines)


def _head(answer: Answer) -> str:
    question, plan = answer.question, answer.plan
    topology = question.topology
    shape = ", ".join(f"{name} {size}" for name, size in question.mesh.axes)
    verdict = "fits" if answer.fits else "does NOT fit"
    if answer.fits and not answer.hbm.has_room:
        verdict = "fits, but programs may need more than is left"
    if answer.refused:
        verdict += f" (the compiler needs {answer.refused / _GB:.2f} GB)"
    chips = "1 chip" if topology.chips == 1 else f"{topology.chips} chips"
    plain = question.weights in (AUTO, NONE)
    weights = plan.dtype if plain else f"{question.weights} (else {plan.dtype})"
    return (
        f"{question.name} on {topology} ({chips} of {topology.chip.title}), mesh "
        f"{shape}, slots {changes.written(plan.engine)}, weights {weights}, "
        f"ring {plan.rings[0][0].dtype}: {verdict}"
    )


def _memory(answer: Answer) -> list[tuple[str, ...]]:
    hbm = answer.hbm
    whole = answer.question.topology.chip.devices_per_chip == 1
    size = "GB/chip" if whole else "GB/device"
    lines: list[tuple[str, ...]] = [("memory", "group", "count", "columns", size, "share")]

    def row(kind: str, group: str, count: str, columns: str, size: int) -> None:
        share = f"{size / hbm.capacity:.1%}"
        lines.append((kind, group, count, columns, f"{size / _GB:.3f}", share))

    for share in hbm.shares:
        columns = "" if share.columns is None else f"{share.slots} x {share.columns}"
        row(share.kind, share.group, str(share.count), columns, share.bytes)
    estimated = "" if answer.is_compiled else "estimate"
    row("temporaries", estimated, "", "", hbm.temporaries)
    row("headroom", "", "", "", hbm.headroom)
    row("", "of it for programs", "", "", hbm.code)
    row("capacity", "for programs", "", "", hbm.capacity)
    return lines


def _programs(answer: Answer) -> list[tuple[str, ...]]:
    head = ("program", "bound ms", "bound by", "weights", "flops", "rings", "links", "ideal GB")
    measured = ("moved GB", "ratio", "in place GB", "scratch GB", "ring copies", "compile s")
    lines = [(*head, *(measured if answer.is_compiled else ()), "collectives (count, MB)")]
    for one in answer.programs.values():
        bound = one.bound
        times = (bound.weights, bound.flops, bound.rings, bound.links)
        lines.append(
            (
                one.name,
                f"{bound.seconds * 1e3:.2f}",
                bound.limit,
                *(f"{seconds * 1e3:.2f}" for seconds in times),
                f"{one.work.bytes / _GB:.3f}",
                *(_measured(one) if answer.is_compiled else ()),
                _collectives(one.measured.collectives if one.measured else one.work.collectives),
            )
        )
    return lines


def _per_layer(answer: Answer) -> str:
    """Traffic and collectives of a decode step, shared out among the layers."""
    one, layers = answer.decode, answer.plan.config.layers
    done = one.measured if one.measured and not one.measured.needs else None
    moved = f"{done.traffic_bytes / layers / 1e6:.1f} MB moved, " if done else ""
    found = done.collectives if done else one.work.collectives
    parts = [
        f"{kind} {each.count / layers:.2f}, {each.nbytes / layers / 1e6:.2f} MB"
        for kind, each in found.items()
    ]
    return (
        f"Per layer of decode ({layers} layers): {moved}{one.work.bytes / layers / 1e6:.1f} MB "
        f"ideal; {'; '.join(parts) or 'no collectives'}."
    )


def _estimates(answer: Answer) -> str:
    if answer.question.topology.is_tpu:
        return (
            "Temporaries and code are estimates; --compile asks the TPU compiler (no TPU needed)."
        )
    return "Temporaries and code are estimates, made for TPUs: a GPU needs other amounts."


def _measured(one: Program) -> tuple[str, ...]:
    found = one.measured
    if found is None or found.needs:
        return ("refused", "", "", "", "", "")
    return (
        f"{found.traffic_bytes / _GB:.3f}",
        f"{one.ratio:.3f}",
        f"{found.alias_bytes / _GB:.3f}",
        f"{found.temp_bytes / _GB:.3f}",
        str(found.ring_copies),
        f"{found.compile_seconds:.0f}",
    )


def _collectives(found: Mapping[str, Collective]) -> str:
    parts = (f"{kind} {one.count}, {one.nbytes / 1e6:.1f}" for kind, one in found.items())
    return "; ".join(parts) or "none"


def _speed(answer: Answer, price: float | None) -> Iterator[str]:
    speed, chips = answer.tokens_per_second, answer.question.topology.chips
    yield (
        f"At the bound: {speed:,.0f} tokens/s decoding (all slots busy, rings full), "
        f"{answer.prefill_tokens_per_second:,.0f} tokens/s of prompts."
    )
    if price is not None:
        cost = per_million(speed, chips, price)
        yield f"At {price:.2f} a chip-hour a million generated tokens cost {cost:.2f} at the bound."
    if answer.is_compiled:
        yield "Traffic, collectives and scratch are what the compiler made; no TPU ran it."
    most = largest(answer)
    if most is not None:
        slots, context, plan = most["slots"], most["context"], answer.plan
        found = [f"{slots} slots of {plan.context}"] if slots else []
        found += [f"{plan.slots.slots} slots of {context}"] if context else []
        yield f"Largest that fits: {', or '.join(found) or 'not one slot'}."


def _remedies(remedies: Sequence[Remedy]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("give", "because", "headroom GB", "tok/s at the bound")]
    for one in remedies:
        room, speed = one.answer.hbm.headroom, one.answer.tokens_per_second
        lines.append((one.flags, one.why, f"{room / _GB:.2f}", f"{speed:,.0f}"))
    return lines
