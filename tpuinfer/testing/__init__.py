"""Stand-ins for tests: small enough that what they answer can be worked out by hand.

fake        FakeRunner, FakeTokenizer: the accelerator and the vocabulary as arithmetic
tiny        tiny(config, mesh, ...): a small random model on a mesh, with its programs compiled
reference   logits, greedy: Llama once more, in numpy over the whole sequence
drive       works, run: prompts on a runner by hand, without an engine

Nothing in tpuinfer imports this room. All public names are imported from their modules.
"""
