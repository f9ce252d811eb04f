"""Text in and out: vocabularies, chat templates, and decoding one token at a time.

Public names:
  load.load_tokenizer: a checkpoint directory -> `tokenizer.Tokenizer`.
  load.FILES: every file that `load_tokenizer` may read beside config.json.
  tokenizer.Tokenizer: encode, decode, chat templates, end tokens.
  detokenize.Detokenizer: token ids -> whole characters, as they come.
  detokenize.StopChecker: finds stop strings in a stream and holds back what may begin one.
  template.ChatTemplate: a jinja2 template in a sandbox with bounds (sandbox.Sandbox);
    template_files: which one a checkpoint uses.
  control.ControlText: keeps what users write apart from the template's control tokens.
  gguf_vocab.tokenizer_files: GGUF metadata -> the files `load_tokenizer` reads.
  vocabulary.Vocabulary, vocabulary.TokenTable: what the backends answer to: tokenizer_json (with
    literal_twin, and wordpiece for vocab.txt), sentencepiece_model, no_vocabulary.

Ignorant of models, requests, HTTP and jax. Reads one local directory and nothing else: no
network, and no code from a checkpoint is ever run (templates run in a sandbox).
"""
