import pytest

from tests.planning.hlo_text import module
from tpuinfer.planning import access

ROW = 128 * 4
RING = "f32[64,128]{1,0}"
INDEX = "%i = s32[] parameter(1)"

# One fusion of a ring [64, 128], an index and, third, two new rows.
FUSIONS = {
    "takes eight rows": (
        f"""%r = {RING} parameter(0)
        {INDEX}
        ROOT %s = f32[8,128]{{1,0}} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={{8,128}}""",
        "f32[8,128]{1,0}",
        (8 * ROW, 4, 8 * ROW),
    ),
    "widens what it takes": (
        f"""%r = {RING} parameter(0)
        {INDEX}
        %c = f64[64,128]{{1,0}} convert(%r)
        ROOT %s = f64[8,128]{{1,0}} dynamic-slice(%c, %i, %i), dynamic_slice_sizes={{8,128}}""",
        "f64[8,128]{1,0}",
        (8 * ROW, 4, 16 * ROW),
    ),
    "reads all": (
        f"""%r = {RING} parameter(0)
        {INDEX}
        ROOT %n = {RING} negate(%r)""",
        RING,
        (64 * ROW, 0, 64 * ROW),
    ),
    "writes two rows in place": (
        f"""%r = {RING} parameter(0)
        {INDEX}
        %n = f32[2,128]{{1,0}} parameter(2)
        ROOT %u = {RING} dynamic-update-slice(%r, %n, %i, %i)""",
        RING,
        (0, 4, 2 * ROW),
    ),
    "scatters two rows into a view": (
        f"""%r = {RING} parameter(0)
        %b = f32[64,1,128]{{2,1,0}} bitcast(%r)
        %i = s32[2]{{0}} parameter(1)
        %n = f32[2,1,128]{{2,1,0}} parameter(2)
        ROOT %u = f32[64,1,128]{{2,1,0}} scatter(%b, %i, %n), to_apply=%main""",
        "f32[64,1,128]{2,1,0}",
        (0, 4, 2 * ROW),
    ),
    "widens all to write two rows": (
        f"""%r = {RING} parameter(0)
        {INDEX}
        %c = f64[64,128]{{1,0}} convert(%r)
        %n = f64[2,128]{{1,0}} parameter(2)
        ROOT %u = f64[64,128]{{1,0}} dynamic-update-slice(%c, %n, %i, %i)""",
        "f64[64,128]{1,0}",
        (64 * ROW, 4, 4 * ROW),
    ),
    "gives two results, one in VMEM": (
        f"""%r = {RING} parameter(0)
        {INDEX}
        %n = {RING} negate(%r)
        %s = f32[8,128]{{1,0}} slice(%r), slice={{[0:8], [0:128]}}
        ROOT %t = ({RING}, f32[8,128]{{1,0}}) tuple(%n, %s)""",
        "(f32[64,128]{1,0:S(1)}, f32[8,128]{1,0})",
        (64 * ROW, 0, 8 * ROW),
    ),
}


@pytest.mark.parametrize(("body", "made", "bytes_"), FUSIONS.values(), ids=FUSIONS)
def test_a_fusion_reads_and_writes_what_its_body_needs(body, made, bytes_):
    new = "f64[2,128]{1,0:S(1)}" if "f64[2,128]" in body else "f32[2,128]{1,0:S(1)}"
    program = module(
        f"""%ring = {RING} parameter(0)
        %at = s32[] parameter(1)
        %new = {new} parameter(2)
        ROOT %f = {made} fusion(%ring, %at, %new), kind=kLoop, calls=%body""",
        body=body if "parameter(2)" in body else body + "\n%n9 = s32[] parameter(2)",
    )
    entry = program.entry
    one = entry.by_name["f"]
    ring, index, written = bytes_
    assert access.read(program, entry, one, 0) == ring
    assert access.read(program, entry, one, 1) in (index, 4)
    assert access.read(program, entry, one, 2) == 0  # it is in VMEM
    assert access.written(program, entry, one) == written


