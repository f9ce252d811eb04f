import jax
import jax.numpy as jnp
import pytest

from tests.planning.hlo_text import module
from tpuinfer.planning import hlo, traffic
from tpuinfer.planning.traffic import Assumed, Collective

ROW = 128 * 4
X = "f32[64,128]{1,0}"
VMEM = "f32[64,128]{1,0:S(1)}"


def named(number: int, name: str, shape: str = X) -> str:
    return f'%p{number} = {shape} parameter({number}), metadata={{op_name="{name}"}}'


def test_what_is_brought_to_vmem_is_read_once():
    program = module(
        f"""{named(0, "w")}
        %start = ({VMEM}, {X}, u32[]{{:S(2)}}) copy-start(%p0)
        %w = {VMEM} copy-done(%start)
        %a = {VMEM} negate(%w)
        %b = {VMEM} negate(%w)
        ROOT %out = {X} add(%a, %b)"""
    )
    found = traffic.measure(program)
    assert found.nbytes == 2 * 64 * ROW  # w in, the sum out
    assert found.of(["w"]) == 64 * ROW
    assert found.of(["other"]) == 0


def test_pieces_that_are_put_together_in_vmem_cost_no_more():
    half = "f32[32,128]{1,0:S(1)}"
    program = module(
        f"""{named(0, "w")}
        %s0 = (({X}), {half}, s32[]{{:S(2)}}) slice-start(%p0), slice={{[0:32], [0:128]}}
        %s1 = (({X}), {half}, s32[]{{:S(2)}}) slice-start(%p0), slice={{[32:64], [0:128]}}
        %d0 = {half} slice-done(%s0)
        %d1 = {half} slice-done(%s1)
        %w = {VMEM} custom-call(%d0, %d1), custom_call_target="ConcatBitcast"
        %room = {X} custom-call(), custom_call_target="AllocateBuffer"
        ROOT %n = {VMEM} negate(%w), backend_config={{"estimated_cycles":"9"}}"""
    )
    found = traffic.measure(program)
    assert found.nbytes == 64 * ROW
    assert found.cycles_of(["w"]) == 9  # it is still known whose pieces they are


LOOP = f"""{named(0, "state.keys")}
    %zero = s32[] constant(0)
    %t = (s32[], {X}) tuple(%zero, %p0)
    %w = (s32[], {X}) while(%t), condition=%goes, body=%turn, metadata={{op_name="jit(f)/while"}}
    ROOT %out = {X} get-tuple-element(%w), index=1"""
TURN = f"""%t = (s32[], {X}) parameter(0)
    %i = s32[] get-tuple-element(%t), index=0
    %x = {X} get-tuple-element(%t), index=1
    %s = f32[8,128]{{1,0:S(1)}} fusion(%x, %i), kind=kLoop, calls=%takes
    %n = f32[2,128]{{1,0:S(1)}} slice(%s), slice={{[0:2], [0:128]}}
    %u = {X} dynamic-update-slice(%x, %n, %i, %i)
    ROOT %r = (s32[], {X}) tuple(%i, %u)"""
TAKES = f"""%x = {X} parameter(0)
    %i = s32[] parameter(1)
    ROOT %s = f32[8,128]{{1,0}} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={{8,128}}"""
GOES = f"""%t = (s32[], {X}) parameter(0)
    ROOT %yes = pred[] constant(true)"""


@pytest.mark.parametrize(
    ("trips", "times"), [({}, 1), ({"/while": 3}, 3), ({"/while": 3, "jit(f)/while": 5}, 5)]
)
def test_a_loop_runs_as_often_as_is_assumed(trips, times):
    program = module(LOOP, turn=TURN, takes=TAKES, goes=GOES)
    found = traffic.measure(program, Assumed(trips))
    assert found.of(["state.keys"]) == times * (8 + 2) * ROW
    assert found.copies(["state.keys"], 3 * ROW) == []
    assert [move.written for move in found.copies(["state.keys"], 2 * ROW)] == [2 * ROW]


def test_the_compilers_own_count_of_trips_comes_first():
    known = LOOP.replace("body=%turn,", 'body=%turn, x={"known_trip_count":{"n":"7"}},')
    program = module(known, turn=TURN, takes=TAKES, goes=GOES)
    assert traffic.measure(program, Assumed({"/while": 3})).of(["state.keys"]) == 70 * ROW


def test_a_ring_that_is_replaced_whole_is_a_copy():
    whole = TURN.replace("dynamic-update-slice(%x, %n, %i, %i)", "copy(%x)")
    program = module(LOOP, turn=whole, takes=TAKES, goes=GOES)
    found = traffic.measure(program)
    assert [move.instruction.name for move in found.copies(["state.keys"], 64 * ROW)] == ["u"]


