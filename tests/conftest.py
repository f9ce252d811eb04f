"""Every test runs on 8 simulated CPU devices; rank promotion is an error, warnings are too."""

import jax

from tpuinfer.sharding.simulate import prepare_cpu_devices

prepare_cpu_devices(8)
jax.config.update("jax_numpy_rank_promotion", "raise")