def test_what_flows_through_an_inner_fusion_is_followed():
    """The inner one only turns the ring; what the outer takes of the result is what is read."""
    program = module(
        f"""%ring = {RING} parameter(0)
        ROOT %f = f32[8,128]{{1,0}} fusion(%ring), kind=kLoop, calls=%outer""",
        inner=f"""%r = {RING} parameter(0)
        ROOT %c = f32[64,128]{{0,1}} copy(%r)""",
        outer=f"""%r = {RING} parameter(0)
        %t = f32[64,128]{{0,1}} fusion(%r), kind=kLoop, calls=%inner
        ROOT %s = f32[8,128]{{1,0}} slice(%t), slice={{[0:8], [0:128]}}""",
    )
    assert access.read(program, program.entry, program.entry.by_name["f"], 0) == 8 * ROW


def test_a_dot_inside_an_inner_fusions_reader_reads_all():
    program = module(
        f"""%ring = {RING} parameter(0)
        ROOT %f = f32[64,64]{{1,0}} fusion(%ring), kind=kOutput, calls=%outer""",
        inner=f"""%r = {RING} parameter(0)
        ROOT %c = {RING} bitcast(%r)""",
        outer=f"""%r = {RING} parameter(0)
        %t = {RING} fusion(%r), kind=kLoop, calls=%inner
        ROOT %d = f32[64,64]{{1,0}} convolution(%t, %t), dim_labels=bf_oi->bf""",
    )
    assert access.read(program, program.entry, program.entry.by_name["f"], 0) == 64 * ROW


@pytest.mark.parametrize(
    ("line", "read", "written"),
    [
        (f"{RING} copy(%a)", 64 * ROW, 64 * ROW),
        (f"(f32[64,128]{{1,0:S(1)}}, {RING}, u32[]{{:S(2)}}) copy-start(%a)", 64 * ROW, 0),
        (f"({RING}, {RING}, u32[]{{:S(2)}}) copy-start(%a)", 64 * ROW, 64 * ROW),
        (
            f"(({RING}), f32[8,128]{{1,0:S(1)}}, s32[]{{:S(2)}}) slice-start(%a), slice={{[0:8]}}",
            8 * ROW,
            0,
        ),
        ("f32[2,128]{1,0} gather(%a, %a)", 2 * ROW, 2 * ROW),
        (f"{RING} dynamic-update-slice(%a, %n, %n)", 0, 2 * ROW),
        ("f32[64,128]{1,0:S(1)} dynamic-update-slice(%a, %n, %n)", 0, 0),
    ],
)
def test_instructions_outside_fusions(line, read, written):
    program = module(
        f"""%a = {RING} parameter(0)
        %n = f32[2,128]{{1,0}} parameter(1)
        ROOT %one = {line}"""
    )
    one = program.entry.by_name["one"]
    assert access.read(program, program.entry, one, 0) == read
    assert access.written(program, program.entry, one) == written


@pytest.mark.parametrize(
    ("body", "made", "same"),
    [
        (f"%r = {RING} parameter(0)\nROOT %m = {RING} multiply(%r, %r)", RING, (0,)),
        (f"%r = {RING} parameter(0)\nROOT %m = f32[64]{{0}} reduce(%r, %r)", "f32[64]{0}", ()),
        (
            f"%r = {RING} parameter(0)\nROOT %m = {RING} convolution(%r, %r), dim_labels=bf_oi->bf",
            RING,
            (),
        ),
    ],
)
def test_scaling_rewrites_an_operand_and_a_dot_makes_something_new(body, made, same):
    program = module(
        f"""%a = {RING} parameter(0)
        ROOT %f = {made} fusion(%a), kind=kLoop, calls=%body""",
        body=body,
    )
    one = program.entry.by_name["f"]
    assert access.rewritten(program, program.entry, one) == same


def test_a_collective_is_found_by_kind_also_inside_a_fusion():
    program = module(
        f"""%a = {RING} parameter(0)
        %g = (f32[8,128]{{1,0}}, {RING}) all-gather-start(%a), dimensions={{0}}
        %n = {RING} negate(%a)
        ROOT %f = {RING} fusion(%a), kind=kCustom, calls=%body""",
        body=f"%r = {RING} parameter(0)\nROOT %s = {RING} reduce-scatter(%r), to_apply=%main",
    )
    entry = program.entry
    found = [access.exchange(program, entry, one) for one in entry.instructions]
    names = [inner and (inner[0].name, inner[1].name) for inner in found]
    assert names == [None, ("main", "g"), None, ("body", "s")]
