"""What each platform likes, in one place. Data only: no jax, no device is touched.

The CPU column comes from measurements (BUILD_NOTES.md): bf16 dots need at least four rows to take
the fast path and to give every row the same bits, a bf16 ring is converted whole at each write,
more than one step per dispatch gains nothing, a chunk of 256 is as fast per token as one of 512,
every program costs a second at each start, compiled or not (so one prompt per prefill: four prompts
of 64 together take 486 ms, one after the other 580), an encoder gains little from more than 128
tokens at a time (MiniLM, 32 wide, per padded token: 318 us with 1 row, 203 with 4, 264 with 16),
and the library that has the fast dots must not have the reductions, whose bits change with the
number of rows. A compiled program refuses int4 arrays that lie on a mesh (jax 0.10.2: their layout
says 0 bits an element, the program's 4).

Mixtures of experts on the CPU: ragged products have no kernel there and take 2.5 to 9 times as long
as all experts computing all rows (8 of 512 x 1024, 2 active, bf16: 9.3 against 1.7 ms for 4 rows,
58 against 23 for 128), and in float32 their bits may change with the number of rows. TPUs and GPUs
stay dense too until one has shown that a row's bits do not depend on its neighbours there. As
compiled for a v5e (197 TFLOP/s, 819 GB/s), dense reads each weight once, in which time it computes
240 rows; XLA's ragged kernel wants them transposed, three times the traffic, so that it would pay
for several full chunks at once.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

Attention = Literal["reference", "pallas", "interpret"]
"""What reads the rings: XLA, the kernels of `ops.kernels`, or those interpreted by XLA."""


@dataclass(frozen=True)
class PlatformSettings:
    """Choices that depend on the hardware, never on the load.

    Attributes:
      dtype: of weights and activations when the user says "auto".
      ring_dtype: of the KV ring; None = the dtype of the activations.
      min_rows: rows per data shard that a matmul must have; fewer are padded.
      steps: decode steps in one dispatch.
      chunk: tokens in a full prefill chunk.
      smallest_bucket: width of the narrowest tail bucket.
      prefill_rows: how many prompts per data shard one prefill may take, 1 first.
      prefill_tokens: padded tokens per data shard that a prefill of several prompts may have.
      narrow_rows: rows per data shard of further decode programs, for when few slots are live.
      block: ring columns that attention reads at a time; ring lengths are multiples of it, but for
        windows that are shorter.
      encode_tokens: padded tokens per data shard in one dispatch of an encoder.
      encode_smallest: width of an encoder's narrowest program.
      compiler_options: XLA's, for every program.
      float32_precision: of products of float32 numbers; None = the platform's own, which on TPUs
        and GPUs is less than float32.
      ragged_tokens: tokens of one row in a call from which a mixture's experts compute only the
        rows that chose them, sorted; below, and always if None, every expert computes every row.
      packs_int4: 4-bit codes are kept two in a byte, not as int4.
      most_slots: of one data shard, where memory decides on slots. With some 240 rows a v5e
        multiplies as long as it reads weights (197 TFLOP/s, 819 GB/s), a CPU with a few.
      default_context: ring length when nobody says one (and the model allows it).
      attention: what reads the rings. pallas: what does if kernels are asked for; None = there are
        none for this platform.
    """

    dtype: str = "bfloat16"
    ring_dtype: str | None = None
    min_rows: int = 1
    steps: int = 8
    chunk: int = 512
    smallest_bucket: int = 32
    prefill_rows: tuple[int, ...] = (1, 4, 8)
    prefill_tokens: int = 2048
    narrow_rows: tuple[int, ...] = ()
    block: int = 512
    default_context: int = 2048
    most_slots: int = 256
    encode_tokens: int = 4096
    encode_smallest: int = 32
    ragged_tokens: int | None = None
    compiler_options: tuple[tuple[str, str], ...] = ()
    float32_precision: str | None = None
    packs_int4: bool = False
    attention: Attention = "reference"
    pallas: Attention | None = None


_CPU = PlatformSettings(
    most_slots=16,
    ring_dtype="float32",
    min_rows=4,
    steps=1,
    chunk=256,
    smallest_bucket=64,
    prefill_rows=(1,),
    narrow_rows=(4, 8),
    block=128,
    encode_tokens=128,
    compiler_options=(
        ("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"),
    ),
    packs_int4=True,
    pallas="interpret",
)

_SIMULATED = dataclasses.replace(
    _CPU, chunk=128, smallest_bucket=128, narrow_rows=(), encode_smallest=128
)
"""Several devices on one CPU: a program's first run costs a second per device, so there is one
prefill and one decode."""

_SETTINGS = {
    "cpu": _CPU,
    "gpu": PlatformSettings(min_rows=1, steps=8, float32_precision="highest"),
    "tpu": PlatformSettings(
        min_rows=8, steps=8, float32_precision="highest", attention="pallas", pallas="pallas"
    ),
}

_UNKNOWN = dataclasses.replace(_SETTINGS["tpu"], attention="reference", pallas=None)


def platform_settings(platform: str, devices: int = 1) -> PlatformSettings:
    """The settings of a jax platform name ("cpu", "gpu", "tpu"); unknown ones run like a TPU
    without kernels.

    Args:
      devices: how many the mesh has; on a CPU more than one are simulated.
    """
    if platform == "cpu" and devices > 1:
        return _SIMULATED
    return _SETTINGS.get(platform, _UNKNOWN)


def for_attention(
    settings: PlatformSettings, asked: Literal["auto", "reference", "pallas"]
) -> PlatformSettings:
    """The settings with what was asked for to read the rings, where the platform has it.

    >>> for_attention(platform_settings("cpu"), "pallas").attention
    'interpret'
    """
    if asked == "auto":
        return settings
    chosen = settings.pallas if asked == "pallas" else None
    return dataclasses.replace(settings, attention=chosen or "reference")


def for_context(
    settings: PlatformSettings, shortest: int, longest: int, rolls: bool = False
) -> PlatformSettings:
    """Shrink chunk and block so that neither exceeds what slots of these lengths can use.

    A request that rolls has chunks that its ring holds whole.

    >>> for_context(PlatformSettings(chunk=512, block=512), 100, 100).chunk
    128
    """
    widths = [
        max(settings.smallest_bucket, 1 << (context - 1).bit_length())
        for context in (shortest, longest)
    ]
    chunk = min(settings.chunk, widths[1])
    if rolls:
        chunk = min(chunk, 1 << (longest.bit_length() - 1))
    return dataclasses.replace(settings, chunk=chunk, block=min(settings.block, widths[0]))