def test_a_weight_that_is_widened_in_hbm_counts_its_wide_form_too():
    program = module(
        f"""{named(0, "w.values", "s8[64,128]{1,0}")}
        {named(1, "w.scale", "f32[64]{0}")}
        {named(2, "x")}
        %wide = {X} fusion(%p0, %p1), kind=kLoop, calls=%widens
        ROOT %out = f32[64,64]{{1,0}} convolution(%p2, %wide), dim_labels=bf_oi->bf""",
        widens=f"""%v = s8[64,128]{{1,0}} parameter(0)
        %s = f32[64]{{0}} parameter(1)
        %c = {X} convert(%v)
        %b = {X} broadcast(%s), dimensions={{0}}
        ROOT %m = {X} multiply(%c, %b)""",
    )
    found = traffic.measure(program)
    codes, wide = 64 * 128, 64 * ROW
    assert found.of(["w.values"]) == codes + 2 * wide  # read, written wide, read again
    assert found.of(["w.scale"]) == 64 * 4
    assert found.nbytes == codes + 64 * 4 + 2 * wide + wide + 64 * 64 * 4
    assert len(found.copies(["w.values"], wide)) == 1


def test_a_ring_of_which_rows_are_replaced_by_choosing_is_a_copy_and_a_sum_of_two_is_none():
    body = f"""%x = {X} parameter(0)
        %n = {X} parameter(1)
        %m = pred[64,128]{{1,0}} parameter(2)
        ROOT %s = {X} select(%m, %n, %x)"""
    text = f"""{named(0, "ring")}
        {named(1, "SECOND")}
        %new = {X} negate(%p1)
        %m = pred[64,128]{{1,0}} compare(%new, %new)
        ROOT %f = {X} fusion(%p0, OTHER, %m), kind=kLoop, calls=%chooses"""
    for other, copies in (("%new", 1), ("%p1", 0)):
        found = traffic.measure(module(text.replace("OTHER", other), chooses=body))
        assert len(found.copies(["ring"], 64 * ROW)) == copies


@pytest.mark.parametrize(("branch", "written"), [("least", 0), ("most", 64 * ROW)])
def test_one_branch_of_a_conditional_counts(branch, written):
    program = module(
        f"""{named(0, "x")}
        %c = s32[] parameter(1)
        ROOT %out = {X} conditional(%c, %p0, %p0), branch_computations={{%quiet, %busy}}""",
        quiet=f"ROOT %p = {X} parameter(0)",
        busy=f"%p = {VMEM} parameter(0)\nROOT %n = {X} negate(%p)",
    )
    assert traffic.measure(program, Assumed(branch=branch)).nbytes == written


def test_an_operand_that_is_named_twice_is_read_once():
    program = module(f"{named(0, 'x')}\nROOT %out = {VMEM} multiply(%p0, %p0)")
    assert traffic.measure(program).nbytes == 64 * ROW


KERNEL = (
    'custom_call_target="tpu_custom_call", '
    'backend_config={"custom_call_config":{"body":"TUz","cost_estimate":{"flops":"9",'
    '"bytes_accessed":"4096"},"input_memory_space_colors":['
    '{"operand_index":"1","color":"0"},{"operand_index":"2","color":"0"}]}}'
)


def test_a_kernel_touches_what_it_tells_of_what_it_keeps_in_hbm():
    """Here of two rings of one size; queries and result count whole, where they are in HBM."""
    program = module(
        f"""{named(0, "q", "f32[8,128]{1,0}")}
        {named(1, "keys")}
        {named(2, "values")}
        ROOT %out = f32[8,128]{{1,0}} custom-call(%p0, %p1, %p2), {KERNEL}"""
    )
    found = traffic.measure(program)
    assert found.of(["keys"]) == found.of(["values"]) == 2048
    assert found.nbytes == 4096 + 2 * 8 * ROW
    assert found.copies(["keys", "values"], 1) == []


def test_a_kernel_that_writes_in_place_hands_its_operands_on():
    aliasing = "output_to_operand_aliasing={{0}: (1, {}), {1}: (2, {})}, "
    program = module(
        f"""{named(0, "new", VMEM)}
        {named(1, "keys")}
        {named(2, "values")}
        %w = ({X}, {X}) custom-call(%p0, %p1, %p2), {aliasing}{KERNEL}
        %k = {X} get-tuple-element(%w), index=0
        ROOT %n = {VMEM} negate(%k)"""
    )
    found = traffic.measure(program)
    assert found.of(["values"]) == 2048
    assert found.of(["keys"]) == 2048 + 64 * ROW  # it is still known whose they are
    assert found.nbytes == 4096 + 64 * ROW  # results that take an operand's place are not new
    assert found.copies(["keys", "values"], 1) == []


def test_a_kernel_that_tells_nothing_counts_whole():
    target = 'custom_call_target="tpu_custom_call"'
    program = module(f"{named(0, 'x')}\nROOT %out = {VMEM} custom-call(%p0), {target}")
    assert traffic.measure(program).nbytes == 64 * ROW


