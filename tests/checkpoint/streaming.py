"""How much host memory a conversion takes, measured in a process of its own."""

import json
import multiprocessing
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny_hf


def write_model(path: Path, *, vocab: int, embed: int, mlp: int, layers: int) -> int:
    """A llama model of random bfloat16 values, written without holding it; returns its bytes."""
    config = tiny_hf.CONFIG | {
        "vocab_size": vocab,
        "hidden_size": embed,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": embed // 64,
        "num_key_value_heads": embed // 64,
        "head_dim": 64,
        "tie_word_embeddings": True,
    }
    tiny_hf.write_texts(path, config)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, embed)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{part}_proj.weight": (embed, embed) for part in "qkvo"}
        shapes |= {f"{at}mlp.{part}_proj.weight": (mlp, embed) for part in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (embed, mlp)
        shapes[f"{at}input_layernorm.weight"] = (embed,)
        shapes[f"{at}post_attention_layernorm.weight"] = (embed,)
    shapes["model.norm.weight"] = (embed,)
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    noise = np.random.default_rng(0).bytes(2**24 + 1)
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, at, len(noise)):
            file.write(noise[: at - start])
    return at


def load(path: Path, weights: str) -> None:
    """Read a checkpoint's weights onto one device; "auto" is as they are stored."""
    from tpuinfer.checkpoint import load as room

    abstract = _abstract(path, weights)
    assert room.load_params(path, abstract).keys() == abstract.keys()


def bytes_of(path: Path, weights: str) -> int:
    """What they take there."""
    from tpuinfer.quant.qarray import QArray, bytes_of

    return sum(
        one.nbytes if isinstance(one, QArray) else bytes_of(one.shape, one.dtype)
        for one in _abstract(path, weights).values()
    )


def _abstract(path: Path, weights: str) -> dict[str, Any]:
    from tpuinfer.checkpoint import load as room
    from tpuinfer.engine.plan import abstract_weights, plan_of
    from tpuinfer.models import registry

    config = registry.read_config(room.read_config(path))
    wanted = room.stored_schemes(path) if weights == "auto" else weights
    return abstract_weights(plan_of(config, dtype="bfloat16", weights=wanted))


def peak_of(work: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of memory that `work` takes at most, beyond what a process has that imported it all."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, work, arguments))
    child.start()
    sender.close()
    child.join()
    assert child.exitcode == 0
    return int(receiver.recv())


def _measure(sender: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from tpuinfer.checkpoint import orbax_store

    jax.device_put(np.zeros(4), jax.local_devices(backend="cpu")[0]).block_until_ready()
    import tpuinfer.engine.build

    assert orbax_store.save
    assert tpuinfer.engine.build.load
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    base = _high_water()
    work(*arguments)
    sender.send(_high_water() - base)


def _high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
