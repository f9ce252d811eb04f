"""The ring-buffer KV cache.

spec       shape, axes, bytes       held       rings, and the rows of a call
write      rows into rings          ring       write and attend, in one shard_map per layer
by_kernel  by Pallas kernels        by_length  rings that are cut along their length

One ring per layer and slot; position p lies in column p mod L, and what a column holds follows
from the slot's newest position alone. It knows nothing of requests, models or tokens.
"""
