"""Files -> params on the mesh: every way a model's bytes come in, and the one format they rest in.

Modules and public names:
  load        resolve, find, load_params, read_config: what the engine and the front doors call
  convert     convert: a model of any kind -> a checkpoint directory
  export      export: a model of any kind -> a Hugging Face directory
  sources     open_source, Source, Param: a GGUF file or a directory as it can be converted
  assemble    check, read_param, read_tensor: published tensors <-> parameters, by a family's Parts
  published   logical, check_method: FP8 and MXFP4 tensors as plain values
  safetensors open_directory, open_file, StoredTensor: headers, and tensors read piece by piece
  wrapped     around, unwrap: a family's model out of a checkpoint that holds more
  tied        without_head: an output head that the embedding is tied to
  hub         download, is_name: org/name on Hugging Face's hub -> a directory in the cache
  layout      verify, read_manifest, Manifest: what a checkpoint directory holds
  catalogue   find, entries, Entry: models known by name
  fetch       fetch: a catalogue entry -> its file or folder in the cache
  gguf        open_gguf, GgufFile: headers of GGUF files
  gguf_config describe: metadata of a GGUF file -> config.json (gguf_keys, gguf_rope)
  gguf_names  as_written: names of tensors in old GGUF files
  gguf_split  open_model, files_of: GGUF models in several files
  gguf_tensor GgufTensor: a tensor of a GGUF file, dequantised piece by piece
  repeat      published, repeat: parameters of which each head is kept several times
  orbax_store save, load, metadata, HostReader: the one module that calls Orbax
  staging     staged, publish, sha256_of: a path holds the whole thing or nothing
  pooling     read_pooling: how an encoder makes one vector of a text
  paths       locate: local paths and object storage
  progress    Progress, silent: how long work reports itself

A checkpoint is a flat dict of arrays under Hugging Face's names without the leading "model.":
embed_tokens.weight [V, D], layers.{i}.self_attn.q_proj.weight [N, H, D], k_proj and v_proj
[K, H, D], o_proj [D, N, H], layers.{i}.mlp.gate_proj.weight and up_proj [F, D], down_proj [D, F],
the norms [D], and lm_head.weight [V, D] unless it is tied to the embedding.

Every failure is a CheckpointError of one line (a ConfigError where a config asks for what is not
built). Names and shapes come from the registry of families; ignorant of what the layers compute, of
mesh axes and rules (the caller brings ShapeDtypeStructs with shardings), of tokenization, and of
who draws the progress. No pickle is read and no code is imported from what is fetched.
"""
