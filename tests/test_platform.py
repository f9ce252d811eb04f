import dataclasses

import pytest

from tpuinfer.platform import (
    PlatformSettings,
    for_attention,
    for_context,
    platform_settings,
)


def test_the_cpu_pads_rows_and_keeps_its_ring_in_float32():
    cpu = platform_settings("cpu")
    assert (cpu.ring_dtype, cpu.min_rows, cpu.steps) == ("float32", 4, 1)


def test_an_unknown_platform_runs_like_a_tpu_that_has_no_kernels():
    plain = dataclasses.replace(platform_settings("tpu"), attention="reference", pallas=None)
    assert platform_settings("neuron") == plain != platform_settings("gpu")


@pytest.mark.parametrize(
    ("platform", "asked", "reads"),
    [
        ("tpu", "auto", "pallas"),
        ("tpu", "reference", "reference"),
        ("tpu", "pallas", "pallas"),
        ("cpu", "auto", "reference"),
        ("cpu", "pallas", "interpret"),
        ("gpu", "auto", "reference"),
        ("gpu", "pallas", "reference"),
    ],
)
def test_what_reads_the_rings(platform, asked, reads):
    assert for_attention(platform_settings(platform, 8), asked).attention == reads


def test_simulated_devices_share_one_prefill_width():
    simulated = platform_settings("cpu", devices=8)
    assert simulated.smallest_bucket == simulated.chunk < platform_settings("cpu").chunk
    assert platform_settings("tpu", devices=8) == platform_settings("tpu")


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_buckets_and_blocks_fit_each_other(platform, devices):
    settings = platform_settings(platform, devices)
    assert 1 <= settings.smallest_bucket <= settings.chunk <= settings.default_context
    assert settings.default_context % settings.block == 0
    assert settings.min_rows >= 1
    assert settings.steps >= 1


@pytest.mark.parametrize(
    ("context", "chunk", "block"),
    [(2, 32, 32), (32, 32, 32), (33, 64, 64), (100, 128, 128), (256, 256, 128), (9999, 512, 128)],
)
def test_chunk_and_block_shrink_with_the_context(context, chunk, block):
    settings = PlatformSettings(chunk=512, block=128, smallest_bucket=32)
    small = for_context(settings, context, context)
    assert (small.chunk, small.block) == (chunk, block)
    assert small.smallest_bucket == 32


def test_the_longest_class_sets_the_chunk_and_the_shortest_the_block():
    settings = PlatformSettings(chunk=512, block=128, smallest_bucket=32)
    small = for_context(settings, 40, 200)
    assert (small.chunk, small.block) == (256, 64)


@pytest.mark.parametrize(
    ("longest", "chunk"), [(16, 16), (63, 32), (64, 64), (65, 64), (9999, 512)]
)
def test_a_ring_that_rolls_holds_a_chunk_whole(longest, chunk):
    settings = PlatformSettings(chunk=512, block=128, smallest_bucket=32)
    assert for_context(settings, 16, longest, rolls=True).chunk == chunk <= longest


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_prompt_of_its_own_always_has_a_program(platform):
    for devices in (1, 8):
        rows = platform_settings(platform, devices).prefill_rows
        assert rows[0] == 1
        assert list(rows) == sorted(set(rows))


def test_float32_is_float32_where_the_platform_would_round():
    assert platform_settings("cpu").float32_precision is None
    for platform in ("gpu", "tpu"):
        assert platform_settings(platform).float32_precision == "highest"
