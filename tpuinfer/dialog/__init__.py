"""What the text of a chat model means: answer, reasoning, tool calls; one format per family.

Public names, by module:
  formats: `Format` and `find_format(...)`, how one model writes tool calls and reasoning.
  reader: `Reader`, which splits a stream of text into the pieces of `pieces`; blocks, pythonic and
    harmony read the ways of writing calls, json_text and marks what these consist of.
  tools: `Tool`, `ToolCall`, `ToolChoice`.
  guides: `guide_of(...)`, the grammar that makes an answer call tools.
  turns: `turns(...)`, earlier calls and results as chat templates expect them.

Ignorant of: HTTP, engines, tokens (it reads text), and how a guide is enforced.
"""
