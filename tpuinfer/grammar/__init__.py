"""Text that must conform: JSON schemas, regular expressions, choices, grammars; as token masks.

Public names, by module:
  guide: `Guide`, what a request asks for, as plain data.
  compiler: `GrammarCompiler(tokens, vocab)`, and what it makes of a guide: a `Grammar`, whose
    `matcher()` follows one answer and says which tokens may come next.
  matcher: `Grammar`, `Matcher`.
  tokens: `TokenSource`, what is needed of a tokenizer.
  schema: `read(text, param)`, a JSON schema that is enforced as a whole; `ENFORCED`, `FORMATS`.
  lark: grammars in Lark's syntax, checked.

Ignorant of: jax, engines, requests, HTTP, and the formats in which models write tool calls.
"""
