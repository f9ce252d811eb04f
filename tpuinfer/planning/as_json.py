"""An answer as JSON, version 1.

    version             1; a key that is there keeps its meaning within a version, others may come
    model, topology, chips, devices, mesh, slots, context, weights, ring, dtype, steps
    compiled            whether the TPU compiler was asked; without it all figures are reckoned
    fits                whether all arrays fit on every chip
    tight               they do, but programs may need more than is left: `code` is what to keep
                        for them
    hbm_per_chip        bytes: weights, rings, state, temporaries, code, headroom, capacity, and
                        `groups`, the same in detail; of what jax counts as a device (tpu7x shows
                        each chip as two)
    estimated           which of these are estimates
    replicated          [{axis, why}]: what the rules would cut, and this mesh does not divide
    repeats             how often each KV head is kept
    rules               what the table has otherwise than the default one, in words; "" = nothing
    resharding          where prefill has rules of its own, what each of its calls sends a device:
                        {bytes, arrays [{name, count, bytes, before, after}]}; null = it has none
    programs            by name: traffic_bytes, ideal_bytes, traffic_ratio, alias_bytes, temp_bytes,
                        ring_copies, collectives {kind: {count, bytes}}, compile_seconds, bound_ms,
                        limit, bound {weights, flops, rings, links} in ms, flops, needed_flops,
                        exchanges [{kind, axes {mesh axis: devices}, count, bytes}]: the
                        collectives as they are reckoned; null = not compiled. Of decode all is for
                        one step. `per_layer` has traffic_bytes, ideal_bytes and collectives, shared
                        out among the layers.
    bound_ms            decode: one step; prefill: one full chunk for each data shard
    tokens_per_second   all slots decoding at the bound, rings full
    prefill_tokens_per_second
    largest             most slots of this context, and the longest context of these slots, that fit
    cost_per_million_tokens     of decoding at the bound; null without a price
    remedies            [{flags, why, headroom, tokens_per_second}], the smallest change first

All bytes and times are of one device. Where there is no plan at all, as no slot fits or the rules
forbid the mesh: version, model, topology, mesh, fits (false), why, remedies.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tpuinfer.planning import remedies as changes
from tpuinfer.planning import topology as slices
from tpuinfer.planning import travel
from tpuinfer.planning.answer import Answer, Program
from tpuinfer.planning.compare import Row
from tpuinfer.planning.question import Question, room
from tpuinfer.planning.remedies import Remedy
from tpuinfer.planning.roofline import per_million
from tpuinfer.planning.traffic import Collective
from tpuinfer.sharding import moves

VERSION = 1


def as_json(
    answer: Answer, remedies: Sequence[Remedy] = (), price: float | None = None
) -> dict[str, Any]:
    """The whole answer.

    Args:
      price: of a chip for an hour.
    """
    question, plan, hbm = answer.question, answer.plan, answer.hbm
    return {
        "version": VERSION,
        "model": question.name,
        "topology": str(question.topology),
        "chips": question.topology.chips,
        "devices": question.topology.devices,
        "mesh": dict(question.mesh.axes),
        "slots": changes.written(plan.engine),
        "context": plan.context,
        "weights": question.weights,
        "ring": plan.rings[0][0].dtype,
        "dtype": plan.dtype,
        "steps": plan.settings.steps,
        "compiled": answer.is_compiled,
        "fits": answer.fits,
        "tight": answer.fits and not hbm.has_room,
        "hbm_per_chip": {
            "weights": hbm.weights,
            "rings": hbm.rings,
            "state": hbm.state,
            "temporaries": hbm.temporaries,
            "code": hbm.code,
            "headroom": hbm.headroom,
            "capacity": hbm.capacity,
            "groups": [dataclasses.asdict(share) for share in hbm.shares],
        },
        "estimated": ["code"] if answer.is_compiled else ["temporaries", "code"],
        "replicated": [{"axis": axis, "why": why} for axis, why in answer.replicated],
        "repeats": plan.layout.repeats,
        "rules": travel.rules_in_words(plan.layout.rules),
        "resharding": _resharding(answer),
        "programs": {
            name: _with_layers(_program(one), plan.config.layers)
            for name, one in answer.programs.items()
        },
        "bound_ms": {
            "decode": answer.decode.bound.seconds * 1e3,
            "prefill": answer.chunk.bound.seconds * 1e3,
        },
        "tokens_per_second": answer.tokens_per_second,
        "prefill_tokens_per_second": answer.prefill_tokens_per_second,
        "largest": largest(answer),
        "cost_per_million_tokens": None
        if price is None
        else per_million(answer.tokens_per_second, question.topology.chips, price),
        "remedies": [_remedy(one) for one in remedies],
    }


def refused(question: Question, why: str, remedies: Sequence[Remedy]) -> dict[str, Any]:
    """Where there is no answer: nothing fits, or the mesh cannot be."""
    return {
        "version": VERSION,
        "model": question.name,
        "topology": str(question.topology),
        "mesh": dict(question.mesh.axes),
        "fits": False,
        "why": why,
        "remedies": [_remedy(one) for one in remedies],
    }


def largest(answer: Answer) -> dict[str, int] | None:
    """The most slots of this context, and the longest context of these slots; 0 = none fits.

    None where slots come in several classes.
    """
    plan = answer.plan
    if len(plan.slots.counts) > 1:
        return None
    space = room(answer.question, plan)
    return {
        "slots": space.most_slots(plan.context),
        "context": space.longest_context(plan.slots.slots),
    }


def comparison(rows: Sequence[Row], price: float | None = None) -> dict[str, Any]:
    """A comparison: under `ranking` one entry a mesh, the best first."""
    return {"version": VERSION, "ranking": [_row(row, price) for row in rows]}


def _row(row: Row, price: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "topology": str(row.topology),
        "chips": row.topology.chips,
        "mesh": dict(row.mesh.axes),
        "fits": row.fits,
    }
    if row.answer is None:
        return found | {"why": row.why}
    speed = row.answer.tokens_per_second
    return found | {
        "slots": changes.written(row.answer.plan.engine),
        "headroom": row.answer.hbm.headroom,
        "bound_ms": {
            "decode": row.answer.decode.bound.seconds * 1e3,
            "prefill": row.answer.chunk.bound.seconds * 1e3,
        },
        "limit": row.answer.decode.bound.limit,
        "tokens_per_second": speed,
        "cost_per_million_tokens": None
        if price is None
        else per_million(speed, row.topology.chips, price),
    }


def _program(one: Program) -> dict[str, Any]:
    bound = {part: seconds * 1e3 for part, seconds in dataclasses.asdict(one.bound).items()}
    found: dict[str, Any] = {
        "ideal_bytes": one.work.bytes,
        "flops": dict(one.work.flops),
        "needed_flops": one.work.needed_flops,
        "bound_ms": one.bound.seconds * 1e3,
        "limit": one.bound.limit,
        "bound": bound,
        "traffic_ratio": one.ratio,
        "exchanges": [
            {
                "kind": each.kind,
                "axes": dict(zip(each.axes, each.devices, strict=True)),
                "count": each.count,
                "bytes": each.nbytes,
            }
            for each in one.work.exchanges
        ],
    }
    measured = one.measured
    if measured is None or measured.needs:
        unknown = ("traffic_bytes", "alias_bytes", "temp_bytes", "ring_copies", "compile_seconds")
        found |= dict.fromkeys(unknown)
        found["collectives"] = _collectives(one.work.collectives)
        found["refused_bytes"] = measured.needs if measured else None
        return found
    return found | {
        "traffic_bytes": measured.traffic_bytes,
        "weight_traffic_bytes": measured.weight_bytes,
        "ring_traffic_bytes": measured.ring_bytes,
        "argument_bytes": measured.argument_bytes,
        "alias_bytes": measured.alias_bytes,
        "temp_bytes": measured.temp_bytes,
        "code_bytes": measured.code_bytes,
        "ring_copies": measured.ring_copies,
        "collectives": _collectives(measured.collectives),
        "compile_seconds": measured.compile_seconds,
    }


def _resharding(answer: Answer) -> dict[str, Any] | None:
    layout, rows = answer.plan.layout, answer.resharding
    if layout.prefill is layout:
        return None
    told = ("name", "count", "bytes", "before", "after")
    arrays = [{name: getattr(row, name) for name in told} for row in rows]
    return {"bytes": moves.total(rows), "arrays": arrays}


def _with_layers(program: dict[str, Any], layers: int) -> dict[str, Any]:
    moved = program["traffic_bytes"]
    per_layer = {
        "traffic_bytes": None if moved is None else moved / layers,
        "ideal_bytes": program["ideal_bytes"] / layers,
        "collectives": {
            kind: {name: size / layers for name, size in one.items()}
            for kind, one in program["collectives"].items()
        },
    }
    return program | {"per_layer": per_layer}


def _collectives(found: Mapping[str, Collective]) -> dict[str, dict[str, int]]:
    return {kind: {"count": one.count, "bytes": one.nbytes} for kind, one in found.items()}


def _remedy(one: Remedy) -> dict[str, Any]:
    topology, mesh = one.answer.question.topology, one.answer.question.mesh
    return {
        "flags": one.flags,
        "why": one.why,
        "topology": str(topology),
        "mesh": slices.written(mesh),
        "headroom": one.answer.hbm.headroom,
        "tokens_per_second": one.answer.tokens_per_second,
    }
