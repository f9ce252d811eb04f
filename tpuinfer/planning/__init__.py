"""What a program would do on hardware that is not there, read from what the compiler made of it.

Modules and public names:
  hlo       parse; Module, Computation, Instruction, Array: optimised HLO text, as data
  access    read, written: which bytes of HBM an instruction touches
  traffic   measure; Traffic, Assumed: all that a program moves, and on which parameters
  hardware  find, by_device_kind; Chip, Flops: what chips hold and how fast they are

Ignorant of models and of meshes: programs come compiled, and parameters are known by the names that
tracing gave them. Knows no libtpu; whoever has one compiles, and hands over the text.
"""
