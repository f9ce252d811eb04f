"""Logical axes to mesh axes.

A weight, an activation or a ring names its dimensions with logical axes (batch, embed, heads, ...);
one table, `ShardingRules`, says which mesh axis each of them lies on, and `Layout` is that table
resolved for one model on one mesh. Nothing outside this room names a mesh axis, and every sum over
the model axis goes through `reduce_model`.

Rooms: `mesh` (parse, simulate, build), `rules` (table and layout), `reduce` (sums), `report`,
`accelerators` (what a machine's files show).
It knows nothing of models, checkpoints or programs.
"""
