"""Files -> params on the mesh: every way a model's bytes come in, and the one format they rest in.

Modules and public names:
  load        resolve, load_params, read_config: what the engine and the front doors call
  convert     convert: a GGUF file -> a checkpoint directory
  layout      verify, read_manifest, Manifest: what a checkpoint directory holds
  catalogue   find, entries, Entry: models known by name
  fetch       fetch: a catalogue entry -> its GGUF file in the cache
  gguf        open_gguf, GgufFile, GgufTensor: GGUF headers and dequantised tensors
  names       describe, plan, read_param, hf_config: GGUF names, shapes and keys -> ours
  orbax_store save, load, metadata: the one module that calls Orbax
  staging     exclusive, staged, publish: a path holds the whole thing or nothing
  paths       locate: local paths and object storage
  progress    Progress, silent: how long work reports itself

A checkpoint is a flat dict of arrays under Hugging Face's names without the leading "model.":
embed_tokens.weight [V, D], layers.{i}.self_attn.q_proj.weight [N, H, D], k_proj and v_proj
[K, H, D], o_proj [D, N, H], layers.{i}.mlp.gate_proj.weight and up_proj [F, D], down_proj [D, F],
the norms [D], and lm_head.weight [V, D] unless it is tied to the embedding.

Every failure is a CheckpointError of one line. Ignorant of blueprints, mesh axes and rules (the
caller brings ShapeDtypeStructs with shardings), of tokenization, and of who draws the progress.
No pickle is read and no code is imported from what is fetched.
"""
