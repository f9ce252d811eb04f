"""What a model would do on chips that are not here: memory, traffic, bounds, and what would fit.

Modules and public names:
  hlo       parse; Module, Computation, Instruction, Call, Array: optimised HLO text, as data
  access    read, written: which bytes of HBM an instruction touches
  traffic   measure; Traffic, Assumed: all that a program moves, and on which parameters
  hardware  find, by_device_kind; Chip, Flops: what chips hold and how fast they are
  topology  parse, meshes, check_mesh; Topology: slices by name
  question  Question, lay_out, find_model: what is asked
  memory    estimate; Hbm: what lies on a device, reckoned
  exchanges Exchange, Tally: collectives by mesh axes, reckoned from where things lie
  work      decode, prefill; Work: what a program cannot do without
  travel    resharding, rules_in_words: tables of rules, and weights that travel to prefill
  roofline  bound; Bound: the least time that takes, and what bounds it
  compiled  compile_all; Measured: what the TPU compiler makes of a plan's programs
  answer    answer; Answer, Program: all of it
  remedies, compare    what would work instead; every mesh of a slice, ranked
  as_json, as_text     an answer for machines and for people
  best      best_mesh, choose: the mesh that --mesh auto stands for
  running   explain: the same for devices that are here, when a start runs out of memory

hlo, access and traffic know no models: programs come compiled, and parameters are known by the
names that tracing gave them. Ignorant of flags, tokenizers and requests; loads no weights.
"""
