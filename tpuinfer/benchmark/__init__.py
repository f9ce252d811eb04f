"""How fast it is, each figure beside what this machine could do at best.

bounds    ModelCost, Machine, Cost: bytes and FLOPs of a step, and the seconds they take at least
limits    measure: this machine's memory bandwidth and matmul rate
weights   random_params: parameters made on the devices, for a model that nobody downloads
workload  mixed: a reproducible mix of requests; Blank, a vocabulary for runs without a tokenizer
rounds    alternate: rounds of ours and theirs in turn; medians, spread and ratios
steps     decode_round, prefill_round: a runner's steps, timed
offline   serve: a list of requests through an engine, end to end
host      EchoRunner, host_round: the engine's own time, with the device's work faked
peers     Peer, parse, make: which others do the same work
peer_transformers   the same work by transformers on the same weights
peer_llama_cpp      the same work by llama.cpp on a GGUF file
requantised         file_of: the model's GGUF file in another of llama.cpp's types
report    Row, Report: a table and JSON
subject   prepare: weights, programs and limits, ready to be measured; vocabulary
schemes   parse, decode: several schemes of one model in turn
modes     decode, prefill, host, batch: what `python -m tpuinfer.bench` runs

Ignorant of flags and of HTTP. Only the peers know torch and llama_cpp, and only once asked for.
All public names are imported from their modules.
"""
