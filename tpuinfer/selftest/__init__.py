"""What a machine's devices do with our programs: `python -m tpuinfer.doctor --selftest`.

kernels   check: every form of the layer step by kernels, against XLA's own, on the device
whole     check: a model with random weights: its bits under permuted slots, its memory against the
          plan's, its decode step against the bound
report    selftest: all of it, as findings and figures to send back

Runs what is compiled, on the devices that there are; loads no checkpoint, reads no network.
"""
