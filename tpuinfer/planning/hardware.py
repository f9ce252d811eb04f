"""What a chip holds and how fast it is, as its vendor says. Data only: no jax, no device.

Vendors' GB of device memory are 2**30 bytes here: a v5e "16 GB" chip has 15.75 GiB for programs,
which is more than 16e9 bytes. GB/s and TFLOP/s are powers of ten.

TPU memory that programs may use is what the compiler (libtpu 0.0.42.1) says in RESOURCE_EXHAUSTED
for that chip ("exceeds available HBM (15.75G)"); GPU memory is what the driver reports. jax takes
three quarters of a GPU's unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.

Interconnect: Google states the bandwidth of a chip's links together, both ways ("bidirectional
inter-chip interconnect bandwidth per chip, 400 GBps"), and wrote the same as one way in bits before
("1600 Gbps"). NVIDIA's NVLink figures are both ways too. All are halved here, to what a chip can
send while it receives as much. One link carries `ici_bandwidth / ici_links`; a ring over one torus
dimension uses two of them.
"""

import difflib
from dataclasses import dataclass

from tpuinfer.errors import MeshError

_GIB = 2**30
_MIB = 2**20


@dataclass(frozen=True)
class Flops:
    """Dense operations a second of a chip by the dtype of both operands; None = not stated."""

    bf16: float
    int8: float | None = None
    fp8: float | None = None


@dataclass(frozen=True)
class Chip:
    """One kind of chip. All numbers are of a chip, whatever number of jax devices it shows as.

    Attributes:
      name: as plans and flags call it.
      title: for people.
      hbm_bytes: memory as sold, in bytes.
      hbm_usable_bytes: what programs may use of it.
      hbm_bandwidth: bytes a second.
      flops: dense operations a second.
      ici_bandwidth: bytes a second that all links together send, one way; a GPU without links of
        its own has PCIe's.
      ici_links: how many; 0 = PCIe only.
      torus: dimensions of the torus that slices are cut from: 2 or 3; 0 = a switch joins all chips.
      devices_per_chip: how many jax devices it shows as.
      chips_per_host: of the largest usual machine.
      accelerator_type: what comes before the number in the cloud's name of a slice; for v4, v5p and
        tpu7x that number counts TensorCores, two a chip, for the others chips. Of GPUs the name of
        one.
      device_kinds: jax's `device_kind` of it.
    """

    name: str
    title: str
    hbm_bytes: int
    hbm_usable_bytes: int
    hbm_bandwidth: float
    flops: Flops
    ici_bandwidth: float
    ici_links: int
    torus: int
    devices_per_chip: int
    chips_per_host: int
    accelerator_type: str
    device_kinds: tuple[str, ...]


# docs.cloud.google.com/tpu/docs/v4: 275 teraflops (bf16 or int8), 32 GiB, 1200 GBps, 3D mesh; the
# announcement of the v5p compares with 1228 GB/s and 2400 Gbps. Described to the compiler, the chip
# is two devices of 15.25 GiB; on a machine it is one device (megacore).
_V4 = Chip(
    name="v4",
    title="TPU v4",
    hbm_bytes=32 * _GIB,
    hbm_usable_bytes=2 * 61 * _GIB // 4,
    hbm_bandwidth=1228e9,
    flops=Flops(bf16=275e12, int8=275e12),
    ici_bandwidth=300e9,
    ici_links=6,
    torus=3,
    devices_per_chip=1,
    chips_per_host=4,
    accelerator_type="v4",
    device_kinds=("TPU v4",),
)

# docs.cloud.google.com/tpu/docs/v5e: 197 TFLOPs bf16, 393 TOPs int8, 16 GB, 819 GBps, 4 ports,
# bidirectional ICI 400 GBps, 2D torus, 8 chips a host.
_V5E = Chip(
    name="v5e",
    title="TPU v5e",
    hbm_bytes=16 * _GIB,
    hbm_usable_bytes=63 * _GIB // 4,
    hbm_bandwidth=819e9,
    flops=Flops(bf16=197e12, int8=393e12),
    ici_bandwidth=200e9,
    ici_links=4,
    torus=2,
    devices_per_chip=1,
    chips_per_host=8,
    accelerator_type="v5litepod",
    device_kinds=("TPU v5 lite", "TPU v5e"),
)

# docs.cloud.google.com/tpu/docs/v5p: 459 TFLOPs bf16, 95 GB, 2765 GBps, ICI 4800 Gbps, 3D torus;
# docs.cloud.google.com/tpu/docs/tpu7x: the same with FP8 459, bidirectional ICI 1200 GBps;
# cloud.google.com/blog/products/ai-machine-learning/introducing-cloud-tpu-v5p-and-ai-hypercomputer:
# 918 TOPs int8. The compiler gives 95.74 GiB, more than is sold.
_V5P = Chip(
    name="v5p",
    title="TPU v5p",
    hbm_bytes=95 * _GIB,
    hbm_usable_bytes=9574 * _GIB // 100,
    hbm_bandwidth=2765e9,
    flops=Flops(bf16=459e12, int8=918e12, fp8=459e12),
    ici_bandwidth=600e9,
    ici_links=6,
    torus=3,
    devices_per_chip=1,
    chips_per_host=4,
    accelerator_type="v5p",
    device_kinds=("TPU v5", "TPU v5p"),
)

