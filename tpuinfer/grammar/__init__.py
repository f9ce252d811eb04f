"""Text that must conform: JSON schemas, regular expressions, choices, grammars; as token masks.

Public names, by module:
  guide: `Guide`, what a request asks for, as plain data.
  compiler: `GrammarCompiler(tokens, vocab)`, and what it makes of a guide: a `Grammar`, whose
    `matcher()` follows one answer and says which tokens may come next.

Ignorant of: jax, engines, requests, HTTP, and the formats in which models write tool calls.
"""
