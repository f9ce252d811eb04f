"""A whole model with random weights, on all devices of a mesh."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from tpuinfer.benchmark import steps, workload
from tpuinfer.benchmark.subject import Subject
from tpuinfer.diagnosis.findings import Finding, fail, ok, warn
from tpuinfer.engine import footprint, scratch
from tpuinfer.engine.plan import Plan
from tpuinfer.engine.request import SamplingParams
from tpuinfer.engine.runner import Runner, StepTokens, cut_prompt
from tpuinfer.planning import hardware

_TOKENS = 12
_NEAR = 0.03
"""The share by which memory in use may be off the plan."""


def bits(subject: Subject) -> Finding:
    """Tokens and log-probabilities of prompts, in two orders over the slots, with other neighbours.

    What a request gets must not depend on its slot or on who runs beside it, bit for bit.
    """
    runner, vocab = subject.runner, subject.plan.config.vocab
    count = min(16, runner.layout.slots)
    chosen = steps.pick_slots(runner.layout, count, min(64, runner.layout.capacity))
    prompts = [workload.prompt_ids(5 + 3 * index, vocab) for index in range(count // 2)]
    each = subject.plan.settings.steps
    alone = _run(runner, prompts, chosen[: len(prompts)], each=each)
    mixed = _run(runner, prompts, chosen[::-1][: len(prompts)], chosen[: count // 4], each=each)
    differ = sum(
        not (np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1]))
        for one, other in zip(alone, mixed, strict=True)
    )
    what = "bits"
    if differ:
        found = f"{differ} of {len(prompts)} requests differ in another slot with other neighbours"
        return fail(what, found, "send this report: answers depend on the load here")
    return ok(what, f"{len(prompts)} requests are the same bits in other slots, beside others")


def _run(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    slots: Sequence[int],
    beside: Sequence[int] = (),
    *,
    each: int,
) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Tokens, and the bits of their log-probabilities, of each prompt.

    Args:
      beside: slots that run something else. each: steps in a dispatch.
    """
    greedy = SamplingParams(temperature=0, logprobs=0)
    longer = min(40, runner.layout.capacity - _TOKENS - 1)
    others = [([7] * longer, slot) for slot in beside if slot not in slots]
    given = [*zip(prompts, slots, strict=True), *others]
    made: dict[int, list[StepTokens]] = {}
    for prompt, slot in given:
        for work in cut_prompt(runner, prompt, slot=slot, limit=_TOKENS, params=greedy):
            pending = runner.prefill([work])
        made[slot] = [pending.result()]
    for _ in range(-(-_TOKENS // each)):
        out = runner.decode(each, dict.fromkeys(made, each)).result()
        for slot in made:
            made[slot].append(out)
    return [_of(made[slot], slot) for slot in slots]


def _of(outs: Sequence[StepTokens], slot: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    tokens = np.concatenate([out.tokens[:, slot] for out in outs])
    scores = np.concatenate([out.logprobs[:, slot] for out in outs])
    return tokens[tokens >= 0], scores[tokens >= 0].view(np.int32)


def memory(subject: Subject) -> tuple[list[Finding], dict[str, Any]]:
    """Memory in use against what the plan says lies there, and programs against the estimate."""
    plan = subject.plan
    lying = sum(one.bytes for one in footprint.shares(plan))
    entries = subject.runner.manifest
    beside = max(entry.temp_bytes for entry in entries)
    figures: dict[str, Any] = {
        "planned_bytes": lying,
        "planned_temporaries": scratch.temporaries(plan),
        "compiled_temporaries": beside,
        "planned_code": scratch.code(plan),
    }
    stats = _device(plan).memory_stats()
    if not stats or "bytes_in_use" not in stats:
        return [ok("memory", "these devices do not say what is in use")], figures
    used, peak = int(stats["bytes_in_use"]), int(stats.get("peak_bytes_in_use", 0))
    figures |= {"bytes_in_use": used, "peak_bytes_in_use": peak}
    found = f"{used / 1e9:.3f} GB in use, {lying / 1e9:.3f} GB by the plan"
    if abs(used / lying - 1) <= _NEAR:
        return [ok("memory", found)], figures
    return [warn("memory", found, "send this report: the planner is off")], figures


def _device(plan: Plan) -> jax.Device:
    assert isinstance(plan.layout.mesh, Mesh)
    device: jax.Device = plan.layout.mesh.devices.flat[0]
    return device


def speed(subject: Subject) -> tuple[list[Finding], dict[str, Any]]:
    """Bandwidth as measured, and a decode step against its bound.

    The bound is at the measured bandwidth and matmul rate: weights once, filled rings once.
    """
    layout, plan = subject.runner.layout, subject.plan
    new = min(128, layout.capacity // 2)
    prompt = workload.prompt_ids(min(32, layout.capacity // 4), plan.config.vocab)
    rows = []
    for live in sorted({1, layout.slots}):
        times = steps.decode_round(
            subject.runner,
            prompt,
            live=live,
            new_tokens=new,
            steps=min(plan.settings.steps, new // 4),
        )
        least = subject.cost.decode(live, len(prompt) + new / 2).seconds(subject.machine)
        step = float(np.median(times)) / 1e3
        rows.append(
            {"live": live, "ms": step * 1e3, "bound_ms": least * 1e3, "of_bound": least / step}
        )
    machine, kind = subject.machine, _device(plan).device_kind
    figures = {
        "read_gb_per_second": machine.bandwidth / 1e9,
        "matmul_tflop_per_second": machine.matmul / 1e12,
        "decode": rows,
    }
    told = ""
    if chip := hardware.by_device_kind(kind):
        vendor = chip.hbm_bandwidth / chip.devices_per_chip * plan.layout.mesh.size
        figures["vendor_gb_per_second"] = vendor / 1e9
        told = f", {machine.bandwidth / vendor:.0%} of the vendor's"
    findings = [ok("bandwidth", f"{machine.bandwidth / 1e9:.0f} GB/s read on all devices{told}")]
    findings += [
        ok(
            f"decode, {row['live']} live",
            f"{row['ms']:.2f} ms a step, {row['of_bound']:.0%} of the bound of "
            f"{row['bound_ms']:.2f} ms",
        )
        for row in rows
    ]
    return findings, figures


def settings_of(plan: Plan) -> dict[str, Any]:
    """What was run, for the report."""
    return {
        "mesh": dict(plan.layout.mesh.shape),
        "slots": plan.slots.slots,
        "context": plan.context,
        "dtype": plan.dtype,
        "settings": {
            name: value
            for name, value in dataclasses.asdict(plan.settings).items()
            if isinstance(value, str | int | float | bool)
        },
    }
