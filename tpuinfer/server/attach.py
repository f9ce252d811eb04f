"""A loaded model of either kind, handed to a bridge."""

from typing import TYPE_CHECKING

from tpuinfer.server.bridge import Bridge

if TYPE_CHECKING:
    from tpuinfer.engine.build import Loaded
    from tpuinfer.engine.encoder import LoadedEncoder


def attach(bridge: Bridge, loaded: "Loaded | LoadedEncoder", *, max_waiting: int) -> None:
    """The bridge is ready from here on.

    Args:
      max_waiting: texts that may wait for an encoder; a decoder's engine has its own bound.
    """
    from tpuinfer.engine.encoder import LoadedEncoder
    from tpuinfer.server.encoding import EncoderThread

    if isinstance(loaded, LoadedEncoder):
        width = loaded.plan.config.embed
        thread = EncoderThread(loaded.embedder, width=width, max_waiting=max_waiting)
        bridge.attach_encoder(thread, loaded.tokenizer)
    else:
        bridge.attach(loaded.engine, loaded.tokenizer)