# docs.cloud.google.com/tpu/docs/v6e: 918 TFLOPs bf16, 1836 TOPs int8, 32 GB, bidirectional ICI 800
# GBps, 4 ports, 2D torus, 8 chips a host; HBM 1640 GBps (1600 and 1638 in other editions of these
# pages). FP8 918: docs.cloud.google.com/tpu/docs/tpu7x.
_V6E = Chip(
    name="v6e",
    title="TPU v6e (Trillium)",
    hbm_bytes=32 * _GIB,
    hbm_usable_bytes=125 * _GIB // 4,
    hbm_bandwidth=1640e9,
    flops=Flops(bf16=918e12, int8=1836e12, fp8=918e12),
    ici_bandwidth=400e9,
    ici_links=4,
    torus=2,
    devices_per_chip=1,
    chips_per_host=8,
    accelerator_type="v6e",
    device_kinds=("TPU v6 lite", "TPU v6e"),
)

# docs.cloud.google.com/tpu/docs/tpu7x: 2307 TFLOPs BF16, 4614 FP8, 192 GiB, 7380 GB/s,
# bidirectional ICI 1200 GB/s, 4 chips a machine, two TPU devices a chip. int8 is not stated.
_TPU7X = Chip(
    name="tpu7x",
    title="TPU7x (Ironwood)",
    hbm_bytes=192 * _GIB,
    hbm_usable_bytes=2 * 379 * _GIB // 4,
    hbm_bandwidth=7380e9,
    flops=Flops(bf16=2307e12, fp8=4614e12),
    ici_bandwidth=600e9,
    ici_links=6,
    torus=3,
    devices_per_chip=2,
    chips_per_host=4,
    accelerator_type="tpu7x",
    device_kinds=("TPU7x", "TPU v7x"),
)

# nvidia.com/en-us/data-center/a100: 312 TFLOPS bf16, 624 TOPS int8 dense, 80 GB, 2039 GB/s, NVLink
# 600 GB/s (12 links); CUDA's deviceQuery says 81251 MBytes.
_A100 = Chip(
    name="a100-80gb",
    title="NVIDIA A100 80GB SXM",
    hbm_bytes=80 * _GIB,
    hbm_usable_bytes=81_251 * _MIB,
    hbm_bandwidth=2039e9,
    flops=Flops(bf16=312e12, int8=624e12),
    ici_bandwidth=300e9,
    ici_links=12,
    torus=0,
    devices_per_chip=1,
    chips_per_host=8,
    accelerator_type="nvidia-a100-80gb",
    device_kinds=("NVIDIA A100-SXM4-80GB",),
)

# nvidia.com/en-us/data-center/h100: 1979 TFLOPS bf16, 3958 fp8 and int8, all with sparsity, so half
# of each; 80 GB, 3.35 TB/s, NVLink 900 GB/s (18 links); nvidia-smi says 81559MiB.
_H100 = Chip(
    name="h100",
    title="NVIDIA H100 80GB SXM",
    hbm_bytes=80 * _GIB,
    hbm_usable_bytes=81_559 * _MIB,
    hbm_bandwidth=3350e9,
    flops=Flops(bf16=989e12, int8=1979e12, fp8=1979e12),
    ici_bandwidth=450e9,
    ici_links=18,
    torus=0,
    devices_per_chip=1,
    chips_per_host=8,
    accelerator_type="nvidia-h100-80gb",
    device_kinds=("NVIDIA H100 80GB HBM3",),
)

# nvidia.com/en-us/data-center/h200: the H100's compute and NVLink, 141 GB, 4.8 TB/s; nvidia-smi
# says 143771MiB.
_H200 = Chip(
    name="h200",
    title="NVIDIA H200 SXM",
    hbm_bytes=141 * _GIB,
    hbm_usable_bytes=143_771 * _MIB,
    hbm_bandwidth=4800e9,
    flops=Flops(bf16=989e12, int8=1979e12, fp8=1979e12),
    ici_bandwidth=450e9,
    ici_links=18,
    torus=0,
    devices_per_chip=1,
    chips_per_host=8,
    accelerator_type="nvidia-h200-141gb",
    device_kinds=("NVIDIA H200",),
)

# nvidia.com/en-us/data-center/l4: 242 TFLOPS bf16, 485 fp8 and int8, all with sparsity, so half of
# each; 24 GB, 300 GB/s, PCIe Gen4 x16 64 GB/s; nvidia-smi says 23034MiB.
_L4 = Chip(
    name="l4",
    title="NVIDIA L4",
    hbm_bytes=24 * _GIB,
    hbm_usable_bytes=23_034 * _MIB,
    hbm_bandwidth=300e9,
    flops=Flops(bf16=121e12, int8=242.5e12, fp8=242.5e12),
    ici_bandwidth=32e9,
    ici_links=0,
    torus=0,
    devices_per_chip=1,
    chips_per_host=8,
    accelerator_type="nvidia-l4",
    device_kinds=("NVIDIA L4",),
)

CHIPS = {chip.name: chip for chip in (_V4, _V5E, _V5P, _V6E, _TPU7X, _A100, _H100, _H200, _L4)}
"""Every chip by name."""

_BY_KIND = {kind: chip for chip in CHIPS.values() for kind in chip.device_kinds}


def find(name: str) -> Chip:
    """The chip of a name, in upper or lower case.

    Raises:
      MeshError: there is none; names the nearest and lists them all.
    """
    if (chip := CHIPS.get(name.strip().lower())) is not None:
        return chip
    near = difflib.get_close_matches(name.lower(), CHIPS, n=1, cutoff=0.0)[0]
    raise MeshError(f"chip is {name!r}: one of {', '.join(CHIPS)}; nearest: {near}")


def by_device_kind(kind: str) -> Chip | None:
    """The chip that jax calls by this `device_kind`; None where it is not in the table.

    Only whole names count: an H100 on PCIe or a slice of a GPU (MIG) has other numbers.
    """
    return _BY_KIND.get(kind.strip())
