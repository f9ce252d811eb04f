"""Pure array functions: norm, rope, linear, attention, sampling; encoder, for whole texts.

They take and return arrays; they know nothing of models, meshes, checkpoints or requests. What
must run per device (attention over a ring) is written for the local shapes and placed by its
caller.
"""