def test_collectives_by_kind_with_the_bytes_of_their_larger_side():
    small = "f32[8,128]{1,0:S(1)}"
    program = module(
        f"""{named(0, "x", VMEM)}
        %a = {small} reduce-scatter(%p0), dimensions={{0}}, to_apply=%main
        %b = {small} negate(%a)
        %s = ({small}, {VMEM}) all-gather-start(%b), dimensions={{0}}
        ROOT %g = {VMEM} all-gather-done(%s)"""
    )
    found = traffic.measure(program)
    whole = 64 * ROW
    assert found.collectives() == {
        "reduce-scatter": Collective(1, whole),
        "all-gather": Collective(1, whole),
    }
    assert found.nbytes == 0


def test_a_collective_that_is_spread_over_fusions_counts_once():
    """Begun in one, going on beside another's work, awaited in a third."""
    part, whole = "f32[32,128]{1,0:T(8,128)}", "f32[64,128]{1,0:T(8,128)S(1)}"
    state = f"({part}, {whole}, u32[]{{:S(2)}})"
    gather = f"%g = {whole} all-gather(%a), dimensions={{0}}"
    given = f"""%a = {part} parameter(0)
        %b = {whole} parameter(1)
        %c = u32[]{{:S(2)}} parameter(2)"""
    first, last = (
        f"output_to_operand_aliasing={{{one}}}" for one in ("{0}: (0, {})", "{}: (1, {})")
    )
    carried = "output_to_operand_aliasing={{0}: (0, {}), {1}: (1, {}), {2}: (2, {})}"
    program = module(
        f"""{named(0, "w", part)}
        {named(1, "x")}
        %begin = {state} fusion(%p0), kind=kCustom, {first}, calls=%begins
        %w0 = {part} get-tuple-element(%begin), index=0
        %g0 = {whole} get-tuple-element(%begin), index=1
        %s0 = u32[]{{:S(2)}} get-tuple-element(%begin), index=2
        %go = ({state[1:-1]}, {X}) fusion(%w0, %g0, %s0, %p1), kind=kOutput, {carried}, calls=%works
        %w1 = {part} get-tuple-element(%go), index=0
        %g1 = {whole} get-tuple-element(%go), index=1
        %s1 = u32[]{{:S(2)}} get-tuple-element(%go), index=2
        ROOT %done = {whole} fusion(%w1, %g1, %s1), kind=kCustom, {last}, calls=%ends""",
        begins=f"""%a = {part} parameter(0)
        {gather}
        ROOT %r = {state} custom-call(%g), custom_call_target="Start" """,
        works=f"""{given}
        {gather}
        %d = {X} parameter(3)
        %n = {X} negate(%d)
        ROOT %r = ({state[1:-1]}, {X}) tuple(%a, %b, %c, %n)""",
        ends=f"""{given}
        {gather}
        ROOT %r = {whole} custom-call(%g), custom_call_target="Done" """,
    )
    found = traffic.measure(program)
    assert found.collectives() == {"all-gather": Collective(1, 64 * ROW)}
    begun, beside, done = found.moves
    assert begun.nbytes == 32 * ROW  # what is sent is read once
    sizes = traffic.sizes(program)
    assert beside.nbytes == 2 * sizes["x"]  # the other's work
    assert done.nbytes == 0


def test_cycles_are_added_up_and_can_be_asked_for_by_parameter():
    program = module(
        f"""{named(0, "w")}
        {named(1, "x")}
        %a = {X} negate(%p0), backend_config={{"estimated_cycles":"30"}}
        ROOT %b = {X} exponential(%p1), backend_config={{"estimated_cycles":"12"}}"""
    )
    found = traffic.measure(program)
    assert (found.cycles, found.cycles_of(["w"])) == (42, 30)


def test_sizes_of_parameters_are_those_in_memory():
    program = module(f"{named(0, 'w', 'f32[3,100]{1,0:T(8,128)}')}\nROOT %n = {X} negate(%p0)")
    assert traffic.sizes(program) == {"w": 8 * 128 * 4}


def test_a_program_of_this_machines_compiler_against_a_count_by_hand():
    """Five turns of y + w, each reading both and writing one; y starts as a copy of x."""
    x = jax.ShapeDtypeStruct((256, 128), jnp.float32)

    def f(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, y: y * 2 + w, x)

    text = jax.jit(f).lower(x, x).compile().as_text()
    found = traffic.measure(hlo.parse(text), Assumed({"while": 5}))
    size = 256 * 128 * 4
    assert found.of(["w"]) == 5 * size
    extra = found.nbytes - 15 * size
    assert 0 <= extra <= 2 * size + 1024  # x is copied at most once, and the counter is small
