"""What the compiler made: donated rings, no copy of one, a closed set that never recompiles."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ring_copies import ring_copies
from toy import toy, toy_spec
from windowed import rolls, stops

from tpuinfer.cache import ring as ring_module
from tpuinfer.cache.held import Rows
from tpuinfer.cache.ring import Asked, RingAttention
from tpuinfer.programs.compile import compile_programs, lower, use_compilation_cache
from tpuinfer.programs.state import shaped, zeros
from tpuinfer.testing.tiny import ODD, TINY, tiny

MODELS = {
    "1": lambda: tiny(TINY),
    "2x4": lambda: tiny(TINY, "2x4", buckets=(16,)),
    "1 KV head": lambda: tiny(ODD),
    "1 windows": stops,
    "1 sinks": rolls,
    "2x4 sinks": lambda: rolls("2x4"),
}
"""Plain ones, and those with windows, two ring classes, narrow decode and rows that share one."""

NAMES = {
    "1": ["prefill_1x16", "prefill_1x8", "decode"],
    "2x4": ["prefill_1x16", "decode"],
    "1 KV head": ["prefill_1x16", "prefill_1x8", "decode"],
    "1 windows": ["prefill_1x64", "prefill_4x64", "decode", "decode_4"],
    "1 sinks": ["prefill_1x64", "prefill_4x64", "decode", "decode_4"],
    "2x4 sinks": ["prefill_1x64", "prefill_4x64", "decode", "decode_2"],
}
PROGRAMS = pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model, names in NAMES.items() for name in names]
)


def local_size(array):
    return math.prod(array.sharding.shard_shape(array.shape))


def local_rings(model):
    """Elements of one device's part of each array of a ring."""
    return [local_size(array) for array in jax.tree.leaves(model.state.rings)]


@pytest.mark.parametrize("model", MODELS)
def test_nothing_else_is_as_large_as_a_ring(model):
    """Else `ring_copies` could take another array for one."""
    model = MODELS[model]()
    sizes = {local_size(weight) for weight in model.params.values()}
    assert not sizes & set(local_rings(model))


@PROGRAMS
def test_no_ring_is_copied(model, name):
    model = MODELS[model]()
    hlo = model.programs[name].call.as_text()
    assert [copy for size in set(local_rings(model)) for copy in ring_copies(hlo, size)] == []


@PROGRAMS
def test_counts_of_tokens_are_neither_copied_nor_sent(model, name):
    """[B, V] on every device: in place, and no device waits for another's."""
    model = MODELS[model]()
    rows, vocab = model.state.counts.shape
    made = re.compile(rf"= s32\[{rows},{vocab}\]\S* (copy|all-|collective-|reduce-scatter)")
    assert made.findall(model.programs[name].call.as_text()) == []
    assert made.findall(f"  %c = s32[{rows},{vocab}]{{1,0}} copy(%p)") == ["copy"]


@PROGRAMS
def test_the_state_is_updated_in_place(model, name):
    """All of it is donated, and the program's output lies where its input lay."""
    model = MODELS[model]()
    size = sum(local_size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.state))
    assert model.programs[name].entry.alias_bytes >= size > 4 * sum(local_rings(model))


@functools.cache
def attention_hlo(donate, patched):
    """One layer's prefill attention alone, compiled: as it is, or without the read dependency."""
    model = MODELS["1"]()
    attend = RingAttention(model.layout, 8, "prefill")
    q, kv = (shaped((1, 4, heads, 8), jnp.float32) for heads in (TINY.heads, TINY.kv_heads))
    where = Rows(*[shaped((1,), jnp.int32)] * 3)
    run = jax.jit(lambda *arrays: attend(*arrays), donate_argnums=1 if donate else ())
    with pytest.MonkeyPatch.context() as patch:
        if patched:
            patch.setattr(ring_module, "_after", lambda read, slot: slot)
        return run.lower(Asked(q, kv, kv), model.state.rings[0], where).compile().as_text()


