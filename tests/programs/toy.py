"""A program small enough to compile in milliseconds, with params, a donated state and a rest."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpuinfer.programs.compile import ProgramSpec, compile_programs


def whole():
    return NamedSharding(Mesh(np.asarray(jax.devices()[:2]), ("data",)), PartitionSpec())


def toy_spec(name="toy", rows=4, scale=2.0):
    """state.sum += scale * params.w * row's sum, and the sums; a new function at each call."""

    def program(params, state, rows, n):
        sums = rows.sum(axis=1) * n
        total = state["sum"] + scale * params["w"] * sums.sum()
        return {"sum": total, "calls": state["calls"] + 1}, sums

    def abstract(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole())

    arguments = (
        {"w": abstract((8,), jnp.float32)},
        {"sum": abstract((8,), jnp.float32), "calls": abstract((), jnp.int32)},
        abstract((rows, 3), jnp.int32),
        abstract((), jnp.int32),
    )
    state = {"sum": whole(), "calls": whole()}
    return ProgramSpec(name, program, arguments, (state, whole()))


def toy(name="toy", rows=4, scale=2.0):
    return compile_programs([toy_spec(name, rows, scale)])[name]


def toy_params():
    return {"w": jax.device_put(np.arange(8, dtype=np.float32), whole())}


def toy_state():
    return jax.device_put({"sum": np.zeros(8, np.float32), "calls": np.int32(0)}, whole())
