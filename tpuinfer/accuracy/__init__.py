"""What a change costs in accuracy: two models read the same text, and their words are compared.

Modules and public names:
  text      Text, built_in, from_file: what is read; Windows, cut: its tokens in pieces
  tally     Tally, Scores: losses and divergences, added up as the tokens come
  teacher   Teacher: a model that is told the right token each time
  compare   Variant, Question, evaluate: reference first, then the others
  report    Report, render: a table and JSON

The text that comes along is public domain: Jane Austen, Northanger Abbey (1817), chapters 1 to 4.

Ignorant of flags, of HTTP, and of what a variant changes: weights, rings, dtypes, meshes and
checkpoints are all compared the same way. All public names are imported from their modules.
"""
