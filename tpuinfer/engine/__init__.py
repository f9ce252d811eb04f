"""Who runs when, on the host: continuous batching over a few slots.

request   what a caller asks for and gets back: SamplingParams, Request, Delta, RequestOutput
runner    the verbs between the scheduler and the accelerator: Runner, PrefillWork, StepTokens
engine    Engine: add, abort, step; dispatches k + 1 before it reads k
scheduler Scheduler, QueueFullError: waiting -> prefilling -> decoding -> finished; who gives way
lane      Lane: the requests of one kind, interactive or background
slots     SlotPool: which rows are free
answer    Answer: from one row's token ids to text, and the rules by which a row ends
metrics   Metrics, Histogram: what is counted meanwhile
device    DeviceRunner: the runner that computes, over compiled programs
build     make_plan, load: from a model's name and a mesh to an engine that is ready
kept      schemes_of, rings_of: how a plan's weights and rings are kept, as the mesh allows it
embed     Embedder: texts to vectors over an encoder's programs
encoder   encoder_plan_of, load_encoder: as build, for an encoder
memory    as_mesh_error: what a device says when it fails
calls     Calls, answer_all, stream: whole answers in order, to a list or an iterator of prompts
llm       LLM: all of it in three lines of Python

Ignorant of HTTP, of files and of how text is split into tokens; all up to `metrics` know no jax and
reach the accelerator through `Runner` alone. All public names are imported from their modules.
"""
