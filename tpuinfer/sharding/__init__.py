"""Logical axes to mesh axes.

A weight, an activation or a ring names its dimensions with logical axes (batch, embed, heads, ...);
one table, `ShardingRules`, says which mesh axis each of them lies on, and `Layout` is that table
resolved for one model on one mesh. Nothing outside this room names a mesh axis, and every sum over
the model axis goes through `reduce_model`.

Rooms: `mesh` (parse, build), `rules` (the table, and which cannot be), `presets` (tables by name,
from files), `layout` (a table resolved), `reduce` (sums), `report` (where things lie), `moves`
(what travels between two layouts), `simulate`, `described` (devices that are not there),
`accelerators` (what a machine's files show).
It knows nothing of models, checkpoints or programs.
"""
