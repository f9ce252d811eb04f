"""Text in and out: vocabularies, chat templates, and decoding one token at a time.

Public names:
  load.load_tokenizer: a checkpoint directory -> `tokenizer.Tokenizer`.
  tokenizer.Tokenizer: encode, decode, chat templates, end tokens.
  detokenize.Detokenizer: token ids -> whole characters, as they come.
  detokenize.StopChecker: finds stop strings in a stream and holds back what may begin one.
  template.ChatTemplate: a sandboxed jinja2 template.
  gguf_vocab.tokenizer_files: GGUF metadata -> the files `load_tokenizer` reads.
  vocabulary.Vocabulary, vocabulary.TokenTable: what the two backends (tokenizer_json and
    sentencepiece_model) answer to.

Ignorant of models, requests, HTTP and jax. Reads one local directory and nothing else: no
network, and no code from a checkpoint is ever run (templates run in a sandbox).
"""
