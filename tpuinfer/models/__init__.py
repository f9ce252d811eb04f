"""Model families as flax.nnx blueprints: one file a family, composed of the same blocks.

A blueprint is abstract: its Params hold shapes and logical axes, and it needs no mesh, no random
numbers and no arrays to build. `registry` reads a config.json and builds the right family;
`blueprint` lists a blueprint's parameters and binds real arrays to it inside a program. This is the
only room that knows flax.nnx; it knows nothing of files, programs or requests.
"""