def test_copies_are_seen_where_they_are():
    """A ring that is not donated, and one written while its last read may be still to come."""
    elements = local_rings(MODELS["1"]())[0]
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


@pytest.mark.parametrize("name", NAMES["1"])
def test_products_of_float32_are_as_exact_as_asked(name):
    spec = MODELS["1"]().specs[name]
    for precision, word in ((None, "DEFAULT"), ("highest", "HIGHEST")):
        text = lower(dataclasses.replace(spec, precision=precision)).as_text()
        dots = [line for line in text.splitlines() if "dot_general" in line]
        assert len(dots) >= 10
        assert all(f"precision = [{word}, {word}]" in line for line in dots)


def test_the_set_is_closed():
    model = MODELS["1"]()
    assert model.programs.keys() == model.specs.keys()
    for name, program in model.programs.items():
        assert program.name == name


def test_other_shapes_are_refused_not_compiled():
    model = MODELS["1"]()
    decode = model.programs["decode"].call
    state, tables, quotas = zeros(model.state), zeros(model.tables), np.zeros(4, np.int32)
    with pytest.raises(TypeError, match="compiled"):
        decode(model.params, state, tables, np.zeros(5, np.int32))
    with pytest.raises(TypeError, match="compiled"):
        decode(model.params, state, tables, np.zeros(4, np.float32))
    longer = dataclasses.replace(state, stops=jnp.zeros((4, 99), jnp.int32))
    with pytest.raises(TypeError, match="compiled"):
        decode(model.params, longer, tables, quotas)
    decode(model.params, state, tables, quotas)


def test_programs_are_ready_in_order_and_counted():
    seen = []
    specs = [toy_spec(name) for name in ("b", "a", "d", "c")]
    made = compile_programs(
        specs,
        lambda *args: seen.append(args),
        ready=lambda program: seen.append(program.name),
    )
    assert list(made) == ["b", "a", "d", "c"]
    counts = [("compiling", done, 4) for done in range(5)]
    assert seen == [counts[0], "b", counts[1], "a", counts[2], "d", counts[3], "c", counts[4]]


_CACHE_SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def no_cache():
    """A process without a compilation cache, as far as the test can tell."""
    before = {name: getattr(jax.config, name) for name in _CACHE_SETTINGS}
    jax.config.update(_CACHE_SETTINGS[0], None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("no_cache")
def test_the_cache_keeps_programs(tmp_path):
    """Each of several programs that compile at once says for itself whether it was there."""

    def uses(**scales):
        made = compile_programs([toy_spec(name, scale=x) for name, x in scales.items()])
        return {name: program.entry.cache for name, program in made.items()}

    assert uses(a=1.5) == {"a": "off"}
    use_compilation_cache(tmp_path)
    assert uses(a=1.5, b=2.5) == {"a": "miss", "b": "miss"}
    assert uses(a=1.5, c=3.5, b=2.5, d=4.5) == {"a": "hit", "c": "miss", "b": "hit", "d": "miss"}


@pytest.mark.usefixtures("no_cache")
def test_a_program_from_the_cache_is_measured_like_a_new_one(tmp_path):
    use_compilation_cache(tmp_path)
    made, kept = (
        dataclasses.replace(toy(scale=5.5).entry, lower_seconds=0, compile_seconds=0)
        for _ in range(2)
    )
    assert (made.cache, kept.cache) == ("miss", "hit")
    assert dataclasses.replace(made, cache="hit") == kept


@pytest.mark.usefixtures("no_cache")
def test_a_compilation_cache_that_is_set_is_kept(tmp_path):
    use_compilation_cache(tmp_path / "a")
    assert getattr(jax.config, _CACHE_SETTINGS[0]) == str(tmp_path / "a")
    assert getattr(jax.config, _CACHE_SETTINGS[1]) == 0
    use_compilation_cache(tmp_path / "b")
    assert getattr(jax.config, _CACHE_SETTINGS[0]) == str(tmp_path / "a")
