"""The OpenAI-compatible HTTP server: bodies in, engine requests out, answers as JSON or SSE.

Public names, by module:
  bridge: `Bridge`, the one thread that touches the engine, and `Answers`, what a handler reads.
  app: `create_app(bridge, info, options)`. info: `ServerInfo`, the names it serves.
  listen: `bind(host, port)`, before a model is loaded, and `serve(app, socket)`.
  chat_body, completion_body, token_bodies: what may come in, of strict `fields`; replies: what goes
    out. capabilities: the same, for machines.
  intake: bodies into a `job`, with prompts (tokens), guides (grammars) and speech (tools).
  answers, tokens, models: their routes. whole, stream, chunks: answers in one piece or in many.
  failures: every error in OpenAI's shape. exporter: /metrics.

Ignorant of: jax, devices, meshes, checkpoints, how an engine schedules, and how text becomes
tokens; it calls an engine and a tokenizer and knows them by their methods only.
"""
