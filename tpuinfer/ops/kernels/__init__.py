"""Pallas kernels for TPUs that do what a function of `ops` does, with less traffic.

`ring` attends over rings of keys and values, to `ops.attention`'s definition: `visits` lists the
blocks that it reads, `body` is what it does with one. `write` puts new rows into rings that lie
turned in memory. They know local shapes only, no meshes, models or requests.
"""
