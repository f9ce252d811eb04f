import jax
import jax.numpy as jnp
import pytest

from tpuinfer.planning import hlo

TEXT = """\
HloModule jit_f, entry_computation_layout={(bf16[64,128]{1,0:T(8,128)(2,1)})->f32[]}

%adds (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[]{:T(128)} parameter(0)
  %b.1 = f32[]{:T(128)} parameter(1)
  ROOT %sum.1 = f32[]{:T(128)} add(%a.1, %b.1)
}

%turn (t: (s32[], /*index=1*/f32[8,128])) -> (s32[], f32[8,128]) {
  %t = (s32[]{:T(128)}, /*index=1*/f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%t), index=1
  ROOT %again = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%i, %x)
}

%goes (u: (s32[], f32[8,128])) -> pred[] {
  %u = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  ROOT %yes = pred[]{:T(512)} constant(true)
}

ENTRY %main.9 (p: bf16[64,128], q: f32[16,32]) -> f32[] {
  %q = f32[16,32]{1,0:T(8,128)} parameter(1), metadata={op_name="params[\\'a.weight\\'].scale"}
  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x (of y)"}
  %zero = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) custom-call(), custom_call_target="Made"
  %loop = (s32[], f32[8,128]{1,0}) while(%zero), condition=%goes, body=%turn, ATTRIBUTES
  %pick = f32[] conditional(%q, %p, %p), branch_computations={%adds, %turn}
  ROOT %out = f32[]{:T(128)} reduce(%p, %pick), dimensions={0,1}, to_apply=%adds
}
""".replace(
    "ATTRIBUTES",
    'metadata={op_name="jit(f)/while"}, backend_config={"known_trip_count":{"n":"4"},'
    '"window_config":{"estimated_cycles":"77"}}',
)


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


def test_computations_their_instructions_and_roots(module):
    assert set(module.computations) == {"adds", "turn", "goes", "main.9"}
    assert module.entry.name == "main.9"
    assert module.entry.root.name == "out"
    assert [one.opcode for one in module.computations["turn"].instructions] == [
        "parameter",
        "get-tuple-element",
        "get-tuple-element",
        "tuple",
    ]
    assert module.computations["turn"].by_name["x"].index == 1


def test_parameters_come_by_number_with_the_names_of_tracing(module):
    names = [one.op_name for one in module.entry.parameters]
    assert names == ["x (of y)", "params['a.weight'].scale"]
    assert [one.name for one in module.entry.parameters] == ["p", "q"]


def test_what_a_loop_and_a_conditional_call(module):
    loop = module.entry.by_name["loop"]
    assert loop.called == {"condition": "goes", "body": "turn"}
    assert (loop.trips, loop.cycles, loop.op_name) == (4, 77, "jit(f)/while")
    assert module.entry.by_name["pick"].called == {"branch0": "adds", "branch1": "turn"}
    assert module.entry.by_name["pick"].operands == ("q", "p", "p")
    assert module.entry.root.called == {"to_apply": "adds"}


def test_users_know_as_which_operand(module):
    users = [(one.name, at) for one, at in module.entry.users["p"]]
    assert users == [("pick", 1), ("pick", 2), ("out", 0)]


@pytest.mark.parametrize(
    ("text", "stored", "nbytes", "space"),
    [
        ("bf16[64,1,2048,128]{3,2,1,0:T(8,128)(2,1)}", 1 << 25, 1 << 25, 0),
        ("s4[4096,14,128]{2,0,1:T(64,128)(8,1)E(4)S(1)}", 14 << 18, 14 << 18, 1),
        ("s4[3]{0:E(4)}", 2, 2, 0),
        ("s4[3]{0}", 3, 3, 0),
        ("f32[16,32]{1,0:T(8,128)}", 16 * 128 * 4, 16 * 32 * 4, 0),
        ("f32[16,32]{0,1:T(8,128)}", 32 * 128 * 4, 16 * 32 * 4, 0),
        ("f32[100]{0:T(1024)}", 4096, 400, 0),
        ("pred[]{:T(512)}", 512, 1, 0),
        ("f8e4m3fn[5,7]{1,0}", 35, 35, 0),
        ("token[]", 0, 0, 0),
        ("u32[]{:S(2)}", 4, 4, 2),
    ],
)
def test_bytes_of_an_array_with_and_without_what_fills_its_tiles(text, stored, nbytes, space):
    (array,) = hlo.parse_arrays(text)
    assert (array.stored, array.nbytes, array.space) == (stored, nbytes, space)


def test_a_tuple_is_flat_and_comments_in_it_are_no_arrays():
    made = hlo.parse_arrays("(s32[]{:T(128)}, (f32[2]{0}, /*index=2*/bf16[3]{0}))")
    assert [array.dtype for array in made] == ["s32", "f32", "bf16"]


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("(f32[4]{0:S(1)}, f32[4]{0}, u32[]{:S(2)}) copy-start(%a)", [(4,)]),
        ("((f32[16]{0}), f32[4]{0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:4]}", [(4,)]),
        ("(f32[2]{0}, f32[16]{0}) all-gather-start(%a), dimensions={0}", [(16,)]),
        ("f32[16]{0} all-reduce-start(%a), to_apply=%adds", [(16,)]),
    ],
)
def test_the_first_half_of_an_async_pair_makes_one_array(line, made):
    text = (
        f"ENTRY %m (a: f32[16]) -> f32[] {{\n  %a = f32[16]{{0}} parameter(0)\n  %s = {line}\n}}\n"
    )
    one = hlo.parse(text).entry.by_name["s"]
    assert [array.dims for array in one.made] == made


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no ENTRY"),
        ("%a (x: f32[]) -> f32[] {\n}\n", "a is empty"),
        ("ENTRY %a (x: f32[]) -> f32[] {\n  what is this\n}\n", "what is this"),
        ("ENTRY %a (x: f32[]) -> f32[] {\n  %x = f32[] parameter(0\n}\n", "not closed"),
        ("ENTRY %a (x: f32[]) -> f32[] {\n  %x = f32[]\n}\n", "no operation"),
    ],
)
def test_text_that_is_no_hlo_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        hlo.parse(text)


def test_what_this_machines_compiler_prints_can_be_read():
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((16, 64), jnp.bfloat16)

    def f(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ w.astype(y.dtype).T @ w), x)

    module = hlo.parse(jax.jit(f).lower(x, w).compile().as_text())
    assert [one.array.dims for one in module.entry.parameters] == [(32, 64), (16, 64)]
    assert any(one.opcode == "while" for one in module.entry.instructions)
