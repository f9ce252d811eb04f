"""Sharding as an experiment: a grid of meshes and rules, planned or run, one record a cell.

    from tpuinfer import experiment

    cells = experiment.grid("smollm2-135m-instruct", meshes=["8", "2x4"], rules=["1d", "fsdp"])
    records = experiment.sweep(cells, out="sweep.jsonl", note=print)
    experiment.table(records)
    experiment.plot(records, "sweep.png")

Modules and public names:
  cell       Cell, grid: what is tried, and the key that it is known by
  record     Record: what became of a cell, as a line of JSON
  journal    Journal: the file of records, which a kill cannot tear
  source     where weights come from; the plan of a cell that runs here
  described  a cell on a slice that is not here; running: one on the devices that are
  timing     how long a step and a chunk take
  probe      Difference, difference: the logits of a cell beside those of another
  sweeping   sweep: all cells, one after the other
  as_table, plots    table, plot: records for people
  reporting  report, explain, diff: where a table of rules puts a model
and of other rooms PRESETS and load_rules (tables by name, and from files), and best_mesh.

Ignorant of flags, tokenizers, requests and servers.
"""

from tpuinfer.experiment.as_table import table
from tpuinfer.experiment.cell import Cell, grid
from tpuinfer.experiment.journal import load
from tpuinfer.experiment.plots import plot
from tpuinfer.experiment.probe import difference
from tpuinfer.experiment.record import Record
from tpuinfer.experiment.reporting import diff, explain, report
from tpuinfer.experiment.sweeping import sweep
from tpuinfer.planning.best import best_mesh
from tpuinfer.sharding.presets import PRESETS, load_rules

__all__ = [
    "PRESETS",
    "Cell",
    "Record",
    "best_mesh",
    "diff",
    "difference",
    "explain",
    "grid",
    "load",
    "load_rules",
    "plot",
    "report",
    "sweep",
    "table",
]
