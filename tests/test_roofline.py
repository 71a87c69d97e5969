"""Guarantees of the HLO reader and of the roofline: known programs have known FLOPs, bytes and
times."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.cost.hardware import HARDWARE, chip_of
from rlhf_jax.tools.aot.hlo import first_group
from rlhf_jax.tools.aot.program import Program
from rlhf_jax.tools.aot.roofline import Machine, Roofline, collectives

V5E = HARDWARE["tpu-v5e"]
POD = Machine(V5E, (16, 16), [(i, j) for i in range(16) for j in range(16)])

# A loop of 12 layers: an all-gather that runs beside a matmul, and a reduction that nothing hides.
LOOP = """
HloModule step, is_scheduled=true

%gather (p: bf16[8,128]) -> (bf16[8,128], bf16[2048,128], u32[]) {
  %p = bf16[8,128]{1,0} parameter(0)
  %ag.1 = bf16[2048,128]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,256]<=[256], dimensions={0}
  ROOT %cc = (bf16[8,128]{1,0}, bf16[2048,128]{1,0}, u32[]) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion (q: bf16[512,256], r: bf16[256,512], s: bf16[2048,128]) -> bf16[512,512] {
  %q = bf16[512,256]{1,0} parameter(0)
  %r = bf16[256,512]{1,0} parameter(1)
  %s = bf16[2048,128]{1,0} parameter(2)
  %ag.2 = bf16[2048,128]{1,0} all-gather(%s), channel_id=1, replica_groups=[1,256]<=[256], dimensions={0}
  ROOT %d = bf16[512,512]{1,0} dot(%q, %r), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%gathered (t: bf16[2048,128]) -> bf16[2048,128] {
  %t = bf16[2048,128]{1,0} parameter(0)
  %ag.3 = bf16[2048,128]{1,0} all-gather(%t), channel_id=1, replica_groups=[1,256]<=[256], dimensions={0}
  ROOT %cd = bf16[2048,128]{1,0} custom-call(%ag.3), custom_call_target="AsyncCollectiveDone"
}

%body (state: (s32[], bf16[8,128], bf16[512,256], bf16[256,512])) -> (s32[], bf16[8,128], bf16[512,256], bf16[256,512]) {
  %state = (s32[], bf16[8,128]{1,0}, bf16[512,256]{1,0}, bf16[256,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %w = bf16[8,128]{1,0} get-tuple-element(%state), index=1
  %x = bf16[512,256]{1,0:S(1)} get-tuple-element(%state), index=2
  %y = bf16[256,512]{1,0:S(1)} get-tuple-element(%state), index=3
  %one = s32[] constant(1)
  %start = (bf16[8,128]{1,0}, bf16[2048,128]{1,0}, u32[]) fusion(%w), kind=kCustom, calls=%gather
  %full = bf16[2048,128]{1,0} get-tuple-element(%start), index=1
  %z = bf16[512,512]{1,0:S(1)} fusion(%x, %y, %full), kind=kCustom, calls=%async_collective_fusion
  %done = bf16[2048,128]{1,0} fusion(%full), kind=kCustom, calls=%gathered
  %sum = bf16[512,512]{1,0} all-reduce(%z), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, to_apply=%add
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], bf16[8,128]{1,0}, bf16[512,256]{1,0}, bf16[256,512]{1,0}) tuple(%next, %w, %x, %y)
}

%condition (c: (s32[], bf16[8,128], bf16[512,256], bf16[256,512])) -> pred[] {
  %c = (s32[], bf16[8,128]{1,0}, bf16[512,256]{1,0}, bf16[256,512]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: bf16[8,128], b: bf16[512,256], e: bf16[256,512]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %b = bf16[512,256]{1,0} parameter(1)
  %e = bf16[256,512]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %begin = (s32[], bf16[8,128]{1,0}, bf16[512,256]{1,0}, bf16[256,512]{1,0}) tuple(%zero, %a, %b, %e)
  %loop = (s32[], bf16[8,128]{1,0}, bf16[512,256]{1,0}, bf16[256,512]{1,0}) while(%begin), condition=%condition, body=%body
  ROOT %end = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_it_turns():
    program = Program(LOOP)
    assert program.unread_loops() == []
    assert program.total_flops() == 12 * 2 * 512 * 256 * 512


def test_collectives_are_counted_once_each_with_bytes_and_groups():
    found = {c["kind"]: c for c in collectives(Program(LOOP), POD)}
    gathered, reduced = found["all-gather"], found["all-reduce"]
    assert (gathered["count"], gathered["devices"]) == (12, 256)
    assert gathered["bytes"] == gathered["overlapped_bytes"] == 12 * 2048 * 128 * 2
    assert (reduced["count"], reduced["devices"], reduced["overlapped_bytes"]) == (12, 16, 0)
    assert reduced["bytes"] == 12 * 512 * 512 * 2


def test_time_is_compute_then_what_no_computation_hides():
    e = Roofline(Program(LOOP), POD).estimate(matmul=0.5)
    gather = 2048 * 128 * 2 * 255 / 256 / (4 * V5E.link_bandwidth)  # both rings, both ways
    reduce = 2 * 512 * 512 * 2 * 15 / 16 / (2 * V5E.link_bandwidth)  # one ring, both ways
    # What the matmul reads lies on the chip, but the gathered weight goes through HBM.
    matmul = max(2 * 512 * 256 * 512 / (0.5 * V5E.flops), 2048 * 128 * 2 / V5E.bandwidth)
    assert e.seconds == pytest.approx(12 * (max(gather, matmul) + reduce), rel=1e-4)
    assert e.exposed == pytest.approx(12 * (max(0, gather - matmul) + reduce), rel=1e-4)
    assert e.interconnect == pytest.approx(12 * (gather + reduce))


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, dims", (0, 2)),
        ("replica_groups=[2,4]<=[8], dims", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dims", (0, 4)),
        ("replica_groups=mesh['data'=1,'fsdp'=2,'tensor'=2] {'fsdp'}, dims", (0, 2)),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1)),
    ],
)
def test_groups_are_read_in_every_way_they_are_written(attributes, group):
    assert first_group(attributes) == group


