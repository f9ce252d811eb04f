"""What the compiler made: donated rings, no copy of one, a closed set that never recompiles."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ring_copies import ring_copies

from tpuinfer.cache import ring as ring_module
from tpuinfer.cache.ring import Ring, RingAttention, Rows
from tpuinfer.programs.compile import compile_programs, use_compilation_cache
from tpuinfer.programs.state import shaped, zeros
from tpuinfer.testing.tiny import TINY, tiny

PROGRAMS = pytest.mark.parametrize(
    ("mesh", "name"),
    [
        ("1", "decode"),
        ("1", "prefill_16"),
        ("1", "prefill_4"),
        ("2x4", "decode"),
        ("2x4", "prefill_16"),
    ],
)


def on_mesh(mesh):
    return tiny(TINY) if mesh == "1" else tiny(TINY, mesh, buckets=(16,))


def local_shape(array):
    return array.sharding.shard_shape(array.shape)


def local_ring(model):
    """Elements of one device's part of one ring."""
    return math.prod(local_shape(model.state.rings[0].keys))


def test_nothing_else_is_as_large_as_a_ring():
    """Else `ring_copies` could take another array for one."""
    for model in map(on_mesh, ("1", "2x4")):
        sizes = {math.prod(local_shape(weight)) for weight in model.params.values()}
        assert local_ring(model) not in sizes


@PROGRAMS
def test_no_ring_is_copied(mesh, name):
    model = on_mesh(mesh)
    assert ring_copies(model.programs[name].call.as_text(), local_ring(model)) == []


@PROGRAMS
def test_the_state_is_updated_in_place(mesh, name):
    """All of it is donated, and the program's output lies where its input lay."""
    model = on_mesh(mesh)
    leaves = jax.tree.leaves(model.state)
    size = sum(math.prod(local_shape(leaf)) * leaf.dtype.itemsize for leaf in leaves)
    rings = 2 * len(model.state.rings) * local_ring(model) * 4
    assert model.programs[name].call.memory_analysis().alias_size_in_bytes >= size > rings
    assert model.programs[name].temp_bytes < rings


@functools.cache
def attention_hlo(donate, patched):
    """One layer's prefill attention alone, compiled: as it is, or without the read dependency."""
    model = on_mesh("1")
    attend = RingAttention(model.layout, 8, identity=False)
    q, kv = (shaped((1, 4, heads, 8), jnp.float32) for heads in (TINY.heads, TINY.kv_heads))
    where = Rows(*[shaped((1,), jnp.int32)] * 3)
    run = jax.jit(lambda *arrays: attend(*arrays), donate_argnums=3 if donate else ())
    with pytest.MonkeyPatch.context() as patch:
        if patched:
            patch.setattr(ring_module, "_after", lambda read, slot: slot)
        ring = model.state.rings[0]
        return run.lower(q, kv, kv, Ring(ring.keys, ring.values), where).compile().as_text()


def test_copies_are_seen_where_they_are():
    """A ring that is not donated, and one written while its last read may be still to come."""
    elements = local_ring(on_mesh("1"))
    assert ring_copies(attention_hlo(True, False), elements) == []
    assert len(ring_copies(attention_hlo(False, False), elements)) == 2
    assert len(ring_copies(attention_hlo(True, True), elements)) >= 2


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("  %copy.1 = f32[4,8]{1,0} copy(%p), metadata={}", ["copy copy.1"]),
        ("  ROOT %c = f32[32]{0} convert(bf16[32]{0} %p)", ["convert c"]),
        ("  %s = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[]) copy-start(%p)", ["copy-start s"]),
        ("  %t = bf16[8,4]{1,0} transpose(%p), dimensions={1,0}", ["transpose t"]),
        ("  %copy.2 = f32[4,9]{1,0} copy(%p)", []),
        ("  %b = f32[8,4]{1,0} bitcast(%p)", []),
        ("  %w = (s32[], f32[4,8]{1,0}) while(%tuple), condition=%c, body=%b", []),
        ("  %p.1 = f32[4,8]{1,0} parameter(0)", []),
        ("HloModule jit_run, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}", []),
    ],
)
def test_the_reader_of_hlo_by_hand(line, found):
    assert ring_copies(line, 32) == found


def test_the_set_is_closed():
    assert list(on_mesh("1").specs) == ["prefill_16", "prefill_4", "decode"]
    assert on_mesh("1").programs.keys() == on_mesh("1").specs.keys()
    for name, program in on_mesh("1").programs.items():
        assert program.name == name
        assert program.seconds > 0


def test_other_shapes_are_refused_not_compiled():
    model = on_mesh("1")
    decode = model.programs["decode"].call
    state, active = zeros(model.state), np.zeros(4, bool)
    with pytest.raises(TypeError, match="compiled"):
        decode(model.params, state, np.int32(1), np.zeros(5, bool))
    with pytest.raises(TypeError, match="compiled"):
        decode(model.params, state, np.float32(1), active)
    longer = dataclasses.replace(state, stops=jnp.zeros((4, 99), jnp.int32))
    with pytest.raises(TypeError, match="compiled"):
        decode(model.params, longer, np.int32(1), active)
    decode(model.params, state, np.int32(1), active)


def test_progress_counts_each_program():
    seen = []
    spec = on_mesh("1").specs["decode"]
    small = dataclasses.replace(
        spec,
        function=lambda params, state, n, active: (state, n),
        out_shardings=(spec.out_shardings[0], spec.out_shardings[1]),
    )
    made = compile_programs([small], lambda *args: seen.append(args))
    assert seen == [("compiling", 0, 1), ("compiling", 1, 1)]
    assert list(made) == ["decode"]


def test_a_compilation_cache_that_is_set_is_kept(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update(names[0], None)
        use_compilation_cache(tmp_path / "a")
        assert getattr(jax.config, names[0]) == str(tmp_path / "a")
        assert getattr(jax.config, names[1]) == 0
        use_compilation_cache(tmp_path / "b")
        assert getattr(jax.config, names[0]) == str(tmp_path / "a")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
