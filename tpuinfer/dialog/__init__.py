"""What the text of a chat model means: answer, reasoning, tool calls; one format per family.

Public names, by module:
  formats: `Format` and `find_format(...)`, how one model writes tool calls and reasoning.
  reader: `Reader`, which splits a stream of text into `Pieces`.
  tools: `Tool`, `ToolChoice`, and the guide that makes an answer call tools.

Ignorant of: HTTP, engines, tokens (it reads text), and how a guide is enforced.
"""
