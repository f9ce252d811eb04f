"""Stand-ins for tests: small enough that what they answer can be worked out by hand.

fake      FakeRunner, FakeTokenizer: the accelerator and the vocabulary as arithmetic

Nothing in tpuinfer imports this room. All public names are imported from their modules.
"""
