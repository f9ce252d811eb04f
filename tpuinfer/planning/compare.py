"""Every legal mesh of a slice, or of several, side by side."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from tpuinfer.errors import OutOfMemoryError, TpuinferError
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import Answer, answer
from tpuinfer.planning.question import Question
from tpuinfer.planning.roofline import per_million
from tpuinfer.planning.topology import Topology
from tpuinfer.sharding.mesh import MeshShape


@dataclass(frozen=True)
class Row:
    """A mesh of a slice: an answer, or why there is none."""

    topology: Topology
    mesh: MeshShape
    answer: Answer | None
    why: str = ""

    @property
    def fits(self) -> bool:
        return self.answer is not None and self.answer.fits


def compare(
    question: Question, topologies: Sequence[Topology], price: float | None = None
) -> list[Row]:
    """Rows for every mesh of these slices, the best first.

    What fits comes before what does not, and fast before slow: by what a million tokens cost if
    there is a `price` of a chip-hour, else by tokens a second of a chip.
    """
    rows = []
    for topology in topologies:
        for mesh in slices.meshes(topology, question.mesh_axes):
            asked = dataclasses.replace(question, topology=topology, mesh=mesh)
            try:
                rows.append(Row(topology, mesh, answer(asked)))
            except OutOfMemoryError as error:
                rows.append(Row(topology, mesh, None, str(error).partition(";")[0]))
            except TpuinferError as error:
                rows.append(Row(topology, mesh, None, str(error)))

    def rank(row: Row) -> tuple[bool, float]:
        if row.answer is None:
            return True, float("inf")
        chips = row.topology.chips
        return not row.fits, per_million(row.answer.tokens_per_second, chips, price or 1.0)

    return sorted(rows, key=rank)
