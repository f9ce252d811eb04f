"""The OpenAI-compatible HTTP server: bodies in, engine requests out, answers as JSON or SSE.

Public names, by module:
  bridge: `Bridge`, the one thread that touches the engine, and `Answers`, what a handler reads.
  app: `create_app(bridge, info)` and `ServerInfo`.
  listen: `bind(host, port)`, before a model is loaded, and `serve(app, socket)`.
  protocol, replies: the bodies that come in and go out. intake: the first into engine requests.
  stream: server-sent events. failures: every error in OpenAI's shape. exporter: /metrics.

Ignorant of: jax, devices, meshes, checkpoints, how an engine schedules, and how text becomes
tokens; it calls an engine and a tokenizer and knows them by their methods only.
"""
