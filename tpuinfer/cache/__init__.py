"""The ring-buffer KV cache: `spec` (shape, axes, bytes) and `ring` (write, attend).

`by_kernel`: how Pallas kernels read rings; `by_length`: rings that are cut along their length.

One ring per layer and slot; position p lies in column p mod L, and what a column holds follows
from the slot's newest position alone. It knows nothing of requests, models or tokens.
"""