def test_links_follow_the_torus():
    assert POD.links(range(256)) == 4 and POD.links(range(16)) == 2
    assert POD.links(range(4)) == 1  # a part of a ring is a line
    line = Machine(V5E, (4, 4), [(i, j) for i in range(4) for j in range(4)])
    assert line.links(range(16)) == 2  # 4 x 4 of v5e has no wrap-around
    cores = Machine(
        HARDWARE["tpu-v4"], (2, 2, 1), [(i, j, 0) for i in range(2) for j in range(2)] * 2
    )
    assert cores.share == 0.5
    assert chip_of("v5p:8x8x8").ring == 4


def convolution(shapes, window, labels):
    (left, right, out) = shapes
    return Program(f"""
ENTRY %main (a: {left}, b: {right}) -> {out} {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {out} convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}
""").total_flops()


def test_convolutions_that_stand_for_dots_count_what_the_dots_count():
    # BTD,DHC->BTHC as a TPU writes it: 12 heads are taps, of which one at a time meets the input.
    shapes = ("bf16[8,1024,768,1]", "bf16[768,12,64,1]", "bf16[8,1024,12,64]")
    window = "size=1x12 pad=0_0x11_11 rhs_reversal=0x1"
    assert convolution(shapes, window, "0bf1_i1o0->0b1f") == 2 * 8 * 1024 * 768 * 12 * 64
    shapes = ("bf16[8,1024,768]", "bf16[768,3072,1]", "bf16[8,1024,3072]")
    assert convolution(shapes, "size=1", "0bf_io0->0bf") == 2 * 8 * 1024 * 768 * 3072


def test_splash_counts_the_blocks_under_the_causal_mask():
    program = Program("""
ENTRY %main (m: s8[1,4,4], q: bf16[2,8,2048,128]) -> bf16[2,8,2048,128] {
  %m = s8[1,4,4] parameter(0)
  %q = bf16[2,8,2048,128] parameter(1)
  ROOT %splash_mha_fwd_segmented = bf16[2,8,2048,128] custom-call(%m, %q, %q, %q), custom_call_target="tpu_custom_call"
}
""")  # noqa: E501
    blocks = 10 / 16  # of 4 x 4
    assert program.total_flops() == 2 * (2 * 2 * 8 * 2048 * 2048 * 128) * blocks


def test_a_compiled_scan_of_matmuls_counts_every_one():
    """Of whatever XLA makes of it on this machine, gradients included."""

    def loss(ws, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0])

    shapes = jax.ShapeDtypeStruct((7, 32, 32), "float32"), jax.ShapeDtypeStruct((64, 32), "float32")
    text = jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text()
    program = Program(text)
    assert program.unread_loops() == []
    assert program.total_flops() == 7 * 3 * 2 * 64 * 32 * 32


def test_slices_of_a_stack_cost_what_is_sliced():
    program = Program("""
%pick (p: f32[100,64], i: s32[]) -> f32[1,64] {
  %p = f32[100,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %s = f32[1,64]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,64}
}

ENTRY %main (a: f32[100,64], j: s32[]) -> f32[1,64] {
  %a = f32[100,64]{1,0} parameter(0)
  %j = s32[] parameter(1)
  ROOT %f = f32[1,64]{1,0} fusion(%a, %j), kind=kLoop, calls=%pick
}
""")
    (op, inside, _) = next(x for x in program.walk() if x[0].code == "fusion")
    assert program.hbm_bytes(op, inside) == 64 * 4 * 2 + 4 + 0  # read, written, and the index
